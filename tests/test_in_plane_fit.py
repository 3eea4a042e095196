from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from tiny_studies import LPS, write_study

from apt_monai.transforms import FitInPlane, FitInPlaned, InPlaneFit, StudyPreprocessing


def volume(*shape: int) -> MetaTensor:
    return MetaTensor(torch.rand(*shape, generator=torch.Generator().manual_seed(0)), affine=torch.from_numpy(LPS))


@pytest.mark.parametrize(("x", "y"), [(7, 8), (1, 3)])
def test_a_volume_that_fits_is_padded_and_the_inverse_is_exact(x: int, y: int) -> None:
    image, fit = volume(2, x, y, 3), FitInPlane(8)
    fitted = fit(image)
    before = (8 - x) // 2, (8 - y) // 2
    naive = torch.full((2, 8, 8, 3), -1.0)
    naive[:, before[0] : before[0] + x, before[1] : before[1] + y] = image.as_tensor()
    assert torch.equal(fitted.as_tensor(), naive)
    restored = fit.inverse(fitted)
    assert torch.equal(restored.as_tensor(), image.as_tensor())
    torch.testing.assert_close(restored.affine, image.affine)
    assert not restored.applied_operations


def test_padding_moves_the_origin_of_the_affine() -> None:
    image = volume(1, 4, 6, 3)
    fitted = FitInPlane(8)(image)
    voxel, padded = torch.tensor([1.0, 1, 1, 1]).double(), torch.tensor([3.0, 2, 1, 1]).double()
    torch.testing.assert_close(fitted.affine @ padded, image.affine @ voxel)


def test_a_larger_volume_is_resampled_by_one_factor_and_padded() -> None:
    fitted = FitInPlane(8)(volume(2, 16, 12, 3))
    assert fitted.shape == (2, 8, 8, 3)
    assert (fitted[:, :, :1] == -1).all() and (fitted[:, :, -1:] == -1).all()  # 12 becomes 6, one voxel a side
    assert (fitted[:, :, 1:-1] > -1).all()
    np.testing.assert_allclose(nib.affines.voxel_sizes(fitted.affine.numpy()), [2, 2, 1])


def test_resampling_treats_each_slice_on_its_own() -> None:
    image = volume(1, 16, 16, 3)
    changed = image.clone()
    changed[..., 2] = 0
    first, second = FitInPlane(8)(image), FitInPlane(8)(changed)
    torch.testing.assert_close(first[..., :2].as_tensor(), second[..., :2].as_tensor())


def test_a_smooth_volume_survives_the_way_down_and_up() -> None:
    x = torch.linspace(0, torch.pi, 24)
    image = MetaTensor((torch.sin(x)[:, None] * torch.sin(x)[None, :])[None, :, :20, None].repeat(1, 1, 1, 3))
    fit = FitInPlane(16)
    restored = fit.inverse(fit(image))
    assert restored.shape == image.shape
    assert (restored - image).abs()[:, 2:-2, 2:-2].max() < 0.02
    torch.testing.assert_close(restored.affine, image.affine)


def test_labels_stay_labels_when_resampled() -> None:
    region = MetaTensor((volume(1, 20, 17, 4) * 3).to(torch.uint8))
    fitted = FitInPlane(8, mode="nearest", fill=0)(region)
    assert fitted.dtype == torch.uint8
    assert set(fitted.unique().tolist()) <= {0, 1, 2}


def test_the_background_is_exactly_minus_one_after_resampling() -> None:
    region = torch.zeros(1, 20, 20, 3, dtype=torch.uint8)
    region[:, 5:15, 5:15] = 1
    image = torch.where(region > 0, 0.5, -1.0)
    fitted = FitInPlaned("image", 8)({"image": MetaTensor(image), "region": MetaTensor(region)})
    assert (fitted["image"][fitted["region"] == 0] == -1).all()
    assert (fitted["image"][fitted["region"] > 0] > -1).all()


def test_several_images_share_one_region() -> None:
    data = {"image": volume(4, 6, 5, 3), "prior": volume(1, 6, 5, 3), "region": MetaTensor(torch.ones(1, 6, 5, 3))}
    fit = FitInPlaned(("image", "prior"), 8)
    restored = fit.inverse(fit(data))
    for key in data:
        assert torch.equal(restored[key].as_tensor(), data[key].as_tensor())


@pytest.mark.parametrize("arguments", [{"size": 0}, {"size": 8, "mode": "cubic"}])
def test_bad_arguments_are_refused(arguments: dict) -> None:
    with pytest.raises(ValueError, match="size=0|mode='cubic'"):
        FitInPlane(**arguments)


OBLIQUE = LPS @ nib.affines.from_matvec(nib.eulerangles.euler2mat(0.1, 0.2, 0.3), [3, -4, 5])
SAGITTAL = nib.affines.from_matvec(np.array([[0, 0, 1.2], [-1, 0, 0], [0, -1, 0]]), [1, 2, 3])


@pytest.mark.parametrize("affine", [LPS, np.eye(4), OBLIQUE, SAGITTAL], ids=["LPS", "RAS", "oblique", "sagittal"])
def test_restore_is_exact_on_the_acquired_grid_where_only_padded(tmp_path, affine: np.ndarray) -> None:
    study = write_study(tmp_path / "case", affine=affine)
    preprocessing = StudyPreprocessing("brats", size=16, lower=0, upper=100)
    loaded = preprocessing(study)
    assert loaded["image"].shape[:3] == (4, 16, 16)
    assert nib.aff2axcodes(loaded["image"].affine.numpy()) == ("R", "A", "S")
    restored = preprocessing.restore(loaded["image"].as_tensor(), loaded)
    acquired = nib.load(study["t1ce"])
    np.testing.assert_array_equal(restored.affine.numpy(), acquired.affine)
    raw = preprocessing.transforms[2].scale.inverse(restored, loaded["intensity_range"])
    brain = acquired.get_fdata() > 0
    np.testing.assert_allclose(raw[2].numpy()[brain], acquired.get_fdata()[brain], atol=1e-3)
    assert (restored[2].numpy()[~brain] == -1).all()


def test_restore_takes_any_number_of_volumes_and_leaves_the_study_as_it_is(tmp_path) -> None:
    preprocessing = StudyPreprocessing("brats", size=16)
    loaded = preprocessing(write_study(tmp_path / "case"))
    steps = len(loaded["image"].applied_operations)
    for channels in (1, 7):
        volumes = torch.rand(channels, *loaded["image"].shape[1:])
        assert preprocessing.restore(volumes, loaded).shape == (channels, 12, 10, 6)
    assert len(loaded["image"].applied_operations) == steps


def test_restore_of_a_resampled_study_has_the_acquired_shape_and_affine(tmp_path) -> None:
    study = write_study(tmp_path / "case")
    loaded = StudyPreprocessing("brats", size=8)(study)
    # another instance of the same settings, as another process would have
    restored = StudyPreprocessing("brats", size=8).restore(loaded["image"], loaded)
    assert restored.shape == (4, 12, 10, 6)
    np.testing.assert_array_equal(restored.affine.numpy(), nib.load(study["t1"]).affine)


def test_restore_refuses_volumes_of_another_grid(tmp_path) -> None:
    preprocessing = StudyPreprocessing("brats", size=16)
    loaded = preprocessing(write_study(tmp_path / "case"))
    with pytest.raises(ValueError, match=r"study 'case': need \(K, 16, 16, 6\)"):
        preprocessing.restore(torch.zeros(1, 16, 16, 5), loaded)


def test_without_a_size_the_slices_are_the_brains_box_and_the_way_back_is_exact(tmp_path) -> None:
    study = write_study(tmp_path / "case", affine=LPS)
    preprocessing = StudyPreprocessing("brats", size=None, deviations=4)
    loaded = preprocessing(study)
    brain = loaded["region"][0].numpy() > 0
    assert brain.any(axis=(1, 2)).all() or brain.any(axis=(1, 2))[[0, -1]].all()
    assert brain.any(axis=(0, 2))[[0, -1]].all()
    restored = preprocessing.restore(loaded["image"].as_tensor(), loaded)
    acquired = nib.load(study["t1"])
    assert restored.shape[1:] == acquired.shape
    np.testing.assert_array_equal(restored.affine.numpy(), acquired.affine)
    outside = acquired.get_fdata() == 0
    assert (restored[1].numpy()[outside] == -1).all()
    raw = preprocessing.scale.inverse(restored, loaded["intensity_range"])[1].numpy()
    clipped = np.abs(restored[1].numpy()) == 1
    np.testing.assert_allclose(raw[~clipped & ~outside], acquired.get_fdata()[~clipped & ~outside], atol=1e-3)


def test_a_fit_takes_slices_there_and_back() -> None:
    slices = volume(3, 2, 9, 7).as_tensor()  # (Z, C, X, Y)
    region = torch.zeros(1, 9, 7, 3)
    region[:, 2:5, 3:7] = 1
    for fit in (InPlaneFit.box(region), InPlaneFit.square((9, 7), 12), InPlaneFit.square((9, 7), 6)):
        back = fit.back(fit.fit(slices))
        assert fit.fit(slices).shape == (3, 2, *fit.size) and back.shape == slices.shape
    box = InPlaneFit.box(region)
    naive = torch.full_like(slices, -1.0)
    naive[:, :, 2:5, 3:7] = slices[:, :, 2:5, 3:7]
    assert torch.equal(box.back(box.fit(slices)), naive)


@pytest.mark.parametrize(("edges", "factors"), [((3.0, 2.0), (3, 2)), ((0.6, 1.4), (1, 1)), ((1.6, 6.0), (2, 6))])
def test_coarse_voxels_are_resampled_up_by_whole_numbers_and_come_back(edges: tuple, factors: tuple) -> None:
    affine = torch.diag(torch.tensor([-edges[0], edges[1], 5.0, 1.0], dtype=torch.float64))
    x, y = torch.meshgrid(torch.linspace(-1, 1, 24), torch.linspace(-1, 1, 20), indexing="ij")
    image = MetaTensor((0.3 * torch.cos(2 * x) * torch.cos(y))[None, :, :, None].repeat(2, 1, 1, 3), affine=affine)
    region = MetaTensor(torch.zeros(1, 24, 20, 3, dtype=torch.uint8), affine=affine)
    region[:, 4:21, 3:17] = 1
    fit = FitInPlaned("image", None, resolution=1.0)
    fitted = fit({"image": MetaTensor(image.where(region > 0, -1.0)).copy_meta_from(image), "region": region})
    assert fitted["image"].shape == (2, 17 * factors[0], 14 * factors[1], 3)
    assert (fitted["region"] == 1).all() and (fitted["image"] > -1).any()
    sizes = nib.affines.voxel_sizes(fitted["image"].affine.numpy())
    np.testing.assert_allclose(sizes, [edges[0] / factors[0], edges[1] / factors[1], 5])
    restored = fit.inverse(fitted)
    assert torch.equal(restored["region"].as_tensor(), region.as_tensor())
    inner = (slice(None), slice(7, 18), slice(6, 14))
    torch.testing.assert_close(restored["image"].as_tensor()[inner], image.as_tensor()[inner], atol=0.02, rtol=0)
    torch.testing.assert_close(restored["image"].affine, affine)


def test_a_resolution_goes_without_a_size() -> None:
    for arguments in ({"size": 8, "resolution": 1.0}, {"size": None, "resolution": 0.0}):
        with pytest.raises(ValueError, match="resolution="):
            FitInPlane(**arguments)
