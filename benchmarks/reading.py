"""One epoch of the alignment, random slices, and the memory of the codebook: what is read from the slice cache."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from apt_monai.codebook import build_codebook
from apt_monai.contrasts import BRATS
from apt_monai.data.slice_cache import FeatureDataset, SliceCache, SliceDataset
from apt_monai.engines import FusionPrepareBatch
from apt_monai.losses import AnatomicalConsistencyLoss
from apt_monai.networks import MutualInformationFusion, VisionEncoder
from apt_monai.transforms import StudyPreprocessing
from benchmarks.machine import best_device, peak_memory
from benchmarks.networks import make_batch
from benchmarks.stopwatch import Stopwatch
from benchmarks.workloads import Workload


def measure_alignment(workload: Workload, encoder_folder: str, scratch: str) -> dict[str, Any]:
    """Seconds a slice of a training step from cached features (read, forward, backward, Adam), and of encoding.

    The cached way runs first: its ``peak_memory`` is without the vision encoder.
    """
    device = best_device()
    shape = (8, 8, workload.alignment_batch // 8)
    studies = write_studies(Path(scratch) / "alignment", 8, shape, ".nii")
    cache = SliceCache(Path(scratch) / "alignment-cache", StudyPreprocessing(BRATS, size=8), min_brain_fraction=0)
    cache.prepare(studies, progress=False)
    generator = np.random.default_rng(0)
    for study in map(cache.open, studies):
        study.write_features("noise", generator.standard_normal((len(study), len(BRATS), 512)))
    dataset = FeatureDataset(studies, cache, "noise")
    loader = DataLoader(dataset, batch_size=len(dataset), shuffle=True)
    fusion, loss = MutualInformationFusion().to(device), AnatomicalConsistencyLoss().to(device)
    optimizer = torch.optim.Adam([*fusion.parameters(), *loss.parameters()], lr=1e-4)
    prepare_batch = FusionPrepareBatch()
    stopwatch = Stopwatch(device)
    for _ in range(workload.alignment_steps + 1):
        for batch in loader:
            features, names, (available,), _ = prepare_batch(batch, device)
            optimizer.zero_grad()
            loss(*fusion(features, available).chunk(2), names).backward()
            optimizer.step()
        stopwatch.lap()
    cached = sum(lap["rest"] for lap in stopwatch.laps[1:]) / workload.alignment_steps / len(dataset)
    cached_peak = peak_memory(device)

    encoder = VisionEncoder(encoder_folder).to(device)
    images, _ = make_batch(workload, workload.encoded_slices, device)
    encoder(images["image"][:1])  # the first use of memory and kernels
    start = stopwatch.now()
    encoder(images["image"])
    encode = (stopwatch.now() - start) / workload.encoded_slices
    return {
        "seconds_a_slice_cached": cached,
        "seconds_a_slice_encoding": encode + cached,
        "ratio": (encode + cached) / cached,
        "batch": len(dataset),
        "timed_steps": workload.alignment_steps,
        "encoded_slices": workload.encoded_slices,
        "peak_memory_cached": cached_peak,
        "peak_memory_encoding": peak_memory(device),
    }


def fill_slice_cache(workload: Workload, scratch: str) -> dict[str, Any]:
    """Write a study and put it into a slice cache; seconds and memory in bytes of the latter."""
    (study,) = write_studies(Path(scratch) / "slices", 1, workload.study_shape, ".nii.gz")
    start = time.perf_counter()
    slice_cache(workload, scratch).prepare([study], progress=False)
    return {"study": study, "seconds": time.perf_counter() - start, "peak_memory": peak_memory(torch.device("cpu"))}


def measure_slice_reading(workload: Workload, study: Mapping[str, str], scratch: str) -> dict[str, Any]:
    """Random slices a second: samples of the slice cache, and the same slices of the ``.nii.gz`` files.

    From the files, each contrast's slice is read with nibabel, which decompresses no further than that slice, and is
    left as it is: not scaled, not fitted to the image size. Both ways find the files in the system's page cache.
    """
    cpu = torch.device("cpu")
    dataset = SliceDataset([study], slice_cache(workload, scratch))
    rows = np.random.default_rng(0).integers(len(dataset), size=workload.cached_reads).tolist()
    dataset[0]
    start = time.perf_counter()
    for row in rows:
        dataset[row]
    cached = workload.cached_reads / (time.perf_counter() - start)
    cached_peak = peak_memory(cpu)

    start = time.perf_counter()
    for row in rows[: workload.nifti_reads]:
        z = int(dataset.studies[0].slices[row])
        np.stack([np.asarray(nib.Nifti1Image.from_filename(study[name]).dataobj[:, :, z]) for name in BRATS.names])
    nifti = min(workload.nifti_reads, len(rows)) / (time.perf_counter() - start)
    return {
        "slices_a_second_cached": cached,
        "slices_a_second_nifti": nifti,
        "ratio": cached / nifti,
        "peak_memory_cached": cached_peak,
        "peak_memory_nifti": peak_memory(cpu),
    }


def slice_cache(workload: Workload, scratch: str) -> SliceCache:
    return SliceCache(Path(scratch) / "slice-cache", StudyPreprocessing(BRATS, size=workload.image_size))


def write_studies(folder: Path, count: int, shape: tuple[int, int, int], suffix: str) -> list[dict[str, str]]:
    """Studies of noise in an ellipsoid as large as a brain in BraTS, int16."""
    axes = np.ogrid[tuple(slice(-1, 1, n * 1j) for n in shape)]
    brain = np.broadcast_to(sum((a / r) ** 2 for a, r in zip(axes, (0.58, 0.7, 0.9), strict=True)) < 1, shape)
    generator = np.random.default_rng(0)
    folder.mkdir()
    studies = []
    for i in range(count):
        study = {"subject": f"noise{i:05d}"}
        for name in BRATS.names:
            study[name] = str(folder / f"{study['subject']}_{name}{suffix}")
            volume = np.where(brain, generator.normal(500, 60, shape).clip(min=1), 0).astype(np.int16)
            nib.save(nib.Nifti1Image(volume, np.eye(4)), study[name])
        studies.append(study)
    return studies


class ThumbnailEncoder(nn.Module):
    """A stand-in for the vision encoder that needs next to no memory, so that the codebook's own shows."""

    fingerprint = source = "thumbnail"

    def forward(self, images: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(images, 8).flatten(2)  # (B, C, 64)


def measure_codebook(workload: Workload, studies: Sequence[Mapping[str, str]], cache: SliceCache) -> dict[str, Any]:
    """Build a codebook from cached slices; its seconds and peak memory in bytes."""
    loader = DataLoader(SliceDataset(studies, cache), batch_size=16)
    device = best_device()
    start = time.perf_counter()
    codebook = build_codebook(loader, ThumbnailEncoder(), BRATS, device=device, progress=False)
    return {
        "subjects": len(studies),
        "slices": codebook.num_slices,
        "slices_in_memory": codebook.num_slices * len(BRATS) * workload.codebook_size**2 * 4,
        "seconds": time.perf_counter() - start,
        "peak_memory": peak_memory(device),
    }
