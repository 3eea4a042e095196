"""The command line, ``python -m apt_monai``: from phantoms or raw scans to a trained model, volumes and tables.

Training, synthesis and evaluation are the bundles' own commands (``python -m monai.bundle run ...``): each is printed
before it runs, so that it can be used and changed without this module. A command is a module here, and imported when
it runs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from apt_monai.bundle import TRACEBACK, USER_ERRORS, quick_imports, root_cause
from apt_monai.cli.parser import build_parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments; those of the process if None.

    Returns:
        The exit status: 0; 1 where studies of a cohort failed; 2 after an error, which is one line on the standard
        error; 130 if interrupted; that of torchrun's processes if one failed.
    """
    words = sys.argv[1:] if argv is None else argv
    arguments = build_parser(words).parse_args(words)
    if arguments.traceback:
        os.environ[TRACEBACK] = "1"
    try:
        with quick_imports():
            command = import_module(f"apt_monai.cli.{arguments.name}")
        return command.run(arguments)
    except KeyboardInterrupt:
        print("interrupted: the same command goes on where it stopped", file=sys.stderr)
        return 130
    except Exception as error:
        cause, status = root_cause(error), getattr(error, "status", 2)  # of a BundleError
        if arguments.traceback or not (isinstance(cause, USER_ERRORS) or hasattr(error, "status")):
            raise
        print(f"error: {cause}", file=sys.stderr)
        return status
