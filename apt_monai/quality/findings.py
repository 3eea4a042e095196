"""What quality control says of a study: one finding, and how findings reach a person."""

from __future__ import annotations

from dataclasses import asdict, dataclass

SEVERITIES = ("error", "warning")  # the worst first


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a study, or seems to be.

    Args:
        severity: ``"error"``: synthesis would be nonsense; ``"warning"``: a person should look.
        check: the name of what was looked at, such as ``"background"``.
        file: the contrast or the file's name, never a path; ``"study"`` where it is of all contrasts together.
        found: what was found, with the figure.
        advice: what to do.

    Raises:
        ValueError: an unknown severity.

    Example::

        >>> finding = Finding("warning", "spikes", "t1", "3 voxels are too bright", "look at it")
        >>> str(finding)
        't1: 3 voxels are too bright; look at it (spikes)'
        >>> sorted(finding.to_dict())
        ['advice', 'check', 'file', 'found', 'severity']
    """

    severity: str
    check: str
    file: str
    found: str
    advice: str

    def __post_init__(self) -> None:
        if self.severity not in SEVERITIES:
            raise ValueError(f"severity is {self.severity!r}: valid are {', '.join(SEVERITIES)}")

    def __str__(self) -> str:
        return f"{self.file}: {self.found}; {self.advice} ({self.check})"

    def to_dict(self) -> dict[str, str]:
        """As a sidecar holds it."""
        return asdict(self)
