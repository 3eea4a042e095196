"""What the method costs, in time and memory, against the published way: ``make bench``.

Four measurements, each against what it replaces:

- one slice through both stages of inference (section 3.4), against the published way of doing the same computation;
- one epoch of the alignment (section 3.1) from cached features, against encoding every slice in every epoch;
- random slices from the slice cache, against reading them from the NIfTI files;
- the memory of building the codebook (section 3.3) for n subjects, against 4 n.

Every measurement has a process of its own, so that its peak memory is its own, and uses all threads that torch has by
default. Images and weights are random: neither changes what a pass costs. Ratios compare figures of one run; where a
figure is extrapolated the report says so.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F
from monai.networks.nets import DiffusionModelUNet
from monai.networks.schedulers import DDPMScheduler
from open_clip.timm_model import TimmModel
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from apt_monai.codebook import CodebookEntry, PriorCodebook, build_codebook
from apt_monai.contrasts import BRATS
from apt_monai.data import FeatureDataset, SliceCache, SliceDataset
from apt_monai.engines import FusionPrepareBatch, to_device
from apt_monai.files import write_text
from apt_monai.inferers import GuidanceGradient, Synthesizer, TwoStageInferer, slice_seed
from apt_monai.losses import AnatomicalConsistencyLoss
from apt_monai.networks import MutualInformationFusion, VisionEncoder, write_untrained_encoder
from apt_monai.transforms import StudyPreprocessing
from apt_monai.transforms.bezier import BEZIER_CURVES

PARTS = ("encode", "forward", "backward", "rest")
MISSING = "t1ce"
"""The contrast that is synthesised; the others are acquired."""
EPOCH_SLICES = 160_000
"""Slices in an epoch of the alignment, about 80 % of BraTS 2021: only to express its cost in hours."""


@dataclass(frozen=True)
class Workload:
    """The sizes of a benchmark run. The defaults are the paper's networks and image size with few steps.

    Args:
        image_size: height and width of a slice.
        channels: the U-Net's channels a level; the last three levels have attention.
        norm_num_groups: the U-Net's.
        encoder_model: timm's name of the vision tower; None: the small one of the demo.
        steps: (S, N) of the runs with one slice.
        batch_steps: (S, N) of the runs with ``batch_size`` slices.
        batch_size: how many slices go through the network together in those.
        encoded_slices: how many slices the encoder is timed on.
        alignment_batch: slices in a batch of the alignment.
        alignment_steps: how many of its steps are timed.
        study_shape: voxels of the study that random slices are read from.
        cached_reads: random slices read from the cache.
        nifti_reads: random slices read from the NIfTI files.
        codebook_subjects: n; the codebook is built from n and from 4 n subjects.
        codebook_size: height and width of their slices.
        codebook_slices: slices a subject.
    """

    image_size: int = 256
    channels: tuple[int, ...] = (128, 128, 256, 256, 512, 512)
    norm_num_groups: int = 32
    encoder_model: str | None = "vit_base_patch16_224"
    steps: tuple[int, int] = (2, 1)
    batch_steps: tuple[int, int] = (1, 0)
    batch_size: int = 8
    encoded_slices: int = 4
    alignment_batch: int = 512
    alignment_steps: int = 4
    study_shape: tuple[int, int, int] = (240, 240, 155)
    cached_reads: int = 1000
    nifti_reads: int = 5
    codebook_subjects: int = 8
    codebook_size: int = 128
    codebook_slices: int = 32

    @property
    def network_settings(self) -> dict[str, Any]:
        """The arguments of MONAI's ``DiffusionModelUNet``."""
        return {
            "spatial_dims": 2,
            "in_channels": len(BRATS),
            "out_channels": len(BRATS),
            "channels": self.channels,
            "attention_levels": [level >= len(self.channels) - 3 for level in range(len(self.channels))],
            "num_res_blocks": 2,
            "num_head_channels": min(64, self.channels[-1]),
            "norm_num_groups": self.norm_num_groups,
            "with_conditioning": True,
            "cross_attention_dim": 512,
        }


FEW_STEPS = Workload()
PAPER = Workload(steps=(20, 50), batch_steps=(20, 50), encoded_slices=16, alignment_steps=20, nifti_reads=20)


@dataclass(frozen=True)
class Variant:
    """One way to synthesise a slice.

    Args:
        name: what the tables call it.
        gradient: the inferer's ``guidance_gradient``.
        fast: bfloat16 and channels-last, instead of float32 and channels-first.
        batched: ``Workload.batch_size`` slices together, instead of one.
        published: done the published way (:func:`synthesize_published_way`).
    """

    name: str
    gradient: GuidanceGradient
    fast: bool = False
    batched: bool = False
    published: bool = False


VARIANTS = (
    Variant("published way", "network", published=True),
    Variant("ours, paper's gradient, float32", "network"),
    Variant("ours, paper's gradient, bfloat16", "network", fast=True),
    Variant("ours, gradient on x̂0, bfloat16", "image", fast=True),
    Variant("ours, gradient on x̂0, bfloat16", "image", fast=True, batched=True),
    Variant("ours, paper's gradient, bfloat16", "network", fast=True, batched=True),
)


# One slice through both stages


def synthesize_published_way(
    synthesizer: Synthesizer,
    batch: Mapping[str, Any],
    available: Tensor,
    progress: Callable[[int], Any] | None = None,
) -> Tensor:
    """What :class:`~apt_monai.inferers.Synthesizer` computes, done as the published code does it.

    One slice at a time; the vision encoder and MIF run at every step; float32; the weights ask for gradients while the
    guidance differentiates through the U-Net (:func:`torch.autograd.grad`, as in the published code). The settings and
    the noise are the synthesizer's, so that the result is the same.

    Args:
        synthesizer: with an encoder, a codebook, ``guidance_gradient="network"``, ``squared=False``,
            ``next_step="forward"`` and ε-prediction.
        batch: one slice sample, collated (see :class:`~apt_monai.inferers.Synthesizer`).
        available: ``(1, C)`` bool, True = acquired.
        progress: called with 1 after each pass.

    Returns:
        ``(1, C, H, W)`` in [-1, 1].

    Raises:
        ValueError: more than one slice, or no encoder or codebook.
    """
    network, fusion, encoder = synthesizer.network, synthesizer.fusion, synthesizer.encoder
    settings, codebook = synthesizer.inferer, synthesizer.codebook
    image, brain = batch["image"], batch["region"] > 0
    if len(image) != 1 or encoder is None or codebook is None:
        raise ValueError("the published way needs a batch of one slice, an encoder and a codebook")
    known = available[:, :, None, None]  # (1, C, 1, 1)
    y = torch.where(known, image, torch.full_like(image, -1.0))
    seed = slice_seed(synthesizer.seed, batch["subject"][0], int(batch["slice"][0]))
    generator = torch.Generator(image.device).manual_seed(seed)

    def noised(x0: Tensor, t: int) -> Tensor:
        noise = torch.randn(x0.shape, generator=generator, device=x0.device)
        return settings.scheduler.add_noise(x0, noise, torch.tensor([t - 1], device=x0.device))

    def predict(x_t: Tensor, t: int) -> Tensor:
        with torch.no_grad():
            encoded = encoder(y[available][None])[0]  # (acquired contrasts, D)
            features = encoded.new_zeros(*available.shape, encoded.shape[-1])  # (1, C, D)
            features[available] = encoded
            z = fusion(features, available)  # (1, D)
        x_t = x_t.detach().requires_grad_()
        eps = network(x=x_t, timesteps=torch.tensor([t - 1], device=x_t.device), context=z[:, None, :])
        a_t = settings.scheduler.alphas_cumprod[t - 1].to(x_t)
        x0 = ((x_t - (1 - a_t).sqrt() * eps) / a_t.sqrt()).clamp(-1, 1)
        (gradient,) = torch.autograd.grad(settings.guidance_scale * torch.norm((x0 - y) * known), x_t)
        if progress is not None:
            progress(1)
        return torch.where(known, y, x0.detach() - gradient)

    m, s = settings.start_step, settings.sampling_steps
    steps = [round(m * (s - i) / s) for i in range(s)]
    x0 = codebook.prior(y, available, brain)
    for t in steps:
        x0 = predict(noised(x0, t), t)
    w = settings.unroll_weight
    for _ in range(settings.unroll_iterations):
        x0 = (1 - w) * x0 + w * predict(noised(x0, settings.unroll_step), settings.unroll_step)
    if settings.unroll_iterations:
        for t in [t for t in steps if t < settings.unroll_step]:
            x0 = predict(noised(x0, t), t)
    x0 = torch.where(known, image, x0.clamp(-1, 1))
    return torch.where(known | brain, x0, torch.full_like(x0, -1.0))


class Stopwatch:
    """Seconds that each part of a computation takes, lap by lap.

    Args:
        device: what to wait for before the clock is read.

    Example::

        >>> stopwatch, module = Stopwatch(torch.device("cpu")), nn.Linear(4, 4)
        >>> stopwatch.watch(module, "linear")
        >>> _ = module(torch.rand(1, 4))
        >>> stopwatch.lap()
        >>> sorted(stopwatch.laps[0])
        ['linear', 'rest']
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.laps: list[dict[str, float]] = []
        self._parts: defaultdict[str, float] = defaultdict(float)
        self._start = self.now()

    def now(self) -> float:
        """The clock, in seconds, once the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def watch(self, module: nn.Module, part: str, backward_part: str | None = None) -> None:
        """Count a module's forward passes as ``part``.

        Args:
            module: any module.
            part: the name of its forward passes.
            backward_part: the name of the way back from its output's gradient to that of its input ``x``, which must
                be given by that keyword.
        """
        started: list[float] = []

        def before(*_: Any) -> None:
            started.append(self.now())

        def after(_module: nn.Module, _args: Any, inputs: Mapping[str, Any], output: Tensor) -> None:
            self._parts[part] += self.now() - started.pop()
            if backward_part is not None and output.requires_grad:
                output.register_hook(before)
                inputs["x"].register_hook(arrived)

        def arrived(_gradient: Tensor) -> None:
            self._parts[str(backward_part)] += self.now() - started.pop()

        module.register_forward_pre_hook(before)
        module.register_forward_hook(after, with_kwargs=True)

    def lap(self, _count: int = 1) -> None:
        """End a lap; what no part accounts for is its ``"rest"``. To be given as a ``progress`` function."""
        now = self.now()
        self.laps.append({**self._parts, "rest": now - self._start - sum(self._parts.values())})
        self._parts.clear()
        self._start = now


def summarize_laps(laps: Sequence[Mapping[str, float]], slices: int, passes: int) -> dict[str, Any]:
    """Figures of a whole synthesis from the laps of its first passes.

    The first lap is slower (first use of memory and kernels), so passes cost what the others cost on average; of the
    first one only the encoding beyond theirs counts, which is done once. A single lap stands for all, encoded once.

    Args:
        laps: seconds by part, one lap a network pass.
        slices: how many slices went through together.
        passes: how many passes a whole synthesis takes.

    Returns:
        ``measured_passes``, ``measured_seconds``, ``seconds_once``, ``seconds_a_pass`` (of the whole batch),
        ``slices_a_second`` and ``shares`` (by part, sum 1) of the whole synthesis.

    Example::

        >>> laps = [{"encode": 3.0, "forward": 5.0, "rest": 0.0}, {"forward": 2.0, "rest": 0.0}]
        >>> summarize_laps(laps, slices=1, passes=10)["slices_a_second"] == 1 / (3 + 10 * 2)
        True
    """
    steady = laps[1:] or [{**laps[0], "encode": 0.0}]
    a_pass = {part: sum(lap.get(part, 0.0) for lap in steady) / len(steady) for part in PARTS}
    once = max(0.0, laps[0].get("encode", 0.0) - a_pass["encode"])
    whole = {part: passes * seconds for part, seconds in a_pass.items()}
    whole["encode"] += once
    total = sum(whole.values())
    return {
        "measured_passes": len(laps),
        "measured_seconds": sum(sum(lap.values()) for lap in laps),
        "seconds_once": once,
        "seconds_a_pass": sum(a_pass.values()),
        "slices_a_second": slices / total,
        "shares": {part: seconds / total for part, seconds in whole.items()},
    }


def measure_synthesis(workload: Workload, variant: Variant, encoder_folder: str) -> dict[str, Any]:
    """Time one way of synthesising; see :func:`summarize_laps` for the figures, memory in bytes.

    ``memory_before`` is that of the process with the networks, before the first pass.
    """
    device = _device()
    slices = workload.batch_size if variant.batched else 1
    s, n = workload.batch_steps if variant.batched else workload.steps
    synthesizer = _make_synthesizer(workload, variant, s, n, encoder_folder, device)
    batch, available = _make_batch(workload, slices, device)
    stopwatch = Stopwatch(device)
    stopwatch.watch(synthesizer.network, "forward", "backward")
    stopwatch.watch(synthesizer.fusion, "encode")
    if synthesizer.encoder is not None:
        stopwatch.watch(synthesizer.encoder, "encode")
    before = peak_memory(device)
    if variant.published:
        synthesize_published_way(synthesizer, batch, available, stopwatch.lap)
    else:
        synthesizer(batch, available, stopwatch.lap)
    return {
        **summarize_laps(stopwatch.laps, slices, TwoStageInferer(_scheduler()).network_passes()),
        "memory_before": before,
        "peak_memory": peak_memory(device),
    }


def _make_synthesizer(
    workload: Workload, variant: Variant, s: int, n: int, encoder_folder: str, device: torch.device
) -> Synthesizer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = DiffusionModelUNet(**workload.network_settings)
        fusion = MutualInformationFusion()
        with torch.no_grad():
            for p in network.parameters():
                if not p.any():  # MONAI starts some layers at zero, and a trained network has none
                    nn.init.normal_(p, std=0.02)
    network = network.to(device).eval()
    if variant.fast:
        network = network.to(memory_format=torch.channels_last)
    inferer = TwoStageInferer(
        _scheduler(),
        sampling_steps=s,
        unroll_iterations=n,
        guidance_gradient=variant.gradient,
        amp=variant.fast,
    )
    encoder = VisionEncoder(encoder_folder).to(device)
    entries = {
        target: [CodebookEntry(source, "unchanged", 1, 1.0, 1.0) for source in BRATS.names if source != target]
        for target in BRATS.names
    }
    codebook = PriorCodebook(BRATS, entries, BEZIER_CURVES, encoder.fingerprint, encoder.source, "", 0, 0)
    return Synthesizer(network, fusion.to(device), inferer, codebook, encoder)


def _scheduler() -> DDPMScheduler:
    return DDPMScheduler(num_train_timesteps=1000, schedule="cosine")


def _make_batch(workload: Workload, slices: int, device: torch.device) -> tuple[dict[str, Any], Tensor]:
    """Slices of noise in a round brain, and the mask of the acquired contrasts."""
    size = workload.image_size
    axis = torch.linspace(-1, 1, size)
    brain = (axis[:, None].square() + axis.square() < 0.5)[None, None].expand(slices, 1, -1, -1)
    noise = torch.rand(slices, len(BRATS), size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    batch = {
        "image": torch.where(brain, noise, torch.full_like(noise, -1.0)),
        "region": brain.to(torch.uint8),
        "subject": ["noise"] * slices,
        "slice": list(range(slices)),
    }
    available = torch.tensor(BRATS.mask(name for name in BRATS.names if name != MISSING)).expand(slices, -1)
    return to_device(batch, device), available.to(device)


def _write_encoder(folder: Path, model: str | None) -> str:
    """A vision encoder of the real architecture with random weights, in the layout of BiomedCLIP's files."""
    if model is None:
        return str(write_untrained_encoder(folder))
    folder.mkdir()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tower = TimmModel(model, embed_dim=512, pool="", proj="linear", pretrained=False)
    weights = {f"visual.{name}": value.contiguous() for name, value in tower.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    vision = {"timm_model_name": model, "timm_pool": "", "timm_proj": "linear", "image_size": 224}
    clip = {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]}
    config = {"model_cfg": {"embed_dim": 512, "vision_cfg": vision}, "preprocess_cfg": clip}
    (folder / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
    return str(folder)


# One epoch of the alignment


def measure_alignment(workload: Workload, encoder_folder: str, scratch: str) -> dict[str, Any]:
    """Seconds a slice of a training step from cached features (read, forward, backward, Adam), and of encoding.

    The cached way runs first: its ``peak_memory`` is without the vision encoder.
    """
    device = _device()
    shape = (8, 8, workload.alignment_batch // 8)
    studies = _write_studies(Path(scratch) / "alignment", 8, shape, ".nii")
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
    images, _ = _make_batch(workload, workload.encoded_slices, device)
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


# Random slices


def fill_slice_cache(workload: Workload, scratch: str) -> dict[str, Any]:
    """Write a study and put it into a slice cache; seconds and memory in bytes of the latter."""
    (study,) = _write_studies(Path(scratch) / "slices", 1, workload.study_shape, ".nii.gz")
    start = time.perf_counter()
    _slice_cache(workload, scratch).prepare([study], progress=False)
    return {"study": study, "seconds": time.perf_counter() - start, "peak_memory": peak_memory(torch.device("cpu"))}


def measure_slice_reading(workload: Workload, study: Mapping[str, str], scratch: str) -> dict[str, Any]:
    """Random slices a second: samples of the slice cache, and the same slices of the ``.nii.gz`` files.

    From the files, each contrast's slice is read with nibabel, which decompresses no further than that slice, and is
    left as it is: not scaled, not fitted to the image size. Both ways find the files in the system's page cache.
    """
    cpu = torch.device("cpu")
    dataset = SliceDataset([study], _slice_cache(workload, scratch))
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


def _slice_cache(workload: Workload, scratch: str) -> SliceCache:
    return SliceCache(Path(scratch) / "slice-cache", StudyPreprocessing(BRATS, size=workload.image_size))


def _write_studies(folder: Path, count: int, shape: tuple[int, int, int], suffix: str) -> list[dict[str, str]]:
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


# The codebook


class _ThumbnailEncoder(nn.Module):
    """A stand-in for the vision encoder that needs next to no memory, so that the codebook's own shows."""

    fingerprint = source = "thumbnail"

    def forward(self, images: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(images, 8).flatten(2)  # (B, C, 64)


def measure_codebook(workload: Workload, studies: Sequence[Mapping[str, str]], cache: SliceCache) -> dict[str, Any]:
    """Build a codebook from cached slices; its seconds and peak memory in bytes."""
    loader = DataLoader(SliceDataset(studies, cache), batch_size=16)
    device = _device()
    start = time.perf_counter()
    codebook = build_codebook(loader, _ThumbnailEncoder(), BRATS, device=device, progress=False)
    return {
        "subjects": len(studies),
        "slices": codebook.num_slices,
        "slices_in_memory": codebook.num_slices * len(BRATS) * workload.codebook_size**2 * 4,
        "seconds": time.perf_counter() - start,
        "peak_memory": peak_memory(device),
    }


# The run


def run_benchmarks(output: str | Path, full: bool = False) -> dict[str, Any]:
    """Measure everything and write ``results.json`` and ``results.md``.

    Args:
        output: the folder of the two files; made if absent.
        full: every synthesis with the paper's number of steps, which takes about an hour on two CPU cores. Otherwise
            few steps, in about three minutes, extrapolated to the paper's.

    Returns:
        The content of ``results.json``.

    Raises:
        OSError: the folder cannot be written.

    Example::

        >>> results = run_benchmarks("bench")  # doctest: +SKIP
        >>> results["alignment"]["ratio"] > 100  # doctest: +SKIP
        True
    """
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    results = measure(PAPER if full else FEW_STEPS)
    write_text(output / "results.json", json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    write_text(output / "results.md", render(results))
    return results


def measure(workload: Workload) -> dict[str, Any]:
    """Every measurement, in processes of their own; see :func:`run_benchmarks`.

    Args:
        workload: the sizes.

    Returns:
        ``machine``, ``workload``, ``network``, ``synthesis`` (a list, one entry a variant), ``alignment``, ``slices``
        and ``codebook``; seconds and bytes.
    """
    with (
        tempfile.TemporaryDirectory(prefix="apt_monai-bench-") as scratch,
        tqdm(total=len(VARIANTS) + 5, desc="bench", unit="measurement") as bar,
    ):
        results: dict[str, Any] = {
            "machine": describe_machine(),
            "workload": asdict(workload),
            "network": describe_network(workload),
        }
        encoder = _write_encoder(Path(scratch) / "encoder", workload.encoder_model)

        results["synthesis"] = []
        for variant in VARIANTS:
            bar.set_postfix_str(variant.name)
            results["synthesis"].append(_measure_variant(workload, variant, encoder, results["synthesis"]))
            bar.update()
        bar.set_postfix_str(f"{VARIANTS[0].name}, again")
        again = _in_own_process(measure_synthesis, workload, VARIANTS[0], encoder)["slices_a_second"]
        bar.update()
        _add_ratios(results["synthesis"], again)

        bar.set_postfix_str("alignment")
        results["alignment"] = _in_own_process(measure_alignment, workload, encoder, scratch)
        bar.update()

        bar.set_postfix_str("random slices")
        filled = _in_own_process(fill_slice_cache, workload, scratch)
        results["slices"] = _in_own_process(measure_slice_reading, workload, filled["study"], scratch)
        results["slices"].update(seconds_to_fill=filled["seconds"], peak_memory_fill=filled["peak_memory"])
        bar.update()

        n = workload.codebook_subjects
        size = workload.codebook_size
        studies = _write_studies(Path(scratch) / "codebook", 4 * n, (size, size, workload.codebook_slices), ".nii")
        cache = SliceCache(Path(scratch) / "codebook-cache", StudyPreprocessing(BRATS, size=size))
        cache.prepare(studies, progress=False)
        results["codebook"] = []
        for count in (n, 4 * n):
            bar.set_postfix_str(f"codebook of {count} subjects")
            results["codebook"].append(_in_own_process(measure_codebook, workload, studies[:count], cache))
            bar.update()
    return results


def _measure_variant(
    workload: Workload, variant: Variant, encoder: str, measured: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """One variant's figures; or why it was left out, where it would not fit into memory."""
    slices = workload.batch_size if variant.batched else 1
    entry = {**asdict(variant), "batch_size": slices}
    for single in measured:
        if variant.batched and (single["name"], single["batched"]) == (variant.name, False):
            needed = single["memory_before"] + slices * (single["peak_memory"] - single["memory_before"])
            if needed > _available_memory():
                reason = f"needs about {_gb(needed)}, and {_gb(_available_memory())} of memory are available"
                return {**entry, "left_out": reason}
    try:
        return {**entry, **_in_own_process(measure_synthesis, workload, variant, encoder)}
    except BrokenProcessPool:
        if variant.published:
            raise
        return {**entry, "left_out": "its process was ended from outside, most likely for want of memory"}


def _add_ratios(synthesis: Sequence[dict[str, Any]], again: float) -> None:
    """Ratios to the published way, the first entry, whose speed becomes the mean of before and after the others."""
    first = synthesis[0]["slices_a_second"]
    synthesis[0].update(slices_a_second=(first + again) / 2, slices_a_second_first=first, slices_a_second_again=again)
    for entry in synthesis:
        if "slices_a_second" in entry:
            entry["ratio"] = entry["slices_a_second"] / synthesis[0]["slices_a_second"]


def _in_own_process(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function in a new process that has imported this module and holds nothing else."""
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *args).result()


def peak_memory(device: torch.device) -> int:
    """The most memory in bytes that this process has had so far: resident, or allocated on the GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _available_memory() -> int:
    """Bytes that a new process can have."""
    if _device().type == "cuda":
        return torch.cuda.mem_get_info()[0]
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return 1024 * int(lines["MemAvailable"].split()[0])
    except (OSError, KeyError):  # not Linux
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def describe_machine() -> dict[str, Any]:
    """The machine and the software, without a date."""
    try:
        cpu = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
        processor = cpu.split(":")[1].strip()
    except (OSError, StopIteration):
        processor = platform.processor() or platform.machine()
    return {
        "device": torch.cuda.get_device_name() if _device().type == "cuda" else "CPU",
        "processor": processor,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "monai": version("monai"),
    }


def describe_network(workload: Workload) -> dict[str, Any]:
    """The U-Net's parameters, and the floating-point operations of a forward pass with one slice."""
    with torch.device("meta"):
        network = DiffusionModelUNet(**workload.network_settings)
    x = torch.empty(1, len(BRATS), workload.image_size, workload.image_size, device="meta")
    context = torch.empty(1, 1, 512, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(x=x, timesteps=torch.empty(1, device="meta"), context=context)
    return {"parameters": sum(p.numel() for p in network.parameters()), "operations": counter.get_total_flops()}


# The report


def render(results: Mapping[str, Any]) -> str:
    """The results of :func:`measure` as Markdown."""
    workload, machine, network = results["workload"], results["machine"], results["network"]
    alignment, slices, codebook = results["alignment"], results["slices"], results["codebook"]
    passes, published = TwoStageInferer(_scheduler()).network_passes(), results["synthesis"][0]
    targets = [(wanted, found, "yes" if reached else "no") for wanted, found, reached in _targets(results)]
    synthesis = [
        (entry["name"], entry["batch_size"], f"left out: {entry['left_out']}", *[""] * 7)
        if "left_out" in entry
        else (
            entry["name"],
            entry["batch_size"],
            f"{entry['slices_a_second']:.4g}",
            f"{entry['ratio']:.2f}×",
            *(f"{100 * entry['shares'][part]:.1f} %" for part in PARTS),
            _gb(entry["peak_memory"]),
            entry["measured_passes"],
        )
        for entry in results["synthesis"]
    ]
    epochs = [
        (
            label,
            f"{1000 * alignment[f'seconds_a_slice_{key}']:.3g}",
            f"{alignment[f'seconds_a_slice_{key}'] * EPOCH_SLICES / 3600:.3g}",
            _gb(alignment[f"peak_memory_{key}"]),
        )
        for label, key in (("from cached features", "cached"), ("encoding each time", "encoding"))
    ]
    reading = [
        (label, f"{slices[f'slices_a_second_{key}']:.4g}", _gb(slices[f"peak_memory_{key}"]))
        for label, key in (("slice cache", "cached"), ("NIfTI files", "nifti"))
    ]
    built = [
        (b["subjects"], b["slices"], f"{b['seconds']:.1f}", _gb(b["peak_memory"]), _gb(b["slices_in_memory"]))
        for b in codebook
    ]
    return f"""# Benchmark

{machine["device"]}; {machine["processor"]}, {machine["cores"]} cores, torch threads: {machine["threads"]},
{_gb(machine["memory"])} of memory; torch {machine["torch"]}, MONAI {machine["monai"]}, Python {machine["python"]},
{machine["system"]}.

Images and weights are random. Each measurement ran in a process of its own; peak memory is that process's, with the
weights and, on a CPU, the libraries.

{_table(("to reach", "measured", "reached"), targets)}

## One slice through both stages

U-Net of {network["parameters"] / 1e6:.0f} M parameters, {network["operations"] / 1e9:.0f} GFLOP a forward pass at
{workload["image_size"]}²; {MISSING} from the other contrasts. The published way: the encoder at every step, one slice
at a time, float32, channels-first, weights that ask for gradients; the same network, steps and noise. bfloat16 is
autocast, with channels-last weights.

{_table(("", "batch", "slices a second", "ratio", *PARTS, "peak memory", "passes timed"), synthesis)}

"forward" and "backward" are the U-Net's. Slices a second and shares are for the paper's {passes} passes: what is done
once, and {passes} times the mean of the passes timed, leaving out the first of several. The published way was
measured before and after the others,
{published["slices_a_second_first"]:.4g} and {published["slices_a_second_again"]:.4g} slices a second,
to show how steady the machine was; ratios are to the mean.

## One epoch of the alignment (MIF)

{_table(("", "ms a slice", "hours an epoch", "peak memory"), epochs)}

Ratio {alignment["ratio"]:.0f}×. An epoch is extrapolated from the cost of a slice to {EPOCH_SLICES} slices:
{alignment["timed_steps"]} steps of {alignment["batch"]} slices from cached features (read, forward, backward, Adam),
and the encoder on {alignment["encoded_slices"]} slices of {len(BRATS)} contrasts.

## Random slices

{_table(("", "slices a second", "peak memory"), reading)}

Ratio {slices["ratio"]:.0f}×, on a study of {len(BRATS)} contrasts (`.nii.gz`) and
{"×".join(map(str, workload["study_shape"]))} voxels. The cache gives preprocessed slices, the files raw ones. Filling
the cache took {slices["seconds_to_fill"]:.1f} s and {_gb(slices["peak_memory_fill"])}, once a study.

## Memory of the codebook

{_table(("subjects", "slices", "seconds", "peak memory", "the slices themselves"), built)}

Slices of {workload["codebook_size"]}² and a stand-in for the encoder: only the growth is of interest.
"""


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _targets(results: Mapping[str, Any]) -> list[tuple[str, str, bool]]:
    """What was to be reached, what was measured, and whether: the fastest, and at batch 1 the largest, of ours."""
    targets = []
    done = [entry for entry in results["synthesis"] if "ratio" in entry]
    ours = [entry for entry in done if not entry["published"]]
    for gradient, label, wanted in (("network", "the paper's gradient", 2.5), ("image", "the gradient on x̂0", 10.0)):
        ratio = max(entry["ratio"] for entry in ours if entry["gradient"] == gradient)
        targets.append((f"{wanted:g}× the published way with {label}", f"{ratio:.2f}×", ratio >= wanted))
    limit = done[0]["peak_memory"]
    peak = max(entry["peak_memory"] for entry in ours if entry["batch_size"] == 1)
    found = f"{_gb(peak)}, {_gb(limit)}"  # resident memory of the same run varies by some MB
    targets.append(("memory at batch 1 not above the published way (within 1 %)", found, peak <= 1.01 * limit))
    for key, label, wanted in (("alignment", "encoding in each epoch", 100.0), ("slices", "reading NIfTI files", 50.0)):
        ratio = results[key]["ratio"]
        targets.append((f"{wanted:g}× {label}", f"{ratio:.0f}×", ratio >= wanted))
    few, many = results["codebook"]
    growth = many["peak_memory"] - few["peak_memory"]
    added = many["slices_in_memory"] - few["slices_in_memory"]
    found = f"{growth / 1e6:+.0f} MB for {added / 1e6:.0f} MB more of slices"
    targets.append(("the codebook's memory does not grow with the subjects", found, growth < 0.25 * added))
    return targets


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB"
