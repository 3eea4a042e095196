"""Bézier intensity curves (Eq. 3) against the sum written out, and what they leave alone."""

from __future__ import annotations

from math import factorial

import pytest
import torch
from monai.data import MetaTensor

from apt_monai.transforms import BEZIER_CURVES, BezierIntensity, BezierIntensityd, BezierIntensityDict, bezier_curve

PAPER_CURVES = [(-1, -1, 1, 1), (-1, -0.5, 0.5, 1), (1, 1, -1, -1), (1, 0.5, -0.5, -1)]


def naive_bezier(r: float, p: tuple[float, ...]) -> float:
    n = len(p) - 1
    total = 0.0
    for i in range(n + 1):
        total += factorial(n) / (factorial(i) * factorial(n - i)) * p[i] * (1 - r) ** (n - i) * r**i
    return total


def test_every_curve_is_the_bernstein_sum_in_the_brain_and_leaves_the_background_at_minus_one() -> None:
    r = torch.linspace(0, 1, 41, dtype=torch.float64)
    image = torch.cat([2 * r - 1, torch.full((3,), -1.0, dtype=torch.float64)])
    brain = torch.arange(44) < 41
    for control_values in BEZIER_CURVES.values():
        expected = torch.tensor([naive_bezier(float(v), control_values) for v in r], dtype=torch.float64)
        torch.testing.assert_close(bezier_curve(r, control_values), expected, rtol=0, atol=1e-12)
        result = BezierIntensity(control_values)(image, brain)
        torch.testing.assert_close(result[brain], expected, rtol=0, atol=1e-12)
        assert (result[~brain] == -1).all()


def test_the_four_curves_are_the_papers_and_the_fifth_changes_nothing() -> None:
    assert [v for name, v in BEZIER_CURVES.items() if name != "unchanged"] == PAPER_CURVES
    image = torch.rand(3, 4, 8, 8) * 2 - 1
    brain = torch.ones(3, 1, 8, 8, dtype=torch.bool)
    torch.testing.assert_close(BezierIntensity(BEZIER_CURVES["unchanged"])(image, brain), image, rtol=0, atol=1e-6)


@pytest.mark.parametrize("values", [(0, 0, 0), (0, 0, 0, 1.5), (float("nan"), 0, 0, 0)])
def test_control_values_that_are_no_curve_are_refused(values: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="four control values, each in \\[-1, 1\\]"):
        BezierIntensity(values)


def test_dictionary_form_is_the_array_form() -> None:
    image, region = torch.rand(4, 8, 8) * 2 - 1, torch.randint(0, 3, (1, 8, 8), dtype=torch.uint8)
    sample = {"image": image, "region": region, "subject": "a"}
    result = BezierIntensityDict(keys="image", control_values=(1, 0.5, -0.5, -1))(sample)
    expected = BezierIntensity((1, 0.5, -0.5, -1))(image, region > 0)
    assert torch.equal(result["image"], expected)
    assert sample["image"] is image and result["region"] is region and result["subject"] == "a"


def test_dictionary_form_takes_another_region_and_may_miss_keys() -> None:
    sample = {"t1": torch.zeros(1, 2, 2), "mask": torch.zeros(1, 2, 2)}
    assert (BezierIntensityd("t1", (1, 1, -1, -1), region_key="mask")(sample)["t1"] == -1).all()
    transform = BezierIntensityd(["t1", "t2"], (1, 1, -1, -1), region_key="mask", allow_missing_keys=True)
    assert set(transform(sample)) == {"t1", "mask"}
    with pytest.raises(KeyError, match="t2"):
        BezierIntensityd(["t1", "t2"], (1, 1, -1, -1), region_key="mask")(sample)


def test_a_metatensor_keeps_its_affine() -> None:
    affine = torch.diag(torch.tensor([-1.0, -1.0, 2.0, 1.0], dtype=torch.float64))
    image = MetaTensor(torch.zeros(1, 2, 2, 2), affine=affine)
    result = BezierIntensity((1, 1, -1, -1))(image, MetaTensor(torch.ones(1, 2, 2, 2)) > 0)
    assert isinstance(result, MetaTensor) and torch.equal(result.affine, affine)
