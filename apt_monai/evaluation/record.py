"""What an evaluation leaves in its folder, so that the next one goes on: ``results.csv`` and ``results.json``."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from apt_monai.contrasts import ContrastSet
from apt_monai.evaluation.pictures import picture_name
from apt_monai.evaluation.scores import Row
from apt_monai.files import check_writable, json_sha256, write_text

logger = logging.getLogger(__name__)


def resume(folder: Path, settings: Mapping[str, Any], contrasts: ContrastSet) -> list[Row]:
    """The rows of an earlier run with the same settings; else an emptied folder that says whose results will come."""
    record = folder / "results.json"
    digest = json_sha256(settings)
    if record.exists():
        try:
            found = json.loads(record.read_text(encoding="utf-8"))["settings_sha256"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{record}: not the record of an evaluation ({error}); name another folder") from error
        if found == digest:
            rows = read_rows(folder / "results.csv")
            if rows:
                logger.info("%s: an evaluation with the same settings is there, it goes on where it stopped", folder)
            return rows
        logger.warning("%s: holds an evaluation of other methods, slices or cases; starting anew", folder)
    pictures = [picture_name(acquired) for acquired in contrasts.subsets()]
    check_writable(folder)
    # The old rows go first: a record of new settings beside old rows would pass for a run to be resumed.
    worst = [picture.name for picture in folder.glob("worst_*.png")]
    for name in ("results.csv", "results.md", "results.json", *pictures, *worst):
        (folder / name).unlink(missing_ok=True)
    content = {"settings_sha256": digest, "settings": settings, "complete": False}
    write_record(folder, content)
    return []


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(field.name for field in dataclasses.fields(Row))
    writer.writerows(dataclasses.astuple(row) for row in rows)
    write_text(path, text.getvalue())


def read_rows(path: Path) -> list[Row]:
    """The rows of ``results.csv``; none where it is not there.

    Raises:
        ValueError: it is another table.
    """
    if not path.exists():
        return []
    types = {field.name: {"int": int, "float": float}.get(str(field.type), str) for field in dataclasses.fields(Row)}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [Row(**{key: types[key](value) for key, value in line.items()}) for line in csv.DictReader(file)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a table of results ({error}); delete it to evaluate again") from error


def write_record(folder: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(_jsonable(content), indent=1, ensure_ascii=False, allow_nan=False)
    write_text(folder / "results.json", text + "\n")


def _jsonable(value: Any) -> Any:
    """JSON has neither NaN nor infinity: they become null and the text "inf"."""
    if isinstance(value, Mapping):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value
