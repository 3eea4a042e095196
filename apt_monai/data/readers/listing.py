"""What a folder holds: its images, and what is left out of a study, which the log says once and by name."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from apt_monai.errors import StudyError
from apt_monai.io.dicom import dicom_files
from apt_monai.io.nifti import nifti_stem
from apt_monai.io.sidecar import is_synthetic_name

logger = logging.getLogger(__name__)

FOREIGN_ENDINGS = (
    ".mgz", ".mgh", ".nrrd", ".nhdr", ".mha", ".mhd", ".mnc", ".hdr", ".img", ".nii.bz2", ".nii.xz", ".nii.zst",
    ".nii.zip",
)  # fmt: skip
"""Of images that are not read."""
_FEW_FOLDERS = 3  # what is left out of more of them is told in one line for all
_FEW_NAMES = 20  # so many in one line

Study = dict[str, str]
MAPPING_NEEDED = 'say which series is which contrast by a series mapping, such as {"MPRAGE*": "t1"}'


@dataclass
class LeftOut:
    """What of the studies' folders is not used, to be told at the end: a line a folder, or a line a kind.

    Args:
        root: the data set's folder.
    """

    root: Path
    _by_kind: dict[tuple[str, str], list[Path]] = field(default_factory=dict)

    def add(self, file: Path, reason: str) -> None:
        """Note a file or folder that is not used, and why."""
        stem = nifti_stem(file.name)
        kind = file.suffix if stem is None else f"_{stem.rpartition('_')[2]}{file.name[len(stem) :]}"
        self._by_kind.setdefault((reason, kind), []).append(file)

    def report(self) -> None:
        """Log all of it."""
        by_folder: dict[Path, list[str]] = {}
        for (reason, kind), files in self._by_kind.items():
            folders = {file.parent for file in files}
            if len(folders) > _FEW_FOLDERS:
                logger.info(
                    "%s: not used, as %s: %d files *%s in %d folders, such as %s",
                    self.root, reason, len(files), kind, len(folders), files[0],
                )  # fmt: skip
                continue
            for file in files:
                by_folder.setdefault(file.parent, []).append(f"{file.name} ({reason})")
        for folder, names in sorted(by_folder.items()):
            more = f" and {len(names) - _FEW_NAMES} more" if len(names) > _FEW_NAMES else ""
            logger.info("%s: not used: %s%s", folder, ", ".join(names[:_FEW_NAMES]), more)


def visible(folder: Path) -> list[Path]:
    """What lies in a folder, without hidden files and folders, sorted by name.

    Raises:
        StudyError: a link to something that is not there, such as an acquired contrast on a disk that is not mounted.
    """
    found = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    for path in found:
        if path.is_symlink() and not path.exists():
            raise StudyError(
                f"{path}: is a link to {path.readlink()}, which is not there; mount it, or remove the link"
            )
    return found


def acquired_files(folder: Path) -> list[Path]:
    """The NIfTI files of a folder, without hidden and synthetic ones, sorted by name."""
    return [
        f for f in visible(folder) if nifti_stem(f.name) is not None and not f.is_dir() and not is_synthetic_name(f)
    ]


def foreign_files(folder: Path) -> list[Path]:
    """The images of a folder that are in no format that is read."""
    return [f for f in visible(folder) if f.name.lower().endswith(FOREIGN_ENDINGS) and not f.is_dir()]


def refuse_foreign_files(folder: Path) -> None:
    """Raise ``StudyError`` for the first of them."""
    for file in foreign_files(folder):
        raise StudyError(f"{file}: is an image in a format that is not read; convert it to NIfTI or move it elsewhere")


def has_images(folder: Path) -> bool:
    """Whether a folder, or one below it, has an image of any kind, acquired or not, readable or not."""
    return any(
        dicom_files(below) or foreign_files(below) or any(nifti_stem(file.name) is not None for file in visible(below))
        for below in walk(folder)
    )


def note_unused(folder: Path, used: set[str], left_out: LeftOut) -> None:
    """Note each file of a folder that is not among the used paths."""
    dicom = set(dicom_files(folder))
    for file in visible(folder):
        if file.is_dir() or str(file) in used:
            continue
        if nifti_stem(file.name) is not None and is_synthetic_name(file):
            left_out.add(file, "synthesised, not acquired")
        elif file in dicom:
            left_out.add(file, "DICOM")
        else:
            left_out.add(file, "no image")


def walk(folder: Path) -> Iterator[Path]:
    """A folder and those below it, without hidden ones, sorted; links are followed, but never back up."""
    for root, below, _ in os.walk(folder, followlinks=True):
        real = Path(root).resolve()
        above = {real, *real.parents}
        below[:] = sorted(
            name for name in below if not name.startswith(".") and (Path(root) / name).resolve() not in above
        )
        yield Path(root)
