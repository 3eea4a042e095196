"""Splits by subject: seeded, independent of the order of the listing, saved as JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

from apt_monai.files import key_digest, write_text

PARTS = ("train", "validation", "test", "unused")


def patient(subject: str) -> str:
    """The patient of a study: its name without what two studies of one patient differ by.

    That is the time point that BraTS names from 2023 on end in, the session of a BIDS study, and the day of a study
    from ADNI's archive.

    Example::

        >>> patient("BraTS-GLI-00005-001"), patient("BraTS2021_00005")
        ('BraTS-GLI-00005', 'BraTS2021_00005')
        >>> patient("sub-01_ses-02"), patient("002_S_0413_2006-11-15")
        ('sub-01', '002_S_0413')
    """
    return re.sub(r"^(BraTS-[A-Za-z]+-\d{5})-\d{3}$|^(.+?)_(?:ses-[A-Za-z0-9]+|\d{4}-\d\d-\d\d)$", r"\1\2", subject)


def split_subjects(
    subjects: Iterable[str],
    train_fraction: float = 0.8,
    validation_subjects: int = 4,
    test_subjects: int | None = None,
    seed: int = 0,
) -> dict[str, list[str]]:
    """Split studies by patient into training, validation and test.

    The split depends on the seed and the set of subjects alone. Patients are taken in the order of a hash of seed and
    name: the first ``train_fraction`` (rounded, and never more than leaves two) for training; of the rest at most
    ``validation_subjects``, but never all, for validation; of what then remains at most ``test_subjects`` for test. The
    studies of one patient (see :func:`patient`) stay together.

    Args:
        subjects: the studies' names.
        train_fraction: the share of the patients to train on, above 0 and below 1.
        validation_subjects: at most so many patients for validation, at least 1.
        test_subjects: at most so many patients for test, at least 1; None: all that remain. The paper: 50 (BraTS), 30
            (ADNI).
        seed: the split's seed.

    Returns:
        ``{"train": [...], "validation": [...], "test": [...], "unused": [...]}``, each sorted; the first three have at
        least one study.

    Raises:
        ValueError: fewer than three patients, a name that occurs twice, or an argument out of range.

    Example::

        >>> {part: len(names) for part, names in split_subjects([f"s{i}" for i in range(20)]).items()}
        {'train': 16, 'validation': 3, 'test': 1, 'unused': 0}
    """
    names = sorted(subjects)
    repeated = sorted({a for a, b in zip(names, names[1:], strict=False) if a == b})
    if repeated:
        raise ValueError(f"subject {repeated[0]!r} occurs twice; each study needs a name of its own")
    if not 0 < train_fraction < 1:
        raise ValueError(f"train_fraction={train_fraction}: must be above 0 and below 1")
    if validation_subjects < 1 or (test_subjects is not None and test_subjects < 1):
        raise ValueError(
            f"validation_subjects={validation_subjects}, test_subjects={test_subjects}: each must be at least 1"
        )
    patients = sorted({patient(name) for name in names}, key=lambda p: key_digest(seed, p))
    if len(patients) < 3:
        raise ValueError(
            f"{len(patients)} subjects cannot be split into training, validation and test; at least 3 are needed"
        )
    train = min(max(round(train_fraction * len(patients)), 1), len(patients) - 2)
    rest = len(patients) - train
    validation = min(validation_subjects, rest - 1)
    test = rest - validation if test_subjects is None else min(test_subjects, rest - validation)

    ends = {"train": train, "validation": train + validation, "test": train + validation + test}
    part_of = {p: next((part for part, end in ends.items() if i < end), "unused") for i, p in enumerate(patients)}
    return {part: [name for name in names if part_of[patient(name)] == part] for part in PARTS}


def save_split(path: str | Path, split: dict[str, list[str]], **settings: float | int | str | None) -> None:
    """Save a split as JSON: the settings (seed, fraction, ...), the counts and the names.

    The same split and settings give the same bytes. The file is complete or not there.

    Args:
        path: the file; its folder is made where it does not exist.
        split: what :func:`split_subjects` returned.
        settings: what the split was made with, such as ``seed=0, train_fraction=0.8``.

    Example::

        >>> save_split("split.json", split_subjects(["a", "b", "c"], seed=7), seed=7)
        >>> json.loads(Path("split.json").read_text())["settings"]
        {'seed': 7}
    """
    content = {"settings": settings, "counts": {part: len(names) for part, names in split.items()}, **split}
    write_text(path, json.dumps(content, indent=1) + "\n")


def read_split(path: str | Path) -> dict[str, list[str]]:
    """The split that :func:`save_split` wrote, whatever the dataset at hand.

    Raises:
        ValueError: the file is missing or not a split, or a study is in two parts.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such split file; make it with split_subjects and save_split")
    try:
        content = json.loads(path.read_text())
        split = {part: [str(name) for name in content[part]] for part in PARTS}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: is not a split ({type(error).__name__}: {error}); expected JSON with lists under "
            f"{', '.join(PARTS)}: delete it to make the split anew"
        ) from error
    listed = [name for names in split.values() for name in names]
    if len(listed) != len(set(listed)):
        raise ValueError(f"{path}: a subject is listed twice; delete the file to make the split anew")
    return split


def load_split(path: str | Path, subjects: Iterable[str]) -> dict[str, list[str]]:
    """Load a split and check it against the dataset.

    Args:
        path: a file that :func:`save_split` wrote.
        subjects: the names of the dataset's studies.

    Returns:
        The split, as :func:`split_subjects` returns it.

    Raises:
        ValueError: as :func:`read_split` does, or the split and the dataset do not have the same studies.

    Example::

        >>> save_split("split.json", split_subjects(["a", "b", "c"]), seed=0)
        >>> load_split("split.json", ["c", "b", "a"]) == split_subjects(["a", "b", "c"])
        True
    """
    split = read_split(path)
    listed, known = {name for names in split.values() for name in names}, set(subjects)
    for names, problem in (
        (sorted(listed - known), "are in the split but not in the dataset"),
        (sorted(known - listed), "are in the dataset but not in the split"),
    ):
        if names:
            raise ValueError(
                f"{path}: {len(names)} subjects {problem} ({', '.join(names[:3])}{', ...' if names[3:] else ''}); "
                "use the dataset that the split was made of; to evaluate all studies of another one, which the model "
                "has not seen, give --split_file '$None' (python -m apt_monai: --set 'split_file=$None'); to train, "
                "name another model folder, or delete the file to make the split anew"
            )
    return split
