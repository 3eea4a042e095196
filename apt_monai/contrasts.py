"""The contrast sets: which contrasts a dataset has, in which order, and how their files are called.

Nothing else in the package knows a contrast by its position: every tensor that has a contrast axis is ordered as
:attr:`ContrastSet.names`, and every other module asks the set. A set is a value: ``brats`` and ``adni`` are two, and a
team with other contrasts writes its own into a file, from where it goes into each model's folder::

    name: stroke
    contrasts:
      t1: {label: T1, suffixes: [t1, t1n], bids: T1w}
      t2: {label: T2, suffixes: [t2, t2w], bids: T2w}
      flair: {label: FLAIR, suffixes: [flair], bids: FLAIR}
    segmentation_suffixes: [seg]

Example::

    >>> BRATS.names
    ('flair', 't1', 't1ce', 't2')
    >>> BRATS.mask(["t1", "t2"])
    (False, True, False, True)
    >>> len(ADNI.subsets())
    6
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, fields
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class Contrast:
    """One MR contrast.

    Args:
        name: the key under which dictionaries and file names carry it, such as ``"t1ce"``.
        label: the name that people read, such as ``"T1Gd"``.
        suffixes: the file-name suffixes (before ``.nii`` or ``.nii.gz``) that mean it.
        bids: its suffix in BIDS, after ``ce_`` where BIDS names the contrast agent (``sub-01_ce-gadolinium_T1w``).
    """

    name: str
    label: str
    suffixes: tuple[str, ...]
    bids: str

    @property
    def t1_weighted(self) -> bool:
        """Whether it is T1-weighted, with or without a contrast agent, by its suffix in BIDS."""
        return self.weighting == "T1w"

    @property
    def enhanced(self) -> bool:
        """Whether it is taken with a contrast agent, by its suffix in BIDS."""
        return self.bids.startswith("ce")

    @property
    def weighting(self) -> str:
        """Its suffix in BIDS without a contrast agent: ``"T1w"``, ``"T2w"``, ``"PDw"``, ``"FLAIR"`` or another."""
        return self.bids.rpartition("_")[2]

    @property
    def with_agent(self) -> bool:
        """Whether it was acquired with a contrast agent, by ``ce`` in its suffix in BIDS."""
        return self.bids.startswith("ce_")


@dataclass(frozen=True)
class ContrastSet:
    """The contrasts of one dataset, in the order of every contrast axis.

    Args:
        name: the dataset's name, such as ``"brats"``.
        contrasts: the contrasts, in order.
        segmentation_suffixes: the file-name suffixes that mean a segmentation; empty where the dataset has none.
        references: every contrast, the best reference of a registration first; empty: in the order of the contrasts.
        echoes: the contrasts that are echoes of one scan: on one voxel grid they show the head in one pose.
        grid: the grid onto which raw scans are preprocessed: the contrasts on whose own grid the volumes come, the
            first that a study has, or the edge of isotropic voxels in mm, in the pose of the reference.
        mask_sources: every contrast, the one that shows the brain best first; empty: in the order of the contrasts.
        template: in whose pose the volumes come, where the grid is isotropic voxels: ``"mni152"``, or the path of a
            skull-stripped head; None: in the pose of the reference.

    Raises:
        ValueError: a role names a contrast that the set does not have, or lacks one.
    """

    name: str
    contrasts: tuple[Contrast, ...]
    segmentation_suffixes: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    echoes: tuple[tuple[str, ...], ...] = ()
    grid: tuple[str, ...] | float = 1.0
    mask_sources: tuple[str, ...] = ()
    template: str | None = None

    def __post_init__(self) -> None:
        if len(self.contrasts) < 2 or len(set(self.names)) < len(self.names):
            found = ", ".join(self.names) or "none"
            raise ValueError(f"the contrast set {self.name} has {found}: name two contrasts or more, each once")
        if {"subject", "seg", "mask"} & set(self.names):
            raise ValueError(f"the contrast set {self.name}: subject, seg and mask mean something else in a study")
        for role, names in (("references", self.references), ("mask_sources", self.mask_sources)):
            if names and sorted(names) != sorted(self.names):
                raise ValueError(
                    f"{role} of the contrast set {self.name} are {', '.join(names)}: "
                    f"name each of {', '.join(self.names)} once, the best first, or none"
                )
        for names in (*self.echoes, () if isinstance(self.grid, (int, float)) else self.grid):
            self.check(names)

    def __len__(self) -> int:
        return len(self.contrasts)

    @property
    def names(self) -> tuple[str, ...]:
        """The contrasts' names, in the order of every contrast axis."""
        return tuple(c.name for c in self.contrasts)

    @property
    def labels(self) -> tuple[str, ...]:
        """The names that people read, in the same order."""
        return tuple(c.label for c in self.contrasts)

    @property
    def agent_pairs(self) -> tuple[tuple[str, str], ...]:
        """Every two contrasts of one weighting, the first without and the second with a contrast agent.

        Example::

            >>> BRATS.agent_pairs, ADNI.agent_pairs
            ((('t1', 't1ce'),), ())
        """
        return tuple(
            (one.name, other.name)
            for one, other in permutations(self.contrasts, 2)
            if one.weighting == other.weighting and other.with_agent and not one.with_agent
        )

    def index(self, name: str) -> int:
        """The position of a contrast on the contrast axis.

        Raises:
            ValueError: the set has no contrast of that name.
        """
        self.check([name])
        return self.names.index(name)

    def check(self, names: Iterable[str]) -> None:
        """Raise ``ValueError`` for the first name that is not a contrast of this set."""
        for name in names:
            if name not in self.names:
                raise ValueError(
                    f"unknown contrast {name!r}: the {self.name} contrasts are {', '.join(self.names)}; "
                    "use one of these names"
                )

    def mask(self, names: Iterable[str]) -> tuple[bool, ...]:
        """The availability mask m of the named contrasts: True where acquired."""
        chosen = tuple(names)
        self.check(chosen)
        return tuple(name in chosen for name in self.names)

    def intensity_source(self, target: str, acquired: Collection[str]) -> str:
        """The acquired contrast on whose intensity scale a synthetic volume is written.

        A contrast that was not acquired has no scale of its own. It takes that of the first contrast of the set that
        is T1-weighted as it is, or not T1-weighted as it is; without such a one, of the first.

        Raises:
            ValueError: an unknown contrast, or none but the target was acquired.

        Example::

            >>> BRATS.intensity_source("t1ce", ["flair", "t1"]), BRATS.intensity_source("t2", ["t1", "t1ce"])
            ('t1', 't1')
        """
        self.check([target, *acquired])
        others = [contrast for contrast in self.contrasts if contrast.name in acquired and contrast.name != target]
        if not others:
            raise ValueError(f"{target} has no intensity scale of its own, and no other contrast was acquired")
        weighting = self.contrasts[self.index(target)].t1_weighted
        return next((c.name for c in others if c.t1_weighted == weighting), others[0].name)

    def to_dict(self) -> dict[str, Any]:
        """The set as JSON and YAML can hold it; :func:`get_contrast_set` reads it.

        Example::

            >>> get_contrast_set(BRATS.to_dict()) == BRATS
            True
        """
        roles = {field.name: _plain(getattr(self, field.name)) for field in fields(self)[2:]}
        contrasts = {c.name: {"label": c.label, "suffixes": list(c.suffixes), "bids": c.bids} for c in self.contrasts}
        return {"name": self.name, "contrasts": contrasts, **roles}

    def subsets(self) -> list[tuple[str, ...]]:
        """Every choice of acquired contrasts that leaves something to synthesise, the largest first.

        14 for BraTS, 6 for ADNI.
        """
        sizes = range(len(self) - 1, 0, -1)
        return [names for size in sizes for names in combinations(self.names, size)]


BRATS = ContrastSet(
    "brats",
    (
        Contrast("flair", "FLAIR", ("flair", "t2f"), "FLAIR"),
        Contrast("t1", "T1", ("t1", "t1n"), "T1w"),
        Contrast("t1ce", "T1Gd", ("t1ce", "t1c"), "ce_T1w"),
        Contrast("t2", "T2", ("t2", "t2w"), "T2w"),
    ),
    segmentation_suffixes=("seg",),
    references=("t1ce", "t1", "flair", "t2"),
    mask_sources=("t1", "t1ce", "t2", "flair"),
    template="mni152",
)
ADNI = ContrastSet(
    "adni",
    (
        Contrast("t1", "T1", ("t1",), "T1w"),
        Contrast("t2", "T2", ("t2",), "T2w"),
        Contrast("pd", "PD", ("pd",), "PDw"),
    ),
    references=("t1", "t2", "pd"),
    echoes=(("t2", "pd"),),
    # Two of the three contrasts then keep their acquired voxels, and only T1 is resampled, from finer to coarser (with
    # the slice thickness averaged); a finer grid would invent two of three slices of PD and T2. Its slices are axial.
    grid=("pd", "t2", "t1"),
    mask_sources=("t1", "t2", "pd"),
)
CONTRAST_SETS = {s.name: s for s in (BRATS, ADNI)}


def get_contrast_set(contrasts: ContrastSet | Mapping[str, Any] | str | Path) -> ContrastSet:
    """A contrast set, however a config names it.

    Args:
        contrasts: the set itself; the name of one of :data:`CONTRAST_SETS`; a YAML or JSON file with a set of one's
            own; or what such a file holds.

    Raises:
        ValueError: neither a known name nor such a file; or the file's content is no contrast set. The message names
            the file and the field.

    Example::

        >>> get_contrast_set("adni").names
        ('t1', 't2', 'pd')
        >>> text = "{name: two, contrasts: {t1: {bids: T1w}, t2: {bids: T2w, suffixes: [t2, t2w]}}}"
        >>> _ = Path("two.yaml").write_text(text)
        >>> get_contrast_set("two.yaml").contrasts[0]
        Contrast(name='t1', label='T1', suffixes=('t1',), bids='T1w')
    """
    if isinstance(contrasts, ContrastSet):
        return contrasts
    if isinstance(contrasts, Mapping):
        return _from_dict(contrasts, "contrasts")
    if str(contrasts) in CONTRAST_SETS:
        return CONTRAST_SETS[str(contrasts)]
    path = Path(contrasts)
    if not path.is_file():
        raise ValueError(
            f"unknown dataset {str(contrasts)!r}: valid are {', '.join(CONTRAST_SETS)}, or the YAML file of a contrast "
            "set of your own (apt_monai/contrasts.py shows one)"
        )
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: cannot be read as YAML ({' '.join(str(error).split())})") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: holds no contrast set, but {content!r:.50}; name and contrasts are needed")
    return _from_dict(content, str(path))


def _from_dict(content: Mapping[str, Any], where: str) -> ContrastSet:
    names = [field.name for field in fields(ContrastSet)]
    unknown = [str(key) for key in content if key not in names]
    described = content.get("contrasts")
    if unknown or not isinstance(content.get("name"), str) or not isinstance(described, Mapping):
        wrong = f"unknown {', '.join(unknown)}" if unknown else "a name and a mapping of contrasts are needed"
        raise ValueError(f"{where}: no contrast set: {wrong}; valid are {', '.join(names)}")
    try:
        contrasts = tuple(_contrast(str(name), **(fields_ or {})) for name, fields_ in described.items())
        roles = {key: _frozen(value) for key, value in content.items() if key not in ("name", "contrasts")}
        return ContrastSet(content["name"], contrasts, **roles)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error


def _contrast(name: str, bids: str, label: str | None = None, suffixes: Iterable[str] | None = None) -> Contrast:
    if isinstance(suffixes, str):
        raise ValueError(f"suffixes of {name} is {suffixes!r}: give a list, such as [{suffixes}]")
    return Contrast(name, label or name.upper(), tuple(suffixes or (name,)), bids)


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
