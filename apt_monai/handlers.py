"""Handlers for the bundles' trainers and evaluators, attached as MONAI's are."""

from __future__ import annotations

import errno
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from ignite.handlers import EMAHandler
from ignite.handlers.param_scheduler import BaseParamScheduler
from tqdm import tqdm

from apt_monai.distributed import gather, is_lead
from apt_monai.files import complete_file
from apt_monai.weights import save_weights

logger = logging.getLogger(__name__)


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or does not belong to this run."""


def _is_complete(engine: Engine) -> bool:
    """Whether all epochs are done: a run that was terminated before fires ``COMPLETED`` too."""
    return engine.state.iteration >= (engine.state.max_epochs or 0) * (engine.state.epoch_length or 0)


class ResumableEMA(EMAHandler):
    """ignite's moving average of a network's weights, with a state for :class:`ResumableCheckpoint`.

    The state holds how far the momentum's warm-up is. Without it a resumed run would warm up again, and the high
    momentum of its first iterations would wipe out the average. Arguments as in ignite; ``ema_model`` is the average.

    Example::

        >>> ema = ResumableEMA(torch.nn.Linear(1, 1), momentum=0.0001, momentum_warmup=0.2, warmup_iters=1000)
        >>> ema.attach(Engine(lambda engine, batch: None))
        >>> sorted(ema.state_dict())
        ['model', 'updates']
    """

    def state_dict(self) -> dict[str, Any]:
        """The average, and how far the momentum's warm-up is."""
        return {"model": self.ema_model.state_dict(), "updates": self._schedule().event_index}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state that :meth:`state_dict` gave."""
        self.ema_model.load_state_dict(state["model"])
        self._schedule().event_index = state["updates"]

    def _schedule(self) -> BaseParamScheduler:
        schedule = getattr(self, "momentum_scheduler", None)  # ignite makes it when the handler is attached
        if schedule is None:
            raise RuntimeError("give ResumableEMA momentum_warmup and warmup_iters, and attach it to the trainer first")
        return schedule


class ResumableCheckpoint:
    """Save all that a run needs to go on after epochs, and go on from it when the run is started again.

    This is one file, replaced whole, so that a run that is killed while saving still has its last checkpoint. MONAI's
    ``CheckpointSaver`` does not write atomically, and ignite's ``Checkpoint`` (0.5.5) removes its old file before it
    writes the new one, and loads without a word on which file does not fit, or that an epoch has another length.

    Args:
        path: the checkpoint file.
        objects: what to save by name, each with ``state_dict`` and ``load_state_dict`` (networks, optimiser,
            :class:`ResumableEMA`, the prepare-batch with its random numbers).
        interval: save every that many epochs, and after the last.

    Raises:
        CheckpointError: at the start of a run, if the file is damaged, or does not fit the objects or the length of an
            epoch.

    Example::

        >>> network = torch.nn.Linear(1, 1)
        >>> for max_epochs in (2, 3):  # the second run goes on after epoch 2
        ...     engine = Engine(lambda engine, batch: None)
        ...     ResumableCheckpoint("checkpoint.pt", {"network": network}).attach(engine)
        ...     _ = engine.add_event_handler(Events.EPOCH_STARTED, lambda engine: print(engine.state.epoch))
        ...     _ = engine.run([0, 1], max_epochs=max_epochs)
        1
        2
        3
    """

    def __init__(self, path: str | Path, objects: Mapping[str, Any], interval: int = 1) -> None:
        self.path = Path(path)
        self.objects = dict(objects)
        self.interval = interval

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.STARTED, self.load)
        engine.add_event_handler(Events.EPOCH_COMPLETED(event_filter=self._is_due), self.save)

    def _is_due(self, engine: Engine, epoch: int) -> bool:
        return epoch % self.interval == 0 or epoch == engine.state.max_epochs

    def load(self, engine: Engine) -> None:
        """Continue from the file, if there is one."""
        seen = gather(self.path.exists())
        if not any(seen):
            return
        if not all(seen):
            raise CheckpointError(f"{self.path}: not every rank sees it; choose a folder that all machines share")
        advice = "delete the file to start anew"
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:
            cause = str(error).partition("\n")[0]
            raise CheckpointError(f"{self.path}: not a readable checkpoint ({cause}); {advice}") from error
        try:
            if state["iteration"] != state["epoch"] * engine.state.epoch_length:
                raise ValueError(
                    f"{state['iteration']} iterations in {state['epoch']} epochs, "
                    f"and an epoch now has {engine.state.epoch_length}: other data or another batch size"
                )
            for name, target in self.objects.items():
                target.load_state_dict(state["objects"][name])
            engine.state.epoch, engine.state.iteration = state["epoch"], state["iteration"]
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            cause = " ".join(str(error).split())
            raise CheckpointError(f"{self.path}: does not fit this run's settings ({cause}); {advice}") from error
        logger.info("resumed %s after epoch %d (iteration %d)", self.path, engine.state.epoch, engine.state.iteration)

    def save(self, engine: Engine) -> None:
        """Write the file whole, then put it in the old one's place; with several ranks, rank 0 does.

        Raises:
            OSError: the file cannot be written; the old one stays.
        """
        if not is_lead():
            return
        state = {
            "epoch": engine.state.epoch,
            "iteration": engine.state.iteration,
            "objects": {name: source.state_dict() for name, source in self.objects.items()},
        }
        with complete_file(self.path) as partial:
            try:
                torch.save(state, partial)
            except RuntimeError as error:  # how torch reports a write that failed
                raise OSError(errno.EIO, " ".join(str(error).split())) from error


class FinalWeights:
    """When training is complete, save a network's weights; until then the file does not exist.

    A run that is terminated before its last epoch leaves no file either.

    Args:
        network: the network to save, such as the moving average of the one in training.
        path: the weights file.

    Example::

        >>> engine = Engine(lambda engine, batch: None)
        >>> FinalWeights(torch.nn.Linear(1, 1), "weights.pt").attach(engine)
        >>> _ = engine.run([0, 1])
        >>> Path("weights.pt").exists()
        True
    """

    def __init__(self, network: torch.nn.Module, path: str | Path) -> None:
        self.network = network
        self.path = Path(path)

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.COMPLETED, self.save)

    def save(self, engine: Engine) -> None:
        """Write the weights, if every epoch is done; with several ranks, rank 0 does."""
        if _is_complete(engine) and is_lead():
            save_weights(self.network, self.path)


class TrainingProgress:
    """One progress bar over all iterations of a training, with the mean loss of late.

    ignite's ``ProgressBar`` counts one epoch at a time, and begins at 1 where a run is resumed.

    Args:
        description: what the bar says.

    Example::

        >>> engine = Engine(lambda engine, batch: {"loss": torch.tensor(1.0)})
        >>> TrainingProgress("training").attach(engine)
        >>> _ = engine.run([0, 1], max_epochs=2)
    """

    def __init__(self, description: str) -> None:
        self.description = description
        self.bar: tqdm | None = None
        self.mean: torch.Tensor | None = None

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.update)
        engine.add_event_handler(Events.COMPLETED | Events.TERMINATE, self.finish)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self.stop)

    def start(self, engine: Engine) -> None:
        """Open the bar at the first epoch, where a resumed run goes on: by then its checkpoint is loaded."""
        if self.bar is None:
            done, total = engine.state.iteration, (engine.state.max_epochs or 0) * (engine.state.epoch_length or 0)
            self.bar = tqdm(
                total=total, initial=done, desc=self.description, unit="it", mininterval=1.0, disable=not is_lead()
            )

    def update(self, engine: Engine) -> None:
        """One iteration on."""
        output = engine.state.output
        assert self.bar is not None and isinstance(output, dict | list)
        first = output[0] if isinstance(output, list) else output  # a list of the samples' where the trainer decollates
        loss = torch.as_tensor(first["loss"]).detach()
        self.mean = loss if self.mean is None else 0.98 * self.mean + 0.02 * loss
        if self.bar.n % 20 == 0:
            self.bar.set_postfix(loss=f"{float(self.mean):.4f}", refresh=False)
        self.bar.update(1)

    def finish(self, engine: Engine) -> None:
        """Close the bar."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def stop(self, engine: Engine, error: BaseException) -> None:
        """Close the bar and pass the error on."""
        self.finish(engine)
        raise error
