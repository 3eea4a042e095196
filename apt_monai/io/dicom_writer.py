"""DICOM out: a synthesised volume as a derived MR series beside the patient's own, and its uncertainty as a map.

What is written belongs to the patient, the study and the frame of reference of an acquired series, the *reference*, and
says in every file that it was synthesised. It is one file a slice (MR Image Storage), which every PACS takes; stored
integers are turned into the volume's intensities by the rescale slope, an extension that scanners' makers use as well.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid
from pydicom.valuerep import DSfloat

from apt_monai import __version__
from apt_monai.errors import StudyError
from apt_monai.files import complete_file, complete_folder, file_sha256
from apt_monai.geometry import same_grid
from apt_monai.io.dicom import find_series, series_grid
from apt_monai.io.nifti import read_nifti
from apt_monai.io.sidecar import NOTICE, SYNTHETIC

SERIES_NUMBER = 9000
"""Ours are above it, each with its own; a scanner's own are far below."""
_NO_HIGHDICOM = (
    "the uncertainty becomes a DICOM parametric map by highdicom, which is not installed: "
    "pip install 'apt_monai[dicom]'"
)

#: Whose they are: taken from the reference as they are, empty where it lacks them.
_PATIENT_AND_STUDY = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyDate", "StudyTime",
    "ReferringPhysicianName", "StudyID", "AccessionNumber", "PositionReferenceIndicator", "PatientPosition",
)  # fmt: skip
_WHERE_THERE = (
    "SpecificCharacterSet", "IssuerOfPatientID", "PatientAge", "PatientSize", "PatientWeight", "StudyDescription",
    "PatientIdentityRemoved", "DeidentificationMethod",
)  # fmt: skip


@dataclass(frozen=True)
class Reference:
    """An acquired DICOM series: whose it is, where it lies, and its voxel grid.

    Args:
        path: ``FOLDER[::SERIES_UID][::echo=N]``.
        headers: of its slices, in the order of their positions.
        shape: ``(columns, rows, slices)``.
        affine: ``(4, 4)``, voxels to mm, RAS+.
    """

    path: str
    headers: tuple[Dataset, ...]
    shape: tuple[int, ...]
    affine: NDArray[np.float64]


def read_reference(path: str | Path) -> Reference:
    """Read the headers of an acquired series to write beside.

    Raises:
        StudyError: it is no volume (see :func:`apt_monai.io.dicom.read_dicom_series`), or does not say of which study
            or in which frame of reference it is.
    """
    files, affine, shape = series_grid(find_series(path))
    headers = [pydicom.dcmread(file, stop_before_pixels=True, force=True) for file in files]
    for keyword in ("StudyInstanceUID", "FrameOfReferenceUID", "SeriesInstanceUID"):
        if not headers[0].get(keyword):
            raise StudyError(
                f"{path}: has no {keyword}, so nothing can be written beside it; name another series of the patient's "
                "study as the reference, as it came from the scanner"
            )
    return Reference(str(path), tuple(headers), shape, affine)


def write_dicom_series(
    volume: str | Path, reference: Reference, out: str | Path, label: str, method: str, number: int = SERIES_NUMBER
) -> Path:
    """Write a synthesised volume as a DICOM series beside an acquired one.

    Args:
        volume: a synthesised NIfTI file in the scanner space of the reference's study, on any grid that lies where the
            reference lies.
        reference: the acquired series beside which it is written: patient, study and frame of reference are its.
        out: the folder of the series, which is not there yet; files are called ``0001.dcm`` and on.
        label: the contrast's, such as ``T1Gd``.
        method: what synthesised it, such as ``direct``.
        number: SeriesNumber, which no other series of the study should have.

    Returns:
        The folder, complete. Series and instances have UIDs of their own, the same for the same volume and reference.
        The image is turned (not resampled) so that its axes run as the reference's do. 16 bits a voxel: the read
        intensity is at most ``(max - min) / 131070`` off.

    Raises:
        StudyError: the volume cannot be read, lies elsewhere than the reference, or is sheared within its slices.
        OSError: the folder cannot be written.

    Example: see ``tests/test_dicom_writer.py``.
    """
    values, affine = _placed(volume, reference)
    uid = _uid(volume, reference, "series")
    low, high = float(values.min()), float(values.max())
    slope = DSfloat(max(high - low, 1e-6) / 65535, auto_format=True)
    intercept = DSfloat(low, auto_format=True)
    stored = np.rint((values - float(intercept)) / float(slope)).clip(0, 65535).astype("<u2")
    positive = values[values > 0]
    centre = float(np.percentile(positive, 99.5)) / 2 if positive.size else 1.0

    on_grid = same_grid(values.shape, affine, reference.shape, reference.affine)
    with complete_folder(out) as folder:
        for k in range(values.shape[2]):
            slice_ = _common(reference, label, method)
            slice_.SOPClassUID = MRImageStorage
            slice_.SOPInstanceUID = _uid(volume, reference, f"slice {k}")
            slice_.SeriesInstanceUID, slice_.SeriesNumber, slice_.InstanceNumber = uid, number, k + 1
            _place(slice_, values.shape, affine, k)
            _refer(slice_, [reference.headers[k]] if on_grid else list(reference.headers))
            slice_.SamplesPerPixel, slice_.PhotometricInterpretation, slice_.PixelRepresentation = 1, "MONOCHROME2", 0
            slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit = 16, 16, 15
            slice_.RescaleIntercept, slice_.RescaleSlope, slice_.RescaleType = intercept, slope, "US"
            slice_.WindowCenter = DSfloat(centre, auto_format=True)
            slice_.WindowWidth = DSfloat(2 * centre, auto_format=True)
            slice_.PixelData = np.ascontiguousarray(stored[:, :, k].T).tobytes()  # rows × columns
            _save(slice_, folder / f"{k + 1:04d}.dcm")
    return Path(out)


def write_parametric_map(
    volume: str | Path, reference: Reference, out: str | Path, label: str, method: str, number: int = SERIES_NUMBER
) -> Path:
    """Write a synthesised volume's uncertainty as a DICOM parametric map, one file of 32-bit numbers.

    Args:
        volume, reference, label, method, number: as of :func:`write_dicom_series`.
        out: the file.

    Raises:
        ImportError: highdicom is not installed.
        StudyError: as of :func:`write_dicom_series`.
        OSError: the file cannot be written.
    """
    highdicom, codes = require_highdicom()
    values, affine = _placed(volume, reference)
    row, column, position = _axes(affine)
    places = [
        highdicom.PlanePositionSequence(highdicom.CoordinateSystemNames.PATIENT, position(k).tolist())
        for k in range(values.shape[2])
    ]
    step = float(np.linalg.norm(affine[:3, 2]))
    between_columns, between_rows = (float(np.linalg.norm(affine[:3, axis])) for axis in (0, 1))
    top = max(float(values.max()), 1e-6)
    uncertainty = highdicom.pm.ParametricMap(
        source_images=_sources(reference),
        pixel_array=np.ascontiguousarray(values.transpose(2, 1, 0)).astype(np.float32),  # slices × rows × columns
        series_instance_uid=_uid(volume, reference, "series"),
        series_number=number,
        sop_instance_uid=_uid(volume, reference, "map"),
        instance_number=1,
        manufacturer="apt_monai",
        manufacturer_model_name=f"apt_monai {method}",
        software_versions=__version__,
        device_serial_number="none",
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[
            highdicom.pm.RealWorldValueMapping(
                lut_label="HALFWIDTH90",
                lut_explanation="half the width of the 90 % interval",
                unit=codes.UCUM.NoUnits,
                value_range=(0.0, top),
                slope=1.0,
                intercept=0.0,
            )
        ],
        voi_lut_transformations=[highdicom.VOILUTTransformation(window_center=top / 2, window_width=top)],
        pixel_measures=highdicom.PixelMeasuresSequence(
            (between_rows, between_columns), slice_thickness=step, spacing_between_slices=step
        ),
        plane_orientation=highdicom.PlaneOrientationSequence(
            highdicom.CoordinateSystemNames.PATIENT, [*row.tolist(), *column.tolist()]
        ),
        plane_positions=places,
        content_description=f"{SYNTHETIC} {label}: uncertainty",
        series_description=f"{SYNTHETIC} {label} uncertainty (apt_monai)",
    )
    uncertainty.BodyPartExamined, uncertainty.ContentQualification = "BRAIN", "RESEARCH"
    with complete_file(out) as partial:
        uncertainty.save_as(partial, enforce_file_format=True)
    return Path(out)


def is_written(path: str | Path, volume: str | Path, reference: Reference) -> bool:
    """Whether a series' folder or a map's file is there, of this volume and beside this reference."""
    path = Path(path)
    if path.is_dir():
        path = path / "0001.dcm"
    if not path.is_file():
        return False
    found = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["SeriesInstanceUID"])
    return found.SeriesInstanceUID == _uid(volume, reference, "series")


def require_highdicom() -> tuple[Any, Any]:
    """highdicom, and the codes that its units come from.

    Raises:
        ImportError: highdicom is not installed.
    """
    try:
        return import_module("highdicom"), codes
    except ImportError as error:
        raise ImportError(_NO_HIGHDICOM) from error


def _sources(reference: Reference) -> list[Dataset]:
    """The reference's headers, with what a derived object takes from them, empty where they lack it."""
    sources = []
    for header in reference.headers:
        source = copy.deepcopy(header)
        for keyword in _PATIENT_AND_STUDY:
            if keyword not in source:
                setattr(source, keyword, None)
        if "SliceThickness" not in source:
            source.SliceThickness = DSfloat(float(np.linalg.norm(reference.affine[:3, 2])), auto_format=True)
        source.file_meta = FileMetaDataset()
        source.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        sources.append(source)
    return sources


def _placed(volume: str | Path, reference: Reference) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """A volume and its affine, its axes turned so that they run as the reference's do."""
    values, image, _ = read_nifti(volume)
    affine = np.asarray(image.affine, dtype=np.float64)
    orientation = nib.orientations.ornt_transform(nib.io_orientation(affine), nib.io_orientation(reference.affine))
    turned = nib.orientations.apply_orientation(values, orientation)
    affine = affine @ nib.orientations.inv_ornt_aff(orientation, values.shape)
    centre = affine @ [*(np.array(turned.shape) - 1) / 2, 1]
    inside = np.linalg.inv(reference.affine) @ centre
    if not ((inside[:3] > -1) & (inside[:3] < reference.shape)).all():
        raise StudyError(
            f"{volume}: its centre {np.round(centre[:3], 1).tolist()} mm is outside the series {reference.path}; both "
            "must be of one patient and visit: name a series of the study that the volume was made from"
        )
    in_plane = affine[:3, :2] / np.linalg.norm(affine[:3, :2], axis=0)
    if abs(float(in_plane[:, 0] @ in_plane[:, 1])) > 1e-4:
        raise StudyError(f"{volume}: its rows and columns are not at right angles, which DICOM cannot say; resample it")
    return turned, affine


def _axes(affine: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64], Any]:
    """The directions along a row and along a column, and a slice's position, in LPS+ mm."""
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    row, column = (lps[:3, axis] / np.linalg.norm(lps[:3, axis]) for axis in (0, 1))
    return row, column, lambda k: lps[:3, 3] + k * lps[:3, 2]


def _place(slice_: Dataset, shape: tuple[int, ...], affine: NDArray[np.float64], k: int) -> None:
    """The image plane module."""
    row, column, position = _axes(affine)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    slice_.Columns, slice_.Rows = shape[0], shape[1]
    slice_.ImageOrientationPatient = _decimals([*row, *column])
    slice_.ImagePositionPatient = _decimals(position(k))
    slice_.PixelSpacing = _decimals([spacing[1], spacing[0]])  # between rows, then between columns
    slice_.SliceThickness = slice_.SpacingBetweenSlices = DSfloat(float(spacing[2]), auto_format=True)


def _decimals(values: Any) -> list[DSfloat]:
    return [DSfloat(float(value) + 0.0, auto_format=True) for value in values]


def _common(reference: Reference, label: str, method: str) -> Dataset:
    """Patient, study, series, equipment and what says that it was synthesised."""
    first, made = reference.headers[0], Dataset()
    for keyword in _PATIENT_AND_STUDY:
        setattr(made, keyword, first.get(keyword))
    for keyword in _WHERE_THERE:
        if first.get(keyword) not in (None, ""):
            setattr(made, keyword, first.get(keyword))
    made.FrameOfReferenceUID = first.FrameOfReferenceUID
    made.Modality, made.BodyPartExamined = "MR", "BRAIN"
    made.SeriesDescription = f"{SYNTHETIC} {label} (apt_monai)"
    made.ImageComments = f"{SYNTHETIC}: {NOTICE}"
    made.DerivationDescription = (
        f"{label} synthesised from other contrasts by apt_monai {__version__}, {method}; {NOTICE}"
    )
    made.ImageType = ["DERIVED", "SECONDARY", "OTHER"]
    made.ContentQualification = "RESEARCH"
    made.BurnedInAnnotation, made.LossyImageCompression = "NO", "00"
    made.Manufacturer, made.ManufacturerModelName = "apt_monai", f"apt_monai {method}"
    made.SoftwareVersions = __version__
    # No scanner ran a sequence: "research mode", no variant, and no times
    made.ScanningSequence, made.SequenceVariant, made.ScanOptions, made.MRAcquisitionType = "RM", "NONE", None, None
    made.RepetitionTime = made.EchoTime = made.EchoTrainLength = None
    made.AcquisitionNumber = None
    return made


def _refer(slice_: Dataset, headers: list[Dataset]) -> None:
    """Say which acquired images it stands beside, and from which study's frame it was derived."""
    purpose = Dataset()
    purpose.CodeValue, purpose.CodingSchemeDesignator = "121322", "DCM"
    purpose.CodeMeaning = "Source image for image processing operation"
    images, instances = [], []
    for header in headers:
        image = _instance(header)
        instances.append(copy.deepcopy(image))
        image.PurposeOfReferenceCodeSequence = Items([purpose])
        images.append(image)
    series = Dataset()
    series.SeriesInstanceUID = headers[0].SeriesInstanceUID
    series.ReferencedInstanceSequence = Items(instances)
    slice_.SourceImageSequence, slice_.ReferencedSeriesSequence = Items(images), Items([series])


def _instance(header: Dataset) -> Dataset:
    instance = Dataset()
    instance.ReferencedSOPClassUID, instance.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
    return instance


def _uid(volume: str | Path, reference: Reference, what: str) -> str:
    """A UID that is the same for the same volume beside the same series."""
    return generate_uid(entropy_srcs=[file_sha256(volume), str(reference.headers[0].SeriesInstanceUID), what])


def _save(dataset: Dataset, path: Path) -> None:
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.save_as(path, enforce_file_format=True)
