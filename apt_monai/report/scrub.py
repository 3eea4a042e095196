"""What a report says of paths and patients: the study's name alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SHORTEST = 4
"""Letters of the shortest file or folder name that is looked for in texts; shorter ones stand in them by chance."""


def scrubbed(value: Any, study: Mapping[str, str | Path]) -> Any:
    """What a sidecar holds, without paths.

    Fields called ``"path"`` are left out; a source's path, or the name of its file or folder, is called by its contrast
    wherever it stands in a text; of any other absolute path nothing is left.

    Args:
        value: as JSON has it.
        study: by contrast, each source's path; and ``"subject"``, which stays.

    Example::

        >>> sidecar = {"sources": {"t1": {"path": "/pacs/Doe/t1.nii.gz"}}, "found": "/pacs/Doe/t1.nii.gz: dark"}
        >>> scrubbed(sidecar, {"subject": "a", "t1": "/pacs/Doe/t1.nii.gz"})
        {'sources': {'t1': {}}, 'found': 't1: dark'}
    """
    known: dict[str, str] = {}
    for key, path in study.items():
        if key != "subject":
            forms = (str(Path(path).absolute()), str(path), Path(path).name)
            known |= {form: key for form in forms if len(form) >= SHORTEST and form != study.get("subject")}
    longest_first = "|".join(re.escape(form) for form in sorted(known, key=len, reverse=True))
    return _without(value, known, re.compile(rf"(?<!\w)(?:{longest_first})(?!\w)" if known else r"(?!)"))


def _without(value: Any, known: Mapping[str, str], forms: re.Pattern[str]) -> Any:
    if isinstance(value, Mapping):
        return {key: _without(item, known, forms) for key, item in value.items() if key != "path"}
    if isinstance(value, (list, tuple)):
        return [_without(item, known, forms) for item in value]
    if isinstance(value, str):
        named = forms.sub(lambda found: known[found[0]], value)
        return "…" if Path(named).is_absolute() else named
    return value
