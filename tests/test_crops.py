"""Random crops: a window around the brain, from (seed, subject, slice, epoch) alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_studies import write_study

from apt_monai.data.crops import EpochSampler, coarsened, crop_around, crop_generator
from apt_monai.data.slice_cache import SliceCache, SliceDataset
from apt_monai.transforms import StudyPreprocessing


@pytest.mark.parametrize("shape", [(30, 40), (30, 9), (7, 9)], ids=["larger", "narrower", "smaller"])
def test_a_crop_holds_the_voxel_that_was_drawn_and_what_is_beyond_the_slice_is_background(shape: tuple) -> None:
    image = torch.arange(shape[0] * shape[1]).reshape(1, *shape) / 2000
    region = torch.zeros(1, *shape, dtype=torch.uint8)
    region[0, 3, 5] = 2
    cropped, brain = crop_around(image, region, 12, np.random.default_rng(0))
    assert cropped.shape == brain.shape == (1, 12, 12)
    assert cropped[brain == 2].item() == image[0, 3, 5]
    inside = cropped > -1
    assert int(inside.sum()) == min(12, shape[0]) * min(12, shape[1])
    assert not brain[~inside].any()


def test_every_voxel_of_the_brain_can_be_at_a_crops_centre() -> None:
    image = torch.arange(400.0).reshape(1, 20, 20)
    region = torch.zeros(1, 20, 20)
    region[0, 8:12, 8:12] = 1
    centres = {crop_around(image, region, 4, np.random.default_rng(i))[0][0, 2, 2].item() for i in range(300)}
    assert centres == set(image[0, 8:12, 8:12].flatten().tolist())


def test_a_samples_crop_moves_with_the_epoch_and_with_nothing_else(tmp_path) -> None:
    studies = [write_study(tmp_path / "case", shape=(20, 18, 4))]
    cache = SliceCache(tmp_path / "cache", StudyPreprocessing("brats", None, deviations=6))
    cache.prepare(studies, progress=False)
    datasets = [SliceDataset(studies, cache, crop=6, seed=3) for _ in range(2)]
    first = [datasets[0][index, epoch]["image"] for epoch in range(6) for index in range(2)]
    again = [datasets[1][index, epoch]["image"] for epoch in range(6) for index in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert len({tuple(image.flatten().tolist()) for image in first[::2]}) > 1
    assert torch.equal(datasets[0][1]["image"], datasets[0][1, 0]["image"])
    whole = SliceDataset(studies, cache)[0]["image"]
    assert whole.shape[1:] != (6, 6)


def test_the_sampler_tells_the_epoch_to_every_rank() -> None:
    samplers = [EpochSampler(range(8), num_replicas=2, rank=rank, seed=1) for rank in range(2)]
    one = EpochSampler(range(8), num_replicas=1, rank=0, seed=1)
    for sampler in (*samplers, one):
        sampler.set_epoch(4)
    assert [next(iter(s)) for s in samplers] == list(one)[:2]
    assert {epoch for _, epoch in one} == {4}
    assert crop_generator(0, "a", 1, 4).integers(10**9) != crop_generator(0, "a", 1, 5).integers(10**9)


def test_a_coarser_crop_is_the_mean_of_the_brain_in_each_block() -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 6, 9, generator=generator)
    region = (torch.rand(1, 6, 9, generator=generator) > 0.4).to(torch.uint8) * 2
    found, brain = coarsened(image, region, 3)
    assert found.shape == (2, 2, 3) and brain.shape == (1, 2, 3)
    for i in range(2):
        for j in range(3):
            block = (slice(3 * i, 3 * i + 3), slice(3 * j, 3 * j + 3))
            inside = region[0][block] > 0
            assert brain[0, i, j] == (inside.float().mean() >= 0.5)
            naive = image[0][block][inside].mean() if brain[0, i, j] else torch.tensor(-1.0)
            torch.testing.assert_close(found[0, i, j], naive)
    same, there = coarsened(image, region, 1)
    torch.testing.assert_close(same, image.where(region > 0, -1.0))
    assert torch.equal(there > 0, region > 0)


def test_a_crops_factor_is_drawn_from_those_given(tmp_path) -> None:
    studies = [write_study(tmp_path / "case", shape=(20, 18, 4))]
    cache = SliceCache(tmp_path / "cache", StudyPreprocessing("brats", None, deviations=6))
    cache.prepare(studies, progress=False)
    fine, coarse, both = (SliceDataset(studies, cache, crop=4, coarsen=factors) for factors in ([1], [3], [1, 3]))
    images = [dataset[0, 0]["image"] for dataset in (fine, coarse)]
    assert images[0].shape == images[1].shape == (4, 4, 4) and not torch.equal(*images)
    noisy = [float(both[0, epoch]["image"].std()) for epoch in range(20)]
    assert max(noisy) > 1.5 * min(noisy)  # means of nine voxels differ less than voxels do
    with pytest.raises(ValueError, match="coarsen=.0.: need whole factors of 1 or more"):
        SliceDataset(studies, cache, crop=4, coarsen=[0])
