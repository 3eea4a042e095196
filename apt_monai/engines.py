"""What MONAI's engines need to train and run the method: prepare-batch classes and two evaluators.

The trainers themselves are :class:`monai.engines.SupervisedTrainer`, put together in the bundles' ``train.yaml``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import ignite.distributed as idist
import torch
from ignite.metrics import Metric
from monai.engines import DiffusionPrepareBatch, Evaluator, PrepareBatch, SupervisedEvaluator
from monai.transforms import Transform

from apt_monai.data.splits import patient
from apt_monai.distributed import gather, own_rows
from apt_monai.methods import Method
from apt_monai.metrics import psnr
from apt_monai.networks import Conditions, Denoiser
from apt_monai.networks.fusion import random_subsets
from apt_monai.synthesis import Synthesizer

logger = logging.getLogger(__name__)


class _Seeded:
    """Holds the generator of a prepare-batch, so that a checkpoint can resume its random numbers where they were.

    Each rank draws the numbers of all ranks' samples and takes its own, so that they are those that one rank draws.
    """

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The generator's state."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Continue from a state that :meth:`state_dict` gave."""
        self.generator.set_state(state["generator"].cpu())


class FusionPrepareBatch(_Seeded, PrepareBatch):
    """Batches for the MIF module's training (section 3.1): each slice once with all C contrasts and once with a random
    C - 1 of them, in one pass.

    Returns ``(features (2B, C, D), patients (B strings), (available (2B, C),), {})``: the trainer calls
    ``fusion(features, available)``, and the loss gets z of all contrasts in the first half and z of the subset in the
    second.

    Args:
        seed: of the random subsets.

    Example::

        >>> batch = {"features": torch.rand(2, 4, 8), "subject": ["BraTS-GLI-00005-000", "BraTS-GLI-00006-000"]}
        >>> features, patients, (available,), _ = FusionPrepareBatch()(batch)
        >>> features.shape, patients, available.sum(dim=1)
        (torch.Size([4, 4, 8]), ['BraTS-GLI-00005', 'BraTS-GLI-00006'], tensor([4, 4, 3, 3]))
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)

    def __call__(
        self,
        batchdata: Mapping[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, list[str], tuple[torch.Tensor], dict]:
        features = batchdata["features"].to(device, non_blocking=non_blocking)  # (B, C, D)
        b, c, _ = features.shape
        subset = own_rows(b, lambda n: random_subsets(n, c, self.generator, size=c - 1))  # (B, C)
        available = torch.cat([torch.ones_like(subset), subset]).to(device)  # (2B, C)
        patients = [patient(subject) for subject in batchdata["subject"]]  # two time points are no negatives either
        return torch.cat([features, features]), patients, (available,), {}


class _DenoiserPrepareBatch(_Seeded, DiffusionPrepareBatch):
    """Batches for a denoiser's training: noise, timesteps, the target, and what is known of the slices.

    Args:
        denoiser: what is trained; it says what the target is (ε in the paper).
        num_train_timesteps: T.
        seed: of noise, timesteps and subsets.
    """

    def __init__(self, denoiser: Denoiser, num_train_timesteps: int, seed: int) -> None:
        _Seeded.__init__(self, seed)
        DiffusionPrepareBatch.__init__(self, num_train_timesteps)
        self.denoiser = denoiser

    def draw_subsets(self, b: int, c: int) -> torch.Tensor:
        """Which contrasts of each slice count as acquired, ``(b, c)`` bool."""
        raise NotImplementedError

    def conditions(
        self, batch: Mapping[str, torch.Tensor], images: torch.Tensor, available: torch.Tensor
    ) -> Conditions:
        """What is known of the slices."""
        raise NotImplementedError

    def get_target(self, images: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        return self.denoiser.target(images, noise, timesteps + 1)  # MONAI counts steps from 0

    def __call__(
        self,
        batchdata: dict[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor, tuple, dict]:
        """Returns ``(images (B, C, H, W), target (B, C, H, W), (), {noise, timesteps, condition})``."""
        b, c = batchdata["image"].shape[:2]
        available = self.draw_subsets(b, c).to(device)  # before the noise, or a resumed training draws other numbers
        images, target, args, arguments = super().__call__(batchdata, device, non_blocking)
        keys: list[str] = [key for key in ("features", "region") if key in batchdata]
        batch = {key: batchdata[key].to(device, non_blocking=non_blocking) for key in keys}
        return images, target, args, {**arguments, "condition": self.conditions(batch, images, available)}


class ContextPrepareBatch(_DenoiserPrepareBatch):
    """Batches for a denoiser's training (Eq. 2): noise, timesteps, the target, and what is known of the slices.

    Args:
        denoiser: what is trained; it says what the target is (ε in the paper).
        num_train_timesteps: T.
        fusion: the trained MIF module; it is used as it is, without gradients.
        context: ``"all"``: z of all contrasts (the paper); ``"subset"``: z of a random non-empty subset, as at
            inference, where z knows the acquired contrasts alone.
        seed: of noise, timesteps and subsets.

    Raises:
        ValueError: an unknown ``context``.

    Example::

        >>> from apt_monai.networks import MutualInformationFusion
        >>> from apt_monai.networks import PublishedDenoiser
        >>> from monai.networks.schedulers import DDPMScheduler
        >>> denoiser = PublishedDenoiser(torch.nn.Identity(), DDPMScheduler(1000, schedule="cosine"))
        >>> prepare = ContextPrepareBatch(denoiser, 1000, MutualInformationFusion(16, 2))
        >>> batch = {"image": torch.zeros(2, 4, 8, 8), "features": torch.rand(2, 4, 16)}
        >>> images, target, _, arguments = prepare(batch, "cpu")
        >>> target.shape, arguments["timesteps"].shape, arguments["condition"].context.shape
        (torch.Size([2, 4, 8, 8]), torch.Size([2]), torch.Size([2, 512]))
    """

    def __init__(
        self,
        denoiser: Denoiser,
        num_train_timesteps: int,
        fusion: torch.nn.Module,
        context: Literal["all", "subset"] = "all",
        seed: int = 0,
    ) -> None:
        if context not in ("all", "subset"):
            raise ValueError(f"context is {context!r}: valid are 'all' and 'subset'")
        super().__init__(denoiser, num_train_timesteps, seed)
        self.fusion = fusion
        self.context = context

    def draw_subsets(self, b: int, c: int) -> torch.Tensor:
        if self.context == "all":
            return torch.ones(b, c, dtype=torch.bool)
        return own_rows(b, lambda n: random_subsets(n, c, self.generator))

    def get_noise(self, images: torch.Tensor) -> torch.Tensor:
        b, *shape = images.shape
        return own_rows(b, lambda n: torch.randn(n, *shape, generator=self.generator))

    def get_timesteps(self, images: torch.Tensor) -> torch.Tensor:
        return own_rows(
            len(images), lambda n: torch.randint(0, self.num_train_timesteps, (n,), generator=self.generator)
        )

    def conditions(
        self, batch: Mapping[str, torch.Tensor], images: torch.Tensor, available: torch.Tensor
    ) -> Conditions:
        with torch.no_grad():
            z = self.fusion.eval()(batch["features"], available)  # (B, D)
        return Conditions(images, available, context=z)


class DirectPrepareBatch(_DenoiserPrepareBatch):
    """Batches for :class:`apt_monai.networks.DirectDenoiser`: each slice with a random subset of its contrasts; one at
    least is missing. There is no noise, as the denoiser does not look at it.

    Args:
        denoiser: what is trained.
        num_train_timesteps: T.
        seed: of the subsets.

    Example::

        >>> from apt_monai.networks import DirectDenoiser
        >>> batch = {"image": torch.zeros(2, 4, 8, 8), "region": torch.ones(2, 1, 8, 8, dtype=torch.uint8)}
        >>> prepare = DirectPrepareBatch(DirectDenoiser(torch.nn.Identity()), 1000)
        >>> images, target, _, arguments = prepare(batch, "cpu")
        >>> arguments["condition"].available.sum(dim=1).max() < 4
        tensor(True)
    """

    def __init__(self, denoiser: Denoiser, num_train_timesteps: int, seed: int = 0) -> None:
        super().__init__(denoiser, num_train_timesteps, seed)

    def draw_subsets(self, b: int, c: int) -> torch.Tensor:
        return own_rows(b, lambda n: random_subsets(n, c, self.generator, largest=c - 1))

    def get_noise(self, images: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(images)

    def get_timesteps(self, images: torch.Tensor) -> torch.Tensor:
        return torch.full((len(images),), self.num_train_timesteps - 1)

    def conditions(
        self, batch: Mapping[str, torch.Tensor], images: torch.Tensor, available: torch.Tensor
    ) -> Conditions:
        return Conditions(images, available, brain=batch["region"] > 0)


def to_device(batch: Mapping[str, Any], device: str | torch.device) -> dict[str, Any]:
    """A batch of slice samples with its tensors on ``device``.

    Example::

        >>> to_device({"image": torch.zeros(1), "subject": ["a"]}, "cpu")
        {'image': tensor([0.]), 'subject': ['a']}
    """
    return {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in batch.items()}


class SynthesisEvaluator(SupervisedEvaluator):
    """Validation: synthesises each contrast of each slice from the other C - 1.

    ``engine.state.output`` is ``{"image": acquired, "synthesised", "prior"}``, each ``(B, C, H, W)`` in [-1, 1], where
    channel c of "synthesised" is contrast c from the others. "prior" is absent without a codebook.

    Args:
        device: where to run.
        val_data_loader: batches of slice samples with features.
        method: the method.
        network: what of it MONAI's federated client puts the global weights into: usually the moving average of the
            denoiser in training.
        key_val_metric: as in MONAI's evaluators.
        val_handlers: as in MONAI's evaluators.
    """

    def __init__(
        self,
        device: str | torch.device,
        val_data_loader: Iterable,
        method: Method,
        network: torch.nn.Module,
        key_val_metric: dict[str, Metric] | None = None,
        val_handlers: Sequence | None = None,
    ) -> None:
        super().__init__(
            device=torch.device(device),
            val_data_loader=val_data_loader,
            network=network,
            key_val_metric=key_val_metric,
            val_handlers=val_handlers,
            decollate=False,
        )
        self.method = method

    def _iteration(self, engine: Any, batchdata: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        batch = to_device(batchdata, self.state.device)
        output: dict[str, torch.Tensor] = {"image": batch["image"]}
        for target in range(len(self.method.contrasts)):
            available = torch.ones(batch["image"].shape[:2], dtype=torch.bool, device=self.state.device)
            available[:, target] = False
            result = self.method(batch, available)
            for key, source in (("synthesised", "image"), ("prior", "prior")):
                if source in result:
                    output.setdefault(key, torch.empty_like(batch["image"]))[:, target] = result[source][:, target]
        return output


def mean_psnr(output: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Mean PSNR in dB over slices and contrasts of what :class:`SynthesisEvaluator` puts out; a validation metric.

    Example::

        >>> image = torch.zeros(2, 4, 16, 16)
        >>> mean_psnr({"image": image, "synthesised": image + 0.2})
        tensor(20.0000)
    """
    b, c, h, w = output["image"].shape
    synthesised, acquired = (((output[k] + 1) / 2).reshape(b * c, 1, h, w) for k in ("synthesised", "image"))
    return psnr(synthesised, acquired).mean()


class StudyEvaluator(Evaluator):
    """Inference on whole studies: synthesises the absent contrasts of every slice and hands the study on.

    ``engine.state.output`` is the loaded study with what :meth:`apt_monai.synthesis.Synthesizer.volumes` made of it;
    ``postprocessing`` gets it and writes it.

    Args:
        device: where to run.
        val_data_loader: yields one loaded study at a time.
        synthesizer: what synthesises.
        postprocessing: a transform of the study, such as :class:`apt_monai.data.writers.SaveSyntheticStudyd`.
        val_handlers: as in MONAI's evaluators.
    """

    def __init__(
        self,
        device: str | torch.device,
        val_data_loader: Iterable,
        synthesizer: Synthesizer,
        postprocessing: Transform | Callable | None = None,
        val_handlers: Sequence | None = None,
    ) -> None:
        super().__init__(device=device, val_data_loader=val_data_loader, val_handlers=val_handlers, decollate=False)
        self.synthesizer = synthesizer
        self.study_postprocessing = postprocessing

    def _iteration(self, engine: Any, batchdata: Mapping[str, Any]) -> dict[str, Any]:
        checked = {**batchdata, "findings": self.synthesizer.findings(batchdata)}
        output = {**checked, **self.synthesizer.volumes(batchdata)}
        return self.study_postprocessing(output) if self.study_postprocessing else output


def run_unless_finished(name: str, artefact: str | Path, run: Callable[[], Any]) -> None:
    """Run a step of the training, unless the file that it ends with is there.

    Args:
        name: what the log calls the step.
        artefact: the file that the step writes last.
        run: the step. With several ranks each runs it, and goes on when all have.

    Example::

        >>> run_unless_finished("codebook", "codebook.json", lambda: Path("codebook.json").touch())
        >>> run_unless_finished("codebook", "codebook.json", lambda: print("again"))  # does not run
    """
    if gather(Path(artefact).exists())[0]:  # what the lead sees decides for all
        logger.info("%s is finished (%s exists; delete it to run again)", name, artefact)
        return
    logger.info("%s: starting (it will write %s)", name, artefact)
    run()
    idist.barrier()
