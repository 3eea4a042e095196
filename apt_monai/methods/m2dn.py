"""M2DN (Meng et al., IEEE TMI 2024): multi-in multi-out diffusion, in which the missing contrasts alone are noised.

No official code is public: this is from the paper's description.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from monai.networks.blocks.squeeze_and_excitation import ChannelSELayer
from monai.networks.nets.diffusion_model_unet import get_timestep_embedding
from torch import Tensor, cat, nn

from apt_monai.methods.compared import ComparedMethod
from apt_monai.networks import Conditions, SourceDenoiser
from apt_monai.networks.source_denoiser import mean_over


class ResidualSE(nn.Module):
    """Two convolutions with the timestep's embedding between them, then squeeze and excitation, beside the identity."""

    def __init__(self, before: int, width: int, embedding: int, groups: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.GroupNorm(groups, before), nn.SiLU(), nn.Conv2d(before, width, 3, padding=1))
        self.second = nn.Sequential(nn.GroupNorm(groups, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1))
        self.project = nn.Linear(embedding, width)
        self.excite = ChannelSELayer(2, width)
        self.skip = nn.Identity() if before == width else nn.Conv2d(before, width, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.skip(x) + self.excite(self.second(self.first(x) + self.project(emb)[:, :, None, None]))


class _Level(nn.ModuleList):
    """Residual blocks in a row."""

    def __init__(self, before: int, width: int, embedding: int, groups: int, count: int) -> None:
        super().__init__(ResidualSE(before if i == 0 else width, width, embedding, groups) for i in range(count))

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        for block in self:
            x = block(x, emb)
        return x


class M2DNNetwork(nn.Module):
    """An encoder a contrast, a fusion U-shape, and the code of what is missing at its bottleneck.

    Args:
        contrasts: C.
        widths: channels at each level.
        own_width: of each contrast's encoder at the first level, rising as ``widths``.
        code: channels of the expanded code; published 128, of 16 × 16.
        blocks: residual blocks a level.
        groups: of the normalisation.

    Example::

        >>> import torch
        >>> network = M2DNNetwork(3, widths=(8, 16), own_width=4, code=4, blocks=1, groups=4)
        >>> network(torch.zeros(2, 6, 16, 16), torch.ones(2)).shape
        torch.Size([2, 3, 16, 16])
    """

    def __init__(
        self,
        contrasts: int,
        widths: Sequence[int] = (64, 128, 256, 256, 512),
        own_width: int = 32,
        code: int = 128,
        blocks: int = 2,
        groups: int = 32,
    ) -> None:
        super().__init__()
        self.contrasts, self.embedding = contrasts, 4 * widths[0]
        emb, sizes = self.embedding, list(widths)
        own = [max(1, own_width * width // sizes[0]) for width in sizes]
        self.embed = nn.Sequential(nn.Linear(sizes[0], emb), nn.SiLU(), nn.Linear(emb, emb))
        self.entries = nn.ModuleList(nn.Conv2d(1, own[0], 3, padding=1) for _ in range(contrasts))
        self.encoders = nn.ModuleList(
            nn.ModuleList(_Level(b, w, emb, min(groups, own[0]), 1) for b, w in zip([own[0], *own], own, strict=False))
            for _ in range(contrasts)
        )
        self.fusions = nn.ModuleList(
            nn.Conv2d(contrasts * of_own + before, width, 1)
            for of_own, before, width in zip(own, [0, *sizes], sizes, strict=False)
        )
        self.downs = nn.ModuleList(_Level(w, w, emb, groups, blocks) for w in sizes)
        self.pool = nn.AvgPool2d(2)
        self.code = nn.Linear(contrasts, code)
        self.bottleneck = _Level(sizes[-1] + code, sizes[-1], emb, min(groups, code), blocks)
        self.ups = nn.ModuleList(
            nn.Conv2d(b, w, 3, padding=1) for b, w in zip(sizes[:0:-1], sizes[-2::-1], strict=True)
        )
        self.joins = nn.ModuleList(_Level(2 * w, w, emb, groups, blocks) for w in sizes[-2::-1])
        self.raise_ = nn.Upsample(scale_factor=2)
        self.head = nn.Sequential(
            nn.GroupNorm(groups, sizes[0]), nn.SiLU(), nn.Conv2d(sizes[0], contrasts, 3, padding=1)
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """``(B, 2C, H, W)``, ``(B,)`` to ``(B, C, H, W)``, H and W multiples of 2 to the number of levels less one."""
        emb = self.embed(get_timestep_embedding(t, self.embedding // 4).to(x))
        contrasts, mask = x.chunk(2, dim=1)
        own = [entry(one) for entry, one in zip(self.entries, contrasts.split(1, dim=1), strict=True)]
        y: Tensor | None = None
        skips = []
        for level, (fuse, down) in enumerate(zip(self.fusions, self.downs, strict=True)):
            own = [self.pool(one) for one in own] if level else own
            own = [levels[level](one, emb) for levels, one in zip(self.encoders, own, strict=True)]  # type: ignore[index]
            y = down(fuse(cat(own if y is None else [*own, self.pool(y)], dim=1)), emb)
            skips.append(y)
        assert y is not None
        code = self.code(mask[:, :, 0, 0])[:, :, None, None].expand(-1, -1, *y.shape[2:])
        y = self.bottleneck(cat([y, code], dim=1), emb)
        for up, join, skip in zip(self.ups, self.joins, reversed(skips[:-1]), strict=True):
            y = join(cat([up(self.raise_(y)), skip], dim=1), emb)
        return self.head(y)


class M2DNDenoiser(SourceDenoiser):
    """x̂0 by the squared error; the acquired contrasts enter clean at every step."""

    def call(self, inputs: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
        return self.network(inputs, t - 1)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        clean, wanted = output.chunk(2, dim=1)
        return mean_over((clean - target).square(), wanted)


class M2DN(ComparedMethod):
    """M2DN: one network for every subset; 50 steps are the default of its sampling."""

    name = "m2dn"
    denoiser_type = M2DNDenoiser

    @classmethod
    def network_of(cls, contrasts: int, **settings: Any) -> nn.Module:
        return M2DNNetwork(contrasts, **settings)
