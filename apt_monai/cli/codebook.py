"""``codebook show``: a prior codebook for people to read."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from apt_monai.codebook import PriorCodebook
from apt_monai.contrasts import get_contrast_set
from apt_monai.places import find_model, read_settings
from apt_monai.visualize import draw_codebook

CODEBOOK_NAME = "codebook.json"


def run(arguments: argparse.Namespace) -> int:
    """Print a codebook, and draw it where that is asked for."""
    path = arguments.path
    if path is None:
        path = find_model(None, f"apt_{arguments.dataset}", method="published")
    contrasts = None
    if path.is_dir():
        contrasts = get_contrast_set(read_settings(path)["contrasts"])
        path = path / CODEBOOK_NAME
    codebook = PriorCodebook.read(path, contrasts)
    print(f"{path}\n\n{codebook_text(codebook)}")
    if arguments.picture:
        print(f"\nDrawn in {draw_codebook(arguments.picture, codebook)}")
    return 0


def codebook_text(codebook: PriorCodebook, best: int = 3) -> str:
    """A codebook for people to read: each target's entries, and which of them is used for each subset of contrasts.

    Args:
        codebook: the codebook.
        best: how many entries of each target are listed, beside the best one of each source: no other is ever used.

    Example::

        >>> from apt_monai.codebook import CodebookEntry
        >>> from apt_monai.contrasts import ADNI
        >>> curves = {"unchanged": (-1, -1 / 3, 1 / 3, 1)}
        >>> def entries_of(best, other):
        ...     return [CodebookEntry(best, "unchanged", 2, 0.9, 1.25), CodebookEntry(other, "unchanged", 0, 0.7, 1.25)]
        >>> entries = {"t1": entries_of("t2", "pd"), "t2": entries_of("pd", "t1"), "pd": entries_of("t2", "t1")}
        >>> book = PriorCodebook(ADNI, entries, curves, "ab12", "tiny", "", num_subjects=1, num_slices=2)
        >>> print(codebook_text(book))
        Prior codebook of adni: 2 training slices of 1 subjects, encoder tiny (ab12)
        <BLANKLINE>
        target  rank  source  curve      won     similarity  scale
        t1      #1    t2      unchanged  100.0%   0.900      1.250
                #2    pd      unchanged    0.0%   0.700      1.250
        t2      #1    pd      unchanged  100.0%   0.900      1.250
                #2    t1      unchanged    0.0%   0.700      1.250
        pd      #1    t2      unchanged  100.0%   0.900      1.250
                #2    t1      unchanged    0.0%   0.700      1.250
        won: the share of the slices in which it was the most similar; similarity: mean cosine; scale: σ, which the
        transformed source is multiplied by. An entry that is not listed is never used.
        <BLANKLINE>
        Used, by which contrasts are acquired (left) and synthesised (top)
        acquired  t1     t2     pd
        t1+t2     -      -      #1 t2
        t1+pd     -      #1 pd  -
        t2+pd     #1 t2  -      -
        t1        -      #2 t1  #2 t1
        t2        #1 t2  -      #1 t2
        pd        #2 pd  #1 pd  -
    """
    contrasts = codebook.contrasts
    ranks = {
        target: {entry: f"#{i}" for i, entry in enumerate(entries, start=1)}
        for target, entries in codebook.entries.items()
    }
    table = [["target", "rank", "source", "curve", "won", "similarity", "scale"]]
    for target in contrasts.names:
        usable = {codebook.lookup(target, [source]) for source in contrasts.names if source != target}
        listed = [e for i, e in enumerate(codebook.entries[target]) if i < best or e in usable]
        for entry in listed:
            share = entry.count / max(codebook.num_slices, 1)
            numbers = [f"{share:6.1%}", f"{entry.similarity:6.3f}", f"{entry.scale:.3f}"]
            name = target if entry is listed[0] else ""
            table.append([name, ranks[target][entry], entry.source, entry.curve, *numbers])

    used = [["acquired", *contrasts.names]]
    for acquired in contrasts.subsets():
        row = ["+".join(acquired)]
        for target in contrasts.names:
            if target in acquired:
                row.append("-")
            else:
                entry = codebook.lookup(target, acquired)
                row.append(f"{ranks[target][entry]} {entry.source}")
        used.append(row)
    return f"""\
Prior codebook of {contrasts.name}: {codebook.num_slices} training slices of {codebook.num_subjects} subjects, \
encoder {codebook.encoder_source} ({codebook.encoder_fingerprint})

{_in_columns(table)}
won: the share of the slices in which it was the most similar; similarity: mean cosine; scale: σ, which the
transformed source is multiplied by. An entry that is not listed is never used.

Used, by which contrasts are acquired (left) and synthesised (top)
{_in_columns(used)}"""


def _in_columns(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
