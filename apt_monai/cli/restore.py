"""``restore``: synthesised volumes back onto the grid of a raw scan."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping

from apt_monai.errors import StudyError
from apt_monai.io.sidecar import SYNTHETIC


def run(arguments: argparse.Namespace) -> int:
    """Restore every study of a synthesis; 1 where studies failed."""
    folders = sorted({path.parent for path in arguments.synthetic.glob(f"*/*_{SYNTHETIC}.json")})
    if not folders:
        raise StudyError(f"{arguments.synthetic}: holds no synthesised volumes; give the folder that synthesize wrote")
    from apt_monai.preprocessing import restore_study  # after the check: seconds
    from apt_monai.raw import each

    def restore(study: Mapping[str, str]) -> None:
        name = study["subject"]
        for path in restore_study(
            arguments.synthetic / name, arguments.preprocessed / name, arguments.out / name, arguments.grid
        ):
            print(path)

    failed = each([{"subject": folder.name} for folder in folders], restore)
    for subject, reason in failed.items():
        print(f"failed: {subject}: {reason}", file=sys.stderr)
    return 1 if failed else 0
