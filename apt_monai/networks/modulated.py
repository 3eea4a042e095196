"""MONAI's diffusion U-Net with adaptive group normalisation, as ADM and SynDiff have it, and a latent."""

from __future__ import annotations

from typing import Any

from monai.networks.nets import DiffusionModelUNet
from monai.networks.nets.diffusion_model_unet import DiffusionUNetResnetBlock
from torch import Tensor, nn


class ModulatedUNet(nn.Module):
    """A diffusion U-Net whose residual blocks are scaled and shifted by the embedding after their second normalisation
    (ADM, Dhariwal and Nichol 2021, section 3.1, AdaGN), where MONAI's add it before.

    Args:
        latent: how many random numbers go into the embedding beside the timestep, by four layers; 0: none.
        settings: of MONAI's ``DiffusionModelUNet``.

    Example::

        >>> import torch
        >>> network = ModulatedUNet(spatial_dims=2, in_channels=2, out_channels=1, channels=(8, 8), norm_num_groups=4,
        ...     attention_levels=(False, False), num_res_blocks=1, latent=5)
        >>> network(torch.zeros(3, 2, 8, 8), torch.ones(3), torch.zeros(3, 5)).shape
        torch.Size([3, 1, 8, 8])
    """

    def __init__(self, latent: int = 0, **settings: Any) -> None:
        super().__init__()
        self.unet = DiffusionModelUNet(**settings)
        for module in list(self.unet.modules()):
            for name, child in module.named_children():
                if isinstance(child, DiffusionUNetResnetBlock):
                    setattr(module, name, _Modulated(child))
                elif isinstance(child, nn.ModuleList):
                    for i, block in enumerate(child):
                        if isinstance(block, DiffusionUNetResnetBlock):
                            child[i] = _Modulated(block)
        self.latent = latent
        if latent:
            width = self.unet.block_out_channels[0] * 4
            layers: list[nn.Module] = [nn.Linear(latent, width), nn.SiLU()]
            for _ in range(2):
                layers += [nn.Linear(width, width), nn.SiLU()]
            self.unet.num_class_embeds = (
                latent  # MONAI adds its class embedding to the timestep's: here it is the latent's
            )
            self.unet.class_embedding = nn.Sequential(*layers, nn.Linear(width, width))  # type: ignore[assignment]

    def forward(self, x: Tensor, t: Tensor, latent: Tensor | None = None) -> Tensor:
        """``(B, in_channels, H, W)``, ``(B,)`` and ``(B, latent)`` to ``(B, out_channels, H, W)``."""
        return self.unet(x, t, class_labels=latent)


class _Modulated(nn.Module):
    """One of MONAI's residual blocks, modulated."""

    def __init__(self, block: DiffusionUNetResnetBlock) -> None:
        super().__init__()
        self.block = block
        block.time_emb_proj = nn.Linear(block.emb_channels, 2 * block.out_channels)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        block = self.block
        h = block.nonlinearity(block.norm1(x))
        resample = block.upsample or block.downsample
        if resample is not None:
            x, h = resample(x), resample(h)
        h = block.conv1(h)
        scale, shift = block.time_emb_proj(block.nonlinearity(emb))[:, :, None, None].chunk(2, dim=1)
        h = block.norm2(h) * (1 + scale) + shift
        return block.skip_connection(x) + block.conv2(block.nonlinearity(h))
