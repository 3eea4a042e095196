"""What a synthetic contrast is worth to what comes after it: the tumour that a segmentation network finds with it.

The network is small and has seen acquired contrasts alone. Its Dice falls, where an acquired contrast gives way to a
synthetic one, by what the synthesis lost or made up of the tumour.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.losses import DiceCELoss
from monai.networks.nets import SegResNet
from torch import Tensor, nn
from tqdm import trange

from apt_monai.contrasts import ContrastSet, get_contrast_set
from apt_monai.data.slice_cache import CachedStudy
from apt_monai.evaluation.method_slices import MethodSlices
from apt_monai.evaluation.prediction import synthesise
from apt_monai.evaluation.slices import EvaluationSlices
from apt_monai.files import complete_file, json_sha256
from apt_monai.methods import Method

ACQUIRED = "acquired"
"""The method's name in the result with every contrast as it was acquired."""

FILTERS = 16
HALVINGS = (1, 2, 2, 2)  # residual blocks before each of three halvings, and after the last
BATCH_SIZE = 8
LEARNING_RATE = 1e-3
SAVE_EVERY = 500


def train_segmenter(
    studies: Sequence[CachedStudy],
    contrasts: str | ContrastSet,
    path: str | Path,
    iterations: int,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> nn.Module:
    """Train a 2D network to outline tumours in acquired slices, or go on where an earlier training stopped.

    MONAI's SegResNet with Dice and cross-entropy loss; slices of one study a batch, half of them with a tumour where it
    has one, mirrored left to right at random. What an iteration sees depends on (``seed``, iteration) alone, so that on
    one machine's CPU a training that was interrupted ends with the same weights.

    Args:
        studies: training studies in the preprocessing of evaluations, ``StudyPreprocessing(contrasts, size=None)``,
            such as the ``entries`` of :class:`apt_monai.evaluation.EvaluationSlices` of training studies.
        contrasts: the contrast set, or its name.
        path: where the training is kept, every 500 iterations and at the end; one of that many is not trained again.
        iterations: how many in all.
        seed: of the first weights, and of what each iteration sees.
        device: where to train.

    Returns:
        The network: ``(B, C, H, W)`` in [-1, 1], H and W multiples of 8, to logits of the tumour ``(B, 1, H, W)``.

    Raises:
        ValueError: a contrast set without a segmentation, no study with a tumour, a study that lacks a contrast; or
            the file holds another training, or a longer one.
        OSError: the file cannot be written.

    Example::

        >>> import nibabel as nib
        >>> volume = np.random.default_rng(0).integers(1, 99, (12, 12, 6), dtype=np.int16)
        >>> study = {"subject": "a"} | {name: f"a_{name}.nii.gz" for name in ("flair", "t1", "t1ce", "t2", "seg")}
        >>> for name in ("flair", "t1", "t1ce", "t2"):
        ...     nib.save(nib.Nifti1Image(volume, np.eye(4)), study[name])
        >>> nib.save(nib.Nifti1Image((volume > 90).astype(np.uint8), np.eye(4)), study["seg"])
        >>> slices = EvaluationSlices([study], "cache", "brats", slices_per_subject=2)
        >>> network = train_segmenter(slices.entries, "brats", "segmenter.pt", iterations=2)
        >>> network(torch.zeros(1, 4, 16, 16)).shape
        torch.Size([1, 1, 16, 16])
        >>> [sorted(found) for found in dice_with(network, {}, slices)]
        [['dice', 'method', 'subject', 'target']]
    """
    contrasts = get_contrast_set(contrasts)
    rows = _rows(studies, contrasts)
    names = sorted(study.folder.name for study in studies)
    settings = {"contrasts": list(contrasts.names), "seed": seed, "studies_sha256": json_sha256(names)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = SegResNet(2, FILTERS, len(contrasts), 1, blocks_down=HALVINGS, blocks_up=(1, 1, 1)).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE)
    done = _resume(Path(path), settings, iterations, network, optimizer)
    loss_function = DiceCELoss(sigmoid=True, batch=True)
    network.train()
    for iteration in trange(done, iterations, desc="segmenter", disable=done == iterations):
        image, tumour = _batch(studies, rows, np.random.default_rng([seed, iteration]))
        loss = loss_function(network(image.to(device)), tumour.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (iteration + 1) % SAVE_EVERY == 0 or iteration + 1 == iterations:
            _save(Path(path), settings, iteration + 1, network, optimizer)
    return network.eval()


def dice_with(
    network: nn.Module, methods: Mapping[str, Method], slices: EvaluationSlices, device: str | torch.device = "cpu"
) -> list[dict[str, Any]]:
    """The Dice of the tumour in the chosen slices of each study: all contrasts acquired, and one of them synthetic.

    Args:
        network: what :func:`train_segmenter` returns, for the same contrast set.
        methods: by name; each synthesises every contrast in turn from all others.
        slices: of test studies.
        device: where the network and the methods are.

    Returns:
        For each study a dictionary with ``"method"`` (:data:`ACQUIRED`), ``"target"`` (None), ``"subject"`` and
        ``"dice"``; and one for each (method, target), the contrast that is synthetic. The Dice is over all chosen
        slices of the study together, in [0, 1]; NaN where neither they nor the network have a tumour.

    Raises:
        ValueError: a contrast set without a segmentation, or no chosen slice with a tumour.
    """
    _check_segmented(slices.contrasts)
    if not any((slices.study(number).region == 2).any() for number in range(len(slices.studies))):
        raise ValueError(
            f"none of the {len(slices)} slices has a tumour in its segmentation: give test studies with one, or more "
            "slices of each"
        )
    own = {name: MethodSlices(slices, method) for name, method in methods.items()}
    found = []
    for number in range(len(slices.studies)):
        entry, study = slices.entries[number], slices.study(number)
        for name, target, image in _versions(number, own, methods, slices, device):
            shown = _outline(network, entry.fit.fit(image * 2 - 1), device)
            tumour = entry.fit.fit((study.region == 2).float(), fill=0) > 0
            dice = _dice(shown & (entry.fit.fit(study.brain.float(), fill=0) > 0), tumour)
            found.append({"method": name, "target": target, "subject": study.subject, "dice": dice})
    return found


def _versions(
    number: int,
    own: Mapping[str, MethodSlices],
    methods: Mapping[str, Method],
    slices: EvaluationSlices,
    device: str | torch.device,
) -> Iterator[tuple[str, str | None, Tensor]]:
    """A study's slices ``(S, C, X, Y)`` in [0, 1]: as acquired, then with one contrast by a method."""
    study, contrasts = slices.study(number), slices.contrasts
    yield ACQUIRED, None, study.truth
    for name, method in methods.items():
        for channel, target in enumerate(contrasts.names):
            others = [other for other in contrasts.names if other != target]
            result, _ = synthesise(name, method, own[name].batches(number), contrasts, others, device)
            image = study.truth.clone()
            image[:, channel] = own[name].back(number, result, study.brain)["image"][:, channel]
            yield name, target, image


@torch.inference_mode()
def _outline(network: nn.Module, image: Tensor, device: str | torch.device) -> Tensor:
    """Where the network sees a tumour, ``(S, 1, H, W)`` bool, of slices ``(S, C, H, W)`` in [-1, 1]."""
    height, width = image.shape[-2:]
    logits = [network(part.to(device)).cpu() for part in _padded(image, -1).split(BATCH_SIZE)]
    return torch.cat(logits)[..., :height, :width] > 0


def _dice(shown: Tensor, tumour: Tensor) -> float:
    total = int(shown.sum()) + int(tumour.sum())
    return 2 * int((shown & tumour).sum()) / total if total else math.nan


def _rows(studies: Sequence[CachedStudy], contrasts: ContrastSet) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of each study the rows with brain, and those with a tumour."""
    _check_segmented(contrasts)
    for study in studies:
        if not study.available.all():
            absent = [name for name, has in zip(contrasts.names, study.available.tolist(), strict=True) if not has]
            raise ValueError(f"study {study.subject!r} has no {', '.join(absent)}: a segmenter needs every contrast")
    regions = [study.regions.max(axis=(1, 2, 3)) for study in studies]
    if not any((region == 2).any() for region in regions):
        raise ValueError(f"none of the {len(studies)} training studies has a tumour in a segmentation: add some")
    return [(np.flatnonzero(region > 0), np.flatnonzero(region == 2)) for region in regions]


def _check_segmented(contrasts: ContrastSet) -> None:
    if not contrasts.segmentation_suffixes:
        raise ValueError(
            f"the {contrasts.name} contrasts have no segmentation, so there is no tumour to find: give studies that "
            "have one, and name its file's suffix in the contrast set's segmentation_suffixes"
        )


def _batch(
    studies: Sequence[CachedStudy], rows: Sequence[tuple[np.ndarray, np.ndarray]], generator: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Slices of one study ``(B, C, H, W)`` in [-1, 1], and where their tumour is, ``(B, 1, H, W)`` float."""
    number = int(generator.integers(len(studies)))
    brain, tumour = rows[number]
    half = BATCH_SIZE // 2
    chosen = [*generator.choice(brain, half), *generator.choice(tumour if len(tumour) else brain, half)]
    image = torch.stack([studies[number].image(int(row)) for row in chosen])
    outline = torch.from_numpy(np.array(studies[number].regions[chosen]) == 2).float()
    if generator.random() < 0.5:
        image, outline = image.flip(2), outline.flip(2)  # left to right, as slices are oriented to RAS+
    return _padded(image, -1), _padded(outline, 0)


def _padded(slices: Tensor, value: float) -> Tensor:
    """Slices with H and W made multiples of what the network halves, at the end of each axis."""
    factor = 2 ** (len(HALVINGS) - 1)
    height, width = slices.shape[-2:]
    return F.pad(slices, (0, -width % factor, 0, -height % factor), value=value)


def _resume(
    path: Path, settings: Mapping[str, Any], iterations: int, network: nn.Module, optimizer: torch.optim.Optimizer
) -> int:
    """Load what is in the file; how many iterations it has had, 0 where it is not there."""
    if not path.exists():
        return 0
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        found, done = state["settings"], int(state["iteration"])
    except Exception as error:  # a damaged file raises whatever the unpickler stumbles on
        raise ValueError(f"{path}: not the training of a segmenter; delete it, or name another file") from error
    if found != settings or done > iterations:
        what = f"{done} iterations" if found == settings else "other studies, contrasts or another seed"
        raise ValueError(
            f"{path}: holds a segmenter of {what}, and {iterations} iterations of {settings} are wanted; delete it, or "
            "name another file"
        )
    network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    return done


def _save(
    path: Path, settings: Mapping[str, Any], done: int, network: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    buffer = io.BytesIO()  # given a path, torch.save keeps its name in the file, and hides a full disk in an error
    content = {"settings": dict(settings), "iteration": done}
    torch.save({**content, "network": network.state_dict(), "optimizer": optimizer.state_dict()}, buffer)
    with complete_file(path) as partial:
        partial.write_bytes(buffer.getbuffer())
