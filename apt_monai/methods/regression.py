"""The row to fear: the published APT's U-Net, trained to give the missing contrasts in one pass."""

from __future__ import annotations

from typing import Any

from monai.networks.nets import DiffusionModelUNet
from torch import Tensor, nn

from apt_monai.methods.compared import UNET, ComparedMethod
from apt_monai.networks import Conditions, SourceDenoiser


class RegressionDenoiser(SourceDenoiser):
    """One pass by the mean absolute error; the timestep is always the last."""

    noisy = False

    def call(self, inputs: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
        return self.network(inputs, t - 1)


class Regression(ComparedMethod):
    """A plain regression by a U-Net: what is left of a diffusion model without the diffusion."""

    name = "regression"
    denoiser_type = RegressionDenoiser

    @classmethod
    def network_of(cls, contrasts: int, **settings: Any) -> nn.Module:
        channels: dict[str, Any] = {"in_channels": 2 * contrasts, "out_channels": contrasts}
        return DiffusionModelUNet(spatial_dims=2, **channels, **{**UNET, **settings})
