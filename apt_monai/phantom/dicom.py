"""The phantom's scanner gives DICOM: each series as a folder with one file a slice, as MR Image Storage."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, MRImageStorage, generate_uid
from pydicom.valuerep import DSfloat

from apt_monai.phantom.sequences import PulseSequence

#: How slices are shown: the directions (RAS+) in which columns, rows and slices are counted, by the axis of the head
#: (0 to the right, 1 to the front, 2 up) along which the slices follow each other.
_VIEWS = {0: ("P", "I", "R"), 1: ("L", "I", "P"), 2: ("L", "P", "S")}


@dataclass(frozen=True)
class SeriesHeader:
    """What the headers of a series say beside its pixels.

    Args:
        study: the study's name; patient and identifiers are made of it.
        number: of the series within the study, from 1.
        description: SeriesDescription; ``PHANTOM`` is put before it.
        sequence: gives the times in ms, and says whether there is a contrast agent.
        echo: which echo of the series the volume is, from 1.
        seed: of the data set: the same phantom has the same identifiers.
    """

    study: str
    number: int
    description: str
    sequence: PulseSequence
    echo: int
    seed: int

    def uid(self, *of: object) -> UID:
        """An identifier of a part of this study, the same each time."""
        return generate_uid(entropy_srcs=["apt_monai phantom", str(self.seed), self.study, *map(str, of)])


def write_dicom_series(
    folder: Path, voxels: NDArray[np.int16], affine: NDArray[np.float64], slices: int, header: SeriesHeader
) -> None:
    """Write a volume as a DICOM series, one file a slice; a further echo goes into the same folder.

    Axial slices are shown from below, sagittal ones from the left, coronal ones from the front, as on a radiologist's
    screen: the volume's axes are exchanged and flipped for that, and none of its voxels is changed.

    Args:
        folder: of the series; made if absent.
        voxels: int16 (X, Y, Z).
        affine: 4×4, voxels to mm, RAS+.
        slices: the axis along which the slices follow each other.
        header: what the headers say.

    Example::

        >>> header = SeriesHeader("case", 1, "Ax T2", PulseSequence(tr=4500.0, te=100.0), echo=1, seed=0)
        >>> write_dicom_series(Path("T2"), np.ones((4, 5, 2), np.int16), np.diag([1.0, 1.0, 5.0, 1.0]), 2, header)
        >>> from apt_monai.io import read_volume
        >>> volume, affine = read_volume("T2")
        >>> volume.shape, nib.aff2axcodes(affine)
        ((4, 5, 2), ('L', 'P', 'S'))
    """
    image = nib.Nifti1Image(voxels, affine)
    now = nib.io_orientation(affine)
    shown = nib.orientations.axcodes2ornt(_VIEWS[int(now[slices, 0])])
    image = image.as_reoriented(nib.orientations.ornt_transform(now, shown))
    pixels, affine = np.asarray(image.dataobj), np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.affine  # to LPS+
    columns, rows, step = affine[:3, 0], affine[:3, 1], affine[:3, 2]
    between_columns, between_rows, thickness = (float(np.linalg.norm(edge)) for edge in (columns, rows, step))
    series = _series_dataset(header)
    series.ImageOrientationPatient = _numbers([*columns / between_columns, *rows / between_rows])
    series.PixelSpacing = _numbers([between_rows, between_columns])
    series.SliceThickness = series.SpacingBetweenSlices = _numbers([thickness])[0]
    series.Columns, series.Rows, count = pixels.shape
    series.SmallestImagePixelValue, series.LargestImagePixelValue = int(pixels.min()), int(pixels.max())
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        number = (header.echo - 1) * count + index + 1
        series.SOPInstanceUID = header.uid(header.number, number)
        series.InstanceNumber = number
        series.ImagePositionPatient = _numbers(affine[:3, 3] + index * step)
        series.SliceLocation = _numbers([float((affine[:3, 3] + index * step) @ step) / thickness])[0]
        series.PixelData = np.ascontiguousarray(pixels[:, :, index].T).astype("<i2").tobytes()
        series.file_meta.MediaStorageSOPInstanceUID = series.SOPInstanceUID
        series.save_as(folder / f"{number:04d}.dcm", enforce_file_format=True)


def _series_dataset(header: SeriesHeader) -> Dataset:
    """All that the slices of one echo have in common but their place."""
    sequence = header.sequence
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = MRImageStorage
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SpecificCharacterSet = "ISO_IR 100"
    data.ImageType = ["ORIGINAL", "PRIMARY", "M", "SE" if sequence.ti is None else "IR"]
    data.StudyDate = data.SeriesDate = "20000101"
    data.StudyTime, data.SeriesTime = "120000", f"1{header.number:02d}000"
    data.AccessionNumber = ""
    data.Modality = "MR"
    data.Manufacturer = "PHANTOM"
    data.ManufacturerModelName = "apt_monai digital phantom"
    data.ReferringPhysicianName = ""
    data.StudyDescription = "PHANTOM brain"
    data.SeriesDescription = f"PHANTOM {header.description}"
    data.PatientName = f"PHANTOM^{header.study}"
    data.PatientID = f"PHANTOM_{header.study}"
    data.PatientBirthDate = ""
    data.PatientSex = "O"
    data.PatientComments = "PHANTOM: a digital phantom, not a patient"
    data.BodyPartExamined = "BRAIN"
    if sequence.gadolinium:
        data.ContrastBolusAgent = "PHANTOM gadolinium"
    data.ScanningSequence = "SE" if sequence.ti is None else ["SE", "IR"]
    data.SequenceVariant = "NONE"
    data.ScanOptions = ""
    data.MRAcquisitionType = "2D"
    data.RepetitionTime, data.EchoTime = _numbers([sequence.tr, sequence.te])
    if sequence.ti is not None:
        data.InversionTime = _numbers([sequence.ti])[0]
    data.EchoNumbers = header.echo
    data.EchoTrainLength = 1
    data.MagneticFieldStrength = 3
    data.PatientPosition = "HFS"
    data.StudyInstanceUID = header.uid()
    data.SeriesInstanceUID = header.uid(header.number)
    data.FrameOfReferenceUID = header.uid("frame of reference")
    data.PositionReferenceIndicator = ""
    data.StudyID = "1"
    data.SeriesNumber = header.number
    data.SamplesPerPixel = 1
    data.PhotometricInterpretation = "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit = 15
    data.PixelRepresentation = 1
    return data


def _numbers(values: list[float] | NDArray[np.float64]) -> list[DSfloat]:
    return [DSfloat(float(value) + 0.0, auto_format=True) for value in values]
