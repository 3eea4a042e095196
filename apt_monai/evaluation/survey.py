"""A first look at the test slices: how many, whose, which, and the one that is drawn."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from apt_monai.evaluation.fingerprints import tensor_bytes
from apt_monai.evaluation.slices import EvaluationSlices


@dataclass(frozen=True)
class TestSet:
    """What a first pass over the test slices finds out."""

    sha256: str
    subjects: int
    slices: int
    drawn: tuple[int, int]  # the slice that is drawn: its study, its position among that study's chosen slices


def survey(slices: EvaluationSlices) -> TestSet:
    """Count and hash the test slices (whatever the studies' order), and choose the one to draw.

    Raises:
        ValueError: there are none.
    """
    hashes: list[str] = []
    best: tuple[int, int] = (-1, -1)
    drawn = (0, 0)
    for number in range(len(slices.studies)):
        study = slices.study(number)
        text = json.dumps([study.subject, study.indices]).encode()
        tensors = [study.truth, study.region] + ([] if study.noiseless is study.truth else [study.noiseless])
        hashes.append(hashlib.sha256(text + b"".join(map(tensor_bytes, tensors))).hexdigest())
        for position, region in enumerate(study.region):
            size = int((region == 2).sum()), int((region > 0).sum())
            if size > best:
                best, drawn = size, (number, position)
    if not len(slices):
        raise ValueError("there are no test slices to evaluate on: check the dataset and the split")
    digest = hashlib.sha256("".join(sorted(hashes)).encode()).hexdigest()
    return TestSet(digest, len(slices.studies), len(slices), drawn)
