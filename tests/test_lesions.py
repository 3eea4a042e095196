"""Enhancing lesions missed and invented, on drawn slices and on a phantom."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor

from apt_monai.contrasts import BRATS
from apt_monai.data.readers import read_studies
from apt_monai.evaluation import EvaluationSlices
from apt_monai.evaluation.lesions import SMALLEST, count_lesions
from apt_monai.phantom import write_phantom_dataset

TISSUE, ENHANCING = 0.4, 0.9
FIRST, SECOND, OUTSIDE = (slice(4, 8), slice(4, 8)), (slice(12, 15), slice(4, 8)), (slice(22, 26), slice(22, 26))


def draw(*places: tuple[slice, slice], value: float = ENHANCING) -> Tensor:
    """A slice of grey brain with bright blocks, (1, 1, 32, 32)."""
    image = torch.full((1, 1, 32, 32), TISSUE)
    for place in places:
        image[0, 0][place] = value
    return image


@pytest.fixture
def region() -> Tensor:
    """Brain without a background, a tumour in its upper left."""
    region = torch.ones(1, 1, 32, 32, dtype=torch.uint8)
    region[..., :18, :18] = 2
    return region


@pytest.fixture
def truth() -> Tensor:
    return draw(FIRST, SECOND)


def counted(prediction: Tensor, truth: Tensor, region: Tensor) -> tuple[int, int, int]:
    counts = count_lesions(prediction, truth, region)
    assert all(len(values) == 1 for values in counts.values())
    return counts["lesions"][0], counts["missed"][0], counts["invented"][0]


def test_a_copy_of_the_truth_misses_and_invents_none(truth: Tensor, region: Tensor) -> None:
    assert counted(truth, truth, region) == (2, 0, 0)


def test_a_grey_prediction_misses_every_lesion(truth: Tensor, region: Tensor) -> None:
    assert counted(draw(), truth, region) == (2, 2, 0)


def test_a_lesion_is_found_by_a_third_of_it(truth: Tensor, region: Tensor) -> None:
    half, corner = (slice(4, 6), slice(4, 8)), (slice(4, 6), slice(4, 6))
    assert counted(draw(half, SECOND), truth, region) == (2, 0, 0)
    assert counted(draw(corner, SECOND), truth, region) == (2, 1, 0)


def test_what_no_bright_voxel_touches_is_invented_in_the_tumour_and_outside(truth: Tensor, region: Tensor) -> None:
    inside = (slice(12, 15), slice(12, 15))
    assert counted(draw(FIRST, SECOND, inside, OUTSIDE), truth, region) == (2, 0, 2)
    beside = (slice(8, 10), slice(8, 12))  # touches the first lesion at a corner
    assert counted(draw(FIRST, SECOND, beside), truth, region) == (2, 0, 0)


def test_a_bright_vessel_of_the_truth_is_neither_a_lesion_nor_invented(region: Tensor) -> None:
    vessel = (slice(22, 24), slice(22, 26))  # less than 2 % of the healthy brain
    assert counted(draw(FIRST, vessel), draw(FIRST, vessel), region) == (1, 0, 0)


def test_specks_do_not_count(truth: Tensor, region: Tensor) -> None:
    speck = (slice(24, 25), slice(20, 20 + SMALLEST - 1))
    assert counted(draw(FIRST, SECOND, speck), truth, region) == (2, 0, 0)
    assert counted(draw(FIRST), draw(FIRST, (slice(15, 16), slice(4, 4 + SMALLEST - 1))), region) == (1, 0, 0)


def test_outside_the_brain_nothing_counts(truth: Tensor, region: Tensor) -> None:
    region[..., 20:, 20:] = 0
    assert counted(draw(FIRST, SECOND, OUTSIDE), truth, region) == (2, 0, 0)


def test_slices_are_counted_each_with_the_threshold_of_all(truth: Tensor, region: Tensor) -> None:
    truths, regions = torch.cat([truth, draw()]), torch.cat([region, torch.ones_like(region)])
    counts = count_lesions(torch.cat([draw(FIRST), draw(OUTSIDE)]), truths, regions)
    assert counts == {"lesions": [2, 0], "missed": [1, 0], "invented": [0, 1]}
    assert counted(truth, truth, torch.full_like(region, 2)) == (0, 0, 0)  # no healthy brain to compare with


def test_the_enhancing_rim_of_a_phantom_is_a_lesion(tmp_path: Path) -> None:
    write_phantom_dataset(tmp_path / "phantom", "brats", 2, seed=0, spacing=4.0)
    studies = read_studies(tmp_path / "phantom", BRATS)
    slices = EvaluationSlices(studies, tmp_path / "cache", BRATS, slices_per_subject=None)
    channel = next(i for i, contrast in enumerate(BRATS.contrasts) if contrast.enhanced)
    for number, files in enumerate(studies):
        study = slices.study(number)
        truth = study.truth[:, channel : channel + 1]
        labels = nib.as_closest_canonical(nib.load(files["seg"])).get_fdata()[..., list(study.indices)]
        enhancing = np.count_nonzero(labels == 4, axis=(0, 1))
        found = np.array(count_lesions(truth, truth, study.region)["lesions"])
        assert (found[enhancing >= 10] > 0).mean() > 0.6  # its ends share their voxels with what is dark
        assert not found[enhancing == 0].any()
        flat = torch.full_like(truth, float(truth[study.brain].median()))
        missed = count_lesions(flat, truth, study.region)
        assert missed["missed"] == missed["lesions"] and not any(missed["invented"])
