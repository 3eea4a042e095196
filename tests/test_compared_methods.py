"""The systems that the paper compares with: what each learns by, checked against naive versions, and what it keeps."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_method_contract import slices_of
from tiny_methods import ADVERSARIAL, SMALL, small_method, small_settings
from torch import nn

from apt_monai import models
from apt_monai.contrasts import BRATS
from apt_monai.engines import SubsetPrepareBatch, adversarial_step
from apt_monai.inferers import noise_scheduler
from apt_monai.methods import COMPARED, METHODS, TrainingStep
from apt_monai.methods.adm import ADMDenoiser
from apt_monai.methods.hinet import Fusion
from apt_monai.methods.mmgan import MMGANAdversary
from apt_monai.methods.syndiff import SynDiffAdversary
from apt_monai.networks import Conditions, Prediction, SourceDenoiser
from apt_monai.networks.source_denoiser import mean_over, missing, set_known
from apt_monai.places import COMPARED as NAMES
from apt_monai.weights import save_weights

every_system = pytest.mark.parametrize("name", SMALL)


def training_batch(name: str, count: int = 4) -> tuple[Any, ...]:
    """x_0, target, x_t, t and what is known, as the training draws them, of fixed slices."""
    method = small_method(name)
    batch, _ = slices_of(BRATS.subsets()[:count])
    prepare = SubsetPrepareBatch(method.denoiser, small_settings(name)["scheduler"]["num_train_timesteps"])
    images, target, _, drawn = prepare(batch, "cpu")
    x_t = method.inferer.scheduler.add_noise(images, drawn["noise"], drawn["timesteps"])
    return method.denoiser, images, target, x_t, drawn["timesteps"] + 1, drawn["condition"]


def test_every_system_of_the_paper_has_a_file_and_the_command_line_knows_it() -> None:
    assert tuple(COMPARED) == NAMES == tuple(SMALL)
    for name, kind in COMPARED.items():
        assert kind.__module__ == f"apt_monai.methods.{name}"


@every_system
def test_training_steps_lower_the_loss_on_a_fixed_batch(name: str) -> None:
    torch.manual_seed(0)
    denoiser, images, target, x_t, t, known = training_batch(name)
    optimizer = torch.optim.Adam(denoiser.parameters(), 2e-3)
    adversary = METHODS[name].adversary(small_settings(name), "float32") if name in ADVERSARIAL else None
    steps, losses = 40, []
    for step in range(1, steps + 1):
        if adversary is None:
            loss = denoiser.loss(denoiser.train()(x_t, t, known).output, target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        else:
            other = torch.optim.Adam(adversary.parameters(), 1e-4)
            adversarial_step(denoiser, adversary, (optimizer, other), (images, target, x_t), (t, known), (step, steps))
        with torch.no_grad():
            losses.append(float(denoiser.loss(denoiser.train()(x_t, t, known).output, target)))
    assert losses[-1] < 0.9 * losses[0]


@every_system
def test_the_loss_is_of_the_missing_contrasts_alone(name: str) -> None:
    denoiser, _, target, x_t, t, known = training_batch(name)
    wanted = missing(known).repeat(1, target.shape[1] // 4, 1, 1) > 0
    output = denoiser(x_t, t, known).output
    elsewhere = target + 5.0 * (~wanted)
    if name == "hinet":  # which reconstructs the acquired ones, on purpose
        assert denoiser.loss(output, target) < denoiser.loss(output, elsewhere)
    else:
        torch.testing.assert_close(denoiser.loss(output, target), denoiser.loss(output, elsewhere))


@every_system
def test_a_model_folder_gives_the_same_method_again(name: str, tmp_path: Path) -> None:
    method = small_method(name)
    models.save_model_settings(tmp_path, small_settings(name))
    save_weights(method.network, tmp_path / "model.pt")
    batch, available = slices_of(BRATS.subsets()[:6])
    loaded = models.load(tmp_path, "cpu", "float32")
    assert loaded.name == name
    torch.testing.assert_close(
        loaded(batch, available)["image"], method(batch, available)["image"], rtol=0, atol=0.02
    )  # weights are kept in half precision


@every_system
def test_published_sizes_are_the_defaults_and_have_published_numbers_of_parameters(name: str) -> None:
    with torch.device("meta"):
        found = sum(p.numel() for p in METHODS[name].network_of(4).parameters()) / 1e6
    # pix2pix's U-Net has 54.4 million, ResViT 123 (of one target from two sources); of the others no number is known
    published = {"mmgan": 54.4, "resvit": 121.0, "hinet": 2.5, "adm": 138.3, "syndiff": 33.2, "m2dn": 45.7}
    assert math.isclose(found, published.get(name, 120.3), rel_tol=0.02)


def test_missing_contrasts_are_background_and_marked_and_slices_padded_on_both_sides() -> None:
    seen: list[torch.Tensor] = []

    class Watching(SourceDenoiser):
        noisy = False

        def call(self, inputs: torch.Tensor, t: torch.Tensor, conditions: Conditions) -> torch.Tensor:
            seen.append(inputs)
            return inputs[:, :4] + 0.25

    image = torch.zeros(1, 4, 5, 6)
    known = Conditions(image, torch.tensor([[True, False, True, True]]), brain=torch.ones(1, 1, 5, 6) > 0)
    clean = Watching(nn.Identity(), multiple=8)(torch.zeros(1, 4, 5, 6), torch.ones(1), known).clean
    assert seen[0].shape == (1, 8, 8, 8) and (seen[0][0, 0, 1:6, 1:7] == 0).all() and (seen[0][0, 0, 0] == -1).all()
    assert (seen[0][0, 1] == -1).all() and seen[0][0, 4:, 0, 0].tolist() == [1, 0, 1, 1]
    assert (clean[0, 1] == -0.75).all() and (clean[0, 0] == 0).all()


def test_mm_gans_discriminator_is_to_call_pasted_contrasts_acquired_and_the_others_synthetic() -> None:
    class Constant(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.full((len(x), 2, 3, 3), 0.25)

    images = torch.zeros(1, 2, 8, 8)
    known = Conditions(images, torch.tensor([[True, False]]))
    step = TrainingStep(images, images, torch.ones(1), known, Prediction(images, images))
    adversary = MMGANAdversary(Constant())
    real, pasted, synthetic = 0.75**2, 0.75**2, 0.25**2
    assert float(adversary.discriminator_loss(step, 1)) == pytest.approx((real + (pasted + synthetic) / 2) / 2)
    assert float(adversary.generator_loss(step)) == pytest.approx(0.1 * 0.75**2)


def test_mm_gans_curriculum_begins_with_one_missing_contrast() -> None:
    method = small_method("mmgan")
    prepare = SubsetPrepareBatch(method.denoiser, 1000, curriculum=30)
    fewest = [int(prepare.draw_subsets(200, 4).sum(dim=1).min()) for _ in range(40)]
    assert fewest == [3] * 10 + [2] * 10 + [1] * 20


def test_hi_nets_fusion_takes_sum_product_and_maximum_over_the_acquired_contrasts() -> None:
    fusion = Fusion(2, 0)
    seen: list[torch.Tensor] = []
    fusion.mix.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    features = torch.randn(1, 3, 2, 4, 4)
    fusion(features, torch.tensor([[True, False, True]]), None)
    a, c = features[:, 0], features[:, 2]
    torch.testing.assert_close(seen[0], torch.cat([a + c, a * c, torch.maximum(a, c)], dim=1))


def test_adms_loss_is_the_squared_error_of_the_noise_and_a_thousandth_of_the_bound() -> None:
    steps = 200
    scheduler = noise_scheduler(steps, "linear_beta")
    x0, noise, v = torch.randn(1, 1, 3, 3), torch.randn(1, 1, 3, 3), torch.rand(1, 1, 3, 3) * 2 - 1
    epsilon, t = torch.randn(1, 1, 3, 3), torch.tensor([57])

    class Fixed(nn.Module):
        def forward(self, x: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
            return torch.cat([epsilon, v], dim=1)

    denoiser = ADMDenoiser(Fixed(), "float32", 1, scheduler)
    x_t = scheduler.add_noise(x0, noise, t - 1)
    known = Conditions(x0, torch.tensor([[False]]))
    prediction = denoiser(x_t, t, known)

    beta, bar, before = (
        float(value) for value in (scheduler.betas[56], scheduler.alphas_cumprod[56], scheduler.alphas_cumprod[55])
    )
    torch.testing.assert_close(prediction.clean, (x_t - (1 - bar) ** 0.5 * epsilon) / bar**0.5)
    low, high = math.log(beta * (1 - before) / (1 - bar)), math.log(beta)
    variance = (((v + 1) / 2) * high + (1 - (v + 1) / 2) * low).exp()
    true = torch.distributions.Normal(
        before**0.5 * beta / (1 - bar) * x0 + (1 - beta) ** 0.5 * (1 - before) / (1 - bar) * x_t, math.exp(low / 2)
    )
    mean = (x_t - beta / (1 - bar) ** 0.5 * epsilon) / (1 - beta) ** 0.5
    bound = torch.distributions.kl_divergence(true, torch.distributions.Normal(mean, variance.sqrt())).mean()
    expected = F.mse_loss(epsilon, noise) + steps / 1000 * bound
    torch.testing.assert_close(
        denoiser.loss(prediction.output, denoiser.target(x0, noise, t)), expected, rtol=1e-4, atol=0
    )


def test_syndiffs_step_back_is_a_draw_from_the_posterior() -> None:
    scheduler = noise_scheduler(4, "variance_preserving")
    adversary = SynDiffAdversary(nn.Identity(), scheduler)
    x0, x_t = torch.full((1, 1, 200, 200), 0.5), torch.full((1, 1, 200, 200), -0.25)
    step = TrainingStep(x0, x_t, torch.tensor([3]), Conditions(x0, torch.tensor([[False]])), Prediction(x0, x0))
    drawn = adversary._before(x0, step)
    bar, before = float(scheduler.alphas_cumprod[2]), float(scheduler.alphas_cumprod[1])
    alpha = bar / before
    mean = (before**0.5 * (1 - alpha) * 0.5 + alpha**0.5 * (1 - before) * -0.25) / (1 - bar)
    assert float(drawn.mean()) == pytest.approx(mean, abs=0.01)
    assert float(drawn.var()) == pytest.approx((1 - before) * (1 - alpha) / (1 - bar), rel=0.05)
    first = TrainingStep(x0, x_t, torch.tensor([1]), step.conditions, step.prediction)
    torch.testing.assert_close(adversary._before(x0, first), x0)  # x_0 is reached without noise


def test_a_resumed_adversary_goes_on_with_the_random_numbers_where_they_were() -> None:
    scheduler = noise_scheduler(4, "variance_preserving")
    first, second = (SynDiffAdversary(nn.Linear(1, 1), scheduler, seed=seed) for seed in (3, 4))
    torch.randn(5, generator=first.generator)
    second.load_state_dict(first.state_dict())
    assert torch.equal(torch.randn(3, generator=first.generator), torch.randn(3, generator=second.generator))


def test_resvit_goes_without_its_transformer_for_two_thirds_of_the_training_and_says_so_in_its_weights() -> None:
    settings = small_settings("resvit")
    denoiser = small_method("resvit").denoiser
    adversary = METHODS["resvit"].adversary(settings, "float32")
    network = denoiser.network
    for progress, expected in ((0.1, False), (0.66, False), (0.7, True)):
        adversary.begin(denoiser, progress)
        assert bool(network.with_transformer) is expected
    with torch.no_grad():
        x = torch.randn(1, 8, 32, 32)
        before = network.eval()(x)
        adversary.begin(denoiser, 0.1)
        assert not torch.equal(network(x), before)
    assert "with_transformer" in network.state_dict()


def test_what_is_known_is_set_and_a_mean_over_nothing_is_zero() -> None:
    image = torch.full((1, 2, 2, 2), 0.5)
    brain = torch.tensor([[[[True, False], [True, True]]]])
    known = Conditions(image, torch.tensor([[True, False]]), brain=brain)
    clean = set_known(torch.zeros(1, 2, 2, 2), known)
    assert (clean[:, 0] == 0.5).all() and clean[0, 1].tolist() == [[0, -1], [0, 0]]
    values, weight = torch.ones(3, 1, 1, 4), torch.tensor([[1.0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]])[:, None, None]
    values[0] = 4
    assert float(mean_over(values, weight)) == pytest.approx((4 + 1 + 0) / 3)
