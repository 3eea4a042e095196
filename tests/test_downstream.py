"""The segmentation network and the Dice of tumours with synthetic contrasts."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from tiny_studies import write_nifti, write_study

from apt_monai.contrasts import ADNI, BRATS
from apt_monai.evaluation import EvaluationSlices, downstream
from apt_monai.evaluation.downstream import dice_with, train_segmenter
from apt_monai.methods import Copy
from apt_monai.transforms import StudyPreprocessing

SHAPE = (20, 17, 8)


def make_slices(folder: Path, subjects: int = 3, tumours: bool = True) -> EvaluationSlices:
    """Studies whose tumour, at another place in each, is bright in the first contrast alone."""
    studies = []
    for i in range(subjects):
        study = write_study(folder / f"case{i}", BRATS.names, SHAPE, seed=i, seg=False)
        labels = np.zeros(SHAPE, np.uint8)
        if tumours:
            labels[4 + 2 * i : 10 + 2 * i, 4:11, 2:6] = 1
        image = nib.load(study[BRATS.names[0]])
        volume = np.where(labels > 0, 3000, image.get_fdata()).astype(np.int16)
        write_nifti(Path(study[BRATS.names[0]]), volume, image.affine)
        study["seg"] = write_nifti(folder / f"case{i}" / f"case{i}_seg.nii.gz", labels, image.affine)
        studies.append(study)
    return EvaluationSlices(studies, folder / "cache", BRATS, None)


@pytest.fixture(scope="module")
def slices(tmp_path_factory: pytest.TempPathFactory) -> EvaluationSlices:
    return make_slices(tmp_path_factory.mktemp("tumours"))


class Filled:
    """A method by what evaluation knows of one: the missing contrast is what a function makes of the batch."""

    encoder, passes = None, 1
    preprocessing = StudyPreprocessing(BRATS, None)

    def __init__(self, fill: Callable[[dict[str, Any]], torch.Tensor]) -> None:
        self.fill = fill

    def __call__(self, batch: dict[str, Any], available: torch.Tensor, progress: Any = None) -> dict[str, torch.Tensor]:
        return {"image": torch.where(available[:, :, None, None], batch["image"], self.fill(batch))}


def test_a_contrast_without_the_tumour_costs_what_the_network_saw_it_by(
    slices: EvaluationSlices, tmp_path: Path
) -> None:
    network = train_segmenter(slices.entries, BRATS, tmp_path / "segmenter.pt", iterations=25)
    methods = {"empty": Filled(lambda batch: torch.full_like(batch["image"], -0.5))}
    found = dice_with(network, methods, slices)
    assert [(f["method"], f["target"], f["subject"]) for f in found[:5]] == [
        ("acquired", None, "case0"),
        *(("empty", name, "case0") for name in BRATS.names),
    ]
    assert len(found) == 3 * 5
    acquired = [f["dice"] for f in found if f["method"] == "acquired"]
    without = [f["dice"] for f in found if f["target"] == BRATS.names[0]]
    assert min(acquired) > 0.8 and max(without) < min(acquired) - 0.3


def test_a_perfect_synthesis_has_the_dice_of_the_acquired(slices: EvaluationSlices, tmp_path: Path) -> None:
    network = train_segmenter(slices.entries, BRATS, tmp_path / "segmenter.pt", iterations=5)
    images = {entry.subject: entry.image(slice(None)) for entry in slices.entries}  # every slice is an entry's

    def truth(batch: dict[str, Any]) -> torch.Tensor:
        wanted = zip(batch["subject"], batch["slice"].tolist(), strict=True)
        return torch.stack([images[subject][index] for subject, index in wanted])

    found = dice_with(network, {"perfect": Filled(truth)}, slices)
    by_subject: dict[str, set[float]] = {}
    for entry in found:
        by_subject.setdefault(entry["subject"], set()).add(entry["dice"])
    assert all(len(values) == 1 for values in by_subject.values())


def test_an_interrupted_training_ends_with_the_same_weights(
    slices: EvaluationSlices, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train_segmenter(slices.entries, BRATS, tmp_path / "whole.pt", iterations=4, seed=7)
    train_segmenter(slices.entries, BRATS, tmp_path / "part.pt", iterations=2, seed=7)
    resumed = train_segmenter(slices.entries, BRATS, tmp_path / "part.pt", iterations=4, seed=7)
    monkeypatch.setattr(downstream, "_batch", None)  # a finished one is not trained again
    again = train_segmenter(slices.entries, BRATS, tmp_path / "part.pt", iterations=4, seed=7)
    for weights in (resumed.state_dict(), again.state_dict()):
        assert all(torch.equal(weights[key], value) for key, value in whole.state_dict().items())
    assert not again.training


def test_a_file_of_another_training_is_refused(slices: EvaluationSlices, tmp_path: Path) -> None:
    path = tmp_path / "segmenter.pt"
    train_segmenter(slices.entries, BRATS, path, iterations=2)
    with pytest.raises(ValueError, match=r"segmenter.pt: holds a segmenter of 2 iterations"):
        train_segmenter(slices.entries, BRATS, path, iterations=1)
    with pytest.raises(ValueError, match="of other studies, contrasts or another seed"):
        train_segmenter(slices.entries[:2], BRATS, path, iterations=2)
    path.write_text("no weights")
    with pytest.raises(ValueError, match="not the training of a segmenter"):
        train_segmenter(slices.entries, BRATS, path, iterations=2)


def test_studies_without_a_tumour_are_refused(slices: EvaluationSlices, tmp_path: Path) -> None:
    healthy = make_slices(tmp_path / "healthy", 2, tumours=False)
    with pytest.raises(ValueError, match="none of the 2 training studies has a tumour"):
        train_segmenter(healthy.entries, BRATS, tmp_path / "segmenter.pt", iterations=1)
    network = train_segmenter(slices.entries, BRATS, tmp_path / "segmenter.pt", iterations=1)
    with pytest.raises(ValueError, match="none of the 14 slices has a tumour"):
        dice_with(network, {}, healthy)


def test_contrasts_without_a_segmentation_are_refused(tmp_path: Path) -> None:
    study = write_study(tmp_path / "case0", ADNI.names, SHAPE)
    slices = EvaluationSlices([study], tmp_path / "cache", ADNI, 2)
    with pytest.raises(ValueError, match="the adni contrasts have no segmentation"):
        train_segmenter(slices.entries, ADNI, tmp_path / "segmenter.pt", iterations=1)
    with pytest.raises(ValueError, match="the adni contrasts have no segmentation"):
        dice_with(torch.nn.Identity(), {"copy": Copy(slices.preprocessing)}, slices)


def test_a_study_where_nobody_sees_a_tumour_has_no_dice() -> None:
    none, some = torch.zeros(2, 1, 4, 4, dtype=torch.bool), torch.ones(2, 1, 4, 4, dtype=torch.bool)
    assert math.isnan(downstream._dice(none, none))
    assert (downstream._dice(none, some), downstream._dice(some, some)) == (0, 1)
