"""The MONAI Label app: a folder with a ``main.py`` of one line is all that ``monailabel start_server`` needs.

    from apt_monai.apps.label import AptLabelApp

``--conf NAME VALUE`` of ``start_server``: ``models`` (``brats,adni``, or folders of models), ``series`` (the JSON file
of a series mapping), ``device``, ``max_voxels``, ``max_upload`` (bytes) and ``hosts`` (names that the
server is asked under, beside localhost and IP addresses).
"""

from __future__ import annotations

import logging
import tempfile
from typing import Any

from monailabel.app import app as fastapi_app
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from monailabel.interfaces.tasks.strategy import Strategy

from apt_monai import __version__
from apt_monai.apps.routes import MAX_UPLOAD, STRATEGY, Routes, without_query
from apt_monai.apps.service import Asked, SynthesisService, find_models
from apt_monai.apps.studies import MAX_VOXELS, StudiesFolder
from apt_monai.apps.temporary import own_temporary_folder
from apt_monai.apps.worker import quieten
from apt_monai.contrasts import ContrastSet
from apt_monai.io.sidecar import NOTICE

_CONF = ("models", "series", "device", "max_voxels", "max_upload", "hosts")


class SynthesisTask(InferTask):
    """A model, as MONAI Label lists it; called with the id of an image, it gives a file and JSON."""

    def __init__(self, name: str, contrasts: ContrastSet, service: SynthesisService) -> None:
        what = f"Synthesis of what a study lacks of {', '.join(contrasts.labels)}. {NOTICE.capitalize()}."
        super().__init__(InferType.OTHERS, labels=[], dimension=3, description=what)
        self.name = name
        self.contrasts = contrasts
        self.service = service

    def info(self) -> dict[str, Any]:
        contrasts = dict(zip(self.contrasts.names, self.contrasts.labels, strict=True))
        return {**super().info(), "contrasts": contrasts}

    def is_valid(self) -> bool:
        return True

    def __call__(self, request: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        asked = Asked(self.name, request["image"], request.get("target"), request.get("contrasts") or {})
        answer = self.service(asked)
        return self.service.studies.get_image_uri(answer.params["images"][answer.params["target"]]), answer.params


class LackingStrategy(Strategy):
    """The next study that lacks a contrast which was not synthesised yet."""

    def __init__(self) -> None:
        super().__init__("The next study that lacks a contrast")

    def __call__(self, request: dict[str, Any], datastore: StudiesFolder) -> dict[str, Any]:
        return datastore.next_lacking(request.get("model"))


class AptLabelApp(MONAILabelApp):
    """Synthesis of what a study lacks, behind MONAI Label's server.

    It puts :class:`apt_monai.apps.routes.Routes` in the place of the server's own routes, has a temporary folder of its
    own, and keeps out of the log what could name a patient.

    Args:
        app_dir: the app's folder, as MONAI Label gives it.
        studies: the folder of studies.
        conf: see above.

    Raises:
        ValueError: an unknown setting or one that is no number.
        ModelError: a model is not there.
    """

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        unknown = sorted(set(conf) - set(_CONF))
        if unknown:
            raise ValueError(f"--conf {unknown[0]}: is not known; valid are {', '.join(_CONF)}")
        quieten()
        logging.getLogger("uvicorn.access").addFilter(without_query)
        tempfile.tempdir = str(own_temporary_folder(app_dir))
        models = find_models(_list(conf.get("models", "brats,adni")))
        folder = StudiesFolder(
            studies,
            {name: contrasts for name, (_, contrasts) in models.items()},
            conf.get("series"),
            _number(conf, "max_voxels", MAX_VOXELS),
        )
        self.service = SynthesisService(folder, {name: path for name, (path, _) in models.items()}, conf.get("device"))
        super().__init__(app_dir, studies, conf, "apt_monai", f"Missing contrasts of brain MR. {NOTICE}", __version__)
        routes = Routes(self.service, self.info, _number(conf, "max_upload", MAX_UPLOAD), _list(conf.get("hosts", "")))
        fastapi_app.router.routes[:] = routes.routes()

    def init_datastore(self) -> StudiesFolder:
        return self.service.studies

    def init_infers(self) -> dict[str, SynthesisTask]:
        return {
            name: SynthesisTask(name, contrasts, self.service) for name, contrasts in self.service.studies.sets.items()
        }

    def init_strategies(self) -> dict[str, LackingStrategy]:
        return {STRATEGY: LackingStrategy()}

    def _load_sessions(self, load: bool = False) -> None:
        """No sessions: uploads go into the folder of studies, or nowhere."""


def _list(value: str) -> list[str]:
    return [each.strip() for each in value.split(",") if each.strip()]


def _number(conf: dict[str, str], name: str, default: int) -> int:
    value = str(conf.get(name, default))
    if not value.isdigit() or int(value) < 1:
        raise ValueError(f"--conf {name} {value}: a number of 1 or more is needed")
    return int(value)
