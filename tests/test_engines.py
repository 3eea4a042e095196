"""Prepare-batches and evaluators: what goes into the trainers and what comes out of a study."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.metrics import Average
from monai.data import MetaTensor
from monai.networks.schedulers import DDPMScheduler
from torch.utils.data import DataLoader

from apt_monai.codebook import CodebookEntry, PriorCodebook
from apt_monai.contrasts import BRATS
from apt_monai.engines import (
    ContextPrepareBatch,
    FusionPrepareBatch,
    StudyEvaluator,
    SynthesisEvaluator,
    mean_psnr,
    run_unless_finished,
)
from apt_monai.inferers import TwoStageInferer
from apt_monai.methods import APT
from apt_monai.networks import MutualInformationFusion, PublishedDenoiser
from apt_monai.synthesis import Synthesizer
from apt_monai.transforms import BEZIER_CURVES, StudyPreprocessing

SCHEDULER = DDPMScheduler(100, schedule="cosine")


def fusion() -> MutualInformationFusion:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MutualInformationFusion(embed_dim=8, num_heads=2, out_dim=8)


def preparing(
    fusion_module: torch.nn.Module, scheduler: DDPMScheduler = SCHEDULER, **settings: Any
) -> ContextPrepareBatch:
    denoiser = PublishedDenoiser(torch.nn.Identity(), scheduler)
    return ContextPrepareBatch(denoiser, scheduler.num_train_timesteps, fusion_module, **settings)


def make_batch(count: int = 4) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(5)
    region = torch.zeros(count, 1, 16, 16, dtype=torch.uint8)
    region[:, :, 3:12, 4:10] = 1
    image = (torch.rand(count, 4, 16, 16, generator=generator) * 2 - 1).where(region > 0, -1.0)
    features = torch.rand(count, 4, 8, generator=generator)
    subjects = [f"BraTS-GLI-{i // 2:05d}-{i % 2:03d}" for i in range(count)]
    return {"image": image, "region": region, "features": features, "subject": subjects, "slice": list(range(count))}


# --- prepare-batches


def test_fusion_batch_is_each_slice_with_all_contrasts_and_with_one_left_out() -> None:
    batch = make_batch(8)
    features, patients, (available,), kwargs = FusionPrepareBatch(seed=0)(batch, "cpu")
    assert torch.equal(features, torch.cat([batch["features"]] * 2)) and kwargs == {}
    assert available.dtype == torch.bool and available[:8].all()
    assert (available[8:].sum(dim=1) == 3).all() and len(available[8:].unique(dim=0)) > 1
    assert patients == [f"BraTS-GLI-{i // 2:05d}" for i in range(8)]  # two time points are one patient


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_a_denoisers_batch_holds_its_target_and_what_is_known_of_the_slices(prediction_type: str) -> None:
    scheduler, batch = DDPMScheduler(100, schedule="cosine", prediction_type=prediction_type), make_batch()
    prepare = preparing(fusion(), scheduler, context="subset", seed=1)
    images, target, args, kwargs = prepare(batch, "cpu")
    noise, t, known = kwargs["noise"], kwargs["timesteps"], kwargs["condition"]
    assert torch.equal(images, batch["image"]) and args == ()
    assert noise.shape == images.shape and t.shape == (4,) and t.dtype == torch.int64
    torch.testing.assert_close(target, prepare.denoiser.target(images, noise, t + 1))  # MONAI counts from 0
    assert torch.equal(known.acquired, images) and not known.context.requires_grad
    torch.testing.assert_close(known.context, fusion().eval()(batch["features"], known.available))


def test_context_of_all_contrasts_is_the_papers() -> None:
    batch = make_batch()
    condition = preparing(fusion(), context="all")(batch, "cpu")[3]["condition"]
    expected = fusion().eval()(batch["features"], torch.ones(4, 4, dtype=torch.bool))
    torch.testing.assert_close(condition.context, expected)
    assert condition.available.all()


def test_context_of_subsets_is_of_any_contrasts_but_none() -> None:
    seen: list[torch.Tensor] = []

    class Watching(torch.nn.Module):
        def forward(self, features: torch.Tensor, available: torch.Tensor) -> torch.Tensor:
            seen.append(available)
            return features.mean(dim=1)

    prepare = preparing(Watching(), context="subset", seed=0)
    for _ in range(40):
        prepare(make_batch(8), "cpu")
    subsets = {tuple(row) for row in torch.cat(seen).tolist()}
    assert len(subsets) == 15 and (False,) * 4 not in subsets


def test_noise_and_timesteps_follow_the_seed_alone() -> None:
    def draw(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        torch.rand(3)  # the global random numbers do not matter
        kwargs = preparing(fusion(), context="subset", seed=seed)(make_batch(), "cpu")[3]
        return kwargs["noise"], kwargs["timesteps"]

    assert torch.equal(draw(3)[0], draw(3)[0]) and torch.equal(draw(3)[1], draw(3)[1])
    assert not torch.equal(draw(3)[0], draw(4)[0])


def test_all_timesteps_are_drawn() -> None:
    prepare = preparing(fusion())
    drawn = torch.cat([prepare.get_timesteps(torch.zeros(100, 1)) for _ in range(20)])
    assert drawn.min() == 0 and drawn.max() == 99


@pytest.mark.parametrize("make", [FusionPrepareBatch, lambda seed: preparing(fusion(), context="subset", seed=seed)])
def test_random_state_resumes_where_it_was(make: Callable[[int], Any]) -> None:
    def flat(result: tuple[Any, ...]) -> list[torch.Tensor]:
        tensors = [
            t for value in result[3].values() for t in (vars(value).values() if is_dataclass(value) else [value])
        ]
        return [t for t in (*result[2], *tensors) if t is not None]

    first = make(0)
    first(make_batch(), "cpu")
    state = {k: v.clone() for k, v in first.state_dict().items()}
    expected = flat(first(make_batch(), "cpu"))
    second = make(7)
    second.load_state_dict(state)
    found = flat(second(make_batch(), "cpu"))
    assert len(found) == len(expected) and all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_an_unknown_context_is_refused() -> None:
    with pytest.raises(ValueError, match="context is 'some': valid are 'all' and 'subset'"):
        preparing(fusion(), context="some")


# --- evaluators


class TinyNetwork(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.conv = torch.nn.Conv2d(4, 4, 3, padding=1)
        for p in self.parameters():
            p.data = 0.3 * torch.randn(p.shape, generator=generator)

    def forward(self, x: torch.Tensor, timesteps: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.conv(x) + context.mean(dim=2)[..., None, None])


class Encoder(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images[..., 3:11, 5]


def make_method(with_codebook: bool = True) -> APT:
    entries = {t: [CodebookEntry(s, "unchanged", 1, 0.5, 0.8) for s in BRATS.names if s != t] for t in BRATS.names}
    codebook = PriorCodebook(BRATS, entries, BEZIER_CURVES, "e", "tests", "", 1, 1) if with_codebook else None
    inferer = TwoStageInferer(
        SCHEDULER, start_step=40, sampling_steps=4, unroll_step=20, unroll_iterations=2, guidance_scale=1.0
    )
    denoiser = PublishedDenoiser(TinyNetwork(), SCHEDULER)
    return APT(denoiser, fusion(), inferer, StudyPreprocessing(BRATS, 16), codebook, Encoder(), seed=3)  # type: ignore[arg-type]


@pytest.mark.parametrize("with_codebook", [True, False])
def test_validation_synthesises_each_contrast_from_the_others(with_codebook: bool) -> None:
    batch, method = make_batch(), make_method(with_codebook)
    metric = {"val_psnr": Average(output_transform=mean_psnr)}
    evaluator = SynthesisEvaluator("cpu", [batch], method, method.denoiser, key_val_metric=metric)
    evaluator.run()
    output = evaluator.state.output
    assert set(output) == {"image", "synthesised"} | ({"prior"} if with_codebook else set())
    assert torch.equal(output["image"], batch["image"])
    for target in BRATS.names:
        channel = BRATS.index(target)
        available = torch.tensor([BRATS.mask([n for n in BRATS.names if n != target])] * 4)
        expected = method(batch, available)
        assert torch.equal(output["synthesised"][:, channel], expected["image"][:, channel])
        if with_codebook:
            assert torch.equal(output["prior"][:, channel], expected["prior"][:, channel])
    error = ((output["synthesised"] - batch["image"]) / 2).square().mean(dim=(2, 3))  # B×C, in [0, 1]
    assert evaluator.state.metrics["val_psnr"] == pytest.approx(float((-10 * error.log10()).mean()), abs=1e-3)


def make_study(missing: list[str], depth: int = 7) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(2)
    region = torch.zeros(1, 16, 16, depth, dtype=torch.uint8)
    region[:, 3:12, 4:10, 1:-1] = 1
    region[..., 3] = 0  # no brain in the middle either
    available = torch.tensor(BRATS.mask([n for n in BRATS.names if n not in missing]))
    image = (torch.rand(4, 16, 16, depth, generator=generator) * 2 - 1).where(region > 0, -1.0)
    image[~available] = -1.0
    return {
        "subject": "BraTS2021_00007",
        "image": MetaTensor(image, affine=torch.eye(4)),
        "region": MetaTensor(region),
        "available": available,
        "intensity_range": torch.tensor([[0.0, 1.0]] * 4),
        "paths": {},
    }


class Unchecked(Synthesizer):
    """These studies have no files that quality control could look at."""

    def findings(self, study: Mapping[str, Any]) -> list[dict[str, str]]:
        return []


def synthesise(study: dict[str, Any], slice_batch_size: int = 8, **kwargs: Any) -> dict[str, Any]:
    loader = DataLoader([study], batch_size=None)  # type: ignore[arg-type]
    evaluator = StudyEvaluator("cpu", loader, Unchecked(make_method(), slice_batch_size), **kwargs)
    evaluator.run()
    return evaluator.state.output


@pytest.mark.parametrize("missing", [["t1ce"], ["flair", "t2"], ["flair", "t1", "t2"]])
def test_a_studys_missing_contrasts_are_synthesised_slice_by_slice(missing: list[str]) -> None:
    study = make_study(missing)
    output = synthesise(study)
    image, available, region = study["image"].as_tensor(), study["available"], study["region"].as_tensor()
    synthesised = output["synthesised"]
    assert synthesised.shape == image.shape and output["subject"] == study["subject"]
    assert torch.equal(synthesised[available], image[available])  # bit for bit
    assert (synthesised[(region == 0).expand_as(image)] == -1).all()
    for index in (1, 2, 4, 5):
        batch = {
            "image": image[None, ..., index],
            "region": region[None, ..., index],
            "subject": [study["subject"]],
            "slice": [index],
        }
        expected = make_method()(batch, available[None])["image"][0]
        torch.testing.assert_close(synthesised[..., index], expected, rtol=0, atol=1e-5)
        assert (synthesised[~available][..., index] > -1).any()


def test_a_prior_is_there_only_where_it_is_asked_for_and_the_method_has_one() -> None:
    study = make_study(["t1ce"])
    assert "prior" not in make_volumes(study, with_codebook=True, prior=False)
    assert "prior" not in make_volumes(study, with_codebook=False, prior=True)
    prior = make_volumes(study, with_codebook=True, prior=True)["prior"]
    image, region = study["image"].as_tensor(), study["region"].as_tensor()
    batch = {"image": image[None, ..., 1], "region": region[None, ..., 1], "subject": ["a"], "slice": [1]}
    expected = make_method()(batch, study["available"][None])["prior"][0]
    torch.testing.assert_close(prior[..., 1], expected, rtol=0, atol=1e-5)


def make_volumes(study: dict[str, Any], with_codebook: bool, prior: bool) -> dict[str, torch.Tensor]:
    return Unchecked(make_method(with_codebook), prior=prior).volumes(study)


def test_slices_without_brain_stay_background() -> None:
    synthesised = synthesise(make_study(["t1"]))["synthesised"]
    assert (synthesised[..., [0, 3, 6]] == -1).all()


def test_a_study_is_the_same_for_any_slice_batch_size() -> None:
    study = make_study(["t1", "t2"])
    expected = synthesise(study, 8)["synthesised"]
    for size in (1, 3):
        torch.testing.assert_close(synthesise(study, size)["synthesised"], expected, rtol=0, atol=1e-5)


def test_postprocessing_gets_the_study_and_the_loaded_one_is_not_changed() -> None:
    study = make_study(["t1"])
    before = study["image"].clone()
    output = synthesise(study, postprocessing=lambda s: {"keys": sorted(s)})
    assert output == {"keys": sorted([*study, "findings", "synthesised"])}
    assert torch.equal(study["image"], before)


# --- the steps of a training


def test_a_finished_step_is_skipped_until_its_file_is_deleted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    artefact, runs = tmp_path / "codebook.json", []

    def step() -> None:
        runs.append(1)
        artefact.write_text(json.dumps({}))

    run_unless_finished("codebook", artefact, step)
    run_unless_finished("codebook", artefact, step)
    assert len(runs) == 1 and "codebook is finished" in caplog.text
    artefact.unlink()
    run_unless_finished("codebook", artefact, step)
    assert len(runs) == 2
