"""Tests of apt_monai.losses."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor, nn

from apt_monai.losses import AnatomicalConsistencyLoss

SUBJECTS = ["a", "b", "a", "c", "d", "b", "e", "a"]


def units(count: int, seed: int, dim: int = 6) -> Tensor:
    return F.normalize(torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)), dim=-1)


def naive(z_all: Tensor, z_sub: Tensor, subjects: list[str], temperature: float) -> float:
    """Eq. 1 in both directions, one pair at a time, with negatives of other subjects only."""
    total = 0.0
    for first, second in ((z_all, z_sub), (z_sub, z_all)):
        for s in range(len(subjects)):
            positive = math.exp(float(first[s] @ second[s]) / temperature)
            negatives = sum(
                math.exp(float(first[s] @ second[i]) / temperature)
                for i in range(len(subjects))
                if subjects[i] != subjects[s]
            )
            total -= math.log(positive / (positive + negatives)) / len(subjects)
    return total / 2


def test_loss_equals_the_naive_double_loop() -> None:
    z_all, z_sub = units(8, 0), units(8, 1)
    expected = naive(z_all, z_sub, SUBJECTS, 0.07)
    assert AnatomicalConsistencyLoss()(z_all, z_sub, SUBJECTS).item() == pytest.approx(expected, rel=1e-5)


def test_names_and_integers_of_subjects_give_the_same() -> None:
    loss, z_all, z_sub = AnatomicalConsistencyLoss(), units(8, 0), units(8, 1)
    ids = torch.tensor([ord(name) for name in SUBJECTS])
    assert torch.equal(loss(z_all, z_sub, SUBJECTS), loss(z_all, z_sub, ids))


def test_slices_of_the_same_subject_do_not_repel_each_other() -> None:
    z_all, z_sub = units(8, 0).requires_grad_(), units(8, 1).requires_grad_()
    loss = AnatomicalConsistencyLoss()(z_all, z_sub, ["a"] * 8)
    loss.backward()
    assert loss.item() == 0
    assert z_all.grad is not None and (z_all.grad == 0).all()


def test_training_pulls_the_pairs_together_and_the_temperature_is_learned() -> None:
    loss = AnatomicalConsistencyLoss()
    z_all, z_sub = units(8, 0).requires_grad_(), units(8, 1).requires_grad_()
    optimizer = torch.optim.Adam([z_all, z_sub, *loss.parameters()], lr=0.05)
    first = loss(z_all, z_sub, SUBJECTS).item()
    scale = loss.log_scale.item()
    for _ in range(30):
        optimizer.zero_grad()
        value = loss(F.normalize(z_all, dim=-1), F.normalize(z_sub, dim=-1), SUBJECTS)
        value.backward()
        optimizer.step()
    assert value.item() < 0.2 * first
    assert loss.log_scale.item() != scale


def test_scale_is_capped_and_can_come_down_again() -> None:
    loss = AnatomicalConsistencyLoss(max_scale=100.0)
    with torch.no_grad():
        loss.log_scale.fill_(10.0)
    z_all, z_sub = units(8, 0), units(8, 1)
    value = loss(z_all, z_sub, SUBJECTS)
    assert value.item() == pytest.approx(naive(z_all, z_sub, SUBJECTS, 0.01), rel=1e-4)
    value.backward()
    assert loss.log_scale.grad is not None and loss.log_scale.grad > 0


def test_loss_does_not_depend_on_autocast() -> None:
    loss, z_all, z_sub = AnatomicalConsistencyLoss(), units(8, 0), units(8, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(z_all, z_sub, SUBJECTS)
    assert torch.equal(value, loss(z_all, z_sub, SUBJECTS))


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="must be \\(B, D\\), \\(B, D\\) and B"):
        AnatomicalConsistencyLoss()(units(8, 0), units(7, 1), SUBJECTS)
    with pytest.raises(ValueError, match="subjects 7 entries"):
        AnatomicalConsistencyLoss()(units(8, 0), units(8, 1), SUBJECTS[1:])


@pytest.mark.parametrize("temperature", [0.0, 0.001])
def test_temperature_beyond_the_cap_is_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match=f"temperature is {temperature}"):
        AnatomicalConsistencyLoss(temperature=temperature)


def gradients(rows: slice) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of some rows of a batch, and its gradients for a shared linear layer and the temperature."""
    loss, layer = AnatomicalConsistencyLoss(), nn.Linear(6, 5, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(5, 6, generator=torch.Generator().manual_seed(2)))
    z_all, z_sub = (F.normalize(layer(units(8, seed)[rows]), dim=-1) for seed in (0, 1))
    value = loss(z_all, z_sub, SUBJECTS[rows])
    value.backward()
    assert layer.weight.grad is not None and loss.log_scale.grad is not None
    return value.detach(), layer.weight.grad, loss.log_scale.grad


def run_rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    try:
        value, weight, scale = gradients(slice(4 * rank, 4 * rank + 4))
        dist.all_reduce(weight)
        result = {"value": value, "weight": weight / 2, "scale": scale, "error": ""}  # / 2: as DDP averages
        try:
            gradients(slice(0, 4 - rank))
        except ValueError as error:
            result["error"] = str(error)
        torch.save(result, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


def test_two_ranks_have_the_loss_and_the_gradients_of_one_process_with_the_whole_batch(tmp_path: Path) -> None:
    mp.spawn(run_rank, args=(str(tmp_path),), nprocs=2)
    value, weight, scale = gradients(slice(0, 8))
    for rank in range(2):
        result = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(result["value"], value, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(result["weight"], weight, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(result["scale"], scale, rtol=1e-6, atol=1e-6)
        assert "the ranks have [4, 3] slices" in result["error"]
