"""A folder of studies as a datastore: its images by id, what each study lacks, and what is published into it."""

from __future__ import annotations

import gzip
import shutil
from collections import abc
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib

from apt_monai.apps.guards import Refused, check_header, checked_name, is_gzip, is_plain, link_outside
from apt_monai.contrasts import ContrastSet
from apt_monai.data.readers import SeriesMapping, read_studies
from apt_monai.data.readers.bids import anatomies
from apt_monai.data.readers.listing import Study, acquired_files, visible
from apt_monai.data.readers.mapping import Mapping
from apt_monai.data.readers.series import read_series
from apt_monai.data.writers import synthetic_path
from apt_monai.errors import StudyError
from apt_monai.files import complete_file
from apt_monai.io.dicom import dicom_files
from apt_monai.io.nifti import nifti_stem
from apt_monai.io.sidecar import is_synthetic, sidecar_path, uncertainty_path

MAX_VOXELS = 512**3
"""So many voxels a volume are accepted by default."""


@dataclass(frozen=True)
class ListedStudy:
    """A study of the folder.

    Args:
        name: its id.
        folder: the folder that its synthetic images are published into.
        readings: by model, the study as the readers give it, for each model whose contrasts it has.
        synthetic: by contrast, what was published.
        problem: why it cannot be used; None where it can.
    """

    name: str
    folder: Path
    readings: abc.Mapping[str, Study] = field(default_factory=dict)
    synthetic: abc.Mapping[str, Path] = field(default_factory=dict)
    problem: str | None = None

    def images(self, sets: abc.Mapping[str, ContrastSet]) -> dict[str, Path]:
        """Its images by id: ``<study>_<contrast>`` and ``<study>_<contrast>_SYNTHETIC`` (and its uncertainty).

        A contrast that is a DICOM series is no image of the list, as it is no file that could be sent.
        """
        acquired = {
            f"{self.name}_{contrast}": Path(study[contrast])
            for model, study in self.readings.items()
            for contrast in sets[model].names
            if contrast in study and Path(study[contrast]).is_file()
        }
        made = [path for file in self.synthetic.values() for path in (file, uncertainty_path(file)) if path.is_file()]
        return acquired | {image_id(path): path for path in made}

    def lacking(self, model: str, contrasts: ContrastSet) -> list[str]:
        """The contrasts that it neither has nor was given by synthesis."""
        study = self.readings.get(model, {})
        return [name for name in contrasts.names if study and name not in study and name not in self.synthetic]


def image_id(path: str | Path) -> str:
    """What an image is called: its file's name without ``.nii.gz``.

    Example::

        >>> image_id("out/case_t1_SYNTHETIC.nii.gz")
        'case_t1_SYNTHETIC'
    """
    name = Path(path).name
    return nifti_stem(name) or name


class StudiesFolder:
    """The studies of a folder, as the readers find them, whatever the layout; read anew at each request.

    It has what MONAI Label asks of a datastore to show it. Nothing outside the folder is ever read: a study that a link
    leads out of is listed with its problem. A study that cannot be used does not stop the others.

    Args:
        root: the folder; links to it are followed.
        sets: by model, the contrasts that it knows.
        series: a series mapping, see :func:`apt_monai.data.readers.read_studies`.
        max_voxels: so many voxels a volume are accepted.

    Raises:
        ValueError: the series mapping does not fit the contrasts of each model.

    Example::

        >>> from apt_monai.contrasts import BRATS
        >>> Path("studies/case").mkdir(parents=True)
        >>> Path("studies/case/case_t1.nii.gz").touch()
        >>> folder = StudiesFolder("studies", {"apt_brats": BRATS})
        >>> folder.list_images(), folder.find("case").lacking("apt_brats", BRATS)
        (['case_t1'], ['flair', 't1ce', 't2'])
    """

    def __init__(
        self,
        root: str | Path,
        sets: abc.Mapping[str, ContrastSet],
        series: SeriesMapping | str | Path | None = None,
        max_voxels: int = MAX_VOXELS,
    ) -> None:
        self.root = Path(root).resolve()
        self.sets = dict(sets)
        self.series = {model: Mapping.parse(series, each) for model, each in self.sets.items()} if series else {}
        self.max_voxels = max_voxels

    def studies(self) -> list[ListedStudy]:
        """Every study, sorted by name."""
        return [study for folder in self._folders() for study in self._read(folder)]

    def find(self, name: str) -> ListedStudy:
        """The study of an id, or that an image's id belongs to.

        Raises:
            Refused: 404, there is none; 422, it is no plain name, or the study cannot be used.
        """
        checked_name("image", name)
        problem = None
        for folder in self._folders():
            if name != folder.name and not name.startswith(f"{folder.name}_"):
                continue
            for study in self._read(folder):
                if study.problem is not None:
                    problem = study.problem
                elif name == study.name or name in study.images(self.sets):
                    return study
        if problem is not None:
            raise Refused(422, problem)
        raise Refused(404, f"there is no study or image {name!r}; GET /datastore/?output=all lists them")

    def image(self, name: str) -> Path:
        """The file of an image.

        Raises:
            Refused: 404, there is none; 422, see :meth:`find`, or it leads out of the folder.
        """
        path = self.find(name).images(self.sets).get(name)
        if path is None:
            raise Refused(404, f"{name!r} is a study, not an image; GET /datastore/?output=all lists the images")
        if not path.resolve().is_relative_to(self.root):
            raise Refused(422, f"image {name!r} lies outside the folder of studies, behind a link; copy it there")
        return path

    def next_lacking(self, model: str | None = None) -> dict[str, Any]:
        """The first study that lacks a contrast which was not synthesised yet; empty where there is none.

        Args:
            model: whose contrasts; None: those of any model that knows all contrasts of the study.

        Raises:
            Refused: 404, there is no such model.
        """
        if model is not None and model not in self.sets:
            raise Refused(404, f"there is no model {model!r}; valid are {', '.join(self.sets)}")
        for study in self.studies():
            for each in [model] if model else study.readings:
                lacking = study.lacking(each, self.sets[each])
                if lacking:
                    name = next(iter(study.images(self.sets)), study.name)
                    return {"id": name, "study": study.name, "model": each, "lacking": lacking}
        return {}

    def publish(self, study: ListedStudy, volume: Path) -> list[str]:
        """Take a synthesised volume with its uncertainty and sidecar into a study's folder; the sidecar comes last.

        Returns:
            The ids of the images.

        Raises:
            OSError: the folder cannot be written to.
        """
        images = [path for path in (volume, uncertainty_path(volume)) if path.is_file()]
        sidecar_path(study.folder / volume.name).unlink(missing_ok=True)  # none describes another volume
        for path in (*images, sidecar_path(volume)):
            self.keep(study, path)
        return [image_id(path) for path in images]

    def keep(self, study: ListedStudy, file: Path) -> None:
        """Take a file into a study's folder.

        Raises:
            OSError: the folder cannot be written to.
        """
        with complete_file(study.folder / file.name) as partial:
            shutil.copyfile(file, partial)

    def add(self, name: str, file: Path) -> str:
        """Take an uploaded volume as a contrast of a study, which is made where it is not there.

        Args:
            name: the image's id, ``<study>_<contrast>``.
            file: a NIfTI file.

        Raises:
            Refused: 422, the id says no contrast, the image is there already, was synthesised, or the folder is of
                another layout than a folder a study; what :func:`check_header` refuses.
        """
        checked_name("image", name)
        study, _, contrast = name.rpartition("_")
        names = _union(contrasts.names for contrasts in self.sets.values())
        if not study or contrast not in names:
            raise Refused(422, f"image is {name!r}: valid is <study>_<contrast>, a contrast of {', '.join(names)}")
        folder = self.root / study
        if self.series or any(map(anatomies, self._folders())) or self._folders() == [self.root]:
            raise Refused(422, "images are added only where each study has a folder with files <study>_<contrast>")
        if (folder.exists() and link_outside(folder, self.root)) or (folder / f"{name}.nii.gz").exists():
            raise Refused(422, f"image {name!r} is there already; nothing is overwritten: choose another study's name")
        check_header(file, self.max_voxels, name)
        image: Any = nib.load(file)
        if is_synthetic(name, image.header):
            raise Refused(422, f"image {name!r}: was synthesised, as its header says; give acquired contrasts alone")
        opened = open if is_gzip(file) else gzip.open  # the same bytes, packed
        with (
            complete_file(folder / f"{name}.nii.gz") as partial,
            open(file, "rb") as given,
            opened(partial, "wb") as to,
        ):
            shutil.copyfileobj(given, to)
        return name

    # What MONAI Label asks of a datastore

    def list_images(self) -> list[str]:
        """The ids of all images."""
        return [name for study in self.studies() for name in study.images(self.sets)]

    def get_image_uri(self, name: str) -> str:
        """The path of an image's file, as :meth:`image` gives it."""
        return str(self.image(name))

    def get_image_info(self, name: str) -> dict[str, Any]:
        """What is known of an image: its study, whether it is synthetic, what its study lacks by each model."""
        path, study = self.image(name), self.find(name)
        lacking = {model: study.lacking(model, self.sets[model]) for model in study.readings}
        return {"study": study.name, "synthetic": path in _files(study), "lacking": lacking}

    def status(self) -> dict[str, Any]:
        """How many studies there are, and how many lack nothing (any more) by one of the models."""
        studies = [study for study in self.studies() if study.problem is None]
        done = [s for s in studies if any(not s.lacking(model, self.sets[model]) for model in s.readings)]
        return {"total": len(studies), "completed": len(done), "label_tags": {}, "label_counts": {}, "train": []}

    def json(self) -> dict[str, Any]:
        """The images as MONAI Label lists them, and the studies: what they have, lack and which cannot be used."""
        objects, listing = {}, {}
        for study in self.studies():
            images = study.images(self.sets)
            for name, path in images.items():
                ending = path.name[len(image_id(path)) :]
                objects[name] = {"image": {"ext": ending, "info": {"synthetic": path in _files(study)}}, "labels": {}}
            listing[study.name] = {
                "acquired": _union(
                    [name for name in self.sets[model].names if name in reading]
                    for model, reading in study.readings.items()
                ),
                "synthetic": {contrast: image_id(path) for contrast, path in study.synthetic.items()},
                "lacking": {model: study.lacking(model, self.sets[model]) for model in study.readings},
                "images": list(images),
                "problem": study.problem,
            }
        return {"name": self.root.name, "description": "", "objects": objects, "studies": listing}

    # How it is read

    def _folders(self) -> list[Path]:
        """The folder of each study or subject; of one study, the folder itself."""
        if acquired_files(self.root) or dicom_files(self.root):
            return [self.root]
        return [folder for folder in visible(self.root) if folder.is_dir()]

    def _read(self, folder: Path) -> list[ListedStudy]:
        name = folder.name
        if not is_plain(name):
            return [ListedStudy("?", folder, problem="a study's folder has no plain name; rename it")]
        try:
            if (link := link_outside(folder, self.root)) is not None:
                return [ListedStudy(name, folder, problem=f"{link.name}: is a link out of the folder of studies")]
        except OSError as error:
            return [ListedStudy(name, folder, problem=f"{name}: cannot be read ({error.strerror})")]
        readings: dict[str, dict[str, Study]] = {}
        problems = []
        for model, contrasts in self.sets.items():
            try:
                for study in self._studies_of(folder, model, contrasts):
                    readings.setdefault(study["subject"], {})[model] = study
            except (StudyError, OSError) as error:
                problems.append(f"{model}: {error}")
        foreign = [each for each in readings if not (each == name or each.startswith(f"{name}_")) or not is_plain(each)]
        if foreign:
            problem = f"{name}: holds study folders, such as {foreign[0]}; give it as the folder of studies"
            return [ListedStudy(name, folder, problem=problem)]
        if not readings:
            return [ListedStudy(name, folder, problem="; ".join(problems))]
        return [ListedStudy(each, folder, found, self._published(each, folder)) for each, found in readings.items()]

    def _studies_of(self, folder: Path, model: str, contrasts: ContrastSet) -> list[Study]:
        if self.series:
            return read_series(self.root, [folder], contrasts, self.series[model])
        return read_studies(folder, contrasts)

    def _published(self, study: str, folder: Path) -> dict[str, Path]:
        names = _union(contrasts.names for contrasts in self.sets.values())
        paths = {name: folder / synthetic_path(".", study, name).name for name in names}
        return {name: path for name, path in paths.items() if path.is_file() and sidecar_path(path).is_file()}


def _union(lists: abc.Iterable[abc.Sequence[str]]) -> list[str]:
    return list(dict.fromkeys(name for names in lists for name in names))


def _files(study: ListedStudy) -> set[Path]:
    return {path for file in study.synthetic.values() for path in (file, uncertainty_path(file))}
