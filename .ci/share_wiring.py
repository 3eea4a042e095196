"""Copy what the bundles share from apt_brats into the others: `make bundles`.

A MONAI bundle is self-contained, so what is the same in all of them is in each; apt_brats's is the source. Shared are,
but for the bundle's name in them: the end of train, published, inference and evaluate.yaml, from the line
``# --- from here on`` (above it are the values in which datasets differ), all other configs but those in OWN, the
licence, the page on MONAI's commands and the untrained encoder. tests/test_bundle_pair.py says where they differ.

Plain standard library.
"""

import os
import sys
from itertools import zip_longest
from pathlib import Path

BUNDLES = Path(__file__).resolve().parent.parent / "bundles"
SOURCE = "apt_brats"
MARKER = b"\n# --- from here on"
SHARED_FROM_MARKER = (
    "configs/train.yaml",
    "configs/published.yaml",
    "configs/inference.yaml",
    "configs/evaluate.yaml",
)
SHARED_WHOLE = ("LICENSE", "configs/*.*", "configs/methods/*.*", "docs/monai_commands.md", "models/vision_encoder/*.*")
OWN = ("configs/metadata.json", "configs/demo.yaml", "configs/demo_published.yaml", "configs/infer.json")
HOW = f"make the change in {SOURCE}, then `make bundles`"


def split_at_marker(path: Path) -> "tuple[bytes, bytes]":
    """A config's own part and the part that is shared.

    Raises:
        ValueError: not exactly one line begins with the marker.
    """
    own, *shared = path.read_bytes().split(MARKER)
    if len(shared) != 1:
        raise ValueError(f"{path}: {len(shared)} lines begin with '{MARKER.decode().strip()}'; there must be one")
    return own, MARKER + shared[0]


def whole_files(bundle: Path) -> "list[str]":
    """The files of a bundle that are shared as a whole, relative to it."""
    found = (str(path.relative_to(bundle)) for pattern in SHARED_WHOLE for path in bundle.glob(pattern))
    return sorted(set(found) - {*SHARED_FROM_MARKER, *OWN})


def wanted_files(target: Path, source: Path) -> "dict[Path, bytes]":
    """The files of a bundle in which something is shared, and what they must hold."""
    wanted = {}
    for name in SHARED_FROM_MARKER:
        wanted[target / name] = split_at_marker(target / name)[0] + _renamed(split_at_marker(source / name)[1], target)
    for name in whole_files(source):
        wanted[target / name] = _renamed((source / name).read_bytes(), target)
    return wanted


def _renamed(content: bytes, target: Path) -> bytes:
    return content.replace(SOURCE.encode(), target.name.encode())


def other_bundles(bundles: Path) -> "list[Path]":
    folders = sorted(path.parents[1] for path in bundles.glob("*/configs/metadata.json"))
    return [folder for folder in folders if folder.name != SOURCE]


def differences(bundles: Path = BUNDLES) -> "list[str]":
    """For each shared part that differs: the file and line, what is there, what is wanted, and what puts it right."""
    found = []
    for target in other_bundles(bundles):
        wanted = wanted_files(target, bundles / SOURCE)
        for path, content in wanted.items():
            there = path.read_bytes() if path.is_file() else b""
            lines = enumerate(zip_longest(there.splitlines(True), content.splitlines(True), fillvalue=b""), start=1)
            for number, (ours, theirs) in lines:
                if ours != theirs:
                    found.append(f"{path}:{number}: is {_shown(ours)}, {SOURCE} has {_shown(theirs)}: {HOW}")
                    break
        alone = [target / name for name in whole_files(target) if target / name not in wanted]
        found += [f"{path}:1: {SOURCE} has no such file: move it there, then `make bundles`" for path in alone]
    return found


def _shown(line: bytes) -> str:
    return repr(line.decode(errors="replace").rstrip("\n")[:100]) if line else "nothing"


def main(bundles: Path = BUNDLES) -> "str | None":
    """Copy, and say which files changed; returns what is left to do by hand, or None."""
    for target in other_bundles(bundles):
        for path, content in wanted_files(target, bundles / SOURCE).items():
            if path.is_file() and path.read_bytes() == content:
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f".{path.name}.partial")
            partial.write_bytes(content)
            os.replace(partial, path)
            print(f"written: {path}")
    return "\n".join(differences(bundles)) or None


if __name__ == "__main__":
    sys.exit(main())
