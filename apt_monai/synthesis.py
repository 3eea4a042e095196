"""A study in, its absent volumes out, for any method."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from tqdm import tqdm

from apt_monai import __version__
from apt_monai.contrasts import CONTRAST_SETS
from apt_monai.data.writers import SaveSyntheticStudyd, pending_studies, without_targets
from apt_monai.distributed import is_lead
from apt_monai.errors import StudyError
from apt_monai.hardware import describe
from apt_monai.methods import Method
from apt_monai.models import load as load_method
from apt_monai.places import find_model
from apt_monai.preprocessing.output import preprocessing_findings
from apt_monai.quality import REFERENCE, Reference, Volumes, check_study

logger = logging.getLogger(__name__)


def load(
    model: str | Path = "brats",
    device: str | torch.device | None = None,
    precision: str = "auto",
    seed: int = 0,
    sampling: Mapping[str, Any] | None = None,
    slice_batch_size: int = 8,
    dtype: str = "float32",
    method: str | None = None,
    prior: bool = False,
) -> Synthesizer:
    """A model, ready to synthesise: what ``apt_monai.load`` is.

    Args:
        model: the folder of a trained model; or ``"brats"`` or ``"adni"``: your training of that bundle, if there is
            one, else the phantom weights that come with it.
        device: where to compute; None: the GPU if there is one, else the CPU.
        precision: ``"auto"`` (what the device computes natively), ``"float32"`` or ``"bfloat16"``.
        seed: of the noise.
        sampling: what takes the place of the model's own sampling settings, such as ``{"unroll_iterations": 0}``.
        slice_batch_size: how many slices go through the network together.
        dtype: how voxels are stored, ``"float32"`` or ``"int16"``.
        method: of ``"brats"`` and ``"adni"``: ``"direct"``, our own method, or ``"published"``, the paper's; None: the
            one that you trained, and ours where you trained both or neither.
        prior: whether the prior is written too, see :class:`Synthesizer`.

    Raises:
        ModelError: see :func:`apt_monai.models.load`.
        ValueError: a setting outside its range; the message names it.
    """
    folder = find_model(None, f"apt_{model}", method=method) if str(model) in CONTRAST_SETS else Path(model)
    synthesizer = Synthesizer(load_method(folder, device, precision, seed, sampling), slice_batch_size, dtype, prior)
    if (folder / REFERENCE).is_file():
        synthesizer.reference = Reference.load(folder / REFERENCE, synthesizer.contrasts)
    return synthesizer


class Synthesizer:
    """From studies to the volumes that they lack; what the bundles, the command line and Python use.

    Args:
        method: what synthesises.
        slice_batch_size: how many slices go through the network together.
        dtype: how voxels are stored, ``"float32"`` or ``"int16"``.
        prior: whether what a volume was started from is written beside it, of a method that starts from a prior (the
            published one): ``…_SYNTHETIC_prior.nii.gz``, which a report shows.

    Attributes:
        reference: what the contrasts looked like in training, for quality control; None: how they look is not judged.

    Raises:
        ValueError: ``slice_batch_size`` is below 1, or an unknown dtype.
    """

    def __init__(self, method: Method, slice_batch_size: int = 8, dtype: str = "float32", prior: bool = False) -> None:
        if slice_batch_size < 1:
            raise ValueError(f"slice_batch_size is {slice_batch_size}: valid is 1 or more")
        self.method = method
        self.contrasts = method.contrasts
        self.preprocessing = method.preprocessing
        self.slice_batch_size = slice_batch_size
        self.dtype = dtype
        self.layers = {"synthesised": "image", "uncertainty": "uncertainty"} | ({"prior": "prior"} if prior else {})
        self.reference: Reference | None = None
        self.writer(".")  # refuses what is wrong now, not after the first study

    def synthesize(
        self, study: Mapping[str, str | Path], out: str | Path, targets: Sequence[str] | None = None
    ) -> dict[str, Path]:
        """Write what a study lacks as NIfTI, on the acquired grid, each with a JSON sidecar.

        Args:
            study: by contrast, what was acquired: a NIfTI file or a DICOM series, on one grid and skull-stripped; also
                ``"subject"``, what the volumes are called (``"study"`` without it), ``"mask"`` and ``"seg"``, as
                :class:`apt_monai.transforms.LoadStudyd` takes them.
            out: the folder to write to; ``<out>/<subject>/<subject>_<contrast>_SYNTHETIC.nii.gz``.
            targets: the contrasts to write; None: all that the study lacks. One that was acquired, but spoilt, is then
                not used as a source.

        Returns:
            By contrast, the path of what was written.

        Raises:
            StudyError: the study cannot be used, or nothing is left to synthesise, or to synthesise from.
            ValueError: an unknown contrast among the targets.
            OSError: a file cannot be written.
        """
        named = {"subject": "study"} | {key: str(value) for key, value in study.items()}
        (prepared,) = without_targets([named], self.contrasts, targets)
        if set(self.contrasts.names) <= set(prepared):
            raise StudyError(
                f"nothing to synthesise: every contrast is given ({', '.join(self.contrasts.names)}); name those that "
                "are to be synthesised nevertheless as targets"
            )
        loaded = self.preprocessing(prepared)
        found = self.findings(loaded)
        written = self.writer(out, targets)({**loaded, "findings": found, **self.volumes(loaded)})["written"]
        return {contrast: Path(path) for contrast, path in written.items()}

    def pending(
        self, studies: Sequence[Mapping[str, str]], out: str | Path, targets: Sequence[str] | None = None
    ) -> list[dict[str, str]]:
        """The studies that are still to be synthesised; see :func:`apt_monai.data.writers.pending_studies`."""
        return pending_studies(studies, out, self.contrasts, self.provenance, self.dtype, targets)

    def writer(self, out: str | Path, targets: Sequence[str] | None = None) -> SaveSyntheticStudyd:
        """What writes a study that has been loaded and its ``"synthesised"`` volumes."""
        computed_on = describe(self.method.device, self.method.precision)
        return SaveSyntheticStudyd(
            out, self.preprocessing, self.provenance, self.dtype, computed_on, targets, self.method.output_range
        )

    @property
    def provenance(self) -> dict[str, Any]:
        """All that a volume depends on beside its sources, as its sidecar holds it."""
        return {"apt_monai_version": __version__, **self.method.provenance}

    def findings(self, study: Mapping[str, Any]) -> list[dict[str, str]]:
        """What quality control finds in a study that has been loaded; each finding goes into the log, too.

        Args:
            study: as :class:`apt_monai.transforms.StudyPreprocessing` returns it; its raw intensities tell what scaled
                ones don't.

        Returns:
            The findings as a sidecar holds them (:class:`apt_monai.quality.Finding`), and those of preprocessing.
        """
        brain = torch.where(_plain(study["region"]) > 0, 1.0, -1.0)
        inside = self.preprocessing.restore(brain, study).as_tensor()[0].numpy() > 0
        affine = np.asarray(study["image"].meta["original_affine"])
        volumes = Volumes({name: volume.numpy() for name, volume in study["raw"].items()}, inside, affine)
        found = check_study(volumes, self.contrasts, self.reference)
        for finding in found:
            logger.warning("%s: %s", study["subject"], finding)
        prepared = preprocessing_findings(next(iter(study["paths"].values())))  # the log had them already
        return [*prepared, *(finding.to_dict() for finding in found)]

    def volumes(self, study: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Synthesise every slice of a study that has been loaded.

        Args:
            study: as :class:`apt_monai.transforms.StudyPreprocessing` returns it.

        Returns:
            ``"synthesised"``: ``(C, H, W, Z)`` in [-1, 1] on the slices' grid, the acquired contrasts as they are, the
            absent ones synthesised; slices without brain are background. Where the method says how far off it may be,
            ``"uncertainty"``: the same of that, 0 where the study is known. Where it starts from a prior, and that is
            asked for, ``"prior"``.
        """
        image, region, available = (_plain(study[key]) for key in ("image", "region", "available"))
        missing = [name for name, has in zip(self.contrasts.names, available.tolist(), strict=True) if not has]
        with_brain = torch.nonzero((region > 0).any(dim=0).any(dim=0).any(dim=0)).flatten()  # slice indices
        chunks = with_brain.split(self.slice_batch_size)
        device = self.method.device
        made = {"synthesised": torch.where(available[:, None, None, None], image, torch.full_like(image, -1.0))}
        what = f"{study['subject']}: {', '.join(missing)}"
        with tqdm(total=len(chunks) * self.method.passes, desc=what, unit="pass", disable=not is_lead()) as bar:
            for indices in chunks:
                batch = {
                    "image": image[..., indices].permute(3, 0, 1, 2).to(device),  # (b, C, X, Y)
                    "region": region[..., indices].permute(3, 0, 1, 2).to(device),
                    "subject": [study["subject"]] * len(indices),
                    "slice": indices.tolist(),
                }
                mask = available.expand(len(indices), -1).to(device)
                result = self.method(batch, mask, progress=bar.update)
                for key, source in self.layers.items():
                    if source in result:
                        volume = made.setdefault(key, torch.zeros_like(image))
                        volume[..., indices] = result[source].permute(1, 2, 3, 0).cpu()
        return made


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.as_tensor() if isinstance(tensor, MetaTensor) else tensor
