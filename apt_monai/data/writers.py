"""Writers: the synthesised contrasts of a study become NIfTI files on the acquired grid, each with a JSON sidecar."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.transforms import Transform

from apt_monai import __version__
from apt_monai.contrasts import ContrastSet, get_contrast_set
from apt_monai.errors import StudyError
from apt_monai.files import check_writable, complete_file, file_sha256, write_text
from apt_monai.io.dicom import find_series
from apt_monai.transforms import ScaleIntensityInBrain, StudyPreprocessing

logger = logging.getLogger(__name__)

NOTICE = "research software, not a medical device; synthesised, not acquired"
DTYPES = ("float32", "int16")

# The sidecar's own fields; every other one is provenance.
_SIDECAR_FIELDS = (
    "synthetic", "notice", "subject", "contrast", "label", "sources", "prior_source", "intensity_scale", "dtype",
    "computed_on",
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
    return Path(output_dir) / subject / f"{subject}_{contrast}_SYNTHETIC.nii.gz"


def _sidecar_path(image_path: Path) -> Path:
    return image_path.with_name(image_path.name.removesuffix(".nii.gz") + ".json")


class SaveSyntheticStudyd(Transform):
    """Write the contrasts that a study lacked as NIfTI files on the acquired grid.

    Takes a loaded study (as :class:`StudyPreprocessing` returns it) with two more keys:

    - ``"synthesised"``: ``(C, size, size, Z)`` in [-1, 1] on the slices' grid; only the absent contrasts are used;
    - ``"prior_sources"``: for each absent contrast, the acquired one that its prior came from.

    For each absent contrast, writes ``<output_dir>/<subject>/<subject>_<contrast>_SYNTHETIC.nii.gz``: the shape,
    affine, sform, qform and units of the prior source's file (of a DICOM series the affine, in mm and as a scanner's
    space; the shape is columns, rows, slices), and a header whose description begins with
    ``SYNTHETIC apt_monai``. Beside it, with the same name and ``.json``, the sidecar: where the volume comes from
    (each source's path and SHA-256, the provenance).

    Intensities: a contrast that was not acquired has no scale of its own, and MR intensities are arbitrary. It takes
    that of its prior source: -1 and 1 become the raw intensities that had become -1 and 1 there, linearly between, so
    that it spans the robust range of its source. Only the look within the volume means something. Outside the brain it
    is exactly 0. With ``dtype="int16"`` the largest intensity is stored as 32767 (``scl_slope``, no ``scl_inter``), and
    a read voxel is at most ``max |intensity| / 65534`` off.

    The same input gives the same bytes. A file is complete or not there, and the sidecar is written last: a volume
    without one is not finished.

    Args:
        output_dir: the folder to write to; it is made where it does not exist.
        preprocessing: what the study was loaded with; it knows the way back to the acquired grid.
        contrasts: the contrast set, or its name (``"brats"``, ``"adni"``).
        provenance: what else the volumes depend on, as JSON can hold it (versions, hashes of weights and codebook,
            the encoder's fingerprint, seed, settings); it becomes part of each sidecar.
        dtype: how voxels are stored, ``"float32"`` or ``"int16"``.
        computed_on: device and precision, for people to read in each sidecar; no part of what a volume is known by, so
            that a cohort may go on on another machine.

    Returns (when called):
        The study with ``"written"``: the paths of the NIfTI files, one an absent contrast, in contrast order.

    Raises:
        ValueError: the dtype is unknown, the provenance is not JSON or has a field of the sidecar's; when called:
            ``"synthesised"`` has another shape or is not within [-1, 1], or a prior source was not acquired.
        StudyError: the subject is not a plain name.
        OSError: a file cannot be written (full or read-only folder).

    Example::

        >>> header = nib.Nifti1Image(np.arange(120, dtype=np.int16).reshape(4, 5, 6), np.eye(4))
        >>> nib.save(header, "case_t1.nii.gz")
        >>> preprocessing = StudyPreprocessing("brats", size=8)
        >>> study = preprocessing({"subject": "case", "t1": "case_t1.nii.gz"})
        >>> study["synthesised"] = study["image"][[1, 1, 1, 1]]  # as if every contrast looked like T1
        >>> study["prior_sources"] = {"flair": "t1", "t1ce": "t1", "t2": "t1"}
        >>> save = SaveSyntheticStudyd("out", preprocessing, "brats", {"seed": 0})
        >>> save(study)["written"][0]
        'out/case/case_flair_SYNTHETIC.nii.gz'
    """

    def __init__(
        self,
        output_dir: str | Path,
        preprocessing: StudyPreprocessing,
        contrasts: str | ContrastSet,
        provenance: Mapping[str, Any],
        dtype: str = "float32",
        computed_on: Mapping[str, Any] | None = None,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.preprocessing = preprocessing
        self.contrasts = get_contrast_set(contrasts) if isinstance(contrasts, str) else contrasts
        self.provenance = _checked_provenance(provenance)
        self.dtype = _checked_dtype(dtype)
        self.computed_on = dict(computed_on or {})

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        targets = [name for name, acquired in zip(self.contrasts.names, data["available"], strict=True) if not acquired]
        if not targets:
            return {**data, "written": []}
        paths = [synthetic_path(self.output_dir, data["subject"], target) for target in targets]
        sources = self._prior_sources(data, targets)
        volumes = self._acquired_scale(data, targets, sources)
        files = _source_files(data["paths"])
        for target, source, volume, path in zip(targets, sources, volumes, paths, strict=True):
            low, high = data["intensity_range"][self.contrasts.index(source)].tolist()
            label = self.contrasts.labels[self.contrasts.index(target)]
            sidecar = {
                "synthetic": True,
                "notice": NOTICE,
                "subject": data["subject"],
                "contrast": target,
                "label": label,
                "sources": files,
                "prior_source": source,
                "intensity_scale": {
                    "contrast": source,
                    "low": low,
                    "high": high,
                    "meaning": f"arbitrary units of the acquired {source}: the robust range [low, high] of its brain, "
                    f"as a contrast that was not acquired has no scale of its own; 0 outside the brain",
                },
                "dtype": self.dtype,
                "computed_on": self.computed_on,
                **self.provenance,
            }
            affine = np.asarray(data["image"].meta["original_affine"])
            image = _nifti(volume, data["paths"][source], affine, label, self.dtype)
            with complete_file(path) as partial:
                nib.save(image, partial)
                # The older sidecar goes before its volume, the new one comes after: none describes another volume.
                _sidecar_path(path).unlink(missing_ok=True)
            write_text(_sidecar_path(path), json.dumps(sidecar, indent=1) + "\n")
            logger.info("wrote %s", path)
        return {**data, "written": [str(path) for path in paths]}

    def _prior_sources(self, data: Mapping[str, Any], targets: Sequence[str]) -> list[str]:
        """The acquired contrast whose intensity scale each target takes."""
        for target in targets:
            source = data["prior_sources"].get(target)
            if source not in data["paths"]:
                raise ValueError(
                    f"study {data['subject']!r}: the prior source of {target} is {source!r}; "
                    f"it must be one of the acquired contrasts {', '.join(data['paths'])}"
                )
        return [data["prior_sources"][target] for target in targets]

    def _acquired_scale(self, data: Mapping[str, Any], targets: Sequence[str], sources: Sequence[str]) -> np.ndarray:
        """The targets on the acquired grid, in raw intensities and 0 outside the brain: (targets, X, Y, Z) float32."""
        synthesised = torch.as_tensor(data["synthesised"]).detach()
        if synthesised.shape != data["image"].shape:
            raise ValueError(
                f"study {data['subject']!r}: 'synthesised' has shape {tuple(synthesised.shape)}, "
                f"but its 'image' has {tuple(data['image'].shape)}; synthesise every slice of the loaded study"
            )
        chosen = synthesised[[self.contrasts.index(target) for target in targets]].cpu().float()
        for target, channel in zip(targets, chosen, strict=True):
            if not channel.abs().max() <= 1 + _RANGE_TOLERANCE:  # NaN is not below anything
                raise ValueError(
                    f"study {data['subject']!r}: synthesised {target} spans {channel.min():g} to {channel.max():g}; "
                    "finite values within [-1, 1] are needed"
                )
        brain = torch.where(data["region"] > 0, 1.0, -1.0)  # 1×X×Y×Z, goes the way that the volumes go
        restored = self.preprocessing.restore(torch.cat([chosen, brain]), data).as_tensor()
        ranges = data["intensity_range"][[self.contrasts.index(source) for source in sources]]
        return ScaleIntensityInBrain().inverse(restored[:-1], ranges, restored[-1:] > 0).numpy()


SaveSyntheticStudyD = SaveSyntheticStudyDict = SaveSyntheticStudyd


def pending_studies(
    studies: Sequence[Mapping[str, str]],
    output_dir: str | Path,
    contrasts: str | ContrastSet,
    provenance: Mapping[str, Any],
    dtype: str = "float32",
) -> list[Mapping[str, str]]:
    """The studies that are still to be synthesised, so that an interrupted run goes on where it stopped.

    A study is finished when :class:`SaveSyntheticStudyd` wrote every contrast that it lacks, with the same provenance
    and dtype and from files of the same contents: after other weights, another seed or an edited source it is pending
    again. The log says how many are finished and which lack nothing.

    Args:
        studies: the data list, as :func:`read_studies` returns it.
        output_dir: the folder that :class:`SaveSyntheticStudyd` writes to; it is made, and must be writable.
        contrasts: the contrast set, or its name.
        provenance: as :class:`SaveSyntheticStudyd` is given it.
        dtype: likewise.

    Returns:
        The pending studies, in the order given.

    Raises:
        StudyError: no study lacks a contrast, or a source is missing.
        ValueError: the dtype is unknown, or the provenance is not JSON or has a field of the sidecar's.
        OSError: the output folder cannot be written to, or a source cannot be read.

    Example::

        >>> studies = [{"subject": "a", "t1": "a_t1.nii.gz"}]
        >>> [study["subject"] for study in pending_studies(studies, "out", "brats", {"seed": 0})]
        ['a']
    """
    names = (get_contrast_set(contrasts) if isinstance(contrasts, str) else contrasts).names
    described_by = {"dtype": _checked_dtype(dtype), **_checked_provenance(provenance)}
    lacking = {study["subject"]: [name for name in names if name not in study] for study in studies}
    complete = [subject for subject, missing in lacking.items() if not missing]
    if len(complete) == len(lacking):
        raise StudyError(
            f"nothing to synthesise: each of the {len(studies)} studies has every contrast ({', '.join(names)}); "
            "give studies that lack one, or move the files of the contrast to synthesise elsewhere"
        )
    if complete:
        logger.warning("nothing is missing in %d studies, they are left out: %s", len(complete), ", ".join(complete))
    check_writable(output_dir)

    incomplete = [study for study in studies if lacking[study["subject"]]]
    pending = [
        study
        for study in incomplete
        if not _is_finished(study, lacking[study["subject"]], names, Path(output_dir), described_by)
    ]
    finished = len(incomplete) - len(pending)
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
            sidecar = json.loads(_sidecar_path(path).read_text(encoding="utf-8"))
            found = {key: value for key, value in sidecar.items() if key == "dtype" or key not in _SIDECAR_FIELDS}
            hashes = {name: file["sha256"] for name, file in sidecar["sources"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return False  # not written, or not by this package: it is written anew
        if not path.is_file() or found != described_by:
            return False
        sidecars.append(hashes)
    current = {name: _sha256(study[name]) for name in names if name in study}
    return all(hashes == current for hashes in sidecars)


def _source_files(paths: Mapping[str, str]) -> dict[str, dict[str, str]]:
    return {name: {"path": str(path), "sha256": _sha256(path)} for name, path in paths.items()}


def _sha256(path: str) -> str:
    """Of a NIfTI file its SHA-256; of a DICOM series that of its files' SHA-256s, sorted: their names do not count."""
    if Path(path).is_file():
        return file_sha256(path)
    hashes = sorted(file_sha256(file) for file in find_series(path).files)
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


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


def _nifti(volume: np.ndarray, source_path: str, affine: np.ndarray, label: str, dtype: str) -> nib.Nifti1Image:
    """A NIfTI image of raw intensities (X, Y, Z) in the space of the source file, marked as synthetic."""
    if Path(source_path).is_file():
        source = nib.load(source_path)
        assert isinstance(source, nib.Nifti1Image)  # NIfTI-2 too; the study was loaded from it
    else:  # a DICOM series has no NIfTI header: the space is the scanner's
        source = nib.Nifti1Image(volume, affine)
        source.set_qform(affine, "scanner")
        source.set_sform(affine, "scanner")
        source.header.set_xyzt_units("mm")
    header = type(source.header)()
    header.set_data_shape(volume.shape)
    header.set_data_dtype(dtype)
    for field in _GEOMETRY_FIELDS:
        header[field] = source.header[field]
    header["descrip"] = f"SYNTHETIC apt_monai {__version__} {label}: not acquired"  # 79 bytes at most
    header["intent_name"] = "SYNTHETIC"
    if dtype == "float32":
        return type(source)(volume.astype(np.float32), source.affine, header)
    slope = float(np.float32(np.abs(volume).max() / np.iinfo(np.int16).max)) or 1.0  # as the header holds it
    stored = np.rint(volume / slope).astype(np.int16)
    image = type(source)(stored, source.affine, header)
    image.header.set_slope_inter(slope, 0)
    return image
