"""The frozen vision encoder (paper, section 3.1): one feature vector for each contrast of a slice.

The paper's encoder is the vision tower of BiomedCLIP, read from the Hugging Face hub or from a folder that holds
the same two files. The text tower is neither built nor loaded.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from open_clip.model import _build_vision_tower
from open_clip.pretrained import download_pretrained_from_hf
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from apt_monai.files import complete_folder, write_text

logger = logging.getLogger(__name__)

HUB_PREFIX = "hf-hub:"
CONFIG_NAME = "open_clip_config.json"
WEIGHTS_NAMES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
"""Where both are there, the first is read, as open_clip does."""

UNTRAINED_CONFIG: dict[str, Any] = {
    "model_cfg": {
        "embed_dim": 512,
        "vision_cfg": {
            "image_size": 64,
            "patch_size": 32,
            "width": 192,
            "head_width": 64,
            "layers": 2,
            "pool_type": "avg",
            "final_ln_after_pool": True,
        },
    },
    "preprocess_cfg": {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]},
    "untrained": True,
}
"""What :func:`write_untrained_encoder` writes: 1.6 M parameters, 6 MB; the mean and std are BiomedCLIP's."""


class VisionEncoder(nn.Module):
    """A frozen open_clip vision tower: slices in, one feature vector a contrast out.

    No parameter asks for a gradient, and the module stays in evaluation mode whatever :meth:`train` is given.

    Args:
        source: ``"hf-hub:OWNER/NAME"`` (the paper's is
            ``"hf-hub:microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224"``; only this form uses the network), or
            a local folder with ``open_clip_config.json`` and ``open_clip_model.safetensors`` or
            ``open_clip_pytorch_model.bin``.
        cache_dir: where files from the hub are kept; None is the hub's own cache.

    Attributes:
        embed_dim: the length D of a feature vector (BiomedCLIP: 512).
        image_size: height and width in pixels that the tower takes (BiomedCLIP: 224, 224).
        fingerprint: 16 hexadecimal digits that name the weights and the preprocessing, the same on every device and
            for every place that the same files are read from.
        untrained: True for an encoder of :func:`write_untrained_encoder`.

    Raises:
        FileNotFoundError: the folder or one of its files is missing, or the hub cannot be reached.
        ValueError: the config or the weights cannot be read, or do not fit each other.

    Example::

        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     encoder = VisionEncoder(str(write_untrained_encoder(folder)))
        >>> encoder(torch.rand(2, 4, 48, 48) * 2 - 1).shape  # two slices of four contrasts
        torch.Size([2, 4, 512])
    """

    def __init__(self, source: str, cache_dir: str | None = None) -> None:
        super().__init__()
        config_path, weights_path = _find_files(source, cache_dir)
        config = _read_config(config_path)
        model_cfg, preprocess_cfg = config["model_cfg"], config["preprocess_cfg"]

        self.source = source
        self.embed_dim: int = model_cfg["embed_dim"]
        self.untrained: bool = config.get("untrained", False)
        self.tower = _build_tower(model_cfg, config_path)
        _load_weights(self.tower, weights_path, config_path)
        self.requires_grad_(False)
        self.train(False)

        size = model_cfg["vision_cfg"].get("image_size", 224)
        self.image_size: tuple[int, int] = (size, size) if isinstance(size, int) else (size[0], size[1])
        self.mean: Tensor
        self.std: Tensor
        for name in ("mean", "std"):
            values = torch.tensor(preprocess_cfg[name], dtype=torch.float32).view(1, 3, 1, 1)
            self.register_buffer(name, values, persistent=False)
        self.fingerprint = _fingerprint(self.tower, model_cfg, preprocess_cfg)
        if self.untrained:
            logger.warning(
                "UNTRAINED vision encoder in %s: its weights are random and its features mean nothing. It is for "
                "demonstration only; name BiomedCLIP or a folder with its files for real work.",
                source,
            )

    def train(self, mode: bool = True) -> VisionEncoder:
        """Stay in evaluation mode: the encoder is frozen."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Encode each contrast of each slice.

        Computed in float32 even under autocast, so that a slice's features are the same in training and inference.

        Args:
            images: (B, C, H, W) float32 in [-1, 1], any H and W.

        Returns:
            (B, C, D) float32 features, not normalised.

        Raises:
            ValueError: ``images`` is not 4D.
        """
        if images.ndim != 4:
            raise ValueError(f"images has shape {tuple(images.shape)}: give slices as (B, C, H, W)")
        b, c = images.shape[:2]
        with torch.autocast(images.device.type, enabled=False):
            grey = (images.float().flatten(0, 1).unsqueeze(1) + 1) / 2  # (B*C, 1, H, W) in [0, 1]
            # antialias acts only where the slice is made smaller
            grey = F.interpolate(grey, self.image_size, mode="bilinear", align_corners=False, antialias=True)
            features = self.tower((grey.expand(-1, 3, -1, -1) - self.mean) / self.std)  # (B*C, D)
        return features.unflatten(0, (b, c))  # (B, C, D)


def write_untrained_encoder(folder: str | os.PathLike[str], seed: int = 0) -> Path:
    """Write a small vision tower with random weights, in the layout of a real one, for demonstrations and tests.

    A usual random initialisation gives nearly the same vector for every slice (cosine similarities of about 0.98).
    This one keeps slices apart and what they show readable, by three choices: large patches (a patch's content, not
    only its mean, survives a random projection), patch filters with zero mean (the air around the head, equal in every
    slice, adds nothing) and a gain of 0.7 in the blocks (nearly linear). Weights are made of integers of NumPy's
    frozen ``RandomState`` stream, so a seed gives the same bytes on every machine, and no global generator is touched.

    Args:
        folder: where the two files go; made if it is not there, replaced if it holds an untrained encoder.
        seed: names the weights.

    Returns:
        The folder, to be given to :class:`VisionEncoder`.

    Raises:
        FileExistsError: the folder holds something else than an untrained encoder; it is left as it is.

    Example::

        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     sorted(path.name for path in write_untrained_encoder(folder, seed=1).iterdir())
        ['open_clip_config.json', 'open_clip_model.safetensors']
    """
    folder = Path(folder)
    others = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if CONFIG_NAME in others and _read_config(folder / CONFIG_NAME).get("untrained", False):
        others -= {CONFIG_NAME, WEIGHTS_NAMES[0]}
    if others:
        raise FileExistsError(
            f"{folder}: holds {', '.join(sorted(others))}, not an untrained encoder alone; choose another folder"
        )

    tower = _build_tower(UNTRAINED_CONFIG["model_cfg"], folder / CONFIG_NAME)
    rng = np.random.RandomState(seed)
    state = {f"visual.{name}": _initial_value(name, value, rng) for name, value in tower.state_dict().items()}

    with complete_folder(folder) as partial:
        save_file(state, partial / WEIGHTS_NAMES[0])
        write_text(partial / CONFIG_NAME, json.dumps(UNTRAINED_CONFIG, indent=2) + "\n")
        shutil.rmtree(folder, ignore_errors=True)  # one of our own, as seen above
    return folder


def _initial_value(name: str, value: Tensor, rng: np.random.RandomState) -> Tensor:
    """Norms are the identity, biases zero, the rest uniform with variance gain²/fan_in."""
    if value.ndim < 2 and name != "class_embedding":
        return torch.ones_like(value) if name.endswith(".weight") else torch.zeros_like(value)
    # multiples of 2^-15 in [-1, 1]: their sums are exact, so the mean below is the same on every machine
    uniform = rng.randint(-(2**15), 2**15 + 1, size=tuple(value.shape), dtype=np.int32) / 2**15
    if name == "conv1.weight":
        uniform -= uniform.mean(axis=(1, 2, 3), keepdims=True)
    fan_in = value.shape[0] if name == "proj" else value[0].numel() if value.ndim > 1 else value.numel()
    gain = 0.7 if name.startswith("transformer.") else 1.0
    return torch.from_numpy((uniform * (gain * np.sqrt(3 / fan_in))).astype(np.float32))


def _find_files(source: str, cache_dir: str | None) -> tuple[Path, Path]:
    """The config and the weights of a source."""
    if source.startswith(HUB_PREFIX):
        model_id = source.removeprefix(HUB_PREFIX)
        try:
            config_path = download_pretrained_from_hf(model_id, filename=CONFIG_NAME, cache_dir=cache_dir)
            return Path(config_path), Path(download_pretrained_from_hf(model_id, cache_dir=cache_dir))
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{source}: cannot be fetched from the hub ({error}). Without network, copy {CONFIG_NAME} and "
                f"{' or '.join(WEIGHTS_NAMES)} of this model into a folder and name that folder instead"
            ) from error
    folder = Path(source)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{source}: no such folder. Name a folder with {CONFIG_NAME} and {' or '.join(WEIGHTS_NAMES)}, "
            f"or {HUB_PREFIX}OWNER/NAME"
        )
    if not (folder / CONFIG_NAME).is_file():
        raise FileNotFoundError(f"{folder / CONFIG_NAME}: no such file. A vision encoder's folder must hold it")
    for name in WEIGHTS_NAMES:
        if (folder / name).is_file():
            return folder / CONFIG_NAME, folder / name
    raise FileNotFoundError(f"{folder}: no weights. A vision encoder's folder must hold {' or '.join(WEIGHTS_NAMES)}")


def _read_config(path: Path) -> dict[str, Any]:
    """An open_clip config, its fields that are used here checked."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: is not JSON ({error}). Copy the file again") from error

    def field(name: str, parent: Any, kind: type) -> Any:
        value = parent.get(name.split(".")[-1]) if isinstance(parent, dict) else None
        if not isinstance(value, kind):
            raise ValueError(
                f"{path}: {name} is {value!r}, must be of type {kind.__name__}. Give the open_clip config of a model"
            )
        return value

    model_cfg = field("model_cfg", config, dict)
    field("model_cfg.embed_dim", model_cfg, int)
    field("model_cfg.vision_cfg", model_cfg, dict)
    preprocess_cfg = field("preprocess_cfg", config, dict)
    for name in ("mean", "std"):
        values = field(f"preprocess_cfg.{name}", preprocess_cfg, list)
        if len(values) != 3 or not all(isinstance(v, (int, float)) for v in values):
            raise ValueError(f"{path}: preprocess_cfg.{name} is {values!r}, must be three numbers, one a colour")
    return config


def _build_tower(model_cfg: dict[str, Any], config_path: Path) -> nn.Module:
    """The vision tower that open_clip itself would build; its weights are to be loaded afterwards."""
    vision_cfg = {**model_cfg["vision_cfg"], "timm_model_pretrained": False}  # never fetch what is overwritten next
    try:
        with torch.random.fork_rng(devices=[]):
            return _build_vision_tower(model_cfg["embed_dim"], vision_cfg, model_cfg.get("quick_gelu", False))
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{config_path}: open_clip cannot build the vision tower of model_cfg.vision_cfg ({error})"
        ) from error


def _load_weights(tower: nn.Module, weights_path: Path, config_path: Path) -> None:
    """Load the checkpoint's ``visual.*`` keys, every one and no other."""
    try:
        if weights_path.suffix == ".safetensors":
            checkpoint = load_file(weights_path)
        else:
            checkpoint = torch.load(weights_path, map_location="cpu", weights_only=True)
        given = {key.removeprefix("visual."): v for key, v in checkpoint.items() if key.startswith("visual.")}
    except Exception as error:  # a damaged file can raise nearly anything
        raise ValueError(f"{weights_path}: cannot be read as weights ({error}). Copy the file again") from error

    expected = tower.state_dict()
    problems = [f"visual.{key} is missing" for key in expected if key not in given]
    problems += [f"visual.{key} is not part of the tower" for key in given if key not in expected]
    problems += [
        f"visual.{key} has shape {tuple(given[key].shape)} instead of {tuple(value.shape)}"
        for key, value in expected.items()
        if key in given and given[key].shape != value.shape
    ]
    if problems:
        raise ValueError(
            f"{weights_path}: the weights do not fit the vision tower of {config_path}: {'; '.join(problems[:4])}"
            f"{f'; and {len(problems) - 4} more' if len(problems) > 4 else ''}. Use the two files of one model"
        )
    tower.load_state_dict(given)


def _fingerprint(tower: nn.Module, model_cfg: dict[str, Any], preprocess_cfg: dict[str, Any]) -> str:
    """Taken on the CPU, before the module moves anywhere."""
    used = [model_cfg["embed_dim"], model_cfg["vision_cfg"], model_cfg.get("quick_gelu", False)]
    used += [preprocess_cfg["mean"], preprocess_cfg["std"]]
    digest = hashlib.sha256(json.dumps(used, sort_keys=True).encode())
    for name, value in sorted(tower.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)}".encode())
        digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
