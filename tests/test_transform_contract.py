"""What every transform of the package promises."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.transforms import InvertibleTransform, Transform
from tiny_studies import write_study

from apt_monai import transforms
from apt_monai.errors import StudyError
from apt_monai.transforms import FitInPlaned, LoadStudyd, ScaleIntensityInBraind, StudyPreprocessing
from apt_monai.transforms.bezier import BezierIntensityd

CASES: dict[str, tuple[Transform, Callable[[dict], dict]]] = {
    "LoadStudyd": (LoadStudyd("brats"), lambda study: study),
    "ScaleIntensityInBraind": (ScaleIntensityInBraind(), LoadStudyd("brats")),
    "BezierIntensityd": (BezierIntensityd("image", (1, 1, -1, -1)), StudyPreprocessing("brats", 12)),
    "FitInPlaned, padded": (FitInPlaned("image", 16), StudyPreprocessing("brats", 12)),
    "FitInPlaned, resampled": (FitInPlaned("image", 8), StudyPreprocessing("brats", 12)),
    "StudyPreprocessing": (StudyPreprocessing("brats", 16), lambda study: study),
}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return type(a) is type(b) and a.dtype == b.dtype and np.array_equal(a.numpy(), b.numpy(), equal_nan=True)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    return a == b


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Transform, dict]:
    transform, before = CASES[request.param]
    return transform, before(write_study(tmp_path / "case", names=("t1", "t2")))


def test_a_transform_leaves_its_input_as_it_was(case: tuple[Transform, dict]) -> None:
    transform, data = case
    before = deepcopy(data)
    transform(data)
    assert same(data, before)
    if "image" in data:
        assert torch.equal(data["image"].affine, before["image"].affine)
        assert len(data["image"].applied_operations) == len(before["image"].applied_operations)


def test_a_transform_gives_the_same_again_and_after_pickling_and_draws_nothing_from_the_global_generators(
    case: tuple[Transform, dict],
) -> None:
    transform, data = case
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = transform(data)
    assert same(transform(data), first)
    assert same(pickle.loads(pickle.dumps(transform))(data), first)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)


def test_the_result_is_a_loaded_study_and_once_scaled_from_minus_one_which_is_background_to_one(
    case: tuple[Transform, dict],
) -> None:
    transform, data = case
    result = transform(data)
    assert isinstance(transform, Transform)
    assert result["subject"] == "case"
    assert result["image"].dtype == torch.float32 and result["image"].ndim == 4
    assert result["region"].dtype == torch.uint8 and result["region"].shape[1:] == result["image"].shape[1:]
    assert torch.allclose(result["image"].affine, result["region"].affine)
    assert result["available"].tolist() == [False, True, False, True]
    assert list(result["paths"]) == ["t1", "t2"]
    if "intensity_range" in result:
        assert result["image"].min() == -1 and result["image"].max() <= 1
        assert (result["image"][:, result["region"][0] == 0] == -1).all()


@pytest.mark.parametrize("case", ["FitInPlaned, padded", "FitInPlaned, resampled"], indirect=True)
def test_an_invertible_transform_gives_back_shape_and_affine(case: tuple[Transform, dict]) -> None:
    transform, data = case
    assert isinstance(transform, InvertibleTransform)
    restored = transform.inverse(transform(data))
    for key in ("image", "region"):
        assert restored[key].shape == data[key].shape and restored[key].dtype == data[key].dtype
        torch.testing.assert_close(restored[key].affine, data[key].affine)


def test_every_dictionary_transform_has_monais_two_aliases_and_is_in_this_contract() -> None:
    names = {n for n in transforms.__all__ if n.endswith("d")}
    for name in names:
        for alias in ("D", "Dict"):
            assert getattr(transforms, f"{name[:-1]}{alias}") is getattr(transforms, name)
    assert names and names <= {type(transform).__name__ for transform, _ in CASES.values()}


def test_preprocessing_raises_the_study_error_itself_not_composes_wrapper(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="case_t1.nii.gz: no such file"):
        StudyPreprocessing("brats", 16)({"subject": "case", "t1": str(tmp_path / "case_t1.nii.gz")})


def test_the_fingerprint_follows_the_settings() -> None:
    first = StudyPreprocessing("brats", 16)
    assert first.fingerprint == StudyPreprocessing("brats", 16).fingerprint
    others = [
        StudyPreprocessing("adni", 16),
        StudyPreprocessing("brats", 17),
        StudyPreprocessing("brats", 16, lower=1),
        StudyPreprocessing("brats", 16, upper=99),
    ]
    assert len({first.fingerprint, *(o.fingerprint for o in others)}) == 5
