"""What a training has learned so far: a handler that draws a validation's first slice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.image
import torch
from ignite.engine import Engine, Events
from torch.utils.tensorboard import SummaryWriter

from apt_monai.contrasts import ContrastSet, get_contrast_set
from apt_monai.metrics import psnr
from apt_monai.visualize.synthesis import SynthesisRow, draw_synthesis


class SynthesisPicture:
    """A handler for :class:`apt_monai.engines.SynthesisEvaluator`: draws the first slice of each validation.

    Writes ``validation.png`` into ``log_dir`` and the same picture to TensorBoard, so that progress can be looked at.

    Args:
        log_dir: TensorBoard's folder.
        contrasts: the contrast set, or its name.
    """

    def __init__(self, log_dir: str | Path, contrasts: str | ContrastSet) -> None:
        self.log_dir = Path(log_dir)
        self.contrasts = get_contrast_set(contrasts)

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        engine.add_event_handler(Events.ITERATION_COMPLETED(once=1), self.draw)

    def draw(self, engine: Engine) -> None:
        """Draw the first slice of the batch."""
        output: Any = engine.state.output
        first = {key: (value[0].cpu().numpy() + 1) / 2 for key, value in output.items()}  # (C, H, W)
        rows = []
        for c, label in enumerate(self.contrasts.labels):
            truth, result = first["image"][c], first["synthesised"][c]
            prior = first["prior"][c] if "prior" in first else None
            quality = float(psnr(*(torch.from_numpy(i)[None, None] for i in (result, truth))))
            rows.append(SynthesisRow(label, truth, prior, {"synthesised": result}, {"synthesised": quality}))
        title = f"epoch {engine.state.epoch}: each contrast from the others"
        path = draw_synthesis(self.log_dir / "validation.png", rows, title)
        with SummaryWriter(str(self.log_dir)) as writer:
            picture = torch.from_numpy(matplotlib.image.imread(path)[..., :3])
            writer.add_image("validation", picture, engine.state.epoch, dataformats="HWC")
