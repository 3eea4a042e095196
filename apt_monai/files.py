"""Files: complete or not there, known by their hash. The one place that writes."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


def file_sha256(path: str | Path) -> str:
    """The SHA-256 of a file's bytes, as 64 hexadecimal digits.

    Raises:
        OSError: the file is missing or cannot be read.

    Example::

        >>> Path("weights.pt").write_bytes(b"abc")
        3
        >>> file_sha256("weights.pt")[:8]
        'ba7816bf'
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def json_sha256(value: Any) -> str:
    """The SHA-256 of a value that JSON can hold, as 64 hexadecimal digits; the order of its keys does not count.

    Example::

        >>> json_sha256({"a": 1, "b": 2}) == json_sha256({"b": 2, "a": 1})
        True
    """
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def key_digest(*key: object) -> bytes:
    """32 bytes that a key alone decides, such as seed and subject: what random numbers or an order are drawn from.

    Example::

        >>> key_digest(0, "a") == key_digest(0, "a"), key_digest(0, "a") == key_digest(1, "a")
        (True, False)
    """
    return hashlib.sha256("/".join(map(str, key)).encode()).digest()


@contextmanager
def complete_file(path: str | Path) -> Iterator[Path]:
    """Write a file so that it is complete or not there.

    Gives a temporary name in the same folder, with the same extensions, to write to. When the block ends well, the file
    takes its name in one step, in the place of an older one; when it does not, the temporary file is removed and an
    older one stays. What an earlier run left under a temporary name when it was killed is removed.

    Args:
        path: the file; its folder is made where it does not exist.

    Raises:
        OSError: the file cannot be written (full disk, read-only folder); the message names the folder and the cause.

    Example::

        >>> with complete_file("settings.json") as partial:
        ...     _ = partial.write_text("{}")
        >>> [file.name for file in Path().iterdir()]
        ['settings.json']
    """
    path = Path(path)
    partial = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f".*.{glob.escape(path.name)}"):
            left.unlink(missing_ok=True)
        yield partial
        os.replace(partial, path)
    except OSError as error:
        raise OSError(
            error.errno,
            f"cannot write {path.name} in the folder {path.parent} ({error.strerror or error}); free some space, "
            "make the folder writable or choose another one (nothing half-written was left)",
        ) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


@contextmanager
def complete_folder(folder: str | Path) -> Iterator[Path]:
    """A folder to fill that becomes the named one once it is complete, or leaves nothing.

    Gives a folder of a temporary name beside it; what an earlier run left there when it was killed is removed.

    Args:
        folder: the folder, which is not there yet; the one above it is made where it does not exist.

    Example::

        >>> with complete_folder("study") as partial:
        ...     write_text(partial / "a.txt", "a")
        >>> [path.as_posix() for path in Path().rglob("*.txt")]
        ['study/a.txt']
    """
    folder = Path(folder)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        os.replace(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def write_text(path: str | Path, text: str) -> None:
    """Write a text as a :func:`complete_file`, in UTF-8.

    Raises:
        OSError: the file cannot be written.

    Example::

        >>> write_text("settings.json", "{}")
        >>> Path("settings.json").read_text()
        '{}'
    """
    with complete_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def check_writable(folder: str | Path) -> None:
    """Make a folder where it does not exist, and raise ``OSError`` if a file cannot be written there.

    Example::

        >>> check_writable("out")
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0")
    except OSError as error:
        raise OSError(
            error.errno,
            f"cannot write to the folder {folder} ({error.strerror or error}); "
            "free some space, make it writable or choose another one",
        ) from error
