"""The published method on a batch of slices: encode, fuse, look up the prior, sample."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_inferers import SETTINGS, TinyNetwork, case, scheduler

from apt_monai.codebook import CodebookEntry, PriorCodebook
from apt_monai.contrasts import BRATS
from apt_monai.inferers import TwoStageInferer, slice_seed
from apt_monai.methods import APT
from apt_monai.networks import MutualInformationFusion, PublishedDenoiser
from apt_monai.transforms import BEZIER_CURVES, StudyPreprocessing


class CountingEncoder(torch.nn.Module):
    """Each slice's mean, minimum, maximum and corner, as 8 numbers; keeps what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.Tensor] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen.append(images)
        flat = images.flatten(2)
        stats = [flat.mean(-1), flat.amin(-1), flat.amax(-1), flat[..., 0]]
        return torch.stack(stats + [s.square() for s in stats], dim=-1)


def codebook() -> PriorCodebook:
    entries = {
        t: [CodebookEntry(s, "decreasing-gentle", 1, 0.5, 0.8) for s in BRATS.names if s != t] for t in BRATS.names
    }
    return PriorCodebook(BRATS, entries, BEZIER_CURVES, "e", "tests", "", 1, 1)


def make_method(**kwargs: Any) -> APT:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        fusion = MutualInformationFusion(embed_dim=8, num_heads=2, out_dim=8)
    denoiser, inferer = PublishedDenoiser(TinyNetwork(), scheduler()), TwoStageInferer(scheduler(), **SETTINGS)
    return APT(denoiser, fusion, inferer, StudyPreprocessing(BRATS, 8), **{"codebook": codebook(), **kwargs})


def slices(count: int = 3) -> tuple[dict[str, Any], torch.Tensor]:
    c = case(count)
    region = torch.zeros(count, 1, 8, 8, dtype=torch.uint8)
    region[:, :, 2:7, 1:6] = 1
    image = c["acquired"].where(region > 0, -1.0)
    subjects = [f"s{i // 2}" for i in range(count)]
    batch = {"image": image, "region": region, "subject": subjects, "slice": torch.arange(70, 70 + count)}
    return batch, c["available"]


def test_outside_the_brain_is_minus_one_and_acquired_is_kept() -> None:
    batch, available = slices()
    result = make_method(encoder=CountingEncoder())(batch, available)
    outside = (batch["region"] == 0).expand_as(batch["image"])
    assert set(result) == {"image", "prior"}
    for image in result.values():
        assert (image[outside] == -1).all()
        assert torch.equal(image[available], batch["image"][available])
    assert torch.equal(result["prior"], codebook().prior(batch["image"], available, batch["region"] > 0))


def test_cached_features_and_the_encoder_give_the_same_result() -> None:
    batch, available = slices()
    encoded = make_method(encoder=CountingEncoder())(batch, available)
    features = CountingEncoder()(batch["image"])
    cached = make_method()({**batch, "features": features}, available)
    torch.testing.assert_close(cached["image"], encoded["image"], rtol=0, atol=1e-5)


def test_the_encoder_sees_each_acquired_contrast_once_and_no_other() -> None:
    batch, available = slices()
    encoder = CountingEncoder()
    make_method(encoder=encoder)(batch, available)
    assert len(encoder.seen) == 1
    assert torch.equal(encoder.seen[0][:, 0], batch["image"][available])


def test_cached_features_spare_the_encoder() -> None:
    batch, available = slices()
    encoder = CountingEncoder()
    make_method(encoder=encoder)({**batch, "features": torch.rand(3, 4, 8)}, available)
    assert not encoder.seen


def test_what_is_missing_is_never_looked_at() -> None:
    batch, available = slices()
    known = available[:, :, None, None]
    features = torch.rand(3, 4, 8)
    expected = make_method()({**batch, "features": features}, available)
    image, blind = batch["image"].where(known, torch.nan), features.where(available[:, :, None], torch.nan)
    result = make_method()({**batch, "image": image, "features": blind}, available)
    assert torch.equal(result["image"], expected["image"]) and torch.equal(result["prior"], expected["prior"])


def test_noise_is_drawn_from_seed_subject_and_slice() -> None:
    assert len({slice_seed(s, p, i) for s in (0, 1) for p in ("a", "b") for i in (7, 8)}) == 8
    assert 0 <= slice_seed(0, "a", 0) < 2**63
    batch, available = slices(2)
    same = {k: [v[0]] * 2 if isinstance(v, list) else v[[0, 0]] for k, v in batch.items()}
    result = make_method(encoder=CountingEncoder())(same, available[[0, 0]])["image"]
    assert torch.equal(result[0], result[1])
    for change in ({"subject": ["s0", "s9"]}, {"slice": torch.tensor([70, 71])}):
        result = make_method(encoder=CountingEncoder())({**same, **change}, available[[0, 0]])["image"]
        assert not torch.allclose(result[0], result[1])


def test_neither_features_nor_encoder_is_refused() -> None:
    with pytest.raises(ValueError, match="no 'features' and the method no encoder"):
        make_method()(*slices())


def test_a_variant_changes_what_it_names_and_leaves_the_method_as_it_was() -> None:
    method = make_method(encoder=CountingEncoder())
    batch, available = slices()
    before, provenance = method(batch, available)["image"], method.provenance
    plain = method.variant(prior=False, unroll_iterations=0)
    assert plain.passes == SETTINGS["sampling_steps"] < method.passes and plain.codebook is None
    assert set(plain(batch, available)) == {"image"}
    assert plain.provenance == provenance | {"prior": None, "sampling": plain.inferer.settings}
    assert plain.inferer.settings == method.inferer.settings | {"unroll_iterations": 0}
    assert method.provenance == provenance and torch.equal(method(batch, available)["image"], before)
    with pytest.raises(ValueError, match="sampling has no steps: valid are start_step, "):
        method.variant(steps=3)


def test_the_fingerprint_is_of_what_the_result_depends_on() -> None:
    weights = {"model_sha256": "a"}
    same = make_method(weights=weights).fingerprint
    assert same == make_method(weights=weights).fingerprint and len(same) == 16
    others = [make_method(weights={"model_sha256": "b"}), make_method(weights=weights, seed=1)]
    others += [make_method(weights=weights, codebook=None), make_method(weights=weights).variant(guidance_scale=1.0)]
    assert len({same, *(other.fingerprint for other in others)}) == 5
