"""The mutual information fusion of the contrasts' features (MIF; paper, section 3.1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MutualInformationFusion(nn.Module):
    """Fuse the features of any non-empty subset of contrasts into one anatomical feature z.

    The acquired contrasts' vectors are a set of tokens, with no order: self-attention, residual, layer norm,
    feed-forward, residual, layer norm, mean over the tokens, a linear layer, unit norm. A contrast that is not
    acquired influences nothing, whatever stands in its place.

    Args:
        embed_dim: the length D of a contrast's feature vector, the vision encoder's ``embed_dim``.
        num_heads: attention heads; must divide ``embed_dim``.
        mlp_ratio: width of the feed-forward's hidden layer as a multiple of ``embed_dim``.
        out_dim: the length of z, the U-Net's ``cross_attention_dim``.

    Example::

        >>> fusion = MutualInformationFusion(embed_dim=16, num_heads=2, out_dim=8)
        >>> available = torch.tensor([[True, True, True, True], [False, True, False, False]])
        >>> z = fusion(torch.rand(2, 4, 16), available)
        >>> z.shape, bool(torch.allclose(z.norm(dim=1), torch.ones(2)))
        (torch.Size([2, 8]), True)
    """

    def __init__(self, embed_dim: int = 512, num_heads: int = 8, mlp_ratio: int = 4, out_dim: int = 512) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.attention = nn.MultiheadAttention(embed_dim, num_heads, batch_first=True)
        self.norm1 = nn.LayerNorm(embed_dim)
        self.mlp = nn.Sequential(
            nn.Linear(embed_dim, mlp_ratio * embed_dim), nn.GELU(), nn.Linear(mlp_ratio * embed_dim, embed_dim)
        )
        self.norm2 = nn.LayerNorm(embed_dim)
        self.projection = nn.Linear(embed_dim, out_dim)

    def forward(self, features: Tensor, available: Tensor) -> Tensor:
        """Fuse the acquired contrasts' features.

        Args:
            features: (B, C, D) float32, one vector a contrast; where ``available`` is False any value, even NaN.
            available: (B, C) bool, True where acquired (the mask m); rows may differ.

        Returns:
            (B, out_dim) float32 z of unit norm.

        Raises:
            ValueError: wrong shapes or type, or a row of ``available`` with no contrast at all.
        """
        if features.ndim != 3 or features.shape[2] != self.embed_dim:
            raise ValueError(f"features has shape {tuple(features.shape)}, must be (B, C, {self.embed_dim})")
        if available.shape != features.shape[:2] or available.dtype != torch.bool:
            raise ValueError(
                f"available is {available.dtype} of shape {tuple(available.shape)}, "
                f"must be torch.bool of shape {tuple(features.shape[:2])}"
            )
        if not available.any(dim=1).all():
            rows = (~available.any(dim=1)).nonzero().flatten().tolist()
            raise ValueError(f"available has no contrast in row(s) {rows}: at least one must be acquired")

        acquired = available.unsqueeze(-1)  # (B, C, 1)
        x = features.masked_fill(~acquired, 0.0)  # attention weights of 0 do not stop a NaN: 0 * NaN is NaN
        attended, _ = self.attention(x, x, x, key_padding_mask=~available, need_weights=False)
        x = self.norm1(x + attended)
        x = self.norm2(x + self.mlp(x))  # (B, C, D)
        mean = x.masked_fill(~acquired, 0.0).sum(dim=1) / acquired.sum(dim=1)  # (B, D)
        return F.normalize(self.projection(mean).float(), dim=-1)


def random_subsets(
    count: int,
    num_contrasts: int,
    generator: torch.Generator,
    size: int | None = None,
    largest: int | None = None,
    smallest: int = 1,
) -> Tensor:
    """Draw random non-empty subsets of contrasts.

    Args:
        count: how many subsets B.
        num_contrasts: how many contrasts C there are.
        generator: the source of the randomness; the result is on its device.
        size: how many contrasts each subset holds, all such subsets equally probable (the paper's z_sub takes C - 1).
            None: first a size, uniform over ``smallest`` ... ``largest``, then a subset of that size, uniform.
        largest: C where it is None, so that the whole set is among them; C - 1 leaves something to synthesise.
        smallest: 1 takes every size.

    Returns:
        (B, C) bool, True for a contrast in the subset, to be used as ``available``.

    Raises:
        ValueError: ``size`` is not in 1 ... C.

    Example::

        >>> random_subsets(2, 4, torch.Generator().manual_seed(0), size=3).sum(dim=1)
        tensor([3, 3])
    """
    if size is not None and not 1 <= size <= num_contrasts:
        raise ValueError(f"size is {size}, must be from 1 to {num_contrasts} or None")
    device = generator.device
    if size is None:
        sizes = torch.randint(smallest, (largest or num_contrasts) + 1, (count, 1), generator=generator, device=device)
    else:
        sizes = torch.full((count, 1), size, device=device)
    order = torch.rand(count, num_contrasts, generator=generator, device=device).argsort(dim=1).argsort(dim=1)
    return order < sizes
