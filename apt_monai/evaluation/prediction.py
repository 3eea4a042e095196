"""A batch through a method, and the slices of a study: what it makes of them, and the seconds that it took."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

import torch
from tqdm import tqdm

from apt_monai.contrasts import ContrastSet
from apt_monai.methods import Batch, Method

MADE = ("image", "prior", "uncertainty")
"""What an evaluation takes of a method's result."""


def synthesise(
    name: str,
    method: Method,
    batches: Iterable[Batch],
    contrasts: ContrastSet,
    acquired: Sequence[str],
    device: str | torch.device,
    bar: tqdm | None = None,
) -> tuple[dict[str, torch.Tensor], list[float]]:
    """A study's batches through a method: its results one after the other, and each slice's seconds.

    A slice's seconds are those of its batch divided by the slices in it.

    Raises:
        ValueError: the method breaks the contract.
    """
    results: list[dict[str, torch.Tensor]] = []
    seconds: list[float] = []
    for batch in batches:
        result, took = _one_batch(name, method, batch, contrasts, acquired, device, bar)
        results.append(result)
        seconds += [took / len(batch["subject"])] * len(batch["subject"])
    return {key: torch.cat([result[key] for result in results]) for key in results[0]}, seconds


def _one_batch(
    name: str,
    method: Method,
    batch: Batch,
    contrasts: ContrastSet,
    acquired: Sequence[str],
    device: str | torch.device,
    bar: tqdm | None,
) -> tuple[dict[str, torch.Tensor], float]:
    """The method's result for a batch, on the CPU, and the seconds that the method took."""
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
    found = {key: result[key].float().cpu() for key in MADE if key in result}
    _check(name, found, image.shape)
    return found, seconds


def _check(name: str, result: dict[str, torch.Tensor], shape: torch.Size) -> None:
    for key, value in result.items():
        if value.shape != shape:
            raise ValueError(f"method {name!r}: its {key} is {tuple(value.shape)}, and {tuple(shape)} is needed")
        low = 0 if key == "uncertainty" else -1
        high = torch.inf if key == "uncertainty" else 1
        if not ((value >= low) & (value <= high)).all():
            limits = "at least 0" if key == "uncertainty" else "in [-1, 1]"
            raise ValueError(
                f"method {name!r}: its {key} goes from {value.min():g} to {value.max():g}; it must be {limits}"
            )


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
