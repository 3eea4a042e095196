"""The two-stage sampler: pinned by a loop written out for one slice, and what it must hold whatever the network is."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from monai.networks.schedulers import DDPMScheduler

from apt_monai.contrasts import BRATS
from apt_monai.inferers import TwoStageInferer, noise_scheduler, step_pairs
from apt_monai.networks import Conditions, PublishedDenoiser

T = 100
SETTINGS: dict[str, Any] = {
    "start_step": 40,
    "sampling_steps": 5,
    "unroll_step": 20,
    "unroll_iterations": 3,
    "unroll_weight": 0.3,
    "guidance_scale": 2.0,
}


class TinyNetwork(torch.nn.Module):
    """Two convolutions with a nonlinearity, changed by timestep and context; counts its passes."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(4, 6, 3, padding=1)
        self.second = torch.nn.Conv2d(6, 4, 3, padding=1)
        generator = torch.Generator().manual_seed(seed)
        for p in self.parameters():
            p.data = 0.3 * torch.randn(p.shape, generator=generator)
        self.timesteps: list[list[int]] = []

    def forward(self, x: torch.Tensor, timesteps: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        self.timesteps.append(timesteps.tolist())
        hidden = self.first(x) + timesteps[:, None, None, None] / T + context.mean(dim=(1, 2))[:, None, None, None]
        return self.second(torch.tanh(hidden))


class PerfectNetwork(torch.nn.Module):
    """Knows the truth: returns exactly the noise (or what else is to be predicted) that x_t holds."""

    def __init__(self, truth: torch.Tensor, scheduler: DDPMScheduler) -> None:
        super().__init__()
        self.truth, self.scheduler = truth, scheduler

    def forward(self, x: torch.Tensor, timesteps: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        a = self.scheduler.alphas_cumprod[timesteps][:, None, None, None]
        noise = (x - a.sqrt() * self.truth) / (1 - a).sqrt()
        if self.scheduler.prediction_type == "v_prediction":
            return a.sqrt() * noise - (1 - a).sqrt() * self.truth
        return noise if self.scheduler.prediction_type == "epsilon" else self.truth + 0 * x


def scheduler(prediction_type: str = "epsilon", steps: int = T) -> DDPMScheduler:
    return DDPMScheduler(steps, schedule="cosine", prediction_type=prediction_type)


def case(count: int = 3, size: int = 8, seed: int = 0) -> dict[str, Any]:
    """Slices with different contrasts missing, and their priors."""
    generator = torch.Generator().manual_seed(seed)
    subsets = list(itertools.islice(itertools.cycle(BRATS.subsets()[::3]), count))
    return {
        "acquired": torch.rand(count, 4, size, size, generator=generator) * 2 - 1,
        "available": torch.tensor([BRATS.mask(s) for s in subsets]),
        "context": torch.randn(count, 8, generator=generator),
        "seeds": list(range(10, 10 + count)),
        "prior": torch.rand(count, 4, size, size, generator=generator) * 2 - 1,
    }


def rows(c: dict[str, Any], index: list[int]) -> dict[str, Any]:
    return {k: [v[i] for i in index] if isinstance(v, list) else v[index] for k, v in c.items()}


def synthesise(
    inferer: TwoStageInferer, network: torch.nn.Module, c: dict[str, Any], precision: str = "float32", **kwargs: Any
) -> torch.Tensor:
    conditions = Conditions(c["acquired"], c["available"], c["prior"], c["context"])
    denoiser = PublishedDenoiser(network, inferer.scheduler, precision)
    return inferer.synthesize(denoiser, conditions, c["seeds"], **kwargs).clean


def naive_synthesis(
    c: dict[str, Any],
    i: int,
    network: torch.nn.Module,
    schedule: DDPMScheduler,
    settings: dict[str, Any],
    residuals: list[tuple[float, float]] | None = None,
) -> torch.Tensor:
    """Slice i of a case by itself, in plain steps; ``residuals``: ‖A(x̂0) − y‖ before and after each guidance."""
    missing, y = ~c["available"][i], c["acquired"][i]
    alpha_bar = [1.0, *schedule.alphas_cumprod.double().tolist()]
    generator = torch.Generator().manual_seed(c["seeds"][i])

    def draw() -> torch.Tensor:
        return torch.randn(y.shape, generator=generator)

    def noised(x0: torch.Tensor, t: int) -> torch.Tensor:
        return math.sqrt(alpha_bar[t]) * x0 + math.sqrt(1 - alpha_bar[t]) * draw()

    def predict(x_t: torch.Tensor, t: int) -> torch.Tensor:
        x_t = x_t.detach().clone().requires_grad_()
        out = network(x=x_t[None], timesteps=torch.tensor([t - 1]), context=c["context"][i][None, None])[0]
        a, b = math.sqrt(alpha_bar[t]), math.sqrt(1 - alpha_bar[t])
        x0 = {"epsilon": (x_t - b * out) / a, "v_prediction": a * x_t - b * out, "sample": out}[
            str(schedule.prediction_type)
        ]
        x0 = x0.clamp(-1, 1)
        known = [k for k in range(len(y)) if not missing[k]]
        distance = sum(((x0[k] - y[k]) ** 2).sum() for k in known)
        if not settings.get("squared", False):
            distance = distance.sqrt()
        (gradient,) = torch.autograd.grad(distance, x_t)
        guided = (x0 - settings["guidance_scale"] * gradient).detach()
        if residuals is not None:
            before, after = (float((x.detach() - y)[~missing].norm()) for x in (x0, guided))
            residuals.append((before, after))
        for k in known:
            guided[k] = y[k]
        return guided

    def sample(x_t: torch.Tensor, steps: list[int]) -> torch.Tensor:
        for t, s in zip(steps, [*steps[1:], 0], strict=True):
            x0 = predict(x_t, t)
            if s == 0:
                return x0
            at, as_ = alpha_bar[t], alpha_bar[s]
            if settings.get("next_step", "forward") == "forward":
                x_t = noised(x0, s)
            elif settings["next_step"] == "ddim":
                x_t = math.sqrt(as_) * x0 + math.sqrt(1 - as_) * (x_t - math.sqrt(at) * x0) / math.sqrt(1 - at)
            else:
                beta = 1 - at / as_
                mean = math.sqrt(as_) * beta / (1 - at) * x0 + math.sqrt(at / as_) * (1 - as_) / (1 - at) * x_t
                x_t = mean + math.sqrt(beta * (1 - as_) / (1 - at)) * draw()
        raise AssertionError

    m, stride = settings["start_step"], settings["start_step"] // settings["sampling_steps"]
    steps = list(range(m, 0, -stride))
    x = torch.stack([c["prior"][i][k] if missing[k] else y[k] for k in range(len(y))])
    x0 = sample(noised(x, m), steps)
    if settings["unroll_iterations"] > 0:
        t, w = settings["unroll_step"], settings["unroll_weight"]
        for _ in range(settings["unroll_iterations"]):
            x0 = (1 - w) * x0 + w * predict(noised(x0, t), t)
        rest = [s for s in steps if s < t]
        x0 = sample(noised(x0, rest[0]), rest)
    result = x0.clamp(-1, 1)
    return torch.stack([result[k] if missing[k] else y[k] for k in range(len(y))])


# --- the loop, pinned


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize(("scale", "squared"), [(2.0, False), (0.02, True), (0.0, False)])
@pytest.mark.parametrize("next_step", ["forward", "ddim", "ddpm"])
def test_synthesis_equals_the_loop_written_out(
    next_step: str, scale: float, squared: bool, prediction_type: str
) -> None:
    settings = {**SETTINGS, "next_step": next_step, "squared": squared, "guidance_scale": scale}
    c, network, schedule = case(), TinyNetwork(), scheduler(prediction_type)
    result = synthesise(TwoStageInferer(schedule, **settings), network, c)
    for i in range(3):
        torch.testing.assert_close(result[i], naive_synthesis(c, i, network, schedule, settings), rtol=0, atol=2e-4)


@pytest.mark.parametrize("next_step", ["forward", "ddim", "ddpm"])
def test_without_unrolling_stage_2_is_left_out(next_step: str) -> None:
    settings = {**SETTINGS, "unroll_iterations": 0, "next_step": next_step}
    c, network = case(), TinyNetwork()
    result = synthesise(TwoStageInferer(scheduler(), **settings), network, c)
    assert [t[0] + 1 for t in network.timesteps] == [40, 32, 24, 16, 8]
    for i in range(3):
        torch.testing.assert_close(result[i], naive_synthesis(c, i, network, scheduler(), settings), rtol=0, atol=2e-4)


def test_the_steps_visited_are_stage_1_the_unrolling_and_the_rest() -> None:
    network = TinyNetwork()
    synthesise(TwoStageInferer(scheduler(), **SETTINGS), network, case())
    assert [t[0] + 1 for t in network.timesteps] == [40, 32, 24, 16, 8] + [20] * 3 + [16, 8]


def test_papers_settings_are_71_network_passes() -> None:
    passes: list[int] = []
    inferer, network = TwoStageInferer(scheduler(steps=1000)), TinyNetwork()
    synthesise(inferer, network, case(1), progress=passes.append)
    assert len(network.timesteps) == sum(passes) == inferer.passes == 71


@pytest.mark.parametrize("iterations", [0, 2])
@pytest.mark.parametrize("unroll_step", [1, 7, 20, 40])
def test_passes_is_how_often_the_network_is_called(iterations: int, unroll_step: int) -> None:
    settings = {**SETTINGS, "unroll_iterations": iterations, "unroll_step": unroll_step}
    inferer, network = TwoStageInferer(scheduler(), **settings), TinyNetwork()
    synthesise(inferer, network, case(2))
    assert len(network.timesteps) == inferer.passes


def test_step_pairs_are_a_chain_from_start_to_zero_in_falling_strides() -> None:
    assert step_pairs(400, 20) == [(t, t - 20) for t in range(400, 0, -20)]
    assert step_pairs(10, 3) == [(10, 7), (7, 3), (3, 0)]
    for start in range(1, 41):
        for count in range(1, start + 1):
            pairs = step_pairs(start, count)
            assert len(pairs) == count and pairs[0][0] == start and pairs[-1][1] == 0
            assert all(t > s for t, s in pairs)
            assert all(a[1] == b[0] for a, b in itertools.pairwise(pairs))
            assert max(t - s for t, s in pairs) - min(t - s for t, s in pairs) <= 1


# --- what a result may depend on


def test_acquired_channels_are_kept_bit_for_bit() -> None:
    c = case(4)
    result = synthesise(TwoStageInferer(scheduler(), **SETTINGS), TinyNetwork(), c)
    assert torch.equal(result[c["available"]], c["acquired"][c["available"]])
    assert result.abs().max() <= 1
    assert not torch.isclose(result, c["acquired"])[~c["available"]].all()


@pytest.mark.parametrize("next_step", ["forward", "ddim", "ddpm"])
def test_a_slice_does_not_depend_on_the_batch_it_is_in(next_step: str) -> None:
    inferer, c = TwoStageInferer(scheduler(), **{**SETTINGS, "next_step": next_step}), case(5)
    together = synthesise(inferer, TinyNetwork(), c)
    for index in ([0], [3], [4, 1], [2, 0, 3]):
        part = synthesise(inferer, TinyNetwork(), rows(c, index))
        torch.testing.assert_close(part, together[index], rtol=0, atol=1e-5)


def test_same_seed_same_result_other_seed_another() -> None:
    inferer, c = TwoStageInferer(scheduler(), **SETTINGS), case(2)
    first = synthesise(inferer, TinyNetwork(), c)
    torch.rand(7)  # the global random numbers do not matter
    assert torch.equal(first, synthesise(inferer, TinyNetwork(), c))
    other = synthesise(inferer, TinyNetwork(), {**c, "seeds": [10, 99]})
    assert torch.equal(other[0], first[0]) and not torch.equal(other[1], first[1])


def test_the_global_random_numbers_are_left_alone() -> None:
    network = TinyNetwork()
    state = torch.get_rng_state()
    synthesise(TwoStageInferer(scheduler(), **SETTINGS), network, case())
    assert torch.equal(state, torch.get_rng_state())


def test_missing_channels_and_acquired_priors_are_not_read() -> None:
    inferer, c = TwoStageInferer(scheduler(), **SETTINGS), case()
    known = c["available"][:, :, None, None]
    blind = {**c, "acquired": c["acquired"].where(known, torch.nan), "prior": c["prior"].where(~known, torch.nan)}
    expected = synthesise(inferer, TinyNetwork(), c)
    assert torch.equal(synthesise(inferer, TinyNetwork(), blind), expected)


def test_inputs_are_not_changed() -> None:
    c = case()
    before = {k: v.clone() for k, v in c.items() if isinstance(v, torch.Tensor)}
    synthesise(TwoStageInferer(scheduler(), **SETTINGS), TinyNetwork(), c)
    assert all(torch.equal(c[k], v) for k, v in before.items())


def test_without_a_prior_the_missing_channels_start_as_pure_noise() -> None:
    seen: list[torch.Tensor] = []

    class Watching(TinyNetwork):
        def forward(self, x: torch.Tensor, timesteps: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
            seen.append(x.detach().clone())
            return super().forward(x, timesteps, context)

    c = {**case(2), "prior": None}
    synthesise(TwoStageInferer(scheduler(), **SETTINGS), Watching(), c)
    a = scheduler().alphas_cumprod[40 - 1]
    for i, seed in enumerate(c["seeds"]):
        noise = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(seed))
        noised = a.sqrt() * c["acquired"][i] + (1 - a).sqrt() * noise
        mask = c["available"][i]
        torch.testing.assert_close(seen[0][i][mask], noised[mask])
        assert torch.equal(seen[0][i][~mask], noise[~mask])


def test_nothing_acquired_samples_from_z_alone() -> None:
    c = {**case(2), "available": torch.zeros(2, 4, dtype=torch.bool), "prior": None}
    inferer = TwoStageInferer(scheduler(), **SETTINGS)
    result = synthesise(inferer, TinyNetwork(), c)
    assert result.isfinite().all()
    other = synthesise(inferer, TinyNetwork(), {**c, "context": c["context"] + 1})
    assert not torch.allclose(result, other)


# --- the network


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("next_step", ["forward", "ddim", "ddpm"])
def test_a_perfect_network_gives_the_truth(next_step: str, prediction_type: str) -> None:
    c, schedule = case(), scheduler(prediction_type)
    truth = c["acquired"].clone()
    c["acquired"] = truth.where(c["available"][:, :, None, None], 0.0)
    # A residual that is float rounding alone has a gradient of unit length nevertheless: no guidance here.
    inferer = TwoStageInferer(schedule, **{**SETTINGS, "next_step": next_step, "guidance_scale": 0.0})
    result = synthesise(inferer, PerfectNetwork(truth, schedule), c)
    torch.testing.assert_close(result, truth, rtol=0, atol=1e-4)


def test_a_residual_of_zero_has_no_gradient() -> None:
    c, schedule = case(), scheduler("sample")
    result = synthesise(TwoStageInferer(schedule, **SETTINGS), PerfectNetwork(c["acquired"], schedule), c)
    assert torch.equal(result, c["acquired"])


@pytest.mark.parametrize("guidance_scale", [2.0, 0.0])
def test_the_network_is_left_as_it_was(guidance_scale: float) -> None:
    network = TinyNetwork().train()
    network.second.eval()
    network.first.bias.requires_grad_(False)
    inferer = TwoStageInferer(scheduler(), **{**SETTINGS, "guidance_scale": guidance_scale})
    result = synthesise(inferer, network, case())
    assert network.training and network.first.training and not network.second.training
    assert [p.requires_grad for p in network.parameters()] == [True, False, True, True]
    assert all(p.grad is None for p in network.parameters())
    assert not result.requires_grad and result.grad_fn is None


def test_the_network_is_left_as_it_was_after_an_error() -> None:
    class Failing(TinyNetwork):
        def forward(self, x: torch.Tensor, timesteps: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
            assert not self.training and not any(p.requires_grad for p in self.parameters())
            if len(self.timesteps) == 6:
                raise RuntimeError("out of memory")
            return super().forward(x, timesteps, context)

    network = Failing().train()
    with pytest.raises(RuntimeError, match="out of memory"):
        synthesise(TwoStageInferer(scheduler(), **SETTINGS), network, case())
    assert network.training and all(p.requires_grad for p in network.parameters())
    assert torch.is_grad_enabled()


def test_only_guidance_asks_for_a_backward_pass() -> None:
    class Watching(TinyNetwork):
        def forward(self, x: torch.Tensor, timesteps: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
            graphs.append(x.requires_grad)
            return super().forward(x, timesteps, context)

    for settings, expected in [
        ({}, True),
        ({"guidance_scale": 0.0}, False),
    ]:
        graphs: list[bool] = []
        synthesise(TwoStageInferer(scheduler(), **{**SETTINGS, **settings}), Watching(), case(1))
        assert set(graphs) == {expected}


# --- guidance (Eq. 4): the reading that works


def guidance_residuals(size: int, **settings: Any) -> np.ndarray:
    """‖A(x̂0) − y‖ before and after each guidance, (passes, 2), in the loop that the sampler is pinned to."""
    found: list[tuple[float, float]] = []
    settings = {**SETTINGS, "unroll_iterations": 1, "sampling_steps": 4, **settings}
    naive_synthesis(case(1, size), 0, TinyNetwork(), scheduler(), settings, found)
    return np.array(found)


def test_guidance_through_the_network_lowers_the_residual_at_the_papers_size() -> None:
    before, after = guidance_residuals(256, guidance_scale=20.0).T
    assert (after < before).all()


def test_the_squared_norm_diverges_with_the_papers_scale() -> None:
    before, after = guidance_residuals(256, guidance_scale=20.0, squared=True).T
    assert (after > 10 * before).all()


def test_on_a_small_slice_the_papers_scale_is_too_long_a_step() -> None:
    before, after = guidance_residuals(16, guidance_scale=20.0).T
    assert (after > before).any()  # the norm's gradient does not shrink with the residual: α is for 256²
    before, after = guidance_residuals(16, guidance_scale=2.0).T
    assert (after < before).all()


# --- settings that are refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"start_step": 101},
            r"start_step \(M\) is 101: valid is 1 to 100, the scheduler's number of training steps T",
        ),
        ({"start_step": 0}, r"start_step \(M\) is 0"),
        ({"sampling_steps": 41}, r"sampling_steps \(S\) is 41: valid is 1 to 40, start_step \(M\)"),
        ({"sampling_steps": 0}, r"sampling_steps \(S\) is 0"),
        ({"unroll_step": 41}, "unroll_step is 41: valid is 1 to 40"),
        ({"unroll_step": 0}, "unroll_step is 0"),
        ({"unroll_iterations": -1}, r"unroll_iterations \(N\) is -1: valid is 0 or more"),
        ({"unroll_weight": 1.5}, r"unroll_weight \(w\) is 1.5: valid is 0 to 1"),
        ({"guidance_scale": -1.0}, r"guidance_scale \(α\) is -1.0: valid is 0 or more"),
        ({"guidance_scale": math.nan}, r"guidance_scale \(α\) is nan"),
        ({"next_step": "euler"}, "next_step is 'euler': valid are forward, ddim, ddpm"),
    ],
)
def test_settings_out_of_range_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TwoStageInferer(scheduler(), **{**SETTINGS, **settings})


def test_without_stage_2_its_step_does_not_matter() -> None:
    TwoStageInferer(scheduler(), start_step=20, sampling_steps=20, unroll_step=40, unroll_iterations=0)


def test_an_unknown_schedule_or_prediction_is_named() -> None:
    with pytest.raises(ValueError, match="schedule is 'nope': valid are .*cosine"):
        noise_scheduler(schedule="nope")
    with pytest.raises(ValueError, match="prediction_type is 'x0': valid are .*epsilon"):
        noise_scheduler(prediction_type="x0")


def test_the_settings_make_the_same_sampler_again() -> None:
    settings = TwoStageInferer(scheduler(), **SETTINGS).settings
    assert {key: settings[key] for key in SETTINGS} == SETTINGS
    assert TwoStageInferer(scheduler(), **settings).settings == settings


def test_each_slice_needs_its_own_seed() -> None:
    with pytest.raises(ValueError, match="1 seeds for 3 slices"):
        synthesise(TwoStageInferer(scheduler(), **SETTINGS), TinyNetwork(), {**case(), "seeds": [1]})
