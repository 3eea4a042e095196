"""Tests of apt_monai.networks.fusion."""

from __future__ import annotations

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apt_monai.contrasts import BRATS
from apt_monai.networks import MutualInformationFusion, random_subsets

C, D, HEADS = len(BRATS), 16, 4
SUBSETS = [mask for mask in product([False, True], repeat=C) if any(mask)]


@pytest.fixture
def fusion() -> MutualInformationFusion:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MutualInformationFusion(embed_dim=D, num_heads=HEADS, out_dim=8)


def features(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, C, D, generator=torch.Generator().manual_seed(seed))


def naive(fusion: MutualInformationFusion, tokens: Tensor) -> Tensor:
    """z of one slice, from the (K, D) vectors of its acquired contrasts, one token and head at a time."""
    attention, size = fusion.attention, D // HEADS
    assert attention.in_proj_weight is not None
    q, k, v = (tokens @ attention.in_proj_weight.T + attention.in_proj_bias).split(D, dim=1)
    attended = torch.zeros_like(tokens)
    for h in range(HEADS):
        part = slice(h * size, (h + 1) * size)
        for i in range(len(tokens)):
            weights = torch.softmax(torch.stack([q[i, part] @ k_j[part] / size**0.5 for k_j in k]), dim=0)
            attended[i, part] = sum(w * v_j[part] for w, v_j in zip(weights, v, strict=True))
    x = fusion.norm1(tokens + attended @ attention.out_proj.weight.T + attention.out_proj.bias)
    first, last = fusion.mlp[0], fusion.mlp[2]
    assert isinstance(first, nn.Linear) and isinstance(last, nn.Linear)
    hidden = F.gelu(x @ first.weight.T + first.bias)
    assert hidden.shape[1] == 4 * D
    x = fusion.norm2(x + hidden @ last.weight.T + last.bias)
    z = fusion.projection(x.mean(dim=0))
    return z / z.norm()


def test_every_subset_in_one_batch_equals_the_naive_computation_on_its_tokens_alone(
    fusion: MutualInformationFusion,
) -> None:
    x, available = features(len(SUBSETS)), torch.tensor(SUBSETS)
    z = fusion(x, available)
    assert z.shape == (15, 8) and z.dtype == torch.float32
    for i, mask in enumerate(available):
        torch.testing.assert_close(z[i], naive(fusion, x[i, mask]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_what_stands_in_place_of_an_absent_contrast_changes_nothing(
    fusion: MutualInformationFusion, training: bool
) -> None:
    fusion.train(training)
    x, available = features(len(SUBSETS)), torch.tensor(SUBSETS)
    garbage = x.masked_fill(~available[..., None], float("nan"))
    garbage[:, :, 0] = torch.where(available, x[:, :, 0], torch.inf)
    with torch.set_grad_enabled(training):
        assert torch.equal(fusion(x, available), fusion(garbage, available))


def test_no_gradient_is_nan_when_absent_features_are(fusion: MutualInformationFusion) -> None:
    x, available = features(len(SUBSETS)), torch.tensor(SUBSETS)
    x = x.masked_fill(~available[..., None], float("nan")).requires_grad_()
    fusion(x, available)[:, 0].sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in fusion.parameters())
    assert x.grad is not None and (x.grad[~available] == 0).all() and (x.grad[available] != 0).any()


def test_z_has_unit_norm_also_under_autocast(fusion: MutualInformationFusion) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = fusion(features(3), torch.ones(3, C, dtype=torch.bool))
    assert z.dtype == torch.float32
    torch.testing.assert_close(z.norm(dim=1), torch.ones(3))


def test_row_without_any_contrast_is_refused(fusion: MutualInformationFusion) -> None:
    available = torch.ones(3, C, dtype=torch.bool)
    available[1] = False
    with pytest.raises(ValueError, match=r"no contrast in row\(s\) \[1\]"):
        fusion(features(3), available)


def test_wrong_shapes_and_types_are_refused(fusion: MutualInformationFusion) -> None:
    everything = torch.ones(2, C, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"must be \(B, C, 16\)"):
        fusion(torch.zeros(2, C, D + 1), everything)
    with pytest.raises(ValueError, match="must be torch.bool of shape"):
        fusion(features(2), everything[:, 1:])
    with pytest.raises(ValueError, match="must be torch.bool of shape"):
        fusion(features(2), everything.float())


def test_random_subsets_of_a_size_have_it_and_are_equally_frequent() -> None:
    subsets = random_subsets(8000, C, torch.Generator().manual_seed(0), size=C - 1)
    assert subsets.dtype == torch.bool and (subsets.sum(dim=1) == C - 1).all()
    torch.testing.assert_close((~subsets).float().mean(dim=0), torch.full((C,), 1 / C), rtol=0, atol=0.03)


def test_random_subsets_of_any_size_are_uniform_over_the_sizes_and_then_over_the_subsets() -> None:
    subsets = random_subsets(20000, C, torch.Generator().manual_seed(0))
    for mask in torch.tensor(SUBSETS):
        same_size = sum(sum(other) == int(mask.sum()) for other in SUBSETS)
        frequency = (subsets == mask).all(dim=1).float().mean().item()
        assert frequency == pytest.approx(1 / C / same_size, abs=0.012)


def test_random_subsets_come_from_the_given_generator_alone() -> None:
    before = torch.get_rng_state()
    first = random_subsets(50, C, torch.Generator().manual_seed(3))
    assert torch.equal(first, random_subsets(50, C, torch.Generator().manual_seed(3)))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("size", [0, C + 1])
def test_impossible_size_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"size is {size}, must be from 1 to 4"):
        random_subsets(2, C, torch.Generator(), size=size)
