"""A series mapping: from patterns of series names to contrasts."""

from __future__ import annotations

import json
from collections import abc
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from unicodedata import normalize

from apt_monai.contrasts import ContrastSet
from apt_monai.io.dicom import SeriesLabel

SeriesMapping = abc.Mapping[str, "str | abc.Mapping[str, int] | None"]
"""From a pattern of series names to a contrast, to the echo that each of several contrasts is, or to None."""


@dataclass(frozen=True)
class Series:
    """A NIfTI file or a DICOM series.

    Args:
        path: what names it, as a study holds it.
        names: what a pattern may fit.
        title: the one of them that a person would call it by.
        folder: the names of the folders below the subject's that it lies in.
        visit: the day or session that its folders name, if they do.
        label: what its DICOM headers say; None for a NIfTI file, which has no echoes.
    """

    path: str
    names: tuple[str, ...]
    title: str
    folder: tuple[str, ...]
    visit: str | None
    label: SeriesLabel | None


@dataclass(frozen=True)
class Mapping:
    """A checked series mapping: for each pattern, in order, the contrasts with their echo, None for the whole series.

    Args:
        entries: the patterns and what they mean.
        keys: what a series may be: the contrasts, and ``"seg"`` where the set has segmentations.
    """

    entries: tuple[tuple[str, dict[str, int | None]], ...]
    keys: tuple[str, ...]

    @classmethod
    def parse(cls, series: SeriesMapping | str | Path, contrasts: ContrastSet) -> Mapping:
        keys = contrasts.names + (("seg",) if contrasts.segmentation_suffixes else ())
        source, content = (
            ("series mapping", series) if isinstance(series, abc.Mapping) else (str(series), _load(series))
        )
        if not isinstance(content, abc.Mapping) or not content:
            raise ValueError(f'{source}: must map patterns of series names to contrasts, such as {{"MPRAGE*": "t1"}}')
        entries = []
        for pattern, meaning in content.items():
            echoes = meaning if isinstance(meaning, abc.Mapping) else {}
            meant: dict[str, int | None] = (
                dict(echoes) if meaning is None or isinstance(meaning, abc.Mapping) else {str(meaning): None}
            )
            if (
                not isinstance(pattern, str)
                or not (meaning is None or meant)
                or any(key not in keys for key in meant)
                or any(type(echo) is not int or echo < 1 for echo in echoes.values())
            ):
                raise ValueError(
                    f"{source}: {pattern!r} is mapped to {meaning!r}; valid are a contrast ({', '.join(keys)}), "
                    f'{{"{keys[0]}": 1, "{keys[1]}": 2}} to name the echo that each is, and null to leave it out'
                )
            entries.append((pattern, meant))
        return cls(tuple(entries), keys)

    def find(self, series: Series) -> tuple[str, dict[str, int | None]] | None:
        """The first pattern that fits a series, and what it then is; None where no pattern does."""
        return next(
            ((pattern, meant) for pattern, meant in self.entries if any(fits(n, pattern) for n in series.names)), None
        )


def fits(name: str, pattern: str) -> bool:
    """Whether a name fits a pattern, in capitals or not, however its umlauts are put together.

    Example::

        >>> fits("T1 SCHÄDEL", "t1 scha\\u0308*")
        True
    """
    name, pattern = (normalize("NFC", text).lower() for text in (name, pattern))
    return fnmatchcase(name, pattern)


def _load(file: str | Path) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"{min(twice)!r} is there twice")
        return dict(pairs)

    try:
        return json.loads(Path(file).read_text(encoding="utf-8"), object_pairs_hook=unique)
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: cannot be read as a series mapping ({error}); it must be a JSON object") from error
