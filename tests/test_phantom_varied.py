"""The varied phantom: what differs between its studies, what stays right in all of them, and who may ask for it."""

from __future__ import annotations

import json
import math
from collections import Counter
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.sparse import csr_matrix

from apt_monai.__main__ import main
from apt_monai.contrasts import ADNI, BRATS
from apt_monai.data.preparation import find_studies
from apt_monai.data.readers import read_studies
from apt_monai.phantom import write_phantom_dataset
from apt_monai.phantom.adni import ADNI_SEQUENCES
from apt_monai.phantom.brats import brats_grid
from apt_monai.phantom.grids import HEAD_BOX
from apt_monai.phantom.head import make_head
from apt_monai.phantom.layouts import anatomy_grid, axis_weights, draw_layout, see
from apt_monai.phantom.lesions import Hyperintensities, Mass
from apt_monai.phantom.population import Population
from apt_monai.phantom.protocols import draw_protocol, nulling_time, shows_tissues_in_order
from apt_monai.phantom.scanner import add_ghosts, draw_noise, draw_scan, intensity_curve
from apt_monai.phantom.sequences import SEQUENCES, TISSUES, PulseSequence, mprage, spoiled_gradient_echo
from apt_monai.phantom.stripping import Strippers, strip_brain
from apt_monai.phantom.tumour import draw_tumour
from apt_monai.phantom.varied import BRATS_LESIONS, draw_brats_lesions
from apt_monai.transforms import StudyPreprocessing

SPACING = 4.0
BRATS_SEQUENCES = {name: SEQUENCES[name] for name in BRATS.names}


@pytest.fixture(scope="module")
def brats(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write(tmp_path_factory.mktemp("brats"), "brats", 4)


@pytest.fixture(scope="module")
def noiseless(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write(tmp_path_factory.mktemp("noiseless"), "brats", 4, noise=False)


@pytest.fixture(scope="module")
def adni(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write(tmp_path_factory.mktemp("adni"), "adni", 2)


def write(out: Path, dataset: str, subjects: int, noise: bool = True) -> list[Path]:
    return write_phantom_dataset(out, dataset, subjects, 0, SPACING, progress=False, varied=True, noise=noise)


def load(study: Path, name: str) -> nib.Nifti1Image:
    return nib.load(study / f"{study.name}_{name}.nii.gz")


def values(study: Path, name: str) -> np.ndarray:
    return np.asarray(load(study, name).dataobj).astype(np.float64)


# Physics


def test_a_spoiled_gradient_echo_is_the_steady_state_of_a_naive_train_of_pulses() -> None:
    t1, t2, tr, te, flip = 832.0, 79.6, 9.0, 3.0, math.radians(20)
    m = 1.0
    for _ in range(2000):
        m = 1 - (1 - m * math.cos(flip)) * math.exp(-tr / t1)
    expected = 0.7 * m * math.sin(flip) * math.exp(-te * (1 / t2 + 0.01))
    assert spoiled_gradient_echo(0.7, t1, t2, tr, te, 20.0) == pytest.approx(expected)


@pytest.mark.parametrize("t1", [600.0, 1331.0, 4300.0])
def test_an_mprage_is_the_steady_state_of_a_naive_train_of_pulses(t1: float) -> None:
    sequence = PulseSequence(tr=2000, te=3, ti=950, flip=9, echoes=160, echo_spacing=7.5)
    flip, half = math.radians(9), 160 * 7.5 / 2

    def recover(m: float, time: float) -> float:
        return 1 - (1 - m) * math.exp(-time / t1)

    m = signal = 1.0
    for _ in range(30):
        m = recover(-m, 950 - half)
        for echo in range(160):
            if echo == 80:
                signal = m * math.sin(flip)
            m = recover(m * math.cos(flip), 7.5)
        m = recover(m, 2000 - 950 - half)
    expected = 0.8 * signal * math.exp(-3 * (1 / 100 + 0.01))
    assert mprage(0.8, t1, 100.0, sequence) == pytest.approx(expected)


def test_an_mprage_whose_train_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="no MPRAGE"):
        mprage(0.8, 1000.0, 100.0, PulseSequence(tr=2000, te=3, ti=500, flip=9))


def test_the_nulling_time_nulls() -> None:
    ti = nulling_time(4300, 9000)
    assert 1 - 2 * math.exp(-ti / 4300) + math.exp(-9000 / 4300) == pytest.approx(0)


# Protocols


def test_about_a_quarter_of_the_protocols_are_nominal_and_both_fields_occur() -> None:
    drawn = [draw_protocol(0, subject, BRATS_SEQUENCES) for subject in range(300)]
    assert 50 < sum(protocol.nominal for protocol in drawn) < 100
    assert {protocol.field for protocol in drawn} == {1.5, 3.0}
    for protocol in drawn:
        if protocol.nominal:
            assert protocol.tissues() == dict(TISSUES)
            for name, sequence in protocol.sequences.items():
                assert sequence.tr == pytest.approx(SEQUENCES[name].tr, rel=0.15) and sequence.flip is None


@pytest.mark.parametrize("usual", [BRATS_SEQUENCES, dict(ADNI_SEQUENCES)])
def test_every_protocol_shows_the_tissues_in_the_order_of_its_contrasts(usual: dict[str, PulseSequence]) -> None:
    for subject in range(100):
        protocol = draw_protocol(1, subject, usual)
        assert set(protocol.sequences) == set(usual)
        assert all(shows_tissues_in_order(name, protocol) for name in usual)


def test_t1_is_acquired_in_several_ways_and_t1gd_mostly_in_the_same() -> None:
    drawn = [draw_protocol(2, subject, BRATS_SEQUENCES).sequences for subject in range(200)]
    ways = Counter((s["t1"].flip is None, s["t1"].ti is None) for s in drawn)
    assert len(ways) == 4 and min(ways.values()) > 5
    same = [(s["t1"].flip is None, s["t1"].ti is None) == (s["t1ce"].flip is None, s["t1ce"].ti is None) for s in drawn]
    assert 0.7 < np.mean(same) < 1
    assert all(s["t1ce"].gadolinium and not s["t1"].gadolinium for s in drawn)


def test_relaxation_is_faster_at_low_field_but_for_csf() -> None:
    drawn = [p for p in (draw_protocol(3, subject, BRATS_SEQUENCES) for subject in range(300)) if not p.nominal]

    def mean_t1(tissue: str, field: float) -> float:
        return float(np.mean([p.tissues()[tissue].t1 for p in drawn if p.field == field]))

    assert 0.7 < mean_t1("white", 1.5) / mean_t1("white", 3.0) < 0.82
    assert mean_t1("csf", 1.5) / mean_t1("csf", 3.0) > 0.95


# Subjects


def test_all_kinds_of_lesions_are_drawn() -> None:
    drawn = [draw_brats_lesions(np.random.default_rng(i)) for i in range(25)]
    assert {kind for kind, _ in drawn} == set(BRATS_LESIONS)
    for kind, lesions in drawn:
        assert len(lesions) == {"none": 0, "two": 2}.get(kind, 1)


@pytest.mark.parametrize(("kind", "labels"), [("solid", {0, 2, 4}), ("core", {0, 1, 2}), ("oedema", {0, 2})])
def test_a_mass_has_the_labels_of_its_kind(kind: str, labels: set[int]) -> None:
    tumour = draw_tumour(Population(core=(20, 20)), np.random.default_rng(3))
    head = make_head(brats_grid(6.0), 0, 0, lesions=[Mass(tumour, kind)], detail=SPACING)
    assert set(np.unique(head.labels)) == labels
    assert np.allclose(sum(head.fractions.values()), 1, atol=1e-4)


def test_a_second_mass_leaves_the_first_and_the_shares_still_sum_to_1() -> None:
    first, second = (draw_tumour(Population(core=(14, 14)), np.random.default_rng(i)) for i in (1, 2))
    assert np.linalg.norm(first.centre - second.centre) > 40
    one, two = (
        make_head(brats_grid(6.0), 0, 0, lesions=lesions, detail=SPACING)
        for lesions in ([Mass(first)], [Mass(first), Mass(second, "core")])
    )
    assert np.allclose(sum(two.fractions.values()), 1, atol=1e-4)
    assert (two.labels > 0).sum() > (one.labels > 0).sum() > 0
    assert (two.labels == 4).sum() == pytest.approx((one.labels == 4).sum(), rel=0.2)


def test_hyperintensities_replace_white_matter_alone() -> None:
    healthy, ill = (
        make_head(brats_grid(6.0), 0, 0, Population(tumour=False), lesions, SPACING)
        for lesions in ([], [Hyperintensities(2.5)])
    )
    assert np.allclose(ill.fractions["white"] + ill.fractions["oedema"], healthy.fractions["white"], atol=1e-5)
    assert np.array_equal(ill.fractions["grey"], healthy.fractions["grey"])
    assert 0.002 < ill.fractions["oedema"].mean() < 0.05


# Grids


def test_drawn_grids_have_fine_and_coarse_voxels_and_thin_and_thick_slices() -> None:
    steps = np.array([np.diag(draw_layout(np.random.default_rng(i), brats_grid(), 1.0).affine)[:3] for i in range(200)])
    assert (steps[:, :2] < 0).all() and (steps[:, 2] > 0).all()
    edge, thickness = -steps[:, 0], steps[:, 2]
    assert edge.min() < 0.7 and edge.max() == 3 and 0.08 < (edge == 3).mean() < 0.22
    assert ((edge == 3) | ((edge >= 0.6) & (edge <= 2))).all()
    assert thickness.min() >= 1 and thickness.max() <= 6 and 0.3 < (thickness > 2).mean() < 0.6


def test_drawn_grids_have_the_middle_of_the_usual_one_and_hold_the_brain() -> None:
    for i in range(20):
        grid = draw_layout(np.random.default_rng(i), brats_grid(), 3.0)
        middle = grid.affine @ [*(np.array(grid.shape) - 1) / 2, 1]
        assert np.allclose(middle[:3], [-119.5, 119.5, 77])
        extent = np.array(grid.shape) * np.abs(np.diag(grid.affine)[:3])
        assert (extent[:2] >= 2 * np.array(HEAD_BOX[:2])).all() and extent[2] >= 150
        anatomy = anatomy_grid(grid, 3.0)
        for own, coarse, half in zip(anatomy.axes, grid.axes, HEAD_BOX, strict=True):
            assert own.max() >= min(half, coarse.max()) and own.min() <= max(-half, coarse.min())


@pytest.mark.parametrize(("edge", "blur"), [(0.7, 0.0), (4.0, 0.0), (0.7, 1.5), (4.0, 1.5)])
def test_voxels_see_the_mean_of_a_line_in_their_middle_and_a_blur_keeps_it(edge: float, blur: float) -> None:
    source = np.arange(-60, 61, 1.5)
    target = -edge * (np.arange(11) - 5)  # descending, as axes to the left are
    weights = axis_weights(source, target, blur)
    assert np.allclose(weights @ source, target, atol=1e-3)
    assert np.allclose(weights.sum(axis=1), 1, atol=1e-5)
    variance = weights @ np.square(source) - np.square(target)
    width = edge if edge > 1.8 else 0
    assert np.allclose(variance, width**2 / 12 + blur**2, atol=0.6)  # linear interpolation adds up to 0.56


def test_seeing_a_volume_keeps_the_order_of_its_axes() -> None:
    volume = np.random.default_rng(0).random((3, 4, 5), np.float32)
    rng = np.random.default_rng(1)
    each = [rng.random(shape, np.float32) for shape in ((2, 3), (6, 4), (1, 5))]
    seen = see(volume, tuple(csr_matrix(weights) for weights in each))  # type: ignore[arg-type]
    assert np.allclose(seen, np.einsum("abc,xa,yb,zc->xyz", volume, *each), atol=1e-5)


# Scanners


def test_intensity_curves_are_monotone_and_keep_0_and_1() -> None:
    line = np.linspace(0, 2, 201, dtype=np.float32)
    for gamma, bend in ((0.8, 0.0), (1.25, 0.0), (1.0, -0.3), (1.0, 0.3)):
        curve = intensity_curve(line, gamma, bend)
        assert (np.diff(curve) > 0).all()
        assert np.allclose(curve[[0, 100]], [0, 1], atol=1e-6)


def test_drawn_scans_are_within_their_ranges_and_some_are_spoilt() -> None:
    scans = []
    for i in range(300):
        rng = np.random.default_rng(i)
        scans.append(draw_scan(rng, draw_noise(rng), (1.0, 1.0), 1.0))
    assert all(0.003 <= scan.noise <= 0.05 and 100 <= scan.brightness <= 30000 for scan in scans)
    assert 0.02 < np.mean([scan.ghost > 0 for scan in scans]) < 0.1
    assert 0.2 < np.mean([scan.blur[0] > 0 for scan in scans]) < 0.5
    assert max(scan.blur[0] for scan in scans) <= 1.2


def test_ghosts_are_faint_copies_along_the_second_axis() -> None:
    volume = np.zeros((3, 9, 3), np.float32)
    volume[1, 4, 1] = 1
    ghosts = add_ghosts(volume, 0.1)
    assert np.allclose(ghosts[1, :, 1], [0, 0.05, 0, 0, 1, 0, 0, 0.05, 0])


def test_a_mask_is_cut_or_has_a_rim_only_where_the_strippers_say_so() -> None:
    axes = tuple(np.linspace(-60, 60, 31) for _ in range(3))
    x, y, z = np.meshgrid(*axes, indexing="ij")
    radius = np.sqrt(x**2 + y**2 + z**2)
    share, nearby = ((radius < 45) + 0.0).astype(np.float32), (1 / (1 + np.exp((radius - 45) / 3))).astype(np.float32)

    def strip(strippers: Strippers | None) -> tuple[np.ndarray, np.ndarray]:
        stripped = strip_brain(share, nearby, axes, np.random.default_rng(0), strippers)
        assert len(stripped.brightness) == stripped.rim.sum()
        return stripped.mask, stripped.rim

    plain, none = strip(None)
    assert np.array_equal(plain, share > 0.5) and not none.any()
    deep, none = strip(Strippers(deep=1.0, residue=0.0))
    assert 0.8 < deep.sum() / plain.sum() < 1 and not (deep & ~plain).any() and not none.any()
    mask, rim = strip(Strippers(deep=0.0, residue=1.0, place=0.2))
    assert rim.any() and not (rim & plain).any() and np.array_equal(mask, plain | rim)
    assert radius[rim].max() < 52


# Studies


@pytest.mark.parametrize("dataset", ["brats", "adni"])
def test_a_study_is_on_one_grid_and_0_outside_one_brain(dataset: str, request: pytest.FixtureRequest) -> None:
    contrasts = BRATS if dataset == "brats" else ADNI
    for study in request.getfixturevalue(dataset):
        images = [load(study, name) for name in contrasts.names]
        masks = [np.asarray(image.dataobj) > 0 for image in images]
        for image, mask in zip(images, masks, strict=True):
            assert image.get_data_dtype() == np.int16 and b"PHANTOM" in bytes(image.header["descrip"])
            assert np.array_equal(image.affine, images[0].affine) and np.array_equal(mask, masks[0])
        litres = masks[0].sum() * abs(np.linalg.det(images[0].affine[:3, :3])) / 1e6
        assert 0.9 < litres < 2.2
        if dataset == "brats":
            labels = values(study, "seg")
            assert labels.shape == images[0].shape and not labels[~masks[0]].any()
            assert set(np.unique(labels)) <= {0, 1, 2, 4}


def test_studies_differ_in_voxel_size_and_brightness(brats: list[Path]) -> None:
    assert len({load(study, "t1").header.get_zooms() for study in brats}) > 2
    peaks = [values(study, "t2").max() for study in brats]
    assert max(peaks) > 3 * min(peaks)


def test_studies_are_read_and_preprocessed(brats: list[Path], adni: list[Path]) -> None:
    for folder, contrasts in ((brats[0].parent, BRATS), (adni[0].parent, ADNI)):
        studies = read_studies(folder, contrasts, require_all=True)
        loaded = StudyPreprocessing(contrasts, size=32)(studies[0])
        assert loaded["image"].shape[:3] == (len(contrasts.names), 32, 32)
        assert loaded["image"].min() == -1 and loaded["image"].max() <= 1


def test_the_tumour_is_where_the_labels_say(noiseless: list[Path]) -> None:
    # The first has a tumour with an enhancing rim and a necrosis
    labels, gd, flair = (values(noiseless[0], name) for name in ("seg", "t1ce", "flair"))
    brain = gd > 0
    assert {1, 2, 4} <= set(np.unique(labels))
    assert gd[labels == 4].mean() > 1.3 * gd[brain & (labels == 0)].mean()
    assert gd[labels == 1].mean() < gd[labels == 4].mean()
    assert flair[labels == 2].mean() > 1.2 * flair[brain & (labels == 0)].mean()


def test_without_noise_the_studies_are_the_same_but_for_the_noise(brats: list[Path], noiseless: list[Path]) -> None:
    for noisy_study, study in zip(brats, noiseless, strict=True):
        for name in BRATS.names:
            noisy, clean = values(noisy_study, name), values(study, name)
            brain = clean > 0
            assert np.array_equal(brain, noisy > 0)
            bright = brain & (clean > 0.3 * np.percentile(clean[brain], 99.5))  # below it noise raises the mean
            difference = (noisy - clean)[bright] / np.percentile(clean[brain], 99.5)
            assert abs(difference.mean()) < 0.006 and 0.002 < difference.std() < 0.06
            assert np.corrcoef(noisy[brain], clean[brain])[0, 1] > 0.9
        assert np.array_equal(values(noisy_study, "seg"), values(study, "seg"))


def test_the_plain_phantom_without_noise_is_the_same_but_for_the_noise(tmp_path: Path) -> None:
    make = partial(write_phantom_dataset, dataset="adni", subjects=1, seed=0, spacing=8.0, progress=False)
    (noisy,), (clean,) = make(tmp_path / "a"), make(tmp_path / "b", noise=False)
    a, b = values(noisy, "t2"), values(clean, "t2")
    assert 0 < np.abs(a - b).mean() < 0.04 * b.max() and np.corrcoef(a[b > 0], b[b > 0])[0, 1] > 0.98
    with pytest.raises(ValueError, match="holds another phantom"):
        make(tmp_path / "a", noise=False)


@pytest.mark.parametrize("dataset", ["brats", "adni"])
def test_the_same_seed_gives_the_same_bytes(dataset: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    first = request.getfixturevalue(dataset)[0]
    (again,) = write(tmp_path, dataset, 1)
    assert all(path.read_bytes() == (first / path.name).read_bytes() for path in again.iterdir())


def test_the_record_says_that_it_is_varied_and_a_plain_one_does_not_go_in_its_folder(
    brats: list[Path], noiseless: list[Path]
) -> None:
    folder = brats[0].parent
    record = json.loads((folder / "phantom.json").read_text())
    assert record == {"phantom": "brats", "version": 1, "seed": 0, "spacing": SPACING, "varied": True}
    assert json.loads((noiseless[0].parent / "phantom.json").read_text()) == record | {"noise": False}
    with pytest.raises(ValueError, match="holds another phantom"):
        write_phantom_dataset(folder, "brats", 1, 0, SPACING, progress=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "adni-raw"}, "no varied phantom of adni-raw: valid are brats, adni"),
        ({"shape": (10, 10, 10)}, "leave it out"),
        ({"spacing": 11.0}, "spacing is 11.0"),
    ],
)
def test_a_bad_argument_is_named_and_nothing_is_written(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    arguments: dict[str, object] = {"dataset": "brats", "subjects": 1, "seed": 0, "progress": False, "varied": True}
    with pytest.raises(ValueError, match=message):
        write_phantom_dataset(tmp_path / "out", **(arguments | changes))  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_the_command_line_and_training_find_it(tmp_path: Path) -> None:
    words = ["phantom", str(tmp_path / "x"), "--subjects", "1", "--spacing", "4", "--varied", "--noiseless"]
    assert main(words) == 0
    record = json.loads((tmp_path / "x" / "phantom.json").read_text())
    assert record["varied"] is True and record["noise"] is False
    (study,) = find_studies(None, "brats", tmp_path, 1, SPACING, 0, phantom_varied=True)
    assert Path(study["t1"]).parts[-3] == "brats-4mm-seed0-varied"
