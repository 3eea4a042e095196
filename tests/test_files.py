"""Files are complete or not there, and known by their hash."""

from __future__ import annotations

import hashlib
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from apt_monai.files import complete_file, file_sha256


@contextmanager
def almost_full_disk(limit: int) -> Iterator[None]:
    """Let no file grow beyond ``limit`` bytes: writing fails half-way, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_hash_equals_hashlib_for_a_file_of_several_blocks(tmp_path: Path) -> None:
    content = os.urandom(3 << 20)
    (tmp_path / "file").write_bytes(content)
    assert file_sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_a_failed_write_keeps_the_older_file(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("old")
    with pytest.raises(KeyError), complete_file(tmp_path / "a.json") as partial:
        partial.write_text("ne")
        raise KeyError
    assert [f.name for f in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_text() == "old"


def test_a_killed_runs_partial_file_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".99999999.a[1].json").write_text("ha")
    (tmp_path / ".99999999.b.json").write_text("of another file")
    with complete_file(tmp_path / "a[1].json") as partial:
        partial.write_text("new")
    assert sorted(f.name for f in tmp_path.iterdir()) == [".99999999.b.json", "a[1].json"]
