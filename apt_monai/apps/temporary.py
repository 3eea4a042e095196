"""A temporary folder of the server's own: a client on the same machine shares /tmp, and could delete what is in it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def own_temporary_folder(app: str | Path) -> Path:
    """Make one in the app's folder, for this process; what processes that are gone left there is removed.

    Example::

        >>> own_temporary_folder("app").name == f"temporary-{os.getpid()}"
        True
    """
    app = Path(app).absolute()
    for left in app.glob("temporary-*"):
        number = left.name.rpartition("-")[2]
        if number.isdigit() and not _is_running(int(number)):
            shutil.rmtree(left, ignore_errors=True)
    folder = app / f"temporary-{os.getpid()}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, mode=0o700)
    return folder


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)  # sends nothing
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
