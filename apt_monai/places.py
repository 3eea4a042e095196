"""Where things are: the bundles, the model to work with, and what is written where nobody named another place."""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

from apt_monai.errors import ModelError

logger = logging.getLogger(__name__)

FORMAT = "apt_monai.model/2"
"""The layout of a model's folder, as its ``model.json`` says it."""
SHIPPED = {"direct": "models", "published": "models/published"}
"""By method, where in a bundle the weights are that come with it: our own method, and the paper's."""
COMPARED = ("mmgan", "hinet", "resvit", "adm", "syndiff", "m2dn", "regression")
"""The methods that the paper compares with, and the plain regression: to be trained; no weights of them are shipped."""
TRAINABLE = (*SHIPPED, *COMPARED)
LAST_WRITTEN = "model.pt"
"""The file that a training writes last, whatever the method."""


def user_folder() -> Path:
    """Where this user's trained models, phantoms and slices are kept, when no other place is named.

    ``$APT_MONAI_HOME`` if it is set; else ``apt_monai`` in ``$XDG_DATA_HOME``, in ``~/Library/Application Support``
    (macOS), or in ``~/.local/share``: no cache, which tools that tidy up may empty. Nothing is made: what writes there
    does that.

    Returns:
        An absolute path.

    Example::

        >>> user_folder().is_absolute()
        True
    """
    if home := os.environ.get("APT_MONAI_HOME"):
        return Path(home).expanduser().absolute()
    data = Path.home() / ("Library/Application Support" if sys.platform == "darwin" else ".local/share")
    base = Path(os.environ.get("XDG_DATA_HOME") or data).expanduser()
    return (base if base.is_absolute() else data) / "apt_monai"  # XDG: a relative path is to be ignored


def work_folder(bundle: str) -> Path:
    """Where a bundle's phantoms and slices are kept, when no other place is named.

    Example::

        >>> work_folder("apt_brats").relative_to(user_folder()).as_posix()
        'apt_brats/work'
    """
    return user_folder() / bundle / "work"


def trained_model(bundle: str, method: str = "published") -> Path:
    """Where a bundle's training writes its model, when no other place is named.

    Example::

        >>> trained_model("apt_brats").relative_to(user_folder()).as_posix()
        'apt_brats/published'
    """
    return user_folder() / bundle / method


def find_bundle(name: str) -> Path:
    """The folder of a bundle: the working directory if it is the bundle, else ``bundles/<name>`` in the working
    directory, else in the checkout that this package is run from, else inside the installed package.

    MONAI does not tell a config where it lies; ``--bundle_root DIR`` on the command line overrides what is found here.

    Raises:
        ModelError: there is no such bundle in any of these places, or its metadata.json cannot be read.

    Example::

        >>> from apt_monai.files import write_text
        >>> write_text("bundles/apt_example/configs/metadata.json", '{"name": "apt_example"}')
        >>> find_bundle("apt_example").relative_to(Path.cwd()).as_posix()
        'bundles/apt_example'
    """
    package = Path(__file__).resolve().parent
    for place in (Path.cwd(), *(folder / "bundles" / name for folder in (Path.cwd(), package.parent, package))):
        metadata = place / "configs" / "metadata.json"
        if not metadata.is_file():
            continue
        if _read_json(metadata).get("name") == name:
            return place
    raise ModelError(
        f"the bundle {name} is neither the working directory nor in bundles/{name}; "
        "run from the repository or from the bundle's folder (or give the bundle's command --bundle_root DIR)"
    )


def find_model(
    model_dir: str | Path | None, bundle: str, bundle_root: str | Path | None = None, method: str | None = None
) -> Path:
    """The model folder to work with, and a log line that says which.

    Args:
        model_dir: the folder to use; None: the bundle's own training (:func:`trained_model`) if it is finished, else
            the weights that come with the bundle.
        bundle: the bundle's name, such as ``"apt_brats"``.
        bundle_root: its folder; None: where :func:`find_bundle` finds it.
        method: without ``model_dir``: one of :data:`TRAINABLE`, such as ``"direct"``, our own method, or
            ``"published"``, the paper's; None: which of these two was trained, and ours where both were or neither.

    Raises:
        ModelError: there is no such folder, or no weights of the method.
        ValueError: an unknown method.

    Example::

        >>> Path("model").mkdir()
        >>> find_model("model", "apt_brats").as_posix()
        'model'
    """
    if method not in (None, *TRAINABLE):
        raise ValueError(f"method is {method!r}: valid are {', '.join(TRAINABLE)}")
    methods = list(SHIPPED) if method is None else [method]
    trained = [folder for name in methods if ((folder := trained_model(bundle, name)) / LAST_WRITTEN).is_file()]
    if model_dir is not None:
        folder = Path(model_dir)
    elif trained:
        folder = trained[0]
    elif methods[0] not in SHIPPED:
        raise ModelError(
            f"{trained_model(bundle, methods[0])}: no trained model of {methods[0]} there, and none comes with the "
            f"bundle; train it (train DATA --method {methods[0]}), or name its folder (--model)"
        )
    else:
        folder = Path(bundle_root or find_bundle(bundle)) / SHIPPED[methods[0]]
    if not folder.is_dir():
        raise ModelError(f"{folder}: no such folder; give the folder of a finished training")
    logger.info("using the model in %s", folder)
    return folder


def read_settings(model_dir: str | Path) -> dict[str, Any]:
    """What a model folder's ``model.json`` holds, of this version's layout.

    Raises:
        ModelError: the file is missing, or is not a JSON object, or of another layout.

    Example::

        >>> _ = Path("model.json").write_text('{"format": "apt_monai.model/2", "image_size": 64}')
        >>> read_settings(".")["image_size"]
        64
    """
    path = Path(model_dir) / "model.json"
    if not path.is_file():
        raise ModelError(f"{path}: no such file; give a folder that a training has written")
    settings = _read_json(path)
    if settings.get("format") != FORMAT:
        raise ModelError(
            f"{path}: is of the layout {settings.get('format')!r}, and this version reads {FORMAT!r}; choose another "
            "model folder and train again, or use the version of apt_monai that wrote it"
        )
    return settings


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read as JSON ({error}); restore the file") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path}: is a JSON {type(content).__name__}, values by name are needed; restore the file")
    return content
