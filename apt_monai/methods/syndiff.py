"""SynDiff (Özbey et al., IEEE TMI 2023): diffusion in four large steps, each by a GAN."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.nets.diffusion_model_unet import get_timestep_embedding
from monai.networks.schedulers import DDPMScheduler, NoiseSchedules
from torch import Tensor, cat, nn

from apt_monai.inferers import noise_scheduler
from apt_monai.methods.adversary import Adversary, TrainingStep
from apt_monai.methods.compared import ComparedMethod
from apt_monai.networks import Conditions, SourceDenoiser
from apt_monai.networks.modulated import ModulatedUNet
from apt_monai.networks.source_denoiser import mean_over

LATENT = 100
RECONSTRUCTION = 0.5
"""What the mean absolute error weighs beside the adversarial loss."""
PENALTY, PENALTY_INTERVAL = 1.0, 10
"""γ of R1, and every how many iterations it is taken."""

NETWORK: dict[str, Any] = {
    "channels": (64, 64, 128, 128, 256, 256),
    "attention_levels": (False, False, False, False, True, False),
    "num_res_blocks": 2,
    "num_head_channels": 64,
    "norm_num_groups": 32,
    "resblock_updown": True,
}
"""Published for 256 × 256: NCSN++ of width 64, multipliers 1, 1, 2, 2, 4, 4, attention at 16."""


@NoiseSchedules.add_def("variance_preserving", "The continuous variance-preserving process in a few large steps")
def variance_preserving(
    num_train_timesteps: int, beta_min: float = 0.1, beta_max: float = 20.0, first: float = 1e-3
) -> Tensor:
    """β of T steps of the process dx = -β(s) x ds / 2 + √β(s) dw, β rising linearly over s in [0, 1].

    Example::

        >>> [round(float(beta), 3) for beta in variance_preserving(4)]
        [0.478, 0.849, 0.956, 0.987]
    """
    s = torch.linspace(0, 1, num_train_timesteps + 1, dtype=torch.float64) * (1 - first) + first
    s[0] = 0
    bars = torch.exp(-0.5 * s.square() * (beta_max - beta_min) - s * beta_min)  # ᾱ
    return (1 - bars[1:] / bars[:-1]).float()


class SynDiffDenoiser(SourceDenoiser):
    """The generator: x̂0 from the noised missing contrasts, the sources and random numbers of its own."""

    latent = LATENT

    def call(self, inputs: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
        assert conditions.context is not None, "SynDiff needs random numbers"
        latent = conditions.context[torch.arange(len(t), device=t.device), t - 1]  # (B, latent)
        return self.network(inputs, t - 1, F.normalize(latent, dim=1) * LATENT**0.5).tanh()

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        clean, wanted = output.chunk(2, dim=1)
        return RECONSTRUCTION * mean_over((clean - target).abs(), wanted)


class Discriminator(nn.Module):
    """Whether x_{t-1} comes from an acquired slice, given x_t and t.

    Args:
        contrasts: C; it is given 2C channels.
        widths: at each halving.
        embedding: width of the timestep's embedding.

    Example::

        >>> Discriminator(3, (8, 8))(torch.zeros(2, 6, 16, 16), torch.ones(2)).shape
        torch.Size([2, 1])
    """

    def __init__(
        self, contrasts: int, widths: Sequence[int] = (128, 256, 512, 512, 512, 512), embedding: int = 256
    ) -> None:
        super().__init__()
        self.embedding = embedding
        self.embed = nn.Sequential(nn.Linear(embedding, embedding), nn.LeakyReLU(0.2), nn.Linear(embedding, embedding))
        befores = [widths[0], *widths[:-1]]
        self.first = nn.Conv2d(2 * contrasts, widths[0], 1)
        self.blocks = nn.ModuleList(_Down(b, w, embedding) for b, w in zip(befores, widths, strict=True))
        self.last = nn.Sequential(nn.Conv2d(widths[-1] + 1, widths[-1], 3, padding=1), nn.LeakyReLU(0.2))
        self.answer = nn.Linear(widths[-1], 1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """``(B, 2C, H, W)`` and ``(B,)`` to ``(B, 1)``."""
        emb = self.embed(get_timestep_embedding(t, self.embedding))
        x = self.first(x)
        for block in self.blocks:
            x = block(x, emb)
        spread = x.std(
            dim=0, unbiased=False
        ).mean()  # what all of a batch have in common gives a collapsed generator away
        x = self.last(cat([x, spread.expand(len(x), 1, *x.shape[2:])], dim=1))
        return self.answer(x.sum(dim=(2, 3)))


class _Down(nn.Module):
    """A residual block with the timestep's embedding that halves height and width."""

    def __init__(self, before: int, width: int, embedding: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(before, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.project = nn.Linear(embedding, width)
        self.skip = nn.Conv2d(before, width, 1, bias=False)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.first(F.leaky_relu(x, 0.2)) + self.project(emb)[:, :, None, None]
        h = F.avg_pool2d(self.second(F.leaky_relu(h, 0.2)), 2, ceil_mode=True)
        return (h + self.skip(F.avg_pool2d(x, 2, ceil_mode=True))) / 2**0.5


class SynDiffAdversary(Adversary):
    """Non-saturating losses on the step from x_t to x_{t-1}, and R1's penalty.

    Args:
        discriminator: the network.
        scheduler: the noise schedule.
        precision: what it computes in.
        seed: of the noise of x_{t-1}.
    """

    def __init__(
        self, discriminator: nn.Module, scheduler: DDPMScheduler, precision: str = "float32", seed: int = 0
    ) -> None:
        super().__init__(discriminator, precision)
        self.scheduler = scheduler
        self.generator = torch.Generator().manual_seed(seed)

    def get_extra_state(self) -> Tensor:
        """Where its random numbers are."""
        return self.generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        """Go on from there."""
        self.generator.set_state(state.cpu())

    def generator_loss(self, step: TrainingStep) -> Tensor:
        return F.softplus(-self._logits(self._before(step.prediction.clean, step), step)).mean()

    def discriminator_loss(self, step: TrainingStep, iteration: int) -> Tensor:
        real = self._before(step.images, step).requires_grad_(iteration % PENALTY_INTERVAL == 0)
        logits = self._logits(real, step)
        loss = (
            F.softplus(-logits).mean()
            + F.softplus(self._logits(self._before(step.prediction.clean, step), step)).mean()
        )
        if real.requires_grad:
            (gradient,) = torch.autograd.grad(logits.sum(), real, create_graph=True)
            loss = loss + PENALTY / 2 * gradient.square().sum(dim=(1, 2, 3)).mean()
        return loss

    def _logits(self, before: Tensor, step: TrainingStep) -> Tensor:
        return self.judge(cat([before, step.x_t], dim=1), step.t - 1)

    def _before(self, clean: Tensor, step: TrainingStep) -> Tensor:
        """A draw from the posterior q(x_{t-1} | x_t, x_0) (Ho et al. 2020, Eq. 7)."""
        betas, bars = self.scheduler.betas.to(clean), self.scheduler.alphas_cumprod.to(clean)
        a = bars[step.t - 1][:, None, None, None]
        b = betas[step.t - 1][:, None, None, None]
        s = torch.cat([torch.ones_like(bars[:1]), bars[:-1]])[step.t - 1][:, None, None, None]
        mean = (s.sqrt() * b * clean + (1 - b).sqrt() * (1 - s) * step.x_t) / (1 - a)
        noise = torch.randn(clean.shape, generator=self.generator).to(clean)
        return mean + ((1 - s) * b / (1 - a)).sqrt() * noise


class SynDiff(ComparedMethod):
    """SynDiff's paired half: sources are the acquired contrasts; its cycle for unpaired data is not needed."""

    name = "syndiff"
    denoiser_type = SynDiffDenoiser

    @classmethod
    def network_of(cls, contrasts: int, **settings: Any) -> nn.Module:
        channels: dict[str, Any] = {"in_channels": 2 * contrasts, "out_channels": contrasts, "latent": LATENT}
        return ModulatedUNet(spatial_dims=2, **channels, **{**NETWORK, **settings})

    @classmethod
    def adversary(cls, settings: Mapping[str, Any], precision: str) -> Adversary:
        network = Discriminator(len(settings["contrasts"]["contrasts"]), **settings["discriminator"])
        return SynDiffAdversary(network, noise_scheduler(**settings["scheduler"]), precision)
