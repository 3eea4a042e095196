"""The digital phantom: physics against naive formulas, anatomy that varies, and files that are BraTS's."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import binary_fill_holes, label

from apt_monai.contrasts import BRATS
from apt_monai.phantom import brats, write_phantom_dataset
from apt_monai.phantom.acquisition import acquire, ideal_signal
from apt_monai.phantom.brats import brats_grid
from apt_monai.phantom.fields import magnify, smooth_noise
from apt_monai.phantom.grids import Volume
from apt_monai.phantom.head import Head, make_head
from apt_monai.phantom.population import Population
from apt_monai.phantom.sequences import SEQUENCES, TISSUES, inversion_recovery, shorten_t1, spin_echo
from apt_monai.phantom.template import load_template

SPACING = 5.0  # mm: 48×48×31 voxels; one for nearly all, as the template is smoothed anew for each (a second)


@pytest.fixture(scope="module")
def head() -> Head:
    return make_head(brats_grid(SPACING), seed=3, subject=1)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    out = tmp_path_factory.mktemp("phantom")
    return write_phantom_dataset(out, "brats", subjects=2, seed=0, spacing=SPACING, progress=False)


def load(study: Path, name: str) -> nib.Nifti1Image:
    return nib.load(study / f"{study.name}_{name}.nii.gz")


def mean_signals(head: Head, contrast: str) -> dict[str, float]:
    """The mean signal of the brain voxels that one tissue fills for the most part."""
    signal = ideal_signal(head, SEQUENCES[contrast])
    return {name: float(signal[share > 0.8].mean()) for name, share in head.fractions.items() if (share > 0.8).any()}


# Physics


def test_spin_echo_matches_the_naive_formula() -> None:
    expected = 0.7 * (1 - math.exp(-4500 / 832)) * math.exp(-100 / 79.6)
    assert spin_echo(0.7, 832.0, 79.6, tr=4500, te=100) == pytest.approx(expected)


def test_inversion_recovery_matches_the_naive_formula() -> None:
    expected = 0.82 * (1 - 2 * math.exp(-950 / 1331) + math.exp(-2000 / 1331)) * math.exp(-4 / 110)
    assert inversion_recovery(0.82, 1331.0, 110.0, tr=2000, te=4, ti=950) == pytest.approx(expected)


def test_no_contrast_agent_leaves_t1_alone_and_more_shortens_it_more() -> None:
    assert shorten_t1(1550.0, 0.0) == pytest.approx(1550)
    assert 1550 > shorten_t1(1550.0, 0.1) > shorten_t1(1550.0, 0.5)
    assert 1 / shorten_t1(1550.0, 0.5) == pytest.approx(1 / 1550 + 4.97e-3 * 0.5)


# Space


def test_the_default_grid_is_that_of_brats() -> None:
    grid = brats_grid()
    assert grid.shape == (240, 240, 155)
    assert np.array_equal(grid.affine, [[-1, 0, 0, 0], [0, -1, 0, 239], [0, 0, 1, 0], [0, 0, 0, 1]])
    assert nib.aff2axcodes(grid.affine) == ("L", "P", "S")


@pytest.mark.parametrize(("spacing", "shape"), [(1.0, (12, 10, 8)), (3.0, None)])
def test_every_grid_has_the_centre_of_the_brats_grid(spacing: float, shape: tuple[int, int, int] | None) -> None:
    grid = brats_grid(spacing, shape)
    middle = grid.affine @ [*(np.array(grid.shape) - 1) / 2, 1]
    assert np.allclose(middle[:3], [-119.5, 119.5, 77])
    for axis, n in zip(grid.axes, grid.shape, strict=True):
        assert len(axis) == n and axis.sum() == pytest.approx(0) and abs(axis[1] - axis[0]) == pytest.approx(spacing)


def test_smooth_noise_keeps_the_order_of_the_axes_and_matches_a_naive_spline() -> None:
    axes = (np.array([-3.0, 4.5]), np.array([0.0, 7.0, 8.0]), np.array([2.0]))
    scale = 20.0
    field = smooth_noise(axes, scale, np.random.default_rng(5))
    n = math.ceil(260 / scale) + 3
    control = np.random.default_rng(5).standard_normal((n, n, n), dtype=np.float32)

    def bump(u: float) -> float:  # the uniform cubic B-spline, centred at 0
        u = abs(u)
        return (2 - u) ** 3 / 6 * (u < 2) - 4 * (1 - u) ** 3 / 6 * (u < 1)

    expected = np.zeros((2, 3, 1))
    for i, j, k in np.ndindex(expected.shape):
        weights = [
            np.array([bump((axis[m] + 130) / scale + 1 - c) for c in range(n)])
            for axis, m in zip(axes, (i, j, k), strict=True)
        ]
        expected[i, j, k] = np.einsum("abc,a,b,c", control, *weights)
    assert np.allclose(field, expected * (315 / 151) ** 1.5, atol=1e-4)


def test_magnify_with_strength_0_is_the_identity_and_else_acts_near_the_centre_alone() -> None:
    points = np.array([[1.0, 500.0], [0.0, 0.0], [0.0, 0.0]], np.float32)
    assert np.array_equal(magnify(points, (0, 0, 0), (10, 10, 10), 0.0), points)
    near, far = magnify(points, (0, 0, 0), (10, 10, 10), 0.5)[0]
    assert near == pytest.approx(0.5, abs=0.01) and far == 500


def test_the_template_is_read_without_a_network_and_its_maps_are_probabilities() -> None:
    template = load_template()  # conftest refuses connections
    assert template.origin.tolist() == [-98, -134, -72]
    for values in (template.brain, template.grey, template.white):
        assert values.min() >= 0 and values.max() <= 1.001
    assert (template.grey + template.white).max() <= 1.01


def test_without_nilearn_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nilearn", None)
    with pytest.raises(ImportError, match=r"apt_monai\[phantom\]"):
        load_template.__wrapped__()  # as at the first call; what others have loaded stays


# The subject


def test_tissue_fractions_are_shares_that_sum_to_1(head: Head) -> None:
    shares = np.stack(list(head.fractions.values()))
    assert shares.dtype == np.float32 and shares.shape == (len(TISSUES), head.brain.sum())
    assert shares.min() >= 0 and np.allclose(shares.sum(axis=0), 1, atol=1e-4)


def test_the_brain_has_the_volume_of_a_brain_and_no_holes(head: Head) -> None:
    assert 1.1e6 < head.brain.sum() * SPACING**3 < 2.1e6
    assert label(head.brain)[1] == 1
    assert np.array_equal(binary_fill_holes(head.brain), head.brain)


def test_the_tumour_has_all_three_labels_inside_the_brain_and_on_one_side(head: Head) -> None:
    assert set(np.unique(head.labels)) == {0, 1, 2, 4}
    assert not head.labels[~head.brain].any()
    x = np.broadcast_to(head.grid.axes[0][:, None, None], head.grid.shape)
    core = x[np.isin(head.labels, (1, 4))]
    assert abs(np.sign(core).mean()) > 0.9


def test_a_head_without_a_tumour_has_none() -> None:
    head = make_head(brats_grid(SPACING), seed=3, subject=1, population=Population(tumour=False))
    assert not head.labels.any() and set(head.fractions) == {"csf", "grey", "white", "blood"}


def test_a_population_with_wider_ventricles_and_sulci_has_more_csf() -> None:
    def csf(population: Population) -> float:
        return float(make_head(brats_grid(SPACING), 0, 0, population).fractions["csf"].mean())

    normal = csf(Population(ventricles=(0.0, 0.0), tumour=False))
    assert csf(Population(ventricles=(0.5, 0.5), tumour=False)) > normal
    assert csf(Population(ventricles=(0.0, 0.0), sulci=(2.2, 0.3), tumour=False)) > normal


def test_subjects_differ_in_shape_and_the_same_subject_does_not() -> None:
    grid = brats_grid(SPACING)
    first, again, other, reseeded = (make_head(grid, *who) for who in ((0, 0), (0, 0), (0, 1), (1, 0)))
    assert np.array_equal(first.brain, again.brain) and np.array_equal(first.fractions["csf"], again.fractions["csf"])
    assert (first.brain != other.brain).sum() > 100 and (first.brain != reseeded.brain).sum() > 100


def test_a_subject_has_the_same_anatomy_on_every_grid() -> None:
    fine = make_head(brats_grid(SPACING, (37, 37, 25)), 0, 2)
    coarse = make_head(brats_grid(2 * SPACING, (19, 19, 13)), 0, 2)
    a, b = fine.brain[::2, ::2, ::2], coarse.brain  # odd sizes: every other voxel centre is one of the coarse grid
    a, b = a[:, :, : min(a.shape[2], b.shape[2])], b[:, :, : min(a.shape[2], b.shape[2])]
    assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.95


def test_the_contrasts_order_the_tissues_as_in_a_real_head(head: Head) -> None:
    t1, t2, flair, pd = (mean_signals(head, name) for name in ("t1", "t2", "flair", "pd"))
    assert t1["white"] > t1["grey"] > t1["csf"]
    assert t2["csf"] > t2["oedema"] > t2["grey"] > t2["white"]
    assert flair["oedema"] > flair["grey"] > flair["white"] > 3 * flair["csf"]
    assert pd["grey"] > pd["white"]


def test_gadolinium_brightens_the_enhancing_rim_in_t1gd_and_leaves_white_matter_as_it_is(head: Head) -> None:
    before, after = ideal_signal(head, SEQUENCES["t1"]), ideal_signal(head, SEQUENCES["t1ce"])
    rim, white = head.fractions["enhancing"] > 0.8, head.fractions["white"] > 0.99
    assert after[rim].mean() > 1.5 * before[rim].mean()
    assert after[rim].mean() > after[white].mean()
    assert np.allclose(after[white], before[white], rtol=0.03)


def test_ideal_signal_matches_a_naive_mixture(head: Head) -> None:
    voxel, sequence = 1234, SEQUENCES["t2"]
    expected = 0.0
    for name, share in head.fractions.items():
        tissue = head.tissues[name]
        a, b, c = (1, 1, 1) if name == "csf" else head.texture[:, voxel]
        signal = c * tissue.pd * (1 - math.exp(-sequence.tr / (a * tissue.t1)))
        expected += share[voxel] * signal * math.exp(-sequence.te / (b * tissue.t2))
    assert ideal_signal(head, sequence)[voxel] == pytest.approx(expected, rel=1e-3)


def test_a_scan_is_0_outside_the_brain_and_at_least_1_inside(head: Head) -> None:
    for sequence in SEQUENCES.values():
        scan = acquire(head, sequence, np.random.default_rng(0))
        assert scan.dtype == np.float32 and scan.shape == head.grid.shape
        assert not scan[~head.brain].any() and scan[head.brain].min() >= 1
        assert 400 <= np.percentile(scan[head.brain], 99.5) <= 1501


# The data set


def test_files_are_those_of_a_brats_2021_case(dataset: list[Path]) -> None:
    assert [study.name for study in dataset] == ["BraTS2021_00000", "BraTS2021_00001"]
    for study in dataset:
        names = {path.name for path in study.iterdir()}
        assert names == {f"{study.name}_{suffix}.nii.gz" for suffix in (*BRATS.names, "seg")}
    assert sorted(path.name for path in dataset[0].parent.iterdir()) == [*(s.name for s in dataset), "phantom.json"]


def test_headers_are_those_of_brats(dataset: list[Path]) -> None:
    for name in (*BRATS.names, "seg"):
        image = load(dataset[0], name)
        assert image.shape == (48, 48, 31)
        assert image.get_data_dtype() == (np.uint8 if name == "seg" else np.int16)
        assert nib.aff2axcodes(image.affine) == ("L", "P", "S")
        assert np.array_equal(image.affine, brats_grid(SPACING).affine)
        assert image.header["qform_code"] == image.header["sform_code"] == 1
        assert image.header.get_xyzt_units()[0] == "mm"
        assert b"PHANTOM" in bytes(image.header["descrip"])


def test_contrasts_share_one_brain_mask_that_holds_the_segmentation(dataset: list[Path]) -> None:
    masks = [np.asarray(load(dataset[0], name).dataobj) > 0 for name in BRATS.names]
    assert all(np.array_equal(mask, masks[0]) for mask in masks)
    assert not (np.asarray(load(dataset[0], "seg").dataobj)[~masks[0]]).any()


def test_the_same_seed_gives_the_same_bytes_and_fewer_subjects_are_the_first(
    dataset: list[Path], tmp_path: Path
) -> None:
    (again,) = write_phantom_dataset(tmp_path / "x", "brats", subjects=1, seed=0, spacing=SPACING, progress=False)
    for path in again.iterdir():
        assert path.read_bytes() == (dataset[0] / path.name).read_bytes()


def test_an_interrupted_run_leaves_no_half_study_and_the_next_one_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(subjects: int) -> list[Path]:
        return write_phantom_dataset(tmp_path, "brats", subjects, seed=0, spacing=SPACING, progress=False)

    (first,) = write(1)
    kept = first.stat().st_mtime_ns
    calls = 0

    def interrupted(head: Head, *args: object, **kwargs: object) -> Volume:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return np.zeros(head.grid.shape, np.float32)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(brats, "acquire", interrupted)
        write(2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["BraTS2021_00000", "phantom.json"]
    (tmp_path / ".BraTS2021_00001.partial").mkdir()  # as a killed run leaves it
    write(2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["BraTS2021_00000", "BraTS2021_00001", "phantom.json"]
    assert first.stat().st_mtime_ns == kept and load(tmp_path / "BraTS2021_00001", "t1").get_fdata().any()


def test_a_full_disk_names_the_study_and_leaves_nothing_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(brats, "save_nifti", full)
    with pytest.raises(OSError, match="BraTS2021_00000.*No space left"):
        write_phantom_dataset(tmp_path, "brats", 1, seed=0, spacing=SPACING, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["phantom.json"]


def test_a_folder_of_another_phantom_is_refused(tmp_path: Path) -> None:
    (tmp_path / "phantom.json").write_text(json.dumps({"phantom": "brats", "seed": 7}))
    with pytest.raises(ValueError, match="holds another phantom"):
        write_phantom_dataset(tmp_path, "brats", 1, seed=0, spacing=SPACING, progress=False)


def test_a_folder_of_real_studies_is_refused(tmp_path: Path) -> None:
    (tmp_path / "BraTS2021_00000").mkdir()
    with pytest.raises(ValueError, match="no phantom"):
        write_phantom_dataset(tmp_path, "brats", 1, seed=0, spacing=SPACING, progress=False)
    assert not (tmp_path / "phantom.json").exists()


def test_a_broken_record_is_named(tmp_path: Path) -> None:
    (tmp_path / "phantom.json").write_text("{")
    with pytest.raises(ValueError, match="phantom.json is not valid JSON"):
        write_phantom_dataset(tmp_path, "brats", 1, seed=0, spacing=SPACING, progress=False)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot write the phantom into"):
        write_phantom_dataset(tmp_path / "file" / "out", "brats", 1, seed=0, spacing=SPACING, progress=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "ixi"}, "unknown dataset 'ixi'"),
        ({"subjects": 0}, "subjects is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"spacing": 0.0}, "spacing is 0.0"),
        ({"spacing": math.nan}, "spacing is nan"),
        ({"shape": (10, 10)}, "three whole numbers"),
        ({"shape": (10, 10, 0)}, "three whole numbers"),
    ],
)
def test_a_bad_argument_is_named_and_nothing_is_written(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    arguments: dict[str, object] = {"dataset": "brats", "subjects": 1, "seed": 0, "spacing": SPACING, "progress": False}
    with pytest.raises(ValueError, match=message):
        write_phantom_dataset(tmp_path / "out", **(arguments | changes))  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()
