"""The prior codebook: built as a naive version builds it, looked up from acquired contrasts, refused when wrong."""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from apt_monai.codebook import (
    CodebookEntry,
    CodebookError,
    PriorCodebook,
    _Statistics,
    build_codebook,
)
from apt_monai.contrasts import ADNI, BRATS, ContrastSet
from apt_monai.transforms import BEZIER_CURVES, BezierIntensity

SETS = [BRATS, ADNI]


class TinyEncoder(torch.nn.Module):
    """A fixed nonlinear projection of 8×8 slices to 6 numbers; counts the slices that it encodes."""

    fingerprint = "tiny-0"
    source = "tests"

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randn(64, 6, generator=torch.Generator().manual_seed(3)))
        self.encoded = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.encoded += images.shape[0] * images.shape[1]
        return torch.tanh(images.flatten(2) @ self.weight)


def make_slices(contrasts: ContrastSet, count: int = 7, seed: int = 0) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(seed)
    slices = []
    for i in range(count):
        region = torch.zeros(1, 8, 8, dtype=torch.uint8)
        region[:, 1:7, 1 : 4 + i % 4] = 1 + i % 2
        levels = torch.rand(len(contrasts), 1, 1, generator=generator)
        image = (torch.rand(len(contrasts), 8, 8, generator=generator) * levels * 2 - 1).where(region > 0, -1.0)
        slices.append({"subject": f"s{i // 2}", "slice": i, "image": image, "region": region})
    return slices


def batches(slices: list[dict[str, Any]], size: int) -> Iterator[dict[str, Any]]:
    for i in range(0, len(slices), size):
        part = slices[i : i + size]
        tensors = {k: torch.stack([s[k] for s in part]) for k in part[0] if isinstance(part[0][k], torch.Tensor)}
        yield {**tensors, "subject": [s["subject"] for s in part], "slice": [s["slice"] for s in part]}


def build(contrasts: ContrastSet = BRATS, batch_size: int = 3, **kwargs: Any) -> PriorCodebook:
    slices = make_slices(contrasts, **kwargs)
    return build_codebook(batches(slices, batch_size), TinyEncoder(), contrasts, progress=False)


def naive_codebook(slices: list[dict[str, Any]], contrasts: ContrastSet) -> dict[str, list[tuple[Any, ...]]]:
    """All pairs of all slices in memory, one at a time: (source, curve, count, similarity, scale), best first."""
    encoder = TinyEncoder()

    def feature(image: torch.Tensor) -> np.ndarray:
        return encoder(image[None, None])[0, 0].double().numpy()

    result = {}
    for target in contrasts.names:
        pairs = [(s, k) for s in contrasts.names if s != target for k in BEZIER_CURVES]
        counts, similarities = dict.fromkeys(pairs, 0), {p: [] for p in pairs}
        target_values, variant_values = [], {p: [] for p in pairs}
        for sample in slices:
            image, brain = sample["image"], sample["region"][0] > 0
            a = feature(image[contrasts.index(target)])
            target_values.append(((image[contrasts.index(target)] + 1) / 2)[brain])
            for source, curve in pairs:
                variant = BezierIntensity(BEZIER_CURVES[curve])(image[contrasts.index(source)], brain)
                b = feature(variant)
                similarities[source, curve].append(float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)))
                variant_values[source, curve].append(((variant + 1) / 2)[brain])
            counts[max(pairs, key=lambda p: similarities[p][-1])] += 1
        mean = float(torch.cat(target_values).double().mean())
        found = [
            (s, k, counts[s, k], np.mean(similarities[s, k]), mean / float(torch.cat(variant_values[s, k]).mean()))
            for s, k in pairs
        ]
        result[target] = sorted(found, key=lambda e: (-e[2], -e[3]))
    return result


@pytest.mark.parametrize(("contrasts", "batch_size"), [(BRATS, 3), (BRATS, 7), (ADNI, 1)])
def test_streaming_equals_the_naive_version_for_any_batch_size(contrasts: ContrastSet, batch_size: int) -> None:
    slices = make_slices(contrasts)
    expected = naive_codebook(slices, contrasts)
    book = build_codebook(batches(slices, batch_size), TinyEncoder(), contrasts, progress=False)
    for target in contrasts.names:
        found = book.entries[target]
        assert [(e.source, e.curve, e.count) for e in found] == [e[:3] for e in expected[target]]
        np.testing.assert_allclose([e.similarity for e in found], [e[3] for e in expected[target]], atol=1e-5)
        np.testing.assert_allclose([e.scale for e in found], [e[4] for e in expected[target]], rtol=1e-5)
    assert (book.num_subjects, book.num_slices) == (4, 7)


def test_cached_features_give_the_same_codebook_and_spare_the_encoding() -> None:
    slices, encoder, cached_encoder = make_slices(BRATS), TinyEncoder(), TinyEncoder()
    book = build_codebook(batches(slices, 3), encoder, "brats", progress=False)
    for sample in slices:
        sample["features"] = TinyEncoder()(sample["image"][None])[0]
    assert build_codebook(batches(slices, 3), cached_encoder, "brats", progress=False) == book
    assert (encoder.encoded, cached_encoder.encoded) == (7 * 4 * 5, 7 * 4 * 4)


def test_accumulators_do_not_grow_with_the_slices() -> None:
    def numbers(statistics: _Statistics) -> int:
        return sum(v.numel() for v in vars(statistics).values() if isinstance(v, torch.Tensor))

    statistics = _Statistics(4, 5)
    before = numbers(statistics)
    for _ in range(50):
        shape = (2, 4, 5, 6)
        image, brain = torch.rand(2, 4, 8, 8), torch.ones(2, 1, 8, 8, dtype=torch.bool)
        statistics.update(torch.rand(2, 4, 6), torch.rand(shape), image, torch.rand(2, 4, 5, 8, 8), brain)
    assert numbers(statistics) == before and statistics.slices == 100


def test_batches_are_not_kept() -> None:
    alive = []

    def watched() -> Iterator[dict[str, Any]]:
        for batch in batches(make_slices(BRATS, 12), 1):
            assert sum(r() is not None for r in alive) <= 2  # the one before, and tqdm's
            alive.append(weakref.ref(batch["image"]))
            yield batch

    build_codebook(watched(), TinyEncoder(), BRATS, progress=False)


def test_an_empty_loader_is_refused() -> None:
    with pytest.raises(ValueError, match="no training slices to build a codebook from"):
        build_codebook([], TinyEncoder(), BRATS, progress=False)


@pytest.mark.parametrize("contrasts", SETS, ids=lambda s: s.name)
def test_lookup_uses_acquired_sources_alone_in_every_subset(contrasts: ContrastSet) -> None:
    book = build(contrasts)
    assert len(contrasts.subsets()) == {"brats": 14, "adni": 6}[contrasts.name]
    for acquired in contrasts.subsets():
        for target in set(contrasts.names) - set(acquired):
            entry = book.lookup(target, acquired)
            assert entry == next(e for e in book.entries[target] if e.source in acquired)


def test_lookup_names_what_it_cannot_find() -> None:
    book = build()
    with pytest.raises(ValueError, match="no prior for 't2' from \\['t2'\\]"):
        book.lookup("t2", ["t2"])
    with pytest.raises(ValueError, match="no prior for 't2' from \\[\\]"):
        book.lookup("t2", [])
    with pytest.raises(ValueError, match="unknown contrast 'pd'"):
        book.lookup("pd", ["t1"])
    with pytest.raises(ValueError, match="unknown contrast 'T1'"):
        book.lookup("t2", ["T1"])


@pytest.mark.parametrize("contrasts", SETS, ids=lambda s: s.name)
def test_priors_of_mixed_subsets_equal_those_of_each_slice(contrasts: ContrastSet) -> None:
    book = build(contrasts)
    subsets = contrasts.subsets()
    batch = next(batches(make_slices(contrasts, len(subsets), seed=1), len(subsets)))
    available = torch.tensor([contrasts.mask(s) for s in subsets])
    brain = batch["region"] > 0
    prior = book.prior(batch["image"], available, brain)
    assert torch.equal(prior[available], batch["image"][available])  # bit for bit
    assert prior.abs().max() <= 1
    assert (prior[~brain.expand_as(prior)] == -1).all()
    for i, acquired in enumerate(subsets):
        assert torch.equal(prior[i], book.prior(batch["image"][i : i + 1], available[i : i + 1], brain[i : i + 1])[0])
        for target in set(contrasts.names) - set(acquired):
            entry = book.lookup(target, acquired)
            source = batch["image"][i, contrasts.index(entry.source)]
            variant = BezierIntensity(BEZIER_CURVES[entry.curve])(source, brain[i, 0])
            expected = ((entry.scale * (variant + 1) / 2).clamp(0, 1) * 2 - 1).where(brain[i, 0], -1.0)
            torch.testing.assert_close(prior[i, contrasts.index(target)], expected, rtol=0, atol=1e-6)


def test_prior_reads_acquired_channels_alone() -> None:
    book, batch = build(), next(batches(make_slices(BRATS, 3), 3))
    available = torch.tensor([BRATS.mask(["t1", "t2"])] * 3)
    other = torch.where(available[:, :, None, None], batch["image"], torch.nan)
    expected = book.prior(batch["image"], available, batch["region"] > 0)
    assert torch.equal(book.prior(other, available, batch["region"] > 0), expected)


def test_similarity_matrix_is_empty_where_a_contrast_meets_itself() -> None:
    book = build(ADNI)
    matrix, columns = book.similarity_matrix()
    assert matrix.shape == (3, 15) and len(columns) == 15
    for row, target in enumerate(ADNI.names):
        for column, (source, curve) in enumerate(columns):
            if source == target:
                assert matrix[row, column].isnan()
            else:
                entry = next(e for e in book.entries[target] if (e.source, e.curve) == (source, curve))
                assert float(matrix[row, column]) == pytest.approx(entry.similarity)


def test_a_saved_codebook_comes_back_as_it_was(tmp_path: Path) -> None:
    book = build(ADNI)
    book.save(tmp_path / "codebook.json")
    assert PriorCodebook.load(tmp_path / "codebook.json", "adni", "tiny-0") == book
    assert [f.name for f in tmp_path.iterdir()] == ["codebook.json"]


def test_the_training_subjects_hash_does_not_depend_on_order() -> None:
    slices = make_slices(BRATS)
    forward = build_codebook(batches(slices, 2), TinyEncoder(), BRATS, progress=False)
    backward = build_codebook(batches(slices[::-1], 2), TinyEncoder(), BRATS, progress=False)
    assert forward.subjects == backward.subjects
    assert build_codebook(batches(slices[:2], 2), TinyEncoder(), BRATS, progress=False).subjects != forward.subjects


def test_a_codebook_of_another_encoder_or_dataset_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "codebook.json"
    build().save(path)
    with pytest.raises(CodebookError, match="encoder is 'tiny-0', and 'other' is needed"):
        PriorCodebook.load(path, BRATS, "other")
    with pytest.raises(CodebookError, match="dataset is 'brats', and 'adni' is needed"):
        PriorCodebook.load(path, ADNI, "tiny-0")


def test_a_missing_codebook_says_how_to_build_one(tmp_path: Path) -> None:
    with pytest.raises(CodebookError, match="no such codebook; build one with the run id 'codebook'"):
        PriorCodebook.load(tmp_path / "none.json", BRATS, "tiny-0")


def _remove(*keys: str | int) -> Any:
    def change(content: Any) -> None:
        for key in keys[:-1]:
            content = content[key]
        del content[keys[-1]]

    return change


def _set(value: Any, *keys: str | int) -> Any:
    def change(content: Any) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return change


DAMAGE = {
    "another version": (_set(2, "version"), "version is 2, and 1 is needed"),
    "contrasts in another order": (_set(["t1", "flair", "t1ce", "t2"], "contrasts"), "contrasts is"),
    "another format": (_set("other", "format"), "not a prior codebook"),
    "no encoder": (_remove("encoder"), "encoder is None"),
    "no entries": (_remove("entries"), "damaged"),
    "an entry left out": (_remove("entries", "t2", 0), "damaged.*entries of 't2'"),
    "an unknown field": (_set(1, "entries", "t2", 0, "colour"), "damaged.*colour"),
    "a scale that is text": (_set("1", "entries", "t2", 0, "scale"), "damaged"),
    "a scale that is NaN": (_set(float("nan"), "entries", "t2", 0, "scale"), "damaged.*out of range"),
    "a contrast from itself": (_set("t2", "entries", "t2", 0, "source"), "damaged.*entries of 't2'"),
    "a curve of three values": (_set([0, 0, 0], "curves", "unchanged"), "damaged.*four control values"),
    "no training": (_remove("training"), "damaged.*training"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_codebook_is_one_clear_error(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "codebook.json"
    build().save(path)
    content = json.loads(path.read_text())
    change, message = DAMAGE[damage]
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(CodebookError, match=f"(?s)codebook.json: .*{message}.*build one with"):
        PriorCodebook.load(path, BRATS, "tiny-0")


@pytest.mark.parametrize("content", [b'{"format": "apt_mon', b"\xff\xfe\x00", b"[]"])
def test_a_file_that_is_no_codebook_is_one_clear_error(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "codebook.json"
    path.write_bytes(content)
    with pytest.raises(CodebookError, match="codebook.json: not a"):
        PriorCodebook.load(path, BRATS, "tiny-0")


def test_an_interrupted_save_keeps_the_old_codebook(tmp_path: Path) -> None:
    path = tmp_path / "codebook.json"
    book = build()
    book.save(path)
    bad = PriorCodebook(**{**vars(book), "num_slices": object()})
    with pytest.raises(TypeError):
        bad.save(path)
    assert PriorCodebook.load(path, BRATS, "tiny-0") == book and len(list(tmp_path.iterdir())) == 1


def test_apply_scales_intensities_in_zero_to_one() -> None:
    book = build()
    source, brain = torch.tensor([[-1.0, 0.0, 0.5, 1.0]]), torch.tensor([[False, True, True, True]])
    prior = book.apply(CodebookEntry("t1", "unchanged", 1, 1.0, 1.5), source, brain)
    torch.testing.assert_close(prior, torch.tensor([[-1.0, 0.5, 1.0, 1.0]]))
