"""What MONAI's engines need to train and run a method: prepare-batch classes, a trainer for GANs and two evaluators.

The trainers are :class:`monai.engines.SupervisedTrainer`, and for GANs :class:`DenoiserAdversarialTrainer`, put
together in the bundles' ``train.yaml`` and ``methods/``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import ignite.distributed as idist
import torch
from ignite.metrics import Metric
from monai.engines import AdversarialTrainer, DiffusionPrepareBatch, Evaluator, PrepareBatch, SupervisedEvaluator
from monai.transforms import Transform
from monai.utils import AdversarialKeys
from monai.utils import CommonKeys as Keys

from apt_monai.data.splits import patient
from apt_monai.distributed import average_gradients, gather, own_rows
from apt_monai.inferers import TwoStageInferer
from apt_monai.methods import Adversary, Method, TrainingStep
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


class SubsetPrepareBatch(_DenoiserPrepareBatch):
    """Batches for a denoiser that sees the acquired contrasts: each slice with a random subset of its contrasts; one at
    least is missing. Noise, steps and random numbers are drawn where the denoiser looks at them.

    Args:
        denoiser: what is trained.
        num_train_timesteps: T.
        curriculum: in how many iterations the smallest subset falls from C - 1 contrasts to one (MM-GAN); 0: at once.
        seed: of all that is drawn.

    Example::

        >>> from apt_monai.networks import DirectDenoiser
        >>> batch = {"image": torch.zeros(2, 4, 8, 8), "region": torch.ones(2, 1, 8, 8, dtype=torch.uint8)}
        >>> prepare = SubsetPrepareBatch(DirectDenoiser(torch.nn.Identity()), 1000)
        >>> images, target, _, arguments = prepare(batch, "cpu")
        >>> arguments["condition"].available.sum(dim=1).max() < 4
        tensor(True)
    """

    def __init__(self, denoiser: Denoiser, num_train_timesteps: int, curriculum: int = 0, seed: int = 0) -> None:
        super().__init__(denoiser, num_train_timesteps, seed)
        self.curriculum = curriculum
        self.drawn = 0

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {**super().state_dict(), "drawn": torch.tensor(self.drawn)}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        super().load_state_dict(state)
        self.drawn = int(state["drawn"])

    def draw_subsets(self, b: int, c: int) -> torch.Tensor:
        done = 1.0 if self.curriculum == 0 else min(1.0, self.drawn / self.curriculum)
        self.drawn += 1
        smallest = max(1, c - 1 - int(done * (c - 1)))
        return own_rows(b, lambda n: random_subsets(n, c, self.generator, largest=c - 1, smallest=smallest))

    def get_noise(self, images: torch.Tensor) -> torch.Tensor:
        if not self.denoiser.noisy:
            return torch.zeros_like(images)
        b, *shape = images.shape
        return own_rows(b, lambda n: torch.randn(n, *shape, generator=self.generator))

    def get_timesteps(self, images: torch.Tensor) -> torch.Tensor:
        last = self.num_train_timesteps
        if not self.denoiser.noisy:
            return torch.full((len(images),), last - 1)
        return own_rows(len(images), lambda n: torch.randint(0, last, (n,), generator=self.generator))

    def conditions(
        self, batch: Mapping[str, torch.Tensor], images: torch.Tensor, available: torch.Tensor
    ) -> Conditions:
        shape, latent = (self.num_train_timesteps, self.denoiser.latent), None
        if self.denoiser.latent:
            latent = own_rows(len(images), lambda n: torch.randn(n, *shape, generator=self.generator)).to(images.device)
        return Conditions(images, available, brain=batch["region"] > 0, context=latent)


class DenoiserAdversarialTrainer(AdversarialTrainer):
    """MONAI's trainer for GANs, with a denoiser as the generator and a system's :class:`~apt_monai.methods.Adversary`.

    One iteration is a step of the denoiser, by its own loss and the adversary's, then one of the discriminator.

    Args:
        adversary: the discriminator and the two losses.
        adversary_optimizer: of the discriminator's parameters.
        network: the denoiser.
        optimizer: of the denoiser's parameters.
        loss_function: the denoiser's.
        inferer: the sampler; its noise schedule is used.
        prepare_batch: as :class:`SubsetPrepareBatch`.
        arguments: MONAI's, such as ``max_epochs``, ``device``, ``train_data_loader``, ``train_handlers``.
    """

    def __init__(
        self,
        adversary: Adversary,
        adversary_optimizer: torch.optim.Optimizer,
        network: Denoiser,
        optimizer: torch.optim.Optimizer,
        loss_function: Callable,
        inferer: TwoStageInferer,
        prepare_batch: SubsetPrepareBatch,
        **arguments: Any,
    ) -> None:
        super().__init__(
            g_network=network,
            g_optimizer=optimizer,
            g_loss_function=adversary.generator_loss,
            recon_loss_function=loss_function,
            d_network=adversary,
            d_optimizer=adversary_optimizer,
            d_loss_function=adversary.discriminator_loss,
            prepare_batch=prepare_batch,
            decollate=False,
            **arguments,
        )
        self.scheduler = inferer.scheduler

    def _iteration(self, engine: Any, batchdata: Any) -> dict[str, Any]:
        images, target, _, drawn = self.prepare_batch(batchdata, self.state.device, self.non_blocking)
        total = (self.state.max_epochs or 1) * (self.state.epoch_length or 1)
        losses = adversarial_step(
            self.state.g_network,
            self.state.d_network,
            (self.state.g_optimizer, self.state.d_optimizer),
            (images, target, self.scheduler.add_noise(images, drawn["noise"], drawn["timesteps"])),
            (drawn["timesteps"] + 1, drawn["condition"]),
            (self.state.iteration, total),
        )
        return {Keys.LOSS: losses[0], AdversarialKeys.DISCRIMINATOR_LOSS: losses[1]}


def adversarial_step(
    denoiser: Denoiser,
    adversary: Adversary,
    optimizers: tuple[torch.optim.Optimizer, torch.optim.Optimizer],
    tensors: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    known: tuple[torch.Tensor, Conditions],
    progress: tuple[int, int],
) -> tuple[torch.Tensor, torch.Tensor]:
    """One step of a GAN's denoiser, then one of its discriminator.

    Args:
        denoiser: the generator.
        adversary: the discriminator and the losses.
        optimizers: of the two.
        tensors: x_0, the target and x_t, ``(B, C, H, W)`` each.
        known: t ``(B,)``, and what is known of the slices.
        progress: the iteration, from 1, and how many there are.

    Returns:
        Both losses.
    """
    (images, target, x_t), (t, conditions) = tensors, known
    denoiser.train()
    adversary.train()
    adversary.begin(denoiser, progress[0] / progress[1])
    optimizers[0].zero_grad()
    prediction = denoiser(x_t, t, conditions)
    step = TrainingStep(images, x_t, t, conditions, prediction)
    loss = denoiser.loss(prediction.output, target) + adversary.generator_loss(step)
    loss.backward()
    optimizers[0].step()

    optimizers[1].zero_grad()  # what the denoiser's step left there goes
    fixed = replace(step, prediction=replace(prediction, clean=prediction.clean.detach()))
    doubt = adversary.discriminator_loss(fixed, progress[0])
    doubt.backward()
    average_gradients(adversary)
    optimizers[1].step()
    return loss.detach(), doubt.detach()


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
