"""A first look at the test slices: how many, whose, which, and the one that is drawn."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass

from apt_monai.evaluation.fingerprints import tensor_bytes
from apt_monai.methods import Batch


@dataclass(frozen=True)
class TestSet:
    """What a first pass over the test slices finds out."""

    sha256: str
    subjects: int
    slices: int
    example: Batch  # the slice that is drawn, as a batch of one


def survey(loader: Iterable[Batch]) -> TestSet:
    """Count and hash the test slices (whatever their order or batches), and choose the one to draw."""
    hashes: list[str] = []
    subjects: set[str] = set()
    best: tuple[int, int] = (-1, -1)
    example: Batch = {}
    for batch in loader:
        for i, subject in enumerate(batch["subject"]):
            region = batch["region"][i]
            text = json.dumps([subject, int(batch["slice"][i])])
            tensors = [batch[key][i] for key in ("image", "region", "features") if key in batch]
            hashes.append(hashlib.sha256(text.encode() + b"".join(tensor_bytes(t) for t in tensors)).hexdigest())
            subjects.add(subject)
            size = int((region == 2).sum()), int((region > 0).sum())
            if size > best:
                best, example = size, {key: value[i : i + 1] for key, value in batch.items()}
    if not hashes:
        raise ValueError("there are no test slices to evaluate on: check the dataset and the split")
    return TestSet(hashlib.sha256("".join(sorted(hashes)).encode()).hexdigest(), len(subjects), len(hashes), example)
