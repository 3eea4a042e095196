"""What every transform of the package promises."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import monai
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

DICTIONARY_TRANSFORMS = [n for n in transforms.__all__ if n.endswith("d") and f"{n[:-1]}Dict" in transforms.__all__]


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


def test_a_transform_is_a_monai_transform(case: tuple[Transform, dict]) -> None:
    assert isinstance(case[0], Transform)


def test_a_transform_leaves_its_input_as_it_was(case: tuple[Transform, dict]) -> None:
    transform, data = case
    before = deepcopy(data)
    transform(data)
    assert same(data, before)
    if "image" in data:
        assert torch.equal(data["image"].affine, before["image"].affine)
        assert len(data["image"].applied_operations) == len(before["image"].applied_operations)


def test_a_transform_gives_the_same_twice_and_does_not_touch_the_global_generators(
    case: tuple[Transform, dict],
) -> None:
    transform, data = case
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    assert same(transform(data), transform(data))
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)


def test_a_transform_works_the_same_after_pickling(case: tuple[Transform, dict]) -> None:
    transform, data = case
    assert same(pickle.loads(pickle.dumps(transform))(data), transform(data))


def test_the_result_is_a_loaded_study(case: tuple[Transform, dict]) -> None:
    transform, data = case
    result = transform(data)
    assert result["subject"] == "case"
    assert result["image"].dtype == torch.float32 and result["image"].ndim == 4
    assert result["region"].dtype == torch.uint8 and result["region"].shape[1:] == result["image"].shape[1:]
    assert torch.allclose(result["image"].affine, result["region"].affine)
    assert result["available"].tolist() == [False, True, False, True]
    assert list(result["paths"]) == ["t1", "t2"]


def test_after_scaling_the_image_is_within_range_and_the_background_exactly_minus_one(
    case: tuple[Transform, dict],
) -> None:
    result = case[0](case[1])
    if "intensity_range" in result:
        assert result["image"].min() == -1 and result["image"].max() <= 1
        assert (result["image"][:, result["region"][0] == 0] == -1).all()


def test_an_invertible_transform_gives_back_shape_and_affine(case: tuple[Transform, dict]) -> None:
    transform, data = case
    if isinstance(transform, InvertibleTransform) and "image" in data:
        restored = transform.inverse(transform(data))
        for key in ("image", "region"):
            assert restored[key].shape == data[key].shape and restored[key].dtype == data[key].dtype
            torch.testing.assert_close(restored[key].affine, data[key].affine)


@pytest.mark.parametrize("name", DICTIONARY_TRANSFORMS)
def test_a_dictionary_transform_has_monais_two_aliases(name: str) -> None:
    assert getattr(transforms, f"{name[:-1]}D") is getattr(transforms, name)
    assert getattr(transforms, f"{name[:-1]}Dict") is getattr(transforms, name)


def test_every_dictionary_transform_is_in_this_contract() -> None:
    covered = {type(transform).__name__ for transform, _ in CASES.values()}
    assert set(DICTIONARY_TRANSFORMS) <= covered


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


def test_preprocessing_can_be_named_in_a_config() -> None:
    config = {"_target_": "apt_monai.transforms.StudyPreprocessing", "contrasts": "brats", "size": 64}
    parser = monai.bundle.ConfigParser({"preprocessing": config})
    assert parser.get_parsed_content("preprocessing").settings["size"] == 64
