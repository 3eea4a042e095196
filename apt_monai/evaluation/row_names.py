"""The rows of several models in one table, each by a name of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from apt_monai.methods import Method


def merge_rows(
    first: Mapping[str, Method], compared: Sequence[tuple[str | Path, Method]], evaluated: Method
) -> dict[str, Method]:
    """The rows of a table: the trivial ones, those of further models, and last those of the model that is evaluated.

    A further model's row whose name is taken already is called after the model's folder, too.

    Args:
        first: rows by name.
        compared: further models, each with its folder.
        evaluated: the model that is evaluated; its rows keep their names, and its last one is the main row.

    Example::

        >>> from apt_monai.methods import Copy
        >>> from apt_monai.transforms.preprocessing import StudyPreprocessing
        >>> method = Copy(StudyPreprocessing("adni"))
        >>> list(merge_rows({}, [("models/older", method), ("models/newer", method)], method))
        ['older: copy', 'newer: copy', 'copy']
    """
    rows = dict(first)
    taken = {*first, *evaluated.rows}
    for folder, method in compared:
        for name, row in method.rows.items():
            wanted = name if name not in taken else f"{Path(folder).name}: {name}"
            number = 2
            while wanted in taken:
                wanted, number = f"{Path(folder).name} ({number}): {name}", number + 1
            taken.add(wanted)
            rows[wanted] = row
    return rows | evaluated.rows
