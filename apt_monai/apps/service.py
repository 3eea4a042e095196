"""Synthesis on request: what a request asks for, and its answer, published into the folder of studies."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from apt_monai.apps.guards import Refused, check_study, checked_name
from apt_monai.apps.studies import ListedStudy, StudiesFolder
from apt_monai.contrasts import CONTRAST_SETS, ContrastSet, get_contrast_set
from apt_monai.io.sidecar import NOTICE
from apt_monai.models import load_model_settings
from apt_monai.places import find_model
from apt_monai.raw import synthesize_raw
from apt_monai.synthesis import Synthesizer, load

_OF_CLIENTS = (
    "client_id", "description", "device", "label", "logging", "result_compress", "result_dtype", "result_extension",
    "result_meta_keys", "user",
)  # fmt: skip
"""What MONAI Label's clients add to every request; the answer is float32 NIfTI whatever they say."""


@dataclass(frozen=True)
class Asked:
    """A request for synthesis.

    Args:
        model: the name of a model, such as ``"apt_brats"``.
        image: the id of a study, or of an image of it.
        target: the contrast to synthesise; None: every one that the study lacks.
        contrasts: by contrast, the id of the acquired image; empty: as the readers say.
        raw: whether the study is as the scanner gave it, with skull, each scan on a grid of its own.
    """

    model: str
    image: str
    target: str | None = None
    contrasts: Mapping[str, str] = field(default_factory=dict)
    raw: bool = False

    @classmethod
    def parse(cls, model: str, image: str, params: str | None) -> Asked:
        """A request as it comes.

        Args:
            model: likewise.
            image: likewise.
            params: a JSON object with ``"target"``, ``"contrasts"`` and ``"raw"``, or nothing.

        Raises:
            Refused: 422, a name is no plain name, or the parameters are not such an object.

        Example::

            >>> Asked.parse("apt_brats", "case", '{"target": "t2"}').target
            't2'
        """
        checked_name("model", model)
        checked_name("image", image)
        try:
            values = json.loads(params or "{}")
        except (ValueError, RecursionError) as error:
            raise Refused(422, f"params is no JSON: {error}") from error
        if not isinstance(values, dict):
            raise Refused(422, f"params is a JSON {type(values).__name__}: an object is needed")
        unknown = sorted(set(values) - {"target", "contrasts", "raw", *_OF_CLIENTS})
        if unknown:
            raise Refused(422, f"params has {unknown[0][:60]!r}: valid are target, contrasts and raw")
        target, contrasts = values.get("target"), values.get("contrasts") or {}
        if target is not None:
            checked_name("target", target)
        if not isinstance(values.get("raw", False), bool):
            raise Refused(422, f"raw is {str(values['raw'])[:60]!r}: valid are true and false")
        if not isinstance(contrasts, dict):
            raise Refused(422, "contrasts is no object: give the id of an image by contrast")
        for name, each in contrasts.items():
            checked_name("a contrast", name)
            checked_name(f"contrasts.{name}", each)
        return cls(model, image, target, contrasts, values.get("raw", False))


@dataclass(frozen=True)
class Answer:
    """What was synthesised.

    Args:
        name: the file name of the volume.
        content: the bytes of that NIfTI file: of the target, or of the first contrast that was lacking.
        params: what a client is told: the study, the ids of the published images by contrast, the sources.
        seconds: how long it took.
    """

    name: str
    content: bytes
    params: dict[str, Any]
    seconds: float


class SynthesisService:
    """The models of a server, and what they make of the studies of a folder.

    A model is loaded when it is first asked for. One call at a time: who calls for several must queue them.

    Args:
        studies: the folder.
        models: the folders of models, by the name that requests use.
        device: where to compute; None: the GPU if there is one, else the CPU.
    """

    def __init__(self, studies: StudiesFolder, models: Mapping[str, Path], device: str | None = None) -> None:
        self.studies = studies
        self.models = dict(models)
        self.device = device
        self._loaded: dict[str, Synthesizer] = {}

    def study_of(self, asked: Asked) -> tuple[ListedStudy, dict[str, str]]:
        """The study of a request and its files, once everything that can be seen without reading a voxel is right.

        Raises:
            Refused: what is asked for is not there (404), too large (413), no image (415) or makes no sense (422).
            StudyError: a DICOM series that cannot be used.
        """
        if asked.model not in self.models:
            raise Refused(404, f"there is no model {asked.model!r}; valid are {', '.join(self.models)}")
        contrasts = self.studies.sets[asked.model]
        if asked.target is not None and asked.target not in contrasts.names:
            raise Refused(422, f"target is {asked.target!r}: valid are {', '.join(contrasts.names)}")
        study = self.studies.find(asked.image)
        files = self._named(study, asked.contrasts, contrasts) if asked.contrasts else study.readings.get(asked.model)
        if files is None:
            known = ", ".join(study.readings)
            raise Refused(422, f"study {study.name!r} does not fit {asked.model}; it fits {known}")
        sources = [name for name in contrasts.names if name in files and name != asked.target]
        if not sources:
            raise Refused(422, f"study {study.name!r} has nothing to synthesise {asked.target} from")
        if asked.target is None and len(sources) == len(contrasts):
            raise Refused(
                422,
                f"nothing to synthesise: study {study.name!r} has every contrast ({', '.join(contrasts.names)}); name "
                "the one that is to be synthesised nevertheless as the target",
            )
        check_study(files, (*sources, "mask", "seg"), self.studies.root, self.studies.max_voxels, not asked.raw)
        return study, files

    def __call__(self, asked: Asked) -> Answer:
        """Synthesise, publish and answer.

        Raises:
            Refused: see :meth:`study_of`.
            StudyError: the study cannot be used.
            OSError: the folder of studies cannot be written to.
        """
        begun = time.monotonic()
        study, files = self.study_of(asked)
        targets = None if asked.target is None else [asked.target]
        with tempfile.TemporaryDirectory() as out:
            model = self._model(asked.model)
            make = partial(synthesize_raw, model) if asked.raw else model.synthesize
            written = make(files, out, targets)
            images = {contrast: self.studies.publish(study, path) for contrast, path in written.items()}
            first = next(iter(written))
            for picture in written[first].parent.glob("*.png"):  # of a raw study, to check it by
                self.studies.keep(study, picture)
            content = written[first].read_bytes()
        params = {
            "synthetic": True,
            "notice": NOTICE,
            "model": asked.model,
            "study": study.name,
            "target": first,
            "images": {contrast: ids[0] for contrast, ids in images.items()},
            "uncertainty": {contrast: ids[1] for contrast, ids in images.items() if len(ids) > 1},
            "sources": [name for name in self.studies.sets[asked.model].names if name in files and name not in written],
        }
        return Answer(written[first].name, content, params, time.monotonic() - begun)

    def _named(self, study: ListedStudy, images: Mapping[str, str], contrasts: ContrastSet) -> dict[str, str]:
        """A study of the images that a request names, all of one study."""
        files = {"subject": study.name}
        for name, image in images.items():
            if name not in contrasts.names:
                raise Refused(422, f"contrasts has {name!r}: valid are {', '.join(contrasts.names)}")
            path = self.studies.image(image)
            if self.studies.find(image).name != study.name:
                raise Refused(422, f"contrasts.{name}: image {image!r} is not of study {study.name!r}; name its own")
            if path in study.synthetic.values():
                raise Refused(422, f"contrasts.{name}: image {image!r} was synthesised; name acquired images alone")
            if str(path) in files.values():
                raise Refused(422, f"contrasts.{name}: image {image!r} is named twice")
            files[name] = str(path)
        besides = next(iter(study.readings.values()))
        return files | {key: besides[key] for key in ("mask", "seg") if key in besides}

    def _model(self, name: str) -> Synthesizer:
        if name not in self._loaded:
            self._loaded[name] = load(self.models[name], device=self.device)
        return self._loaded[name]


def find_models(wanted: Sequence[str]) -> dict[str, tuple[Path, ContrastSet]]:
    """The folder and the contrasts of each model, by the name that requests use: ``apt_`` and the contrast set's.

    Args:
        wanted: of each ``"brats"`` or ``"adni"`` (your training of that bundle, if there is one, else the phantom
            weights that come with it), or a model's folder.

    Raises:
        ModelError: one is not there or cannot be read.
        ValueError: two are of one contrast set, or there is none.

    Example::

        >>> list(find_models(["brats", "adni"]))
        ['apt_brats', 'apt_adni']
    """
    found: dict[str, tuple[Path, ContrastSet]] = {}
    for each in wanted:
        folder = find_model(None, f"apt_{each}") if each in CONTRAST_SETS else Path(each)
        contrasts = get_contrast_set(load_model_settings(folder)["contrasts"])
        name = f"apt_{contrasts.name}"
        if name in found:
            raise ValueError(f"models: {found[name][0]} and {folder} are both of the contrasts {contrasts.name}")
        found[name] = (folder, contrasts)
    if not found:
        raise ValueError("models: none is named; give brats, adni or the folders of models, with commas between them")
    return found
