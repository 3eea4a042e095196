"""Figures: written whole, in the radiological orientation, with what is synthetic marked."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Engine
from matplotlib.figure import Figure
from matplotlib.image import imread
from tiny_dicom import SAGITTAL, write_series

from apt_monai.codebook import CodebookEntry, PriorCodebook
from apt_monai.contrasts import BRATS
from apt_monai.io import read_volume
from apt_monai.transforms.bezier import BEZIER_CURVES
from apt_monai.visualize import (
    SynthesisPicture,
    SynthesisRow,
    display_orientation,
    draw_codebook,
    draw_synthesis,
    draw_volume,
)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were saved."""
    figures: list[Figure] = []
    save = Figure.savefig

    def keep(figure: Figure, path: Path, **kwargs: Any) -> None:
        figures.append(figure)
        save(figure, path, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text")) if text.get_text()]


def square(value: float = 0.5) -> Any:
    image = np.zeros((24, 24), dtype=np.float32)
    image[4:20, 4:20] = value
    return image


def make_row(target: str = "T2", prior: bool = True, methods: tuple[str, ...] = ("U", "U+A")) -> SynthesisRow:
    made = {name: square(0.4) for name in methods}
    return SynthesisRow(target, square(), square(0.3) if prior else None, made, dict.fromkeys(methods, 23.45))


def make_codebook() -> PriorCodebook:
    entries = {
        target: [
            CodebookEntry(source, curve, count=len(curve), similarity=0.9 - 0.01 * len(source + curve), scale=1.1)
            for source in BRATS.names
            for curve in BEZIER_CURVES
            if source != target
        ]
        for target in BRATS.names
    }
    return PriorCodebook(BRATS, entries, BEZIER_CURVES, "abc", "folder", "def", 3, 40)


def test_front_is_up_and_the_patients_right_is_on_the_left() -> None:
    image = np.zeros((4, 6))  # x to the right, y to the front
    image[3, 5] = 1  # right and front
    shown = display_orientation(image)
    assert shown.shape == (6, 4) and shown[0, 0] == 1


def test_the_panel_has_a_row_a_target_and_marks_what_is_synthetic(tmp_path: Path, drawn: list[Figure]) -> None:
    path = draw_synthesis(tmp_path / "panel.png", [make_row("T1"), make_row("T2")], "a title", {"FLAIR": square()})
    assert path == tmp_path / "panel.png" and imread(path).std() > 0
    found = texts(drawn[0])
    assert found.count("SYNTHETIC") == 2 * 2 and found.count("23.4 dB") + found.count("23.5 dB") == 4
    assert {"a title", "T1", "T2", "acquired", "prior", "U", "U+A", "FLAIR (given)"} <= set(found)


def test_error_maps_have_a_fixed_scale_and_without_a_prior_there_is_no_prior_column(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    draw_synthesis(tmp_path / "panel.png", [make_row(prior=False)], "title")
    assert "prior" not in texts(drawn[0])
    errors = [image for axes in drawn[0].axes for image in axes.images if image.cmap.name == "inferno"]
    assert len(errors) == 2
    assert all(image.get_clim() == (0, 0.3) for image in errors)
    assert np.max(errors[0].get_array()) == pytest.approx(0.1, abs=1e-6)


def test_rows_with_other_methods_or_shapes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="same methods"):
        draw_synthesis(tmp_path / "panel.png", [make_row(), make_row(methods=("U",))], "title")
    with pytest.raises(ValueError, match="at least one row"):
        draw_synthesis(tmp_path / "panel.png", [], "title")
    with pytest.raises(ValueError, match="one shape"):
        draw_synthesis(tmp_path / "panel.png", [make_row()], "title", {"T1": np.zeros((5, 5), np.float32)})
    assert not list(tmp_path.iterdir())


def test_an_all_background_slice_is_drawn(tmp_path: Path) -> None:
    empty = np.zeros((24, 24), np.float32)
    assert draw_synthesis(
        tmp_path / "panel.png", [SynthesisRow("T1", empty, None, {"U": empty}, {"U": np.inf})], ""
    ).exists()


def test_the_codebook_picture_has_every_similarity_and_share_and_each_target_beside_its_prior(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    image = torch.rand(2, 4, 24, 24) * 2 - 1
    examples = {"image": image, "region": torch.ones(2, 1, 24, 24, dtype=torch.uint8)}
    codebook = make_codebook()
    assert imread(draw_codebook(tmp_path / "codebook.png", codebook, examples)).std() > 0
    found = texts(drawn[0])
    for entries in codebook.entries.values():
        for entry in entries:
            assert f"{entry.similarity:.3f}\n{entry.count / 40:.0%}" in found
    assert {f"{label}, acquired" for label in BRATS.labels} <= set(found)
    assert sum(text.startswith("prior: ") for text in found) == 4
    entry = codebook.lookup("t2", ["flair", "t1", "t1ce"])
    expected = codebook.apply(entry, image[0, BRATS.index(entry.source)], torch.ones(24, 24, dtype=torch.bool))
    axes = [a for a in drawn[0].findobj(lambda artist: bool(getattr(artist, "images", None))) if a.get_title()][-1]
    np.testing.assert_allclose(axes.images[0].get_array(), display_orientation((expected.numpy() + 1) / 2), atol=1e-6)


def save_volume(path: Path, shape: tuple[int, ...] = (8, 10, 6), affine: Any = None, synthetic: bool = False) -> Path:
    data = np.zeros(shape, np.float32)
    data[2:-2, 2:-2, 1:-1] = np.random.default_rng(0).uniform(1, 9, data[2:-2, 2:-2, 1:-1].shape)
    image = nib.Nifti1Image(data, np.diag([-1, -1, 2, 1]) if affine is None else affine)
    if synthetic:
        image.header["intent_name"] = "SYNTHETIC"
    nib.save(image, path)
    return path


def test_volumes_are_drawn_in_three_planes_and_synthetic_ones_are_marked(tmp_path: Path, drawn: list[Figure]) -> None:
    volumes = {
        "T1": save_volume(tmp_path / "a_t1.nii.gz"),
        "T2": save_volume(tmp_path / "a_t2_SYNTHETIC.nii.gz"),
        "FLAIR": save_volume(tmp_path / "a_renamed.nii.gz", synthetic=True),
    }
    path = draw_volume(tmp_path / "planes.png", volumes, "case a")
    assert imread(path).std() > 0
    found = texts(drawn[0])
    assert found.count("SYNTHETIC") == 2 * 3
    assert {"axial", "coronal", "sagittal", "T1", "T2", "FLAIR", "case a"} <= set(found)


def test_whatever_is_a_volume_of_a_study_is_drawn(tmp_path: Path, drawn: list[Figure]) -> None:
    """A NIfTI file without an ending, and a DICOM series: the same pictures as of the file that holds its voxels."""
    volume = np.random.default_rng(0).integers(1, 900, (8, 7, 6)).astype(np.int16)
    write_series(tmp_path / "series", volume, orientation=SAGITTAL)
    nib.save(nib.Nifti1Image(*read_volume(tmp_path / "series")), tmp_path / "a.nii.gz")
    bare = shutil.copy(tmp_path / "a.nii.gz", tmp_path / "IMG0001")
    draw_volume(tmp_path / "p.png", {"file": tmp_path / "a.nii.gz", "bare": bare, "series": tmp_path / "series"})
    for axes in np.reshape(drawn[0].axes, (3, 3)):
        file, *others = (image.images[0].get_array() for image in axes)
        for other in others:
            np.testing.assert_array_equal(other, file)


def test_planes_keep_the_proportions_of_thick_slices(tmp_path: Path, drawn: list[Figure]) -> None:
    draw_volume(tmp_path / "planes.png", {"T1": save_volume(tmp_path / "a_t1.nii.gz")})
    axial, coronal, sagittal = (axes.get_aspect() for axes in drawn[0].axes)
    assert (axial, coronal, sagittal) == (1, 2, 2)


def test_each_volume_is_shown_in_its_own_range_within_the_brain(tmp_path: Path, drawn: list[Figure]) -> None:
    """An acquired volume whose tissue is far from 0 looks like a synthetic one of another scale."""
    first = save_volume(tmp_path / "a_t2.nii.gz")
    image = nib.load(first)
    shifted = np.where(image.get_fdata() > 0, 100 * image.get_fdata() + 500, 0)
    nib.save(nib.Nifti1Image(shifted, image.affine), tmp_path / "b_t2.nii.gz")
    draw_volume(tmp_path / "p.png", {"one": first, "other": tmp_path / "b_t2.nii.gz"})
    one, other = (drawn[0].axes[column].images[0] for column in (0, 1))
    low, high = one.get_clim()
    assert 1 < low < high < 9
    assert other.get_clim() == pytest.approx((100 * low + 500, 100 * high + 500))


def test_volumes_of_another_grid_or_dimension_are_refused(tmp_path: Path) -> None:
    first = save_volume(tmp_path / "a_t1.nii.gz")
    with pytest.raises(ValueError, match="b_t1.nii.gz: is not on the grid of .*a_t1.nii.gz"):
        draw_volume(tmp_path / "p.png", {"a": first, "b": save_volume(tmp_path / "b_t1.nii.gz", affine=np.eye(4))})
    with pytest.raises(ValueError, match="c_t1.nii.gz: is 4D"):
        draw_volume(tmp_path / "p.png", {"c": save_volume(tmp_path / "c_t1.nii.gz", (6, 6, 6, 2))})
    with pytest.raises(ValueError, match="at least one volume"):
        draw_volume(tmp_path / "p.png", {})
    assert not (tmp_path / "p.png").exists()


def test_a_picture_that_cannot_be_written_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Figure, path: Path, **kwargs: Any) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", full)
    with pytest.raises(OSError, match="cannot write panel.png in the folder"):
        draw_synthesis(tmp_path / "panel.png", [make_row()], "title")
    assert not list(tmp_path.iterdir())


def test_validation_draws_its_first_slice_as_a_file_and_for_tensorboard(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    output = {key: torch.rand(2, 4, 24, 24, generator=generator) * 2 - 1 for key in ("image", "synthesised", "prior")}
    engine = Engine(lambda engine, batch: output)
    SynthesisPicture(tmp_path, "brats").attach(engine)
    engine.run([0, 1], max_epochs=1)
    assert imread(tmp_path / "validation.png").ndim == 3
    assert list(tmp_path.glob("events.out.tfevents.*"))
