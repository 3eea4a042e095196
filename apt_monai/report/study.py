"""A study's report: acquired and synthetic contrasts side by side, findings, and where the images come from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from apt_monai.contrasts import ContrastSet, get_contrast_set
from apt_monai.data.writers import synthetic_volumes
from apt_monai.errors import StudyError
from apt_monai.files import write_text
from apt_monai.io.sidecar import SYNTHETIC, is_synthetic_name, prior_path, uncertainty_path
from apt_monai.quality.findings import SEVERITIES
from apt_monai.report.page import WARNING, json_block, page, picture, table, template
from apt_monai.report.scrub import scrubbed
from apt_monai.report.volumes import Grid, encode_uncertainty, encode_volume, on_grid, read_ras

CAUTION = "They show what a model expects, not what a scanner saw: they can miss a lesion or invent one."
PHANTOM = "phantom"
"""What the model's description of its training data says where those were no patients."""


@dataclass(frozen=True)
class _Shown:
    """A volume of the report."""

    name: str
    label: str
    kind: str
    path: str | Path
    sidecar: Mapping[str, Any] | None = None  # of a synthetic one

    @property
    def synthetic(self) -> bool:
        return self.sidecar is not None


def report_path(out: str | Path, subject: str) -> Path:
    """Where a study's report is written.

    Example::

        >>> report_path("out", "BraTS2021_00000").as_posix()
        'out/BraTS2021_00000/BraTS2021_00000_report_SYNTHETIC.html'
    """
    return Path(out) / subject / f"{subject}_report_{SYNTHETIC}.html"


def write_report(
    study: Mapping[str, str | Path],
    out: str | Path,
    contrasts: str | ContrastSet,
    path: str | Path | None = None,
    pictures: Mapping[str, str | Path] | None = None,
) -> Path:
    """Write the report of a study whose absent contrasts have been synthesised: one HTML file, complete in itself.

    Acquired and synthetic contrasts in three planes with one cursor, one over the other, the uncertainty as a colour on
    top, the prior in the volume's place where there is one, the findings of quality control, where the synthetic images
    come from, and a banner that says what they are.
    It opens in a browser from a file, without a network. Of paths and patients it says the study's name alone.

    The images in it are for looking, not for measuring: they are cropped to the brain with a margin, in 1,024 steps of
    intensity, and what is not on the synthetic volumes' grid is resampled onto it. The volumes beside it are exact.

    Args:
        study: by contrast, what was acquired: a NIfTI file or a DICOM series; and ``"subject"`` (``"study"`` without
            it). What else it has is not looked at.
        out: the folder that the volumes were written to: ``<out>/<subject>/<subject>_<contrast>_SYNTHETIC.nii.gz``.
        contrasts: the contrast set, or its name.
        path: the report; None: where :func:`report_path` says. ``SYNTHETIC`` must be in its name.
        pictures: PNG files by their titles, such as a registration's, shown below the images.

    Returns:
        The report.

    Raises:
        StudyError: no synthetic volume of the study is in ``out``, its sidecar cannot be used, or an acquired volume
            cannot be read.
        ValueError: the report's name does not say that it is of synthetic images.
        OSError: a picture cannot be read, or the report cannot be written.

    Example::

        >>> import nibabel as nib, numpy as np
        >>> from apt_monai.data.writers import synthetic_path
        >>> from apt_monai.files import write_text
        >>> from apt_monai.io.sidecar import sidecar_path
        >>> image = nib.Nifti1Image(np.ones((6, 7, 8), np.float32), np.eye(4))
        >>> nib.save(image, "a_t1.nii.gz")
        >>> synthetic = synthetic_path("out", "a", "t2")
        >>> write_text(sidecar_path(synthetic), '{"sources": {"t1": {}}, "intensity_scale": {"contrast": "t1"}}')
        >>> nib.save(image, synthetic)
        >>> write_report({"subject": "a", "t1": "a_t1.nii.gz"}, "out", "adni").name
        'a_report_SYNTHETIC.html'
    """
    chosen = get_contrast_set(contrasts)
    subject = str(study.get("subject", "study"))
    path = report_path(out, subject) if path is None else Path(path)
    if not is_synthetic_name(path):
        raise ValueError(f"{path}: holds synthesised images, so its name must say {SYNTHETIC}")
    shown = _shown(study, subject, out, chosen)
    grid = Grid.around(*read_ras(next(volume.path for volume in shown if volume.synthetic)))
    data, resampled = _viewer_data(shown, grid)
    sidecars = {volume.label: scrubbed(volume.sidecar, study) for volume in shown if volume.sidecar is not None}
    body = template("study.html").substitute(
        subject=escape(subject),
        acquired=escape(", ".join(volume.label for volume in shown if not volume.synthetic)),
        synthesised=escape(", ".join(sidecars)),
        findings=_findings(list(sidecars.values())),
        display=escape(_display(resampled)),
        pictures="".join(f"<h2>{escape(title)}</h2>{picture(file, title)}" for title, file in (pictures or {}).items()),
        provenance=_provenance(sidecars, dict(zip(chosen.names, chosen.labels, strict=True))),
    )
    banner = "SYNTHETIC IMAGES INSIDE"
    notice = f"Not acquired; {WARNING} {CAUTION}"
    write_text(path, page(f"{subject}: report, {SYNTHETIC}", banner, notice, body, data))
    return path


def _shown(study: Mapping[str, str | Path], subject: str, out: str | Path, contrasts: ContrastSet) -> list[_Shown]:
    """The acquired volumes, then the synthetic ones, in contrast order."""
    made = synthetic_volumes(subject, out, contrasts)
    if not made:
        raise StudyError(
            f"{Path(out) / subject}: has no synthetic volume of study {subject!r} with its sidecar; synthesise first"
        )
    used = {name for _, sidecar in made.values() for name in sidecar["sources"]}
    labels = dict(zip(contrasts.names, contrasts.labels, strict=True))
    acquired = [
        _Shown(name, label, "acquired" if name in used else "acquired, not used", study[name])
        for name, label in labels.items()
        if name in study
    ]
    return acquired + [_Shown(name, labels[name], SYNTHETIC, path, sidecar) for name, (path, sidecar) in made.items()]


def _viewer_data(shown: Sequence[_Shown], grid: Grid) -> tuple[dict[str, str], list[str]]:
    """What the viewer reads, by the ids of its blocks, and the labels of what was resampled."""
    data: dict[str, str] = {}
    volumes: list[dict[str, Any]] = []
    resampled = []
    for number, volume in enumerate(shown):
        intensities, moved = on_grid(volume.path, grid)
        if moved:
            resampled.append(volume.label)
        values, data[f"volume-{number}"] = encode_volume(intensities, grid.brain)
        entry = {
            "key": volume.name,
            "label": volume.label,
            "kind": volume.kind,
            "synthetic": volume.synthetic,
            **values,
        }
        if volume.sidecar is not None:
            entry["neighbour"] = volume.sidecar["intensity_scale"]["contrast"]
            if uncertainty_path(volume.path).is_file():
                width, _ = on_grid(uncertainty_path(volume.path), grid)
                entry["uncertainty"], data[f"uncertainty-{number}"] = encode_uncertainty(width)
            if prior_path(volume.path).is_file():
                start, _ = on_grid(prior_path(volume.path), grid)
                entry["prior"], data[f"prior-{number}"] = encode_volume(start, grid.brain)
        volumes.append(entry)
    data["study"] = json_block({**grid.description(), "volumes": volumes})
    return data, resampled


def _display(resampled: Sequence[str]) -> str:
    moved = f" {', '.join(resampled)}: resampled onto the grid of the synthetic images." if resampled else ""
    return (
        "The patient's right is on the left of axial and coronal images; planes are those of the voxels. Display only: "
        "cropped to the brain, windowed to 1,024 steps of intensity, each contrast in a range of its own (the "
        f"synthetic ones have no scale of their own).{moved} Measure in the NIfTI files, which are exact. The "
        "uncertainty is half the width of the interval that covers 90 % of a brain's voxels, as measured on the "
        "subjects that the model was calibrated on; on images unlike those it covers less."
    )


def _findings(sidecars: Sequence[Mapping[str, Any]]) -> str:
    """The findings of all synthetic volumes, each once, the worst first; and what the model has never seen."""
    checked = [sidecar["findings"] for sidecar in sidecars if "findings" in sidecar]
    unique = {json.dumps(finding, sort_keys=True): finding for findings in checked for finding in findings}
    found = sorted(unique.values(), key=lambda finding: _severity(finding)[0])
    trained = sorted({str(sidecar["trained_on"]) for sidecar in sidecars if "trained_on" in sidecar})
    lines = [_trained_on(trained)] if trained else []
    for finding in found:
        what = " · ".join(str(finding[key]) for key in ("check", "file") if finding.get(key))
        text = " ".join(escape(str(finding[key])) for key in ("found", "advice") if finding.get(key))
        lines.append(
            f"<li class='{_severity(finding)[1]}'><span class='severity'>{escape(str(finding.get('severity', 'note')))}"
            f"</span> <strong>{escape(what)}</strong> {text}</li>"
        )
    if not checked:
        lines.append("<li>The input was not checked by quality control.</li>")
    elif not found:
        lines.append("<li>Quality control of the input found nothing.</li>")
    return f"<h2 id='findings'>Findings</h2><ul class='findings'>{''.join(lines)}</ul>"


def _trained_on(trained: Sequence[str]) -> str:
    phantoms = any(PHANTOM in text for text in trained)
    kind, more = ("warning", "; it has never seen a patient") if phantoms else ("note", "")
    return (
        f"<li class='{kind}'><span class='severity'>model</span> Trained on: {escape(', '.join(trained))}{more}.</li>"
    )


def _severity(finding: Mapping[str, Any]) -> tuple[int, str]:
    """Its place in the order, and its class."""
    severity = str(finding.get("severity", "")).lower()
    return (SEVERITIES.index(severity), severity) if severity in SEVERITIES else (len(SEVERITIES), "note")


def _provenance(sidecars: Mapping[str, Mapping[str, Any]], labels: Mapping[str, str]) -> str:
    """A column for each synthetic volume: the fields that people ask for; below, all there is."""

    def weights(sidecar: Mapping[str, Any]) -> str:
        return str(sidecar.get("model_sha256", "unknown"))[:12]

    def computed(sidecar: Mapping[str, Any]) -> str:
        on = sidecar.get("computed_on", {})
        return ", ".join(str(on[key]) for key in ("device", "precision") if key in on)

    def sources(sidecar: Mapping[str, Any]) -> str:
        return ", ".join(labels.get(name, name) for name in sidecar["sources"])

    def scale(sidecar: Mapping[str, Any]) -> str:
        name = sidecar["intensity_scale"]["contrast"]
        return f"arbitrary units, after the acquired {labels.get(name, name)}"

    fields = {
        "synthesised from": sources,
        "intensities": scale,
        "method": lambda sidecar: str(sidecar.get("method", "unknown")),
        "model trained on": lambda sidecar: str(sidecar.get("trained_on", "unknown")),
        "weights (SHA-256)": weights,
        "seed": lambda sidecar: str(sidecar.get("seed", "unknown")),
        "computed on": computed,
        "apt_monai": lambda sidecar: str(sidecar.get("apt_monai_version", "unknown")),
    }
    rows = [(what, *(field(sidecar) for sidecar in sidecars.values())) for what, field in fields.items()]
    short = table(rows, ("", *(f"{label} {SYNTHETIC}" for label in sidecars)))
    whole = escape(json.dumps(sidecars, indent=1, ensure_ascii=False))
    return f"{short}<details><summary>All that the sidecars say</summary><pre>{whole}</pre></details>"
