"""What a report says of paths and patients: the study's name alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def scrubbed(value: Any, study: Mapping[str, str | Path]) -> Any:
    """What a sidecar holds, without paths: fields called ``"path"`` are left out, and a source's path, or its file's
    name, is called by its contrast wherever it stands in a text.

    Args:
        value: as JSON has it.
        study: by contrast, each source's path.

    Example::

        >>> sidecar = {"sources": {"t1": {"path": "/pacs/Doe/t1.nii.gz"}}, "found": "/pacs/Doe/t1.nii.gz: dark"}
        >>> scrubbed(sidecar, {"subject": "a", "t1": "/pacs/Doe/t1.nii.gz"})
        {'sources': {'t1': {}}, 'found': 't1: dark'}
    """
    names = {key: Path(path) for key, path in study.items() if key != "subject"}
    known = {str(form): key for key, path in names.items() for form in (path.absolute(), path, path.name)}
    return _without(value, dict(sorted(known.items(), key=lambda item: -len(item[0]))))  # the longest first


def _without(value: Any, known: Mapping[str, str]) -> Any:
    if isinstance(value, Mapping):
        return {key: _without(item, known) for key, item in value.items() if key != "path"}
    if isinstance(value, (list, tuple)):
        return [_without(item, known) for item in value]
    if isinstance(value, str):
        for text, name in known.items():
            value = value.replace(text, name)
        if Path(value).is_absolute():  # of a file that is none of the study's
            return "…"
    return value
