"""Bézier intensity curves (Eq. 3): how one contrast is made to look more like another.

A curve is a scalar cubic Bézier with four control values. An intensity v in [-1, 1] is the parameter r = (v + 1) / 2
along it, and B(r), again in [-1, 1], is the new intensity.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from math import comb

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, Transform

ControlValues = Sequence[float]

#: The unchanged image and the paper's four curves (section 4.1), by name. With equally spaced control values a
#: Bézier curve is a straight line, so that "unchanged" needs no code of its own.
BEZIER_CURVES: dict[str, tuple[float, float, float, float]] = {
    "unchanged": (-1.0, -1.0 / 3.0, 1.0 / 3.0, 1.0),
    "increasing-steep": (-1.0, -1.0, 1.0, 1.0),
    "increasing-gentle": (-1.0, -0.5, 0.5, 1.0),
    "decreasing-steep": (1.0, 1.0, -1.0, -1.0),
    "decreasing-gentle": (1.0, 0.5, -0.5, -1.0),
}


def bezier_curve(r: torch.Tensor, control_values: ControlValues) -> torch.Tensor:
    """The scalar Bézier curve B(r) of Eq. 3.

    Args:
        r: the parameter along the curve, any shape, in [0, 1].
        control_values: P0 to Pn; four of them for the paper's cubic curves.

    Returns:
        B(r), the shape of ``r``.

    Example::

        >>> bezier_curve(torch.tensor([0.0, 0.5, 1.0]), (-1, -1, 1, 1))
        tensor([-1.,  0.,  1.])
    """
    # Eq. 3: B(r) = sum_i C(n, i) P_i (1 - r)^(n - i) r^i
    n = len(control_values) - 1
    curve = torch.zeros_like(r)
    for i, p in enumerate(control_values):
        curve = curve + comb(n, i) * p * (1 - r) ** (n - i) * r**i
    return curve


class BezierIntensity(Transform):
    """Change the intensities within the brain along a Bézier curve; the background stays -1.

    Args:
        control_values: the curve's four control values P0, P1, P2, P3, each in [-1, 1].

    Raises:
        ValueError: there are not four control values, or one is outside [-1, 1].

    Example::

        >>> image = torch.tensor([[-1.0, -0.5, 1.0]])
        >>> brain = torch.tensor([[False, True, True]])
        >>> BezierIntensity((1, 1, -1, -1))(image, brain)
        tensor([[-1.0000,  0.6875, -1.0000]])
    """

    def __init__(self, control_values: ControlValues) -> None:
        if len(control_values) != 4 or any(not -1.0 <= p <= 1.0 for p in control_values):
            raise ValueError(
                f"control_values are {tuple(control_values)}: a curve has four control values, each in [-1, 1]"
            )
        self.control_values = tuple(float(p) for p in control_values)

    def __call__(self, image: torch.Tensor, brain: torch.Tensor) -> torch.Tensor:
        """Transform ``image``, in [-1, 1], where ``brain`` (bool, broadcastable to it) is True."""
        curved = bezier_curve((image + 1) / 2, self.control_values)
        return curved.where(brain, -1.0)  # a MetaTensor's affine is that of the first operand, the image


class BezierIntensityd(MapTransform):
    """Dictionary form of :class:`BezierIntensity`.

    Args:
        keys: the images to transform, in [-1, 1].
        control_values: the curve's four control values.
        region_key: the key of the region map; the brain is where it is above 0.
        allow_missing_keys: do not raise for a key that is absent.

    Raises:
        ValueError: see :class:`BezierIntensity`.
        KeyError: a key is absent.

    Example::

        >>> sample = {"t1": torch.tensor([[-1.0, -0.5, 1.0]]), "region": torch.tensor([[0, 1, 2]])}
        >>> BezierIntensityd("t1", (1, 1, -1, -1))(sample)["t1"]
        tensor([[-1.0000,  0.6875, -1.0000]])
    """

    def __init__(
        self,
        keys: KeysCollection,
        control_values: ControlValues,
        region_key: str = "region",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.transform = BezierIntensity(control_values)
        self.region_key = region_key

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        result = dict(data)
        for key in self.key_iterator(result):
            result[key] = self.transform(result[key], result[self.region_key] > 0)
        return result


BezierIntensityD = BezierIntensityDict = BezierIntensityd
