"""A tiny study as it is after synthesis, for tests of its report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tiny_studies import write_study

from apt_monai.contrasts import BRATS
from apt_monai.data.writers import SaveSyntheticStudyd, synthetic_path
from apt_monai.io.sidecar import sidecar_path
from apt_monai.report import write_report
from apt_monai.transforms import StudyPreprocessing

TARGET = "t1ce"
SHAPE = (24, 20, 16)


def synthesised_study(
    folder: Path,
    findings: Sequence[dict[str, str]] | None = None,
    uncertain: bool = True,
    prior: bool = False,
    **settings: Any,
) -> dict[str, str]:
    """Three contrasts in ``folder``, and ``t1ce`` as a method would leave it in ``folder``'s neighbour ``out``."""
    acquired = [name for name in BRATS.names if name != TARGET]
    study = write_study(folder, acquired, SHAPE, seg=False, **settings)
    preprocessing = StudyPreprocessing(BRATS, None)
    loaded = preprocessing(study)
    image = loaded["image"].as_tensor()
    loaded["synthesised"] = image[[BRATS.index("t1")] * len(BRATS)] * 0.8
    if uncertain:
        loaded["uncertainty"] = torch.linspace(0.05, 0.6, SHAPE[2]).expand(image.shape).clone()
    if prior:
        loaded["prior"] = image[[BRATS.index("t2")] * len(BRATS)] * 0.5
    save = SaveSyntheticStudyd(folder.parent / "out", preprocessing, {"seed": 0, "trained_on": "digital phantom"})
    save(loaded)
    if findings is not None:
        path = sidecar_path(synthetic_path(folder.parent / "out", study["subject"], TARGET))
        path.write_text(json.dumps({**json.loads(path.read_text()), "findings": list(findings)}))
    return study


def written_report(folder: Path, **settings: Any) -> Path:
    """The report of such a study."""
    return write_report(synthesised_study(folder, **settings), folder.parent / "out", BRATS)
