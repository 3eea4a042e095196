"""The seam between networks and the sampler: what goes into a network, and what comes out as a clean slice."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets import DiffusionModelUNet
from test_inferers import PerfectNetwork, TinyNetwork, case, scheduler

from apt_monai.inferers import TwoStageInferer
from apt_monai.networks import Conditions, DirectDenoiser, PublishedDenoiser

KINDS = pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])


def conditions_of(count: int = 3) -> Conditions:
    c = case(count)
    return Conditions(c["acquired"], c["available"], c["prior"], c["context"])


@KINDS
def test_whatever_the_network_predicts_the_truth_comes_out_clean(prediction_type: str) -> None:
    schedule, known, t = scheduler(prediction_type), conditions_of(), torch.tensor([1, 40, 90])
    truth, noise = known.acquired, torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    denoiser = PublishedDenoiser(PerfectNetwork(truth, schedule), schedule)
    x_t = schedule.add_noise(truth, noise, t - 1)
    prediction = denoiser(x_t, t, known)
    torch.testing.assert_close(prediction.clean, truth, rtol=0, atol=1e-4)
    target = denoiser.target(truth, noise, t)
    torch.testing.assert_close(prediction.output, target, rtol=0, atol=1e-3)
    assert denoiser.loss(prediction.output, target) < 1e-6


@KINDS
def test_the_target_is_what_the_schedule_says(prediction_type: str) -> None:
    schedule, t = scheduler(prediction_type), torch.tensor([7, 100])
    x0, noise = torch.randn(2, 2, 4, 4, 4).unbind()
    a = schedule.alphas_cumprod[t - 1][:, None, None, None]
    expected = {"epsilon": noise, "sample": x0, "v_prediction": a.sqrt() * noise - (1 - a).sqrt() * x0}
    target = PublishedDenoiser(TinyNetwork(), schedule).target(x0, noise, t)
    torch.testing.assert_close(target, expected[prediction_type])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_training_pass_predicts_from_the_noised_images(precision: str) -> None:
    known, network = conditions_of(), TinyNetwork()
    noise, timesteps = torch.randn(3, 4, 8, 8), torch.tensor([0, 50, 99])
    denoiser = PublishedDenoiser(network, scheduler(), precision)
    result = TwoStageInferer(scheduler(), 40, 5, 20)(known.acquired, denoiser, noise, timesteps, known)
    assert known.context is not None
    expected = network(scheduler().add_noise(known.acquired, noise, timesteps), timesteps, known.context[:, None])
    assert result.dtype == torch.float32 and result.requires_grad
    torch.testing.assert_close(result, expected, rtol=0, atol=0.05 if precision == "bfloat16" else 0)


def test_monais_unet_fits() -> None:
    network = DiffusionModelUNet(
        spatial_dims=2, in_channels=4, out_channels=4, channels=(8, 8), attention_levels=(False, True),
        num_res_blocks=1, num_head_channels=4, norm_num_groups=4, with_conditioning=True, cross_attention_dim=8,
    )  # fmt: skip
    known = conditions_of(2)
    inferer = TwoStageInferer(scheduler(), 40, 5, 20, unroll_iterations=1, guidance_scale=2.0)
    result = inferer.synthesize(PublishedDenoiser(network, scheduler(), "bfloat16"), known, [1, 2]).clean
    assert result.dtype == torch.float32 and result.isfinite().all()
    assert torch.equal(result[known.available], known.acquired[known.available])


class Answer(torch.nn.Module):
    """A network that notes what it is given and answers the same everywhere: 0.5, and 0.1 as expected error."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.given = x
        b, c, h, w = x.shape
        mean, scale = torch.full((b, c // 2, h, w), 0.5), torch.full((b, c // 2, h, w), 0.1)
        return torch.cat([mean, scale.log()], dim=1)


def test_a_direct_denoiser_sees_what_was_acquired_and_which_and_nothing_else() -> None:
    network = Answer()
    acquired = torch.rand(2, 3, 5, 6)
    available = torch.tensor([[True, False, False], [False, True, True]])
    brain = torch.zeros(2, 1, 5, 6, dtype=torch.bool)
    brain[:, :, 1:4, 2:5] = True
    known = Conditions(acquired, available, brain=brain)
    prediction = DirectDenoiser(network, multiple=4, gain=2.0)(torch.randn(2, 3, 5, 6), torch.tensor([9, 9]), known)
    mask = available[:, :, None, None]
    assert network.given.shape == (2, 6, 8, 8)
    torch.testing.assert_close(network.given[:, :3, :5, :6], 2 * acquired.where(mask, 0.0))
    assert torch.equal(network.given[:, 3:, :5, :6], (mask.float() * 2 - 1).expand(2, 3, 5, 6))
    missing = (~mask & brain).expand(2, 3, 5, 6)
    assert prediction.scale is not None
    torch.testing.assert_close(prediction.clean[missing], torch.full((int(missing.sum()),), 0.25))
    torch.testing.assert_close(prediction.scale[missing], torch.full((int(missing.sum()),), 0.05))
    assert not prediction.scale[~missing].any()
    assert (prediction.clean[(~mask & ~brain).expand(2, 3, 5, 6)] == -1).all()


def test_the_scale_learns_the_mean_absolute_error_and_the_image_does_not_pay_for_it() -> None:
    denoiser, target = DirectDenoiser(torch.nn.Identity(), gain=2.0), torch.zeros(1, 1, 4, 4)
    clean = torch.linspace(-0.3, 0.3, 16).reshape(1, 1, 4, 4).requires_grad_()
    log_scale = torch.zeros(1, 1, 1, 1, requires_grad=True)
    loss = denoiser.loss(torch.cat([clean, log_scale.expand(1, 1, 4, 4)], dim=1), target)
    loss.backward()
    torch.testing.assert_close(clean.grad, 2 * clean.detach().sign() / 16)  # of the mean absolute error alone
    best = torch.log(2 * clean.detach().abs().mean()).reshape(1, 1, 1, 1).requires_grad_()
    denoiser.loss(torch.cat([clean.detach(), best.expand(1, 1, 4, 4)], dim=1), target).backward()
    assert best.grad is not None and abs(best.grad.item()) < 1e-6
