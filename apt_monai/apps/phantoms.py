"""A folder of phantom studies that lack contrasts, and the app's folder beside it: what ``make label`` starts with."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from apt_monai.contrasts import CONTRAST_SETS
from apt_monai.files import complete_folder, write_text
from apt_monai.phantom import write_phantom_dataset

MAIN = "from apt_monai.apps.label import AptLabelApp  # noqa: F401\n"
"""The ``main.py`` of the app's folder."""


def write_lacking_studies(out: str | Path, subjects: int = 2, spacing: float = 3.0, seed: int = 1) -> list[Path]:
    """Write phantoms of each contrast set, each without one or two of its contrasts, into one folder of studies.

    Args:
        out: the folder of studies; a study that is there already is left as it is.
        subjects: how many of each set.
        spacing: voxel edge in mm.
        seed: of the phantoms; the shipped weights were trained on that of seed 0.

    Returns:
        The study folders.

    Raises:
        OSError: the folder cannot be written.
        ImportError: nilearn is not installed.

    Example::

        >>> first, *_ = write_lacking_studies("studies", subjects=1, spacing=8.0)
        >>> sorted(path.name for path in first.iterdir())[:2]
        ['BraTS2021_00000_seg.nii.gz', 'BraTS2021_00000_t1.nii.gz']
    """
    out = Path(out)
    found = []
    for contrasts in CONTRAST_SETS.values():
        hidden = out / f".{contrasts.name}"  # no reader looks there
        for i, study in enumerate(
            write_phantom_dataset(hidden, contrasts.name, subjects, seed, spacing, progress=False)
        ):
            folder = out / study.name
            found.append(folder)
            if folder.exists():
                continue
            count = min(2 - i % 2, len(contrasts) - 2)  # two contrasts stay at least
            lacking = [contrasts.names[(i + 2 * step) % len(contrasts)] for step in range(count)]
            with complete_folder(folder) as partial:
                for file in study.glob("*.nii.gz"):
                    if not any(file.name.endswith(f"_{name}.nii.gz") for name in lacking):
                        shutil.copyfile(file, partial / file.name)
    return found


def main(arguments: Sequence[str]) -> int:
    """Write both folders, and say what to open once the server runs."""
    parser = argparse.ArgumentParser(prog="python -m apt_monai.apps.phantoms", description=__doc__)
    parser.add_argument("out", type=Path, help="the folder to write to: OUT/studies and OUT/app")
    parser.add_argument("--port", type=int, default=8000, help="the port that the server will have (%(default)s)")
    given = parser.parse_args(arguments)
    studies = write_lacking_studies(given.out / "studies")
    write_text(given.out / "app" / "main.py", MAIN)
    address = f"http://127.0.0.1:{given.port}"
    print(f"{len(studies)} phantom studies in {given.out / 'studies'}, each without one or two of its contrasts.")
    print(f"The server starts now; it is ready in half a minute. Then open {address}/ in a browser,")
    print(f"{address} in 3D Slicer (see docs/monai_label.md), or type")
    print(f"  curl -X POST '{address}/infer/apt_brats?image={studies[0].name}&output=image' -OJ")
    print("Ctrl+C ends it.", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
