"""The published way of synthesising a slice, with what it repeats."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from apt_monai.inferers import slice_seed
from apt_monai.methods import APT


def synthesize_published_way(
    method: APT,
    batch: Mapping[str, Any],
    available: Tensor,
    progress: Callable[[int], Any] | None = None,
) -> Tensor:
    """What :class:`~apt_monai.methods.APT` computes, done as the published code does it.

    One slice at a time; the vision encoder and MIF run at every step; float32; the weights ask for gradients while the
    guidance differentiates through the U-Net (:func:`torch.autograd.grad`, as in the published code). The settings and
    the noise are the method's, so that the result is the same.

    Args:
        method: with an encoder, a codebook, ``squared=False``, ``next_step="forward"`` and ε-prediction.
        batch: one slice sample, collated (see :class:`~apt_monai.methods.APT`).
        available: ``(1, C)`` bool, True = acquired.
        progress: called with 1 after each pass.

    Returns:
        ``(1, C, H, W)`` in [-1, 1].

    Raises:
        ValueError: more than one slice, or no encoder or codebook.
    """
    network, fusion, encoder = method.network, method.fusion, method.encoder
    settings, codebook = method.inferer, method.codebook
    image, brain = batch["image"], batch["region"] > 0
    if len(image) != 1 or encoder is None or codebook is None:
        raise ValueError("the published way needs a batch of one slice, an encoder and a codebook")
    known = available[:, :, None, None]  # (1, C, 1, 1)
    y = torch.where(known, image, torch.full_like(image, -1.0))
    seed = slice_seed(method.seed, batch["subject"][0], int(batch["slice"][0]))
    generator = torch.Generator(image.device).manual_seed(seed)

    def noised(x0: Tensor, t: int) -> Tensor:
        noise = torch.randn(x0.shape, generator=generator, device=x0.device)
        return settings.scheduler.add_noise(x0, noise, torch.tensor([t - 1], device=x0.device))

    def predict(x_t: Tensor, t: int) -> Tensor:
        with torch.no_grad():
            encoded = encoder(y[available][None])[0]  # (acquired contrasts, D)
            features = encoded.new_zeros(*available.shape, encoded.shape[-1])  # (1, C, D)
            features[available] = encoded
            z = fusion(features, available)  # (1, D)
        x_t = x_t.detach().requires_grad_()
        eps = network(x=x_t, timesteps=torch.tensor([t - 1], device=x_t.device), context=z[:, None, :])
        a_t = settings.scheduler.alphas_cumprod[t - 1].to(x_t)
        x0 = ((x_t - (1 - a_t).sqrt() * eps) / a_t.sqrt()).clamp(-1, 1)
        (gradient,) = torch.autograd.grad(settings.guidance_scale * torch.norm((x0 - y) * known), x_t)
        if progress is not None:
            progress(1)
        return torch.where(known, y, x0.detach() - gradient)

    m, s = settings.start_step, settings.sampling_steps
    steps = [round(m * (s - i) / s) for i in range(s)]
    x0 = codebook.prior(y, available, brain)
    for t in steps:
        x0 = predict(noised(x0, t), t)
    w = settings.unroll_weight
    for _ in range(settings.unroll_iterations):
        x0 = (1 - w) * x0 + w * predict(noised(x0, settings.unroll_step), settings.unroll_step)
    if settings.unroll_iterations:
        for t in [t for t in steps if t < settings.unroll_step]:
            x0 = predict(noised(x0, t), t)
    x0 = torch.where(known, image, x0.clamp(-1, 1))
    return torch.where(known | brain, x0, torch.full_like(x0, -1.0))
