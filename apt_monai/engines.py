"""What MONAI's engines need to train and run the method: prepare-batch classes and two evaluators.

The trainers themselves are :class:`monai.engines.SupervisedTrainer`, put together in the bundles' ``train.yaml``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from ignite.metrics import Metric
from monai.data import MetaTensor
from monai.engines import DiffusionPrepareBatch, Evaluator, PrepareBatch, SupervisedEvaluator
from monai.networks.schedulers import DDPMScheduler
from monai.transforms import Transform
from tqdm import tqdm

from apt_monai.contrasts import ContrastSet, get_contrast_set
from apt_monai.data import patient
from apt_monai.distributed import is_lead, own_rows
from apt_monai.inferers import Synthesizer
from apt_monai.metrics import psnr
from apt_monai.networks.fusion import random_subsets


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


class ContextPrepareBatch(_Seeded, DiffusionPrepareBatch):
    """Batches for the conditional diffusion model's training (Eq. 2): noise, timesteps, and z as the context.

    Args:
        scheduler: the noise schedule; its ``prediction_type`` decides the target (ε in the paper).
        fusion: the trained MIF module; it is used as it is, without gradients.
        context: ``"all"``: z of all contrasts (the paper); ``"subset"``: z of a random non-empty subset, as at
            inference, where z knows the acquired contrasts alone.
        seed: of noise, timesteps and subsets.

    Raises:
        ValueError: an unknown ``context``.

    Example::

        >>> from apt_monai.networks import MutualInformationFusion
        >>> prepare = ContextPrepareBatch(DDPMScheduler(1000, schedule="cosine"), MutualInformationFusion(16, 2))
        >>> batch = {"image": torch.zeros(2, 4, 8, 8), "features": torch.rand(2, 4, 16)}
        >>> images, target, _, arguments = prepare(batch, "cpu")
        >>> target.shape, arguments["timesteps"].shape, arguments["condition"].shape
        (torch.Size([2, 4, 8, 8]), torch.Size([2]), torch.Size([2, 1, 512]))
    """

    def __init__(
        self,
        scheduler: DDPMScheduler,
        fusion: torch.nn.Module,
        context: Literal["all", "subset"] = "all",
        seed: int = 0,
    ) -> None:
        if context not in ("all", "subset"):
            raise ValueError(f"context is {context!r}: valid are 'all' and 'subset'")
        _Seeded.__init__(self, seed)
        DiffusionPrepareBatch.__init__(self, scheduler.num_train_timesteps)
        self.scheduler = scheduler
        self.fusion = fusion
        self.context = context

    def get_noise(self, images: torch.Tensor) -> torch.Tensor:
        b, *shape = images.shape
        return own_rows(b, lambda n: torch.randn(n, *shape, generator=self.generator))

    def get_timesteps(self, images: torch.Tensor) -> torch.Tensor:
        return own_rows(
            len(images), lambda n: torch.randint(0, self.num_train_timesteps, (n,), generator=self.generator)
        )

    def get_target(self, images: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        if self.scheduler.prediction_type == "epsilon":
            return noise
        if self.scheduler.prediction_type == "v_prediction":
            return self.scheduler.get_velocity(images, noise, timesteps)
        return images

    def __call__(
        self,
        batchdata: dict[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor, tuple, dict]:
        """Returns ``(images (B, C, H, W), target (B, C, H, W), (), {noise, timesteps, condition (B, 1, D)})``."""
        features = batchdata["features"].to(device, non_blocking=non_blocking)  # (B, C, D)
        b, c, _ = features.shape
        available = torch.ones(b, c, dtype=torch.bool)
        if self.context == "subset":
            available = own_rows(b, lambda n: random_subsets(n, c, self.generator))
        with torch.no_grad():
            z = self.fusion.eval()(features, available.to(device))  # (B, D)
        images, target, args, arguments = super().__call__(batchdata, device, non_blocking)
        return images, target, args, {**arguments, "condition": z[:, None, :]}


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
        synthesizer: the method; its network is usually the moving average of the one in training.
        contrasts: the contrast set.
        key_val_metric: as in MONAI's evaluators.
        val_handlers: as in MONAI's evaluators.
    """

    def __init__(
        self,
        device: str | torch.device,
        val_data_loader: Iterable,
        synthesizer: Synthesizer,
        contrasts: str | ContrastSet,
        key_val_metric: dict[str, Metric] | None = None,
        val_handlers: Sequence | None = None,
    ) -> None:
        super().__init__(
            device=torch.device(device),
            val_data_loader=val_data_loader,
            network=synthesizer.network,  # MONAI's federated client puts the global weights into it
            key_val_metric=key_val_metric,
            val_handlers=val_handlers,
            decollate=False,
        )
        self.synthesizer = synthesizer
        self.contrasts = get_contrast_set(contrasts) if isinstance(contrasts, str) else contrasts

    def _iteration(self, engine: Any, batchdata: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        batch = to_device(batchdata, self.state.device)
        output: dict[str, torch.Tensor] = {"image": batch["image"]}
        for target, name in enumerate(self.contrasts.names):
            available = torch.ones(batch["image"].shape[:2], dtype=torch.bool, device=self.state.device)
            available[:, self.contrasts.index(name)] = False
            result = self.synthesizer(batch, available)
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
    """Inference on whole studies: synthesises the absent contrasts of every slice, in batches of slices.

    ``engine.state.output`` is the loaded study with ``"synthesised"`` ``(C, X, Y, Z)`` in [-1, 1], where the channels
    of the acquired contrasts are those that were acquired, and ``"prior_sources"`` (absent contrast to the acquired
    contrast that its prior came from); ``postprocessing`` gets it and writes it. Slices without brain stay background.

    Args:
        device: where to run.
        val_data_loader: yields one loaded study at a time.
        synthesizer: the method; it needs an encoder and a codebook.
        contrasts: the contrast set.
        slice_batch_size: how many slices go through the network together.
        postprocessing: a transform of the study, such as :class:`apt_monai.data.SaveSyntheticStudyd`.
        val_handlers: as in MONAI's evaluators.

    Raises:
        ValueError: ``slice_batch_size`` is below 1.
    """

    def __init__(
        self,
        device: str | torch.device,
        val_data_loader: Iterable,
        synthesizer: Synthesizer,
        contrasts: str | ContrastSet,
        slice_batch_size: int = 8,
        postprocessing: Transform | Callable | None = None,
        val_handlers: Sequence | None = None,
    ) -> None:
        if slice_batch_size < 1:
            raise ValueError(f"slice_batch_size is {slice_batch_size}: valid is 1 or more")
        super().__init__(device=device, val_data_loader=val_data_loader, val_handlers=val_handlers, decollate=False)
        self.synthesizer = synthesizer
        self.contrasts = get_contrast_set(contrasts) if isinstance(contrasts, str) else contrasts
        self.slice_batch_size = slice_batch_size
        self.study_postprocessing = postprocessing

    def _iteration(self, engine: Any, batchdata: Mapping[str, Any]) -> dict[str, Any]:
        study = dict(batchdata)
        output = {**study, **self.synthesize(study)}
        return self.study_postprocessing(output) if self.study_postprocessing else output

    def synthesize(self, study: Mapping[str, Any]) -> dict[str, Any]:
        """``"synthesised"`` and ``"prior_sources"`` of one loaded study (see the class)."""
        image, region, available = (_plain(study[key]) for key in ("image", "region", "available"))
        acquired = [name for name, has in zip(self.contrasts.names, available.tolist(), strict=True) if has]
        missing = [name for name in self.contrasts.names if name not in acquired]
        with_brain = torch.nonzero((region > 0).any(dim=0).any(dim=0).any(dim=0)).flatten()  # slice indices
        chunks = with_brain.split(self.slice_batch_size)
        synthesised = torch.where(available[:, None, None, None], image, torch.full_like(image, -1.0))
        passes = len(chunks) * self.synthesizer.inferer.network_passes()
        what = f"{study['subject']}: {', '.join(missing)}"
        with tqdm(total=passes, desc=what, unit="pass", disable=not is_lead()) as bar:
            for indices in chunks:
                batch = {
                    "image": image[..., indices].permute(3, 0, 1, 2).to(self.state.device),  # (b, C, X, Y)
                    "region": region[..., indices].permute(3, 0, 1, 2).to(self.state.device),
                    "subject": [study["subject"]] * len(indices),
                    "slice": indices.tolist(),
                }
                mask = available.expand(len(indices), -1).to(self.state.device)
                result = self.synthesizer(batch, mask, progress=bar.update)["image"]
                synthesised[..., indices] = result.permute(1, 2, 3, 0).cpu()
        sources = {}
        if self.synthesizer.codebook is not None:
            sources = {target: self.synthesizer.codebook.lookup(target, acquired).source for target in missing}
        return {"synthesised": synthesised, "prior_sources": sources}


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.as_tensor() if isinstance(tensor, MetaTensor) else tensor
