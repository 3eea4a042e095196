"""A batch through a method, and its scores: PSNR and SSIM of each missing contrast in three regions."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tqdm import tqdm

from apt_monai.contrasts import ContrastSet
from apt_monai.methods import Batch, Method
from apt_monai.metrics import psnr, ssim

REGIONS = {"slice": "Whole slice", "brain": "Brain", "tumour": "Tumour"}


@dataclass(frozen=True)
class Row:
    """The scores of one synthesised slice, one line of ``results.csv``.

    Args:
        method: the method's name.
        acquired: the acquired contrasts, joined by ``+``.
        target: the synthesised contrast.
        subject: the subject.
        slice: the slice's index in the oriented volume.
        psnr_slice: PSNR in dB over the whole slice; infinity if the images are identical.
        ssim_slice: SSIM over the whole slice, in [-1, 1].
        psnr_brain: PSNR over the brain.
        ssim_brain: SSIM over the brain.
        psnr_tumour: PSNR over the tumour; NaN in a slice without one.
        ssim_tumour: SSIM over the tumour; NaN in a slice without one.
        seconds: the wall time of the slice's batch divided by its slices; the same for all targets made in one go.
    """

    method: str
    acquired: str
    target: str
    subject: str
    slice: int
    psnr_slice: float
    ssim_slice: float
    psnr_brain: float
    ssim_brain: float
    psnr_tumour: float
    ssim_tumour: float
    seconds: float


def synthesise(
    name: str,
    method: Method,
    batch: Batch,
    contrasts: ContrastSet,
    acquired: Sequence[str],
    device: str | torch.device,
    bar: tqdm | None = None,
) -> tuple[dict[str, torch.Tensor], float]:
    """One batch's result on the CPU, and the seconds that the method took."""
    device = torch.device(device)
    image = batch["image"].to(device)  # (B, C, H, W)
    available = torch.tensor(contrasts.mask(acquired), device=device).expand(len(image), -1)  # (B, C)
    hidden = dict(batch, image=torch.where(available[:, :, None, None], image, torch.full_like(image, -1.0)))
    hidden["region"] = (batch["region"].to(device) > 0).to(torch.uint8)  # where the tumour is would help a method
    if "features" in batch:
        features = batch["features"].to(device)  # (B, C, D)
        hidden["features"] = torch.where(available[:, :, None], features, torch.zeros_like(features))

    def advance(passes: int) -> None:
        if bar is not None:
            bar.update(passes * len(image))

    _synchronise(device)
    start = time.perf_counter()
    result = method(hidden, available, advance)
    _synchronise(device)
    seconds = time.perf_counter() - start

    found = result["image"]
    if found.shape != image.shape:
        raise ValueError(f"method {name!r}: its image is {tuple(found.shape)}, and {tuple(image.shape)} is needed")
    if not ((found >= -1) & (found <= 1)).all():
        raise ValueError(
            f"method {name!r}: its image goes from {found.min():g} to {found.max():g}; it must be in [-1, 1]"
        )
    return {key: result[key].float().cpu() for key in ("image", "prior") if key in result}, seconds


def score_batch(
    name: str, batch: Batch, image: torch.Tensor, contrasts: ContrastSet, acquired: Sequence[str], seconds: float
) -> list[Row]:
    """The rows of one batch."""
    region = batch["region"].cpu()  # (B, 1, H, W)
    regions = {"slice": torch.ones_like(region, dtype=torch.bool), "brain": region > 0, "tumour": region == 2}
    rows = []
    for target in (t for t in contrasts.names if t not in acquired):
        channel = contrasts.index(target)
        truth = (batch["image"][:, channel : channel + 1].cpu() + 1) / 2  # (B, 1, H, W) in [0, 1]
        prediction = (image[:, channel : channel + 1] + 1) / 2
        scores = {}
        for key, where in regions.items():
            scores[f"psnr_{key}"] = psnr(prediction, truth, where).tolist()
            scores[f"ssim_{key}"] = ssim(prediction, truth, where).tolist()
        for i, subject in enumerate(batch["subject"]):
            values = {key: round(score[i], 6) for key, score in scores.items()}
            index = int(batch["slice"][i])
            rows.append(Row(name, "+".join(acquired), target, subject, index, **values, seconds=round(seconds, 6)))
    return rows


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
