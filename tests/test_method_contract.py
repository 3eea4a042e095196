"""What every method has to hold, whatever it is made of."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from monai.networks.nets import SegResNet
from test_apt import CountingEncoder, codebook, make_method
from tiny_methods import SMALL, small_method
from torch import nn

from apt_monai.contrasts import BRATS
from apt_monai.inferers import TwoStageInferer, noise_scheduler
from apt_monai.methods import METHODS, Calibration, Copy, Direct, Method, Prior
from apt_monai.networks import Conditions, DirectDenoiser
from apt_monai.transforms import StudyPreprocessing

PREPROCESSING = StudyPreprocessing(BRATS, 8)


def make_direct(seed: int = 0, weights: dict[str, Any] | None = None, calibration: Calibration | None = None) -> Direct:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = SegResNet(
            2, init_filters=8, in_channels=8, out_channels=8, blocks_down=(1, 1), blocks_up=(1,),
            norm=("GROUP", {"num_groups": 4}),
        )  # fmt: skip
    inferer = TwoStageInferer(noise_scheduler(), 1000, 1, unroll_iterations=0, guidance_scale=0.0)
    preprocessing = StudyPreprocessing(BRATS, None, deviations=6)
    return Direct(DirectDenoiser(network.eval(), gain=2.0), inferer, preprocessing, calibration, seed, weights)


METHODS_UNDER_TEST: dict[str, Callable[[], Method]] = {
    "apt": lambda: make_method(encoder=CountingEncoder()),
    "apt without a prior": lambda: make_method(encoder=CountingEncoder(), codebook=None),
    "direct": make_direct,
    "copy": lambda: Copy(PREPROCESSING),
    "copy with a ranking": lambda: Copy(PREPROCESSING, {"flair": ["t1ce", "t2"], "t2": ["flair"]}),
    "prior": lambda: Prior(PREPROCESSING, codebook()),
    **{name: partial(small_method, name) for name in SMALL},
}
every_method = pytest.mark.parametrize("make", METHODS_UNDER_TEST.values(), ids=METHODS_UNDER_TEST)


def slices_of(subsets: list[tuple[str, ...]]) -> tuple[dict[str, Any], torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    count = len(subsets)
    region = torch.zeros(count, 1, 8, 8, dtype=torch.uint8)
    region[:, :, 1:7, 2:8] = 1
    image = (torch.rand(count, 4, 8, 8, generator=generator) * 2 - 1).where(region > 0, -1.0)
    batch = {"image": image, "region": region, "subject": [f"s{i}" for i in range(count)], "slice": list(range(count))}
    return batch, torch.tensor([BRATS.mask(names) for names in subsets])


@every_method
def test_every_subset_is_filled_and_what_was_acquired_is_kept_bit_for_bit(make: Callable[[], Method]) -> None:
    batch, available = slices_of(BRATS.subsets())
    image = make()(batch, available)["image"]
    assert image.shape == batch["image"].shape and image.dtype == torch.float32
    assert image.isfinite().all() and image.abs().max() <= 1 and not image.requires_grad
    assert torch.equal(image[available], batch["image"][available])
    outside = (batch["region"] == 0).expand_as(image)
    assert (image[outside] == -1).all() and (image[~outside] != -1).any()


@every_method
def test_what_is_missing_is_never_looked_at(make: Callable[[], Method]) -> None:
    batch, available = slices_of(BRATS.subsets())
    blind = {**batch, "image": batch["image"].where(available[:, :, None, None], torch.nan)}
    assert torch.equal(make()(blind, available)["image"], make()(batch, available)["image"])


@every_method
def test_a_slice_is_the_same_in_any_batch_and_order(make: Callable[[], Method]) -> None:
    batch, available = slices_of(BRATS.subsets()[:5])
    together = make()(batch, available)["image"]
    for index in ([4], [3, 0]):
        part = {
            key: [value[i] for i in index] if isinstance(value, list) else value[index] for key, value in batch.items()
        }
        torch.testing.assert_close(make()(part, available[index])["image"], together[index], rtol=0, atol=1e-5)


@every_method
def test_progress_is_told_of_every_pass(make: Callable[[], Method]) -> None:
    told: list[int] = []
    method = make()
    method(*slices_of(BRATS.subsets()[:2]), told.append)
    assert sum(told) == method.passes


@every_method
def test_a_slice_without_any_acquired_contrast_is_refused(make: Callable[[], Method]) -> None:
    batch, available = slices_of(BRATS.subsets()[:2])
    available[1] = False
    with pytest.raises(ValueError, match="a slice has no acquired contrast"):
        make()(batch, available)


@every_method
def test_the_fingerprint_is_the_same_for_the_same_method_and_its_rows_have_others(make: Callable[[], Method]) -> None:
    method = make()
    assert method.fingerprint == make().fingerprint
    rows = method.rows
    assert len({row.fingerprint for row in rows.values()}) == len(rows) and method in rows.values()


def test_different_methods_have_different_fingerprints() -> None:
    made = [make().fingerprint for make in METHODS_UNDER_TEST.values()]
    made += [make_direct(weights={"model_sha256": "b"}).fingerprint, make_direct(seed=1).fingerprint]
    assert len(set(made)) == len(made)


def test_what_a_model_folder_can_hold_ends_with_the_weights_that_are_written_last() -> None:
    for name, method in METHODS.items():
        assert method.name == name and "model.pt" in method.files


def test_the_published_rows_are_the_papers_steps() -> None:
    assert list(make_method(encoder=CountingEncoder()).rows) == ["prior", "U", "U+A", "U+A+I"]
    assert list(make_direct().rows) == ["direct"]


def test_a_direct_denoisers_loss_falls_and_is_of_the_missing_brain_alone() -> None:
    method, (batch, available) = make_direct(), slices_of(BRATS.subsets()[:4])
    from_batch = {"acquired": batch["image"], "available": available, "brain": batch["region"] > 0}
    denoiser = method.denoiser.train()
    known = Conditions(**from_batch)
    target = denoiser.target(batch["image"], torch.zeros(1), torch.zeros(1))
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=0.01)
    losses = []
    for _ in range(15):
        output = denoiser(torch.zeros_like(target), torch.full((4,), 1000), known).output
        clean, log_scale = output.chunk(2, dim=1)
        wrong = ((clean - target).abs() > 0).any(dim=0)
        assert not wrong[:, 0].any() and torch.equal(clean[available], target[available])
        assert not log_scale[available].any() and not log_scale[:, :, 0].any()
        loss = denoiser.loss(output, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_slices_of_any_size_are_padded_for_the_network_and_come_back_as_they_were() -> None:
    sizes = []

    class Watching(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            sizes.append(x.shape[2:])
            return x + 0.5

    known = Conditions(torch.zeros(1, 4, 10, 17), torch.tensor([[True, True, True, False]]))
    clean = DirectDenoiser(Watching(), multiple=8)(torch.zeros(1), torch.zeros(1), known).clean
    assert sizes == [(16, 24)] and clean.shape == (1, 4, 10, 17) and (clean[:, 3] == 0.5).all()


def test_the_noised_slice_and_the_timestep_are_not_looked_at() -> None:
    class Watching(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x)
            return x

    seen: list[torch.Tensor] = []
    batch, available = slices_of(BRATS.subsets()[:2])
    known = Conditions(batch["image"], available)
    for t in (1, 900):
        DirectDenoiser(Watching())(torch.rand(2, 4, 8, 8), torch.full((2,), t), known)
    assert torch.equal(seen[0], seen[1]) and seen[0].shape == (2, 8, 8, 8)
    assert (seen[0][:, :4][~available] == 0).all()
    assert torch.equal(seen[0][:, 4:, 0, 0] > 0, available)


def test_an_uncertainty_is_of_the_missing_brain_alone_and_the_calibration_widens_it() -> None:
    batch, available = slices_of(BRATS.subsets())
    plain = make_direct()(batch, available)["uncertainty"]
    missing = (~available)[:, :, None, None] & (batch["region"] > 0)
    assert (plain[missing] > 0).all() and not plain[~missing].any()
    factors = {name: (1.5, 2.0, 3.0) for name in BRATS.names} | {"t2": (10.0, 20.0, 30.0)}
    calibrated = make_direct(calibration=Calibration(factors, dict.fromkeys(BRATS.names, 0.2), 20))
    wide = calibrated(batch, available)["uncertainty"]
    for row, mask in enumerate(available.tolist()):
        for channel in (c for c, has in enumerate(mask) if not has):
            factor = factors[BRATS.names[channel]][sum(mask) - 1]
            torch.testing.assert_close(wide[row, channel], factor * plain[row, channel])


def test_a_missing_contrasts_range_has_the_sources_median_and_its_own_spread() -> None:
    spreads = dict.fromkeys(BRATS.names, 0.2) | {"flair": 0.1}
    method = make_direct(calibration=Calibration({name: (1.0,) * 3 for name in BRATS.names}, spreads, 20))
    ranges = {"t1": (100.0, 900.0), "t2": (-200.0, 1400.0)}
    assert method.output_range("flair", ranges) == ("t2", pytest.approx((600 * (1 - 6 * 0.1), 600 * (1 + 6 * 0.1))))
    assert method.output_range("t1ce", ranges) == ("t1", pytest.approx((500 * (1 - 6 * 0.2), 500 * (1 + 6 * 0.2))))
    standardised = {"t1": (-3.0, 3.0)}  # a median of 0 says nothing of a spread
    assert method.output_range("flair", standardised) == ("t1", (-3.0, 3.0))
    assert make_direct().output_range("flair", ranges) == ("t2", (-200.0, 1400.0))
    assert METHODS_UNDER_TEST["copy"]().output_range("flair", ranges) == ("t2", (-200.0, 1400.0))


def test_a_ranking_says_what_is_copied_and_the_rule_of_weighting_what_it_leaves_open() -> None:
    copied = Copy(PREPROCESSING, {"flair": ["t1ce", "t2"]})
    assert copied.source("flair", ["t1", "t1ce", "t2"]) == "t1ce"
    assert copied.source("flair", ["t1"]) == Copy(PREPROCESSING).source("flair", ["t1"])
    assert copied.source("t1ce", ["flair", "t1"]) == "t1"
    with pytest.raises(ValueError, match="unknown contrast 'pd'"):
        Copy(PREPROCESSING, {"flair": ["pd"]})
