"""The row to fear: the published APT's U-Net, trained to give the missing contrasts in one pass."""

from __future__ import annotations

from typing import Any

from monai.networks.nets import DiffusionModelUNet
from torch import Tensor, nn

from apt_monai.methods.compared import ComparedMethod
from apt_monai.networks import Conditions, SourceDenoiser

NETWORK: dict[str, Any] = {
    "channels": (128, 128, 256, 256, 512, 512),
    "attention_levels": (False, False, False, True, True, True),
    "num_res_blocks": 2,
    "num_head_channels": 64,
    "norm_num_groups": 32,
}
"""The published APT's, for 256 × 256, without cross-attention."""


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
        return DiffusionModelUNet(spatial_dims=2, **channels, **{**NETWORK, **settings})
