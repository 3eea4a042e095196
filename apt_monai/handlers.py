"""Handlers for the bundles' trainers and evaluators, attached as MONAI's are."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from tqdm import tqdm

from apt_monai.model_store import complete_file, save_weights

logger = logging.getLogger(__name__)


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or does not belong to this run."""


class ResumableCheckpoint:
    """Save all that a run needs to go on after epochs, and go on from it when the run is started again.

    MONAI's ``CheckpointSaver`` does not write atomically and numbers its files; this is one file, replaced whole, so
    that a run that is killed while saving still has its last checkpoint.

    Args:
        path: the checkpoint file.
        objects: what to save by name, each with ``state_dict`` and ``load_state_dict`` (networks, optimiser, EMA, the
            prepare-batch with its random numbers).
        interval: save every that many epochs, and after the last.

    Raises:
        CheckpointError: at the start of a run, if the file is damaged or does not fit the objects.
    """

    def __init__(self, path: str | Path, objects: Mapping[str, Any], interval: int = 1) -> None:
        self.path = Path(path)
        self.objects = dict(objects)
        self.interval = interval

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.STARTED, self.load)
        engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.interval), self.save)
        engine.add_event_handler(Events.COMPLETED, self.save)

    def load(self, engine: Engine) -> None:
        """Continue from the file, if there is one."""
        if not self.path.exists():
            return
        advice = "delete the file to start anew"
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise CheckpointError(f"{self.path}: not a readable checkpoint ({error}); {advice}") from error
        try:
            for name, target in self.objects.items():
                target.load_state_dict(state["objects"][name])
            engine.state.epoch, engine.state.iteration = state["epoch"], state["iteration"]
        except (KeyError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"{self.path}: does not fit this run's settings ({error}); {advice}") from error
        logger.info("resumed %s after epoch %d (iteration %d)", self.path, engine.state.epoch, engine.state.iteration)

    def save(self, engine: Engine) -> None:
        """Write the file whole, then put it in the old one's place."""
        state = {
            "epoch": engine.state.epoch,
            "iteration": engine.state.iteration,
            "objects": {name: source.state_dict() for name, source in self.objects.items()},
        }
        with complete_file(self.path) as partial:
            torch.save(state, partial)


class FinalWeights:
    """When training is complete, save a network's weights; until then the file does not exist.

    Args:
        network: the network to save, such as the moving average of the one in training.
        path: the weights file.
    """

    def __init__(self, network: torch.nn.Module, path: str | Path) -> None:
        self.network = network
        self.path = Path(path)

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.COMPLETED, lambda: save_weights(self.network, self.path))


class TrainingProgress:
    """One progress bar over all iterations of a training, with the mean loss of late.

    Args:
        description: what the bar says.
    """

    def __init__(self, description: str) -> None:
        self.description = description

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.update)
        engine.add_event_handler(Events.COMPLETED, self.finish)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self.stop)

    def start(self, engine: Engine) -> None:
        """Open the bar where a resumed run goes on."""
        total = engine.state.max_epochs * engine.state.epoch_length
        self.bar = tqdm(total=total, initial=engine.state.iteration, desc=self.description, unit="it", mininterval=1.0)
        self.mean: float | None = None

    def update(self, engine: Engine) -> None:
        """One iteration on."""
        loss = engine.state.output["loss"].detach()
        self.mean = loss if self.mean is None else 0.98 * self.mean + 0.02 * loss
        self.bar.update(1)
        if self.bar.n % 20 == 0:
            self.bar.set_postfix(loss=f"{float(self.mean):.4f}", refresh=False)

    def finish(self, engine: Engine) -> None:
        """Close the bar."""
        self.bar.close()

    def stop(self, engine: Engine, error: BaseException) -> None:
        """Close the bar and pass the error on."""
        self.bar.close()
        raise error
