"""The ADNI phantom: whole heads as a scanner sees them, a known movement between the scans, and what training reads."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import label

from apt_monai.contrasts import ADNI
from apt_monai.data.readers import read_studies
from apt_monai.phantom import raw as raw_studies
from apt_monai.phantom import write_phantom_dataset
from apt_monai.phantom.acquisition import ideal_signal, magnitude_image
from apt_monai.phantom.adni import (
    ADNI_SEQUENCES,
    ATROPHIC,
    HEALTHY,
    adni_axial_grid,
    adni_population,
    adni_t1_grid,
    draw_movement,
)
from apt_monai.phantom.grids import Grid, resample
from apt_monai.phantom.head import Head, make_head
from apt_monai.phantom.sequences import COVERINGS, TISSUES, PulseSequence, inversion_recovery, spin_echo
from apt_monai.phantom.whole_head import Ellipsoid, whole_head_signals

SPACING = 6.0  # mm: T1 35×43×43, axial 43×43×27


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    out = tmp_path_factory.mktemp("raw")
    return write_phantom_dataset(out, "adni-raw", subjects=2, seed=0, spacing=SPACING, progress=False)


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    out = tmp_path_factory.mktemp("ready")
    return write_phantom_dataset(out, "adni", subjects=2, seed=0, spacing=SPACING, progress=False)


@pytest.fixture(scope="module")
def head() -> Head:
    return make_head(adni_t1_grid(5.0), 0, 0, HEALTHY)


@pytest.fixture(scope="module")
def signals(head: Head) -> dict[str, np.ndarray]:
    return whole_head_signals(head, 0, 0, HEALTHY, ADNI_SEQUENCES)


def load(study: Path, name: str) -> nib.Nifti1Image:
    return nib.load(study / f"{study.name}_{name}.nii.gz")


def truth(study: Path, name: str) -> nib.Nifti1Image:
    return nib.load(study.parent / ".truth" / study.name / f"{name}.nii.gz")


def movement_of(study: Path) -> np.ndarray:
    text = (study.parent / ".truth" / study.name / "truth.json").read_text()
    return np.array(json.loads(text)["axial_to_t1"])


# Grids and movement


def test_the_grids_are_those_of_adni_and_coarser_ones_keep_the_field_of_view() -> None:
    t1, axial = adni_t1_grid(), adni_axial_grid()
    assert t1.shape == (208, 256, 256) and nib.aff2axcodes(t1.affine) == ("R", "A", "S")
    assert axial.shape == (256, 256, 54) and nib.aff2axcodes(axial.affine) == ("L", "A", "S")
    assert np.allclose(np.abs(np.diag(axial.affine)[:3]), (0.9375, 0.9375, 3))
    for spacing in (2.0, 5.0):
        for fine, coarse in ((t1, adni_t1_grid(spacing)), (axial, adni_axial_grid(spacing))):
            extents = [np.array(grid.shape) * np.abs(np.diag(grid.affine)[:3]) for grid in (fine, coarse)]
            assert np.allclose(*extents, atol=spacing)
            middles = [grid.affine @ [*(np.array(grid.shape) - 1) / 2, 1] for grid in (fine, coarse)]
            assert np.allclose(*middles)


def test_world_and_head_coordinates_of_adni_grids_are_the_same() -> None:
    for grid in (adni_t1_grid(3.0), adni_axial_grid(4.0)):
        for i, axis in enumerate(grid.axes):
            assert np.allclose(axis, grid.affine[i, i] * np.arange(grid.shape[i]) + grid.affine[i, 3])


def test_a_movement_is_rigid_and_of_a_few_degrees_and_millimetres() -> None:
    movements = [draw_movement(np.random.default_rng(i)) for i in range(200)]
    for movement in movements:
        rotation = movement[:3, :3]
        assert np.allclose(rotation @ rotation.T, np.eye(3)) and np.linalg.det(rotation) == pytest.approx(1)
        assert np.array_equal(movement[3], [0, 0, 0, 1])
    shifts = np.array([movement[:3, 3] for movement in movements])
    turns = np.degrees([np.arccos((np.trace(movement[:3, :3]) - 1) / 2) for movement in movements])
    assert shifts.std() == pytest.approx(2.5, rel=0.15) and 2 < turns.mean() < 5


def test_resampling_matches_a_naive_version_with_a_movement_and_thick_slices() -> None:
    source = Grid((9, 8, 10), np.diag([2.0, 2.0, 2.0, 1.0]))
    target = Grid((3, 4, 2), np.array([[-3.0, 0, 0, 12], [0, 2.5, 0, 2], [0, 0, 6, 4], [0, 0, 0, 1]]))
    volume = np.random.default_rng(0).random(source.shape, np.float32)
    movement, parts = draw_movement(np.random.default_rng(1), turn=5), 3
    padded = np.pad(volume, 1)
    expected = np.zeros(target.shape)
    for i, j, k in np.ndindex(target.shape):
        for offset in (-1 / 3, 0, 1 / 3):
            x = (np.linalg.inv(source.affine) @ movement @ target.affine @ [i, j, k + offset, 1])[:3]
            low = np.floor(x).astype(int)
            if (x < 0).any() or (x > np.array(source.shape) - 1).any():
                continue
            for corner in np.ndindex(2, 2, 2):
                weight = np.prod([f if c else 1 - f for f, c in zip(x - low, corner, strict=True)])
                expected[i, j, k] += weight * padded[tuple(low + corner + 1)] / parts
    assert np.allclose(resample(volume, source, target, movement, parts), expected, atol=1e-5)


# The whole head


def test_an_ellipsoid_is_at_distance_0_on_its_surface_and_lies_within_its_box() -> None:
    ball = Ellipsoid("csf", (10, 0, 0), (5, 5, 5))
    points = np.array([[15.0, 10.0, 25.0], [0, 0, 0], [0, 0, 0]], np.float32)
    assert np.allclose(ball.distance(points), [0, -5, 10], atol=1e-5)
    assert np.allclose(ball.distance(points * [[-1], [1], [1]], side=-1), [0, -5, 10], atol=1e-5)
    grid = adni_t1_grid(4.0)
    box = ball.box(grid)
    x = grid.axes[0][box[0]]
    assert x.min() < 5 and x.max() > 15 and len(x) < grid.shape[0]


def test_a_shape_beyond_the_grid_has_an_empty_box() -> None:
    grid = Grid((4, 4, 4), np.diag([1.0, 1.0, 1.0, 1.0]), centre=(0.0, 0.0, 90.0))
    assert any(len(range(*part.indices(4))) == 0 for part in Ellipsoid("air", (0, 0, -120), (5, 5, 5)).box(grid))


def test_fat_is_bright_and_bone_dark_in_every_contrast() -> None:
    for sequence in ADNI_SEQUENCES.values():

        def brightness(name: str, sequence: PulseSequence = sequence) -> float:
            tissue = (COVERINGS | TISSUES)[name]
            if sequence.ti is None:
                return float(spin_echo(tissue.pd, tissue.t1, tissue.t2, sequence.tr, sequence.te))
            return float(inversion_recovery(tissue.pd, tissue.t1, tissue.t2, sequence.tr, sequence.te, sequence.ti))

        assert brightness("bone") < 0.02 and brightness("air") == 0
        assert brightness("fat") > brightness("marrow") > 10 * brightness("bone")
        assert brightness("fat") > brightness("muscle") * (0.9 if sequence.te < 50 else 1)


def test_from_the_brain_outwards_come_csf_bone_scalp_and_air(head: Head, signals: dict[str, np.ndarray]) -> None:
    # Along a ray to the left at the height of the ventricles, in T1: brain, dark CSF and skull, bright scalp, air
    j, k = (int(np.abs(axis - at).argmin()) for axis, at in zip(head.grid.axes[1:], (0, 30), strict=True))
    ray, brain = signals["t1"][:, j, k], head.brain[:, j, k]
    x = head.grid.axes[0]
    edge = x[brain].min()
    outside = ray[(x < edge - 1)][::-1]  # from the brain outwards
    scalp = int(outside[:7].argmax())
    assert outside[:scalp].min() < 0.35 * outside[scalp] and outside[scalp] > 0.8 * ray[brain].max()
    assert x[x < edge - 1][::-1][scalp] > edge - 25 and outside[-2:].max() < 0.03 * outside[scalp]


def test_the_brain_of_the_whole_head_is_the_brain_without_it(head: Head, signals: dict[str, np.ndarray]) -> None:
    for name, sequence in ADNI_SEQUENCES.items():
        assert np.array_equal(signals[name][head.brain], ideal_signal(head, sequence))


def test_the_head_is_one_piece_with_air_around_and_inside(head: Head, signals: dict[str, np.ndarray]) -> None:
    body = signals["pd"] > 0.1
    parts, count = label(body)
    assert np.bincount(parts[parts > 0]).max() > 0.98 * body.sum() and count >= 1
    assert not body[0].any() and not body[-1].any() and not body[:, :, -1].any()
    assert body.sum() > 1.6 * head.brain.sum()


def test_coverings_are_the_same_on_every_grid() -> None:
    fine, coarse = (
        Grid((2 * n + 1, 2 * n + 1, 2 * n + 1), np.diag([s, s, s, 1.0])) for n, s in ((20, 5.0), (10, 10.0))
    )
    a, b = (
        whole_head_signals(make_head(g, 0, 1, HEALTHY), 0, 1, HEALTHY, ADNI_SEQUENCES)["pd"] for g in (fine, coarse)
    )
    a, b = a[::2, ::2, ::2] > 0.25, b > 0.25
    assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.93


def test_about_half_of_the_subjects_are_atrophic_and_have_more_csf() -> None:
    drawn = [adni_population(0, subject) for subject in range(200)]
    assert 70 < sum(population is ATROPHIC for population in drawn) < 130
    for subject in range(2):
        healthy, atrophic = (
            make_head(adni_axial_grid(10.0), 0, subject, population).fractions["csf"].mean()
            for population in (HEALTHY, ATROPHIC)
        )
        assert atrophic > 1.3 * healthy


def test_noise_is_relative_to_the_brain_where_one_is_given() -> None:
    signal = np.zeros((20, 20, 20), np.float32)
    signal[5:15, 5:15, 5:15] = 1
    signal[0] = 10  # fat
    brain = signal == 1
    image = magnitude_image(signal, np.random.default_rng(0), noise=(0.02, 0.02), brightness=(100, 100), brain=brain)
    assert np.percentile(image[brain], 99.5) == pytest.approx(100, rel=1e-4)
    # Rayleigh noise in air has the mean sqrt(pi / 2) sigma
    assert image[signal == 0].mean() == pytest.approx(100 / 1.05 * 0.02 * np.sqrt(np.pi / 2), rel=0.05)


# Raw studies


def test_raw_study_folders_hold_what_a_scanner_gives_and_nothing_else(raw: list[Path]) -> None:
    assert [study.name for study in raw] == ["000_S_0000", "000_S_0001"]
    for study in raw:
        assert {path.name for path in study.iterdir()} == {f"{study.name}_{name}.nii.gz" for name in ADNI.names}
    assert sorted(path.name for path in raw[0].parent.iterdir()) == [".truth", *(s.name for s in raw), "phantom.json"]


def test_readers_see_the_studies_and_not_the_truth(raw: list[Path]) -> None:
    studies = read_studies(raw[0].parent, "adni", require_all=True)
    assert [study["subject"] for study in studies] == ["000_S_0000", "000_S_0001"]


def test_raw_scans_are_on_the_grids_of_their_scanner(raw: list[Path]) -> None:
    for name in ADNI.names:
        image, grid = load(raw[0], name), adni_t1_grid(SPACING) if name == "t1" else adni_axial_grid(SPACING)
        assert image.shape == grid.shape and np.allclose(image.affine, grid.affine)
        assert image.get_data_dtype() == np.int16
        assert b"PHANTOM" in bytes(image.header["descrip"])


def test_raw_scans_have_noise_in_air_and_a_head_around_the_brain(raw: list[Path]) -> None:
    for name in ADNI.names:
        scan = np.asarray(load(raw[0], name).dataobj).astype(float)
        brain = np.asarray(truth(raw[0], "brain_t1" if name == "t1" else "brain_axial").dataobj) > 0
        air = scan[:3, :3]
        assert 0 < air.mean() < 0.1 * np.median(scan[brain]) and air.std() > 0
        assert (scan[~brain] > 0.5 * np.median(scan[brain])).sum() > 0.2 * brain.sum()


def test_the_recorded_movement_takes_the_axial_brain_onto_the_t1_brain(raw: list[Path]) -> None:
    for study in raw:
        t1, axial = truth(study, "brain_t1"), truth(study, "brain_axial")
        movement = movement_of(study)

        def centre(image: nib.Nifti1Image) -> np.ndarray:
            voxels = np.argwhere(np.asarray(image.dataobj) > 0)
            return (voxels @ image.affine[:3, :3].T + image.affine[:3, 3]).mean(axis=0)

        moved = movement[:3, :3] @ centre(axial) + movement[:3, 3]
        assert np.linalg.norm(moved - centre(t1)) < 1.0  # mm
        assert np.linalg.norm(centre(axial) - centre(t1)) > np.linalg.norm(moved - centre(t1))
        volumes = [np.asarray(i.dataobj).sum() * abs(np.linalg.det(i.affine)) for i in (t1, axial)]
        assert volumes[0] == pytest.approx(volumes[1], rel=0.04)  # nothing of the brain is cut off


def test_the_movement_differs_between_subjects_and_the_truth_says_who_is_atrophic(raw: list[Path]) -> None:
    assert not np.allclose(movement_of(raw[0]), movement_of(raw[1]))
    for subject, study in enumerate(raw):
        record = json.loads((study.parent / ".truth" / study.name / "truth.json").read_text())
        assert record["atrophy"] == (adni_population(0, subject) is ATROPHIC)


# Studies that are ready to train on


def test_ready_studies_are_skull_stripped_on_one_grid(ready: list[Path]) -> None:
    for study in ready:
        images = [load(study, name) for name in ADNI.names]
        masks = [np.asarray(image.dataobj) > 0 for image in images]
        for image, mask in zip(images, masks, strict=True):
            assert np.allclose(image.affine, adni_axial_grid(SPACING).affine)
            assert np.array_equal(mask, masks[0])
        volume = masks[0].sum() * abs(np.linalg.det(images[0].affine))
        assert 1.0e6 < volume < 2.1e6


def test_ready_and_raw_studies_show_the_same_head(ready: list[Path], raw: list[Path]) -> None:
    stripped, scan, brain = load(ready[0], "t1"), load(raw[0], "t1"), truth(raw[0], "brain_t1")
    grids = [Grid(image.shape, image.affine) for image in (scan, stripped)]
    seen = resample(np.asarray(scan.dataobj).astype(np.float32), *grids)
    inside = resample(np.asarray(brain.dataobj).astype(np.float32), *grids) > 0.99
    values = np.asarray(stripped.dataobj)
    assert (values[inside] > 0).mean() > 0.99
    assert np.corrcoef(seen[inside], values[inside])[0, 1] > 0.8


def test_ready_contrasts_order_the_tissues_as_in_a_real_head(ready: list[Path]) -> None:
    t1, t2 = (np.asarray(load(ready[0], name).dataobj).astype(float) for name in ("t1", "t2"))
    brain = t1 > 0
    assert np.corrcoef(t1[brain], t2[brain])[0, 1] < -0.5


# Writing


@pytest.mark.parametrize("dataset", ["adni", "adni-raw"])
def test_the_same_seed_gives_the_same_bytes(dataset: str, raw: list[Path], ready: list[Path], tmp_path: Path) -> None:
    first = (raw if dataset == "adni-raw" else ready)[0].parent
    write_phantom_dataset(tmp_path, dataset, subjects=1, seed=0, spacing=SPACING, progress=False)
    written = [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) == (7 if dataset == "adni-raw" else 4)
    for path in written:
        assert (tmp_path / path).read_bytes() == (first / path).read_bytes()


def test_an_interrupted_run_leaves_no_half_study_and_the_next_one_resumes(
    raw: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    def write() -> list[Path]:
        return write_phantom_dataset(tmp_path, "adni-raw", 1, seed=0, spacing=SPACING, progress=False)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(raw_studies, "magnitude_image", interrupted)
        write()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".truth", "phantom.json"]
    (study,) = write()
    name = f"{study.name}_pd.nii.gz"
    assert (study / name).read_bytes() == (raw[0] / name).read_bytes()
    kept = (study / name).stat().st_mtime_ns
    write()
    assert (study / name).stat().st_mtime_ns == kept


def test_raw_and_ready_studies_do_not_mix_in_one_folder(ready: list[Path]) -> None:
    with pytest.raises(ValueError, match="holds another phantom"):
        write_phantom_dataset(ready[0].parent, "adni-raw", 1, seed=0, spacing=SPACING, progress=False)


@pytest.mark.parametrize(
    ("changes", "message"), [({"shape": (10, 10, 10)}, "leave it out"), ({"spacing": 11.0}, "spacing is 11.0")]
)
def test_a_bad_argument_is_named_and_nothing_is_written(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    arguments: dict[str, object] = {"subjects": 1, "seed": 0, "spacing": 8.0, "progress": False}
    with pytest.raises(ValueError, match=message):
        write_phantom_dataset(tmp_path / "out", "adni-raw", **(arguments | changes))  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()
