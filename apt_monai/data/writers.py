"""Writers: the synthesised contrasts of a study become NIfTI files on the acquired grid, each with a JSON sidecar."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.transforms import Transform

from apt_monai.contrasts import ContrastSet
from apt_monai.errors import StudyError
from apt_monai.files import check_writable, complete_file, write_text
from apt_monai.geometry import set_space
from apt_monai.io.sidecar import NOTICE, SYNTHETIC, mark_synthetic, prior_path, sidecar_path, uncertainty_path
from apt_monai.io.source import source_sha256
from apt_monai.transforms import ScaleIntensityInBrain, StudyPreprocessing

logger = logging.getLogger(__name__)

OutputRange = Callable[[str, Mapping[str, tuple[float, float]]], tuple[str, tuple[float, float]]]

DTYPES = ("float32", "int16")
LAYERS = ("synthesised", "prior", "uncertainty")
"""What is synthesised of a study: the volumes, and what a method may give beside them."""

# The sidecar's own fields; every other one is provenance.
_SIDECAR_FIELDS = (
    "synthetic", "notice", "subject", "contrast", "label", "sources", "intensity_scale", "uncertainty", "dtype",
    "computed_on", "findings",
)  # fmt: skip
# What places a voxel in space, in NIfTI-1 and NIfTI-2 alike.
_GEOMETRY_FIELDS = (
    "pixdim", "xyzt_units", "qform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z",
    "sform_code", "srow_x", "srow_y", "srow_z",
)  # fmt: skip
_RANGE_TOLERANCE = 1e-3  # rounding beyond [-1, 1]


def synthetic_path(output_dir: str | Path, subject: str, contrast: str) -> Path:
    """Where the synthesised contrast of a study is written; its sidecar has the same name with ``.json``.

    Raises:
        StudyError: the subject is not a plain name.

    Example::

        >>> synthetic_path("out", "BraTS2021_00000", "t1ce").as_posix()
        'out/BraTS2021_00000/BraTS2021_00000_t1ce_SYNTHETIC.nii.gz'
    """
    if subject in ("", ".", "..") or Path(subject).name != subject:
        raise StudyError(f"subject {subject!r}: names a folder of the output, so it must be a plain name without '/'")
    return Path(output_dir) / subject / f"{subject}_{contrast}_{SYNTHETIC}.nii.gz"


def synthetic_volumes(
    subject: str, output_dir: str | Path, contrasts: ContrastSet
) -> dict[str, tuple[Path, dict[str, Any]]]:
    """A study's finished synthetic volumes, each with its sidecar, by contrast, in contrast order.

    Raises:
        StudyError: a sidecar is none.

    Example::

        >>> from apt_monai.contrasts import BRATS
        >>> synthetic_volumes("a", "nothing", BRATS)
        {}
    """
    paths = {name: synthetic_path(output_dir, subject, name) for name in contrasts.names}
    finished = {name: path for name, path in paths.items() if path.is_file() and sidecar_path(path).is_file()}
    return {name: (path, _read_sidecar(sidecar_path(path))) for name, path in finished.items()}


def _read_sidecar(path: Path) -> dict[str, Any]:
    try:
        sidecar = json.loads(path.read_text(encoding="utf-8"))
        _ = sidecar["sources"].keys(), sidecar["intensity_scale"]["contrast"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StudyError(f"{path}: is no sidecar of a synthetic volume ({error!r}); synthesise it anew") from error
    return dict(sidecar)


class SaveSyntheticStudyd(Transform):
    """Write the contrasts that a study lacked as NIfTI files on the acquired grid.

    Takes a loaded study (as :class:`StudyPreprocessing` returns it) with ``"synthesised"``: ``(C, H, W, Z)`` in
    [-1, 1] on the slices' grid; only the absent contrasts are used. With ``"uncertainty"``, of the same shape, the half
    width of the 90 % interval in the same units, it becomes a volume beside each: ``…_SYNTHETIC_uncertainty.nii.gz``.
    With ``"prior"``, as ``"synthesised"`` is, where each started from becomes one, too: ``…_SYNTHETIC_prior.nii.gz``.
    With ``"findings"``, the dictionaries of quality control, the sidecars hold them.

    For each absent contrast, writes ``<output_dir>/<subject>/<subject>_<contrast>_SYNTHETIC.nii.gz``: the shape,
    affine, sform, qform and units of the file whose intensity scale it takes (of a DICOM series the affine, in mm and
    as a scanner's space; the shape is columns, rows, slices), and a header whose description begins with
    ``SYNTHETIC apt_monai``. Beside it, with the same name and ``.json``, the sidecar: where the volume comes from
    (each source's SHA-256, the provenance). Of paths and patients it says the study's name alone.

    Intensities: a contrast that was not acquired has no scale of its own, and MR intensities are arbitrary. It takes
    that of an acquired contrast, as the method's :meth:`~apt_monai.methods.base.Method.output_range` says: -1 and 1
    become two raw intensities, linearly between; what would be below 0 becomes 0, as a magnitude never is, unless the
    range itself is around or below 0. Only the look within the volume means something. Outside the brain it is exactly
    0, and so is an uncertainty, which is in the volume's own units. With ``dtype="int16"`` the largest intensity is
    stored as 32767 (``scl_slope``, no ``scl_inter``), and a read voxel is at most ``max |intensity| / 65534`` off.

    The same input gives the same bytes. A file is complete or not there, and the sidecar is written last: a volume
    without one is not finished.

    Args:
        output_dir: the folder to write to; it is made where it does not exist.
        preprocessing: what the study was loaded with; it knows the way back to the acquired grid.
        provenance: what else the volumes depend on, as JSON can hold it (versions, hashes of weights, seed, settings);
            it becomes part of each sidecar.
        dtype: how voxels are stored, ``"float32"`` or ``"int16"``.
        computed_on: device and precision, for people to read in each sidecar; no part of what a volume is known by, so
            that a cohort may go on on another machine.
        targets: the absent contrasts to write; None: each of them.
        output_range: by a target and the acquired contrasts' ranges, whose scale it takes and what -1 and 1 become;
            None: the range of the contrast that :meth:`ContrastSet.intensity_source` names.

    Returns (when called):
        The study with ``"written"``: the path of each NIfTI file by contrast, in contrast order.

    Raises:
        ValueError: the dtype is unknown, the provenance is not JSON or has a field of the sidecar's; when called:
            ``"synthesised"`` has another shape or is not within [-1, 1].
        StudyError: the subject is not a plain name.
        OSError: a file cannot be written (full or read-only folder).

    Example::

        >>> header = nib.Nifti1Image(np.arange(120, dtype=np.int16).reshape(4, 5, 6), np.eye(4))
        >>> nib.save(header, "case_t1.nii.gz")
        >>> preprocessing = StudyPreprocessing("brats", size=8)
        >>> study = preprocessing({"subject": "case", "t1": "case_t1.nii.gz"})
        >>> study["synthesised"] = study["image"][[1, 1, 1, 1]]  # as if every contrast looked like T1
        >>> save = SaveSyntheticStudyd("out", preprocessing, {"seed": 0})
        >>> save(study)["written"]["flair"]
        'out/case/case_flair_SYNTHETIC.nii.gz'
    """

    def __init__(
        self,
        output_dir: str | Path,
        preprocessing: StudyPreprocessing,
        provenance: Mapping[str, Any],
        dtype: str = "float32",
        computed_on: Mapping[str, Any] | None = None,
        targets: Sequence[str] | None = None,
        output_range: OutputRange | None = None,
    ) -> None:
        self.output_range = output_range or self._range_of_source
        self.output_dir = Path(output_dir)
        self.preprocessing = preprocessing
        self.contrasts = preprocessing.contrasts
        self.provenance = _checked_provenance(provenance)
        self.dtype = _checked_dtype(dtype)
        self.computed_on = dict(computed_on or {})
        self.contrasts.check(targets or ())
        self.targets = self.contrasts.names if targets is None else tuple(targets)

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        targets = [name for name in self.contrasts.names if name in self.targets and name not in data["paths"]]
        if not targets:
            return {**data, "written": {}}
        paths = [synthetic_path(self.output_dir, data["subject"], target) for target in targets]
        limits = data["intensity_range"].tolist()
        acquired = {name: tuple(limits[self.contrasts.index(name)]) for name in data["paths"]}
        scales = [self.output_range(target, acquired) for target in targets]
        layers = self._acquired_scale(data, targets, [limits for _, limits in scales])
        for i, (target, (source, limits), path) in enumerate(zip(targets, scales, paths, strict=True)):
            # The older sidecar goes before its volume, the new one comes after: none describes another volume.
            sidecar_path(path).unlink(missing_ok=True)
            label = self.contrasts.labels[self.contrasts.index(target)]
            files = {"synthesised": path, "prior": prior_path(path), "uncertainty": uncertainty_path(path)}
            for key, file in files.items():
                if key not in layers:
                    file.unlink(missing_ok=True)  # of another volume
                    continue
                affine = np.asarray(data["image"].meta["original_affine"])
                what = label if key == "synthesised" else f"{label} {key}"
                image = _nifti(layers[key][i], data["headers"][source], affine, what, self.dtype)
                with complete_file(file) as partial:
                    nib.save(image, partial)
            sidecar = self._sidecar(data, target, label, source, limits, "uncertainty" in layers)
            write_text(sidecar_path(path), json.dumps(sidecar, indent=1) + "\n")
            logger.info("wrote %s", path)
        return {**data, "written": {target: str(path) for target, path in zip(targets, paths, strict=True)}}

    def _range_of_source(
        self, target: str, ranges: Mapping[str, tuple[float, float]]
    ) -> tuple[str, tuple[float, float]]:
        source = self.contrasts.intensity_source(target, ranges)
        return source, ranges[source]

    def _sidecar(
        self,
        data: Mapping[str, Any],
        target: str,
        label: str,
        source: str,
        limits: tuple[float, float],
        uncertain: bool,
    ) -> dict[str, Any]:
        low, high = limits
        name = uncertainty_path(synthetic_path(self.output_dir, data["subject"], target)).name
        uncertainty = {
            "file": name,
            "meaning": "half the width of the interval around each voxel that covers 90 % of a brain's voxels, in the "
            "volume's units, as measured on the subjects that the model was calibrated on; 0 outside the brain",
        }
        return {
            "synthetic": True,
            "notice": NOTICE,
            "subject": data["subject"],
            "contrast": target,
            "label": label,
            "sources": {name: {"sha256": data["sha256"][name]} for name in data["paths"]},
            "intensity_scale": {
                "contrast": source,
                "low": low,
                "high": high,
                "meaning": f"arbitrary units, after the acquired {source}: what the model works on, from -1 to 1, "
                "became low to high, as a contrast that was not acquired has no scale of its own; 0 outside the brain",
            },
            "uncertainty": uncertainty if uncertain else None,
            "dtype": self.dtype,
            "computed_on": self.computed_on,
            **({"findings": data["findings"]} if "findings" in data else {}),
            **self.provenance,
        }

    def _acquired_scale(
        self, data: Mapping[str, Any], targets: Sequence[str], limits: Sequence[tuple[float, float]]
    ) -> dict[str, np.ndarray]:
        """``"synthesised"`` and, where there are, ``"prior"`` and ``"uncertainty"`` on the acquired grid.

        Each ``(targets, X, Y, Z)`` float32, raw intensities, 0 outside the brain.
        """
        layers = {key: self._chosen(data, key, targets) for key in LAYERS if key == "synthesised" or key in data}
        brain = torch.where(data["region"] > 0, 1.0, -1.0)  # 1×X×Y×Z, goes the way that the volumes go
        ranges = torch.tensor(limits)
        restored = self.preprocessing.restore(torch.cat([*layers.values(), brain]), data).as_tensor()
        inside = restored[-1:] > 0
        magnitudes = (ranges.mean(dim=1) > 0)[:, None, None, None]
        half = (ranges[:, 1] - ranges[:, 0])[:, None, None, None] / 2
        raw = {}
        for key, volume in zip(layers, restored[:-1].split(len(targets)), strict=True):
            if key == "uncertainty":
                raw[key] = (volume * half).where(inside, 0.0).numpy()
            else:
                intensities = ScaleIntensityInBrain().inverse(volume, ranges, inside)
                raw[key] = intensities.clamp(min=0).where(magnitudes, intensities).numpy()
        return raw

    def _chosen(self, data: Mapping[str, Any], key: str, targets: Sequence[str]) -> torch.Tensor:
        """The targets' channels of a volume on the slices' grid."""
        volume = torch.as_tensor(data[key]).detach()
        if volume.shape != data["image"].shape:
            raise ValueError(
                f"study {data['subject']!r}: {key!r} has shape {tuple(volume.shape)}, "
                f"but its 'image' has {tuple(data['image'].shape)}; synthesise every slice of the loaded study"
            )
        chosen = volume[[self.contrasts.index(target) for target in targets]].cpu().float()
        for target, channel in zip(targets, chosen, strict=True):
            if key != "uncertainty" and not channel.abs().max() <= 1 + _RANGE_TOLERANCE:  # NaN is not below anything
                raise ValueError(
                    f"study {data['subject']!r}: {key} {target} spans {channel.min():g} to {channel.max():g}; "
                    "finite values within [-1, 1] are needed"
                )
        return chosen


SaveSyntheticStudyD = SaveSyntheticStudyDict = SaveSyntheticStudyd


def without_targets(
    studies: Sequence[Mapping[str, str]], contrasts: ContrastSet, targets: Sequence[str] | None
) -> list[dict[str, str]]:
    """The studies without what is to be synthesised in them, so that it is no source; the log says what is left out.

    Args:
        studies: the data list.
        contrasts: the contrast set.
        targets: the contrasts to synthesise; None: what each study lacks.

    Raises:
        StudyError: nothing is left to synthesise a study's contrasts from.
        ValueError: an unknown contrast among the targets, or none.

    Example::

        >>> from apt_monai.contrasts import BRATS
        >>> without_targets([{"subject": "a", "t1": "spoilt.nii.gz", "t2": "b.nii.gz"}], BRATS, ["t1"])
        [{'subject': 'a', 't2': 'b.nii.gz'}]
    """
    if targets is None:
        return [dict(study) for study in studies]
    if isinstance(targets, str) or not targets:
        raise ValueError(f"targets is {targets!r}: give a list of contrasts of {', '.join(contrasts.names)}")
    contrasts.check(targets)
    result = []
    for study in studies:
        kept = {key: path for key, path in study.items() if key not in targets}
        unused = [name for name in contrasts.names if name in study and name in targets]
        if unused:
            logger.warning("%s: %s is asked for, and not used as a source", study["subject"], ", ".join(unused))
        if not set(kept) & set(contrasts.names):
            raise StudyError(
                f"study {study['subject']!r}: has nothing to synthesise {', '.join(targets)} from; at least one of "
                f"{', '.join(name for name in contrasts.names if name not in targets)} is needed"
            )
        result.append(kept)
    return result


def pending_studies(
    studies: Sequence[Mapping[str, str]],
    output_dir: str | Path,
    contrasts: ContrastSet,
    provenance: Mapping[str, Any],
    dtype: str = "float32",
    targets: Sequence[str] | None = None,
) -> list[dict[str, str]]:
    """The studies that are still to be synthesised, so that an interrupted run goes on where it stopped.

    A study is finished when :class:`SaveSyntheticStudyd` wrote every contrast that it lacks, with the same provenance
    and dtype and from files of the same contents: after other weights, another seed or an edited source it is pending
    again. The log says how many are finished and which lack nothing.

    Args:
        studies: the data list, as :func:`read_studies` returns it.
        output_dir: the folder that :class:`SaveSyntheticStudyd` writes to; it is made, and must be writable.
        contrasts: the contrast set.
        provenance: as :class:`SaveSyntheticStudyd` is given it.
        dtype: likewise.
        targets: likewise; they are left out of the studies (:func:`without_targets`).

    Returns:
        The pending studies, in the order given.

    Raises:
        StudyError: no study lacks a contrast, or a source is missing.
        ValueError: the dtype is unknown, or the provenance is not JSON or has a field of the sidecar's.
        OSError: the output folder cannot be written to, or a source cannot be read.

    Example::

        >>> from apt_monai.contrasts import BRATS
        >>> studies = [{"subject": "a", "t1": "a_t1.nii.gz"}]
        >>> [study["subject"] for study in pending_studies(studies, "out", BRATS, {"seed": 0})]
        ['a']
    """
    described_by = {"dtype": _checked_dtype(dtype), **_checked_provenance(provenance)}
    pending, complete, finished = [], [], 0
    for study in without_targets(studies, contrasts, targets):
        missing = [name for name in targets or contrasts.names if name not in study]
        if not missing:
            complete.append(study["subject"])
        elif _is_finished(study, missing, contrasts.names, Path(output_dir), described_by):
            finished += 1
        else:
            pending.append(study)
    if len(complete) == len(studies):
        raise StudyError(
            f"nothing to synthesise: each of the {len(studies)} studies has every contrast "
            f"({', '.join(contrasts.names)}); give studies that lack one, or name a contrast to be synthesised "
            "although it is there (--target)"
        )
    if complete:
        logger.warning("nothing is missing in %d studies, they are left out: %s", len(complete), ", ".join(complete))
    check_writable(output_dir)
    logger.info("%d studies to synthesise; %d are finished in %s", len(pending), finished, output_dir)
    return pending


def _is_finished(
    study: Mapping[str, str],
    missing: Sequence[str],
    names: Sequence[str],
    output_dir: Path,
    described_by: Mapping[str, Any],
) -> bool:
    """Whether every missing contrast is written, with these sidecar fields and from these files."""
    sidecars = []
    for contrast in missing:
        path = synthetic_path(output_dir, study["subject"], contrast)
        try:
            sidecar = json.loads(sidecar_path(path).read_text(encoding="utf-8"))
            found = {key: value for key, value in sidecar.items() if key == "dtype" or key not in _SIDECAR_FIELDS}
            hashes = {name: file["sha256"] for name, file in sidecar["sources"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return False  # not written, or not by this package: it is written anew
        uncertain = sidecar.get("uncertainty") is not None
        if not path.is_file() or found != described_by or (uncertain and not uncertainty_path(path).is_file()):
            return False
        sidecars.append(hashes)
    current = {name: source_sha256(study[name]) for name in names if name in study}
    return all(hashes == current for hashes in sidecars)


def _checked_dtype(dtype: str) -> str:
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r}: valid are {', '.join(DTYPES)}")
    return dtype


def _checked_provenance(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The provenance as it comes back from JSON."""
    taken = sorted(set(provenance) & set(_SIDECAR_FIELDS))
    if taken:
        raise ValueError(f"provenance has {', '.join(taken)}, which the sidecar says itself; use another name")
    try:
        return json.loads(json.dumps(dict(provenance), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"provenance is not JSON ({error}); give numbers, texts, lists and dicts") from error


def _nifti(
    volume: np.ndarray, source: nib.Nifti1Header | None, affine: np.ndarray, label: str, dtype: str
) -> nib.Nifti1Image:
    """A NIfTI image of raw intensities (X, Y, Z) in the space of a source file's header, marked as synthetic."""
    if source is None:  # a DICOM series has no NIfTI header: the space is the scanner's
        placed = nib.Nifti1Image(volume, affine)
        set_space(placed, affine)
        source = placed.header
    header = type(source)()
    header.set_data_shape(volume.shape)
    header.set_data_dtype(dtype)
    for field in _GEOMETRY_FIELDS:
        header[field] = source[field]
    mark_synthetic(header, label)
    kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image  # NIfTI-2 stays NIfTI-2
    if dtype == "float32":
        return kind(volume.astype(np.float32), source.get_best_affine(), header)
    slope = float(np.float32(np.abs(volume).max() / np.iinfo(np.int16).max)) or 1.0  # as the header holds it
    image = kind(np.rint(volume / slope).astype(np.int16), source.get_best_affine(), header)
    image.header.set_slope_inter(slope, 0)
    return image
