"""Tests of apt_monai.networks.vision_encoder."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from apt_monai.networks import VisionEncoder, vision_encoder, write_untrained_encoder

MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
BIOMEDCLIP = "microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224"


def biomedclip_config(timm_model_name: str = "vit_base_patch16_224") -> dict[str, Any]:
    """The layout of BiomedCLIP's open_clip_config.json."""
    text = "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract"
    return {
        "model_cfg": {
            "embed_dim": 512,
            "vision_cfg": {
                "timm_model_name": timm_model_name,
                "timm_model_pretrained": False,
                "timm_pool": "",
                "timm_proj": "linear",
                "image_size": 224,
            },
            "text_cfg": {
                "hf_model_name": text,
                "hf_tokenizer_name": text,
                "hf_proj_type": "mlp",
                "hf_pooler_type": "cls_last_hidden_state_pooler",
                "context_length": 256,
            },
        },
        "preprocess_cfg": {"mean": MEAN, "std": STD},
    }


def write_biomedclip(folder: Path, timm_model_name: str) -> tuple[nn.Module, Tensor]:
    """Write random weights under BiomedCLIP's key names; return the timm model and the projection that hold them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        trunk = timm.create_model(timm_model_name, num_classes=0).eval()
        width = trunk.state_dict()["cls_token"].shape[-1]
        projection = torch.randn(512, width) * width**-0.5
    checkpoint = {f"visual.trunk.{key}": value for key, value in trunk.state_dict().items()}
    checkpoint["visual.head.proj.weight"] = projection
    checkpoint["logit_scale"] = torch.tensor(4.0)
    checkpoint["text.transformer.embeddings.word_embeddings.weight"] = torch.zeros(10, 4)
    checkpoint["text.proj.0.weight"] = torch.zeros(4, 4)
    folder.mkdir()
    torch.save(checkpoint, folder / "open_clip_pytorch_model.bin")
    (folder / "open_clip_config.json").write_text(json.dumps(biomedclip_config(timm_model_name)))
    return trunk, projection


def check_against_naive_computation(folder: Path, trunk: nn.Module, projection: Tensor, *shape: int) -> None:
    images = torch.rand(*shape, generator=torch.Generator().manual_seed(1)) * 2 - 1
    features = VisionEncoder(str(folder))(images)
    assert features.shape == (*shape[:2], 512)
    for b in range(shape[0]):
        for c in range(shape[1]):
            grey = (images[b, c] + 1) / 2
            grey = F.interpolate(grey[None, None], (224, 224), mode="bilinear", antialias=True)[0, 0]
            rgb = torch.stack([(grey - MEAN[i]) / STD[i] for i in range(3)])
            with torch.no_grad():
                expected = projection @ trunk(rgb[None])[0]
            torch.testing.assert_close(features[b, c], expected, rtol=1e-4, atol=1e-4)


@pytest.fixture
def untrained(tmp_path: Path) -> Path:
    return write_untrained_encoder(tmp_path / "encoder")


def slices(seed: int, count: int, size: int = 64) -> Tensor:
    """(count, 1, size, size) in [-1, 1]: smooth random blobs in a dark surround."""
    noise = torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    blobs = F.interpolate(noise, (size, size), mode="bicubic").clamp(0, 1)
    y, x = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")
    return torch.where(x**2 + y**2 < 0.7, blobs, torch.zeros(())) * 2 - 1


def test_checkpoint_with_the_keys_of_biomedclip_gives_the_features_of_the_timm_model(tmp_path: Path) -> None:
    trunk, projection = write_biomedclip(tmp_path / "clip", "vit_tiny_patch16_224")
    check_against_naive_computation(tmp_path / "clip", trunk, projection, 1, 2, 240, 240)


@pytest.mark.slow
def test_checkpoint_of_the_real_architecture_gives_the_features_of_the_timm_model(tmp_path: Path) -> None:
    trunk, projection = write_biomedclip(tmp_path / "clip", "vit_base_patch16_224")
    check_against_naive_computation(tmp_path / "clip", trunk, projection, 1, 2, 64, 64)
    encoder = VisionEncoder(str(tmp_path / "clip"))
    assert (encoder.embed_dim, encoder.image_size, encoder.untrained) == (512, (224, 224), False)


def test_hub_source_reads_the_files_that_open_clip_fetches(untrained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fetch(model_id: str, filename: str = "open_clip_model.safetensors", cache_dir: str | None = None) -> str:
        asked.append((model_id, filename, cache_dir))
        return str(untrained / filename)

    monkeypatch.setattr(vision_encoder, "download_pretrained_from_hf", fetch)
    encoder = VisionEncoder(f"hf-hub:{BIOMEDCLIP}", cache_dir="cache")
    assert encoder.fingerprint == VisionEncoder(str(untrained)).fingerprint
    assert asked[0] == (BIOMEDCLIP, "open_clip_config.json", "cache")


def test_unreachable_hub_says_how_to_work_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> str:
        raise FileNotFoundError("no route to host")

    monkeypatch.setattr(vision_encoder, "download_pretrained_from_hf", fail)
    with pytest.raises(FileNotFoundError, match=r"no route to host.*copy open_clip_config.json.*into a folder"):
        VisionEncoder(f"hf-hub:{BIOMEDCLIP}")


def test_each_slice_is_encoded_alone(untrained: Path) -> None:
    encoder = VisionEncoder(str(untrained))
    images = slices(0, 6, size=40).view(2, 3, 40, 40)
    features = encoder(images)
    assert features.shape == (2, 3, 512) and features.dtype == torch.float32
    torch.testing.assert_close(features[1, 2], encoder(images[1:, 2:])[0, 0])


def test_encoder_is_frozen_and_stays_in_evaluation_mode(untrained: Path) -> None:
    encoder = VisionEncoder(str(untrained)).train()
    assert not encoder.training and not encoder.tower.training
    assert not any(p.requires_grad for p in encoder.parameters())
    assert not encoder(slices(0, 1).requires_grad_()).requires_grad


def test_features_do_not_depend_on_autocast(untrained: Path) -> None:
    encoder = VisionEncoder(str(untrained))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = encoder(slices(0, 2))
    torch.testing.assert_close(features, encoder(slices(0, 2)), rtol=0, atol=0)


def test_images_that_are_not_4d_are_refused(untrained: Path) -> None:
    with pytest.raises(ValueError, match=r"\(4, 64, 64\).*\(B, C, H, W\)"):
        VisionEncoder(str(untrained))(torch.zeros(4, 64, 64))


def test_untrained_encoder_says_so_loudly(untrained: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert VisionEncoder(str(untrained)).untrained
    assert "UNTRAINED vision encoder" in caplog.text and "demonstration only" in caplog.text


def test_same_seed_same_bytes_and_another_seed_another_fingerprint(tmp_path: Path) -> None:
    folders = [write_untrained_encoder(tmp_path / name, seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    bytes_ = [(folder / "open_clip_model.safetensors").read_bytes() for folder in folders]
    assert bytes_[0] == bytes_[1] and len(bytes_[0]) < 10e6
    prints = [VisionEncoder(str(folder)).fingerprint for folder in folders]
    assert prints[0] == prints[1] != prints[2]
    assert len(prints[0]) == 16 and int(prints[0], 16) >= 0


def test_fingerprint_depends_on_the_preprocessing_and_not_on_the_kind_of_file(untrained: Path, tmp_path: Path) -> None:
    before = VisionEncoder(str(untrained)).fingerprint
    weights = load_file(untrained / "open_clip_model.safetensors")
    torch.save(weights, untrained / "open_clip_pytorch_model.bin")
    (untrained / "open_clip_model.safetensors").unlink()
    assert VisionEncoder(str(untrained)).fingerprint == before
    config = json.loads((untrained / "open_clip_config.json").read_text())
    config["preprocess_cfg"]["mean"] = [0.5, 0.5, 0.5]
    (untrained / "open_clip_config.json").write_text(json.dumps(config))
    assert VisionEncoder(str(untrained)).fingerprint != before


def test_global_random_state_is_left_alone(tmp_path: Path) -> None:
    before, before_numpy = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
    VisionEncoder(str(write_untrained_encoder(tmp_path / "encoder")))
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], before_numpy)  # type: ignore[index]


def test_untrained_features_tell_different_slices_apart(untrained: Path) -> None:
    features = F.normalize(VisionEncoder(str(untrained))(slices(0, 32))[:, 0], dim=-1)
    similarity = features @ features.T
    others = similarity[~torch.eye(32, dtype=torch.bool)]
    assert others.mean() < 0.8 and others.std() > 0.05
    blurred = F.avg_pool2d(slices(0, 32), 3, stride=1, padding=1)  # the same anatomy, a little changed
    changed = F.normalize(VisionEncoder(str(untrained))(blurred)[:, 0], dim=-1)
    assert torch.equal((changed @ features.T).argmax(dim=1), torch.arange(32))


def test_untrained_encoder_never_overwrites_a_real_one(tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps(biomedclip_config()))
    with pytest.raises(FileExistsError, match="clip: holds open_clip_config.json, not an untrained encoder"):
        write_untrained_encoder(folder)
    assert [path.name for path in folder.iterdir()] == ["open_clip_config.json"]
    write_untrained_encoder(tmp_path / "own", seed=1)
    write_untrained_encoder(tmp_path / "own", seed=2)  # its own may be replaced
    (tmp_path / "own" / "notes.txt").touch()
    with pytest.raises(FileExistsError, match="own: holds notes.txt"):
        write_untrained_encoder(tmp_path / "own")


def test_interrupted_write_leaves_nothing_or_the_encoder_that_was_there(
    tmp_path: Path, untrained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = VisionEncoder(str(untrained)).fingerprint

    def stop(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(vision_encoder, "write_text", stop)  # the weights are written by then
    for folder in (tmp_path / "other", untrained):
        with pytest.raises(KeyboardInterrupt):
            write_untrained_encoder(folder, seed=1)
    assert [path.name for path in tmp_path.iterdir()] == [untrained.name]
    assert VisionEncoder(str(untrained)).fingerprint == before


@pytest.mark.parametrize("missing", ["open_clip_config.json", "open_clip_model.safetensors"])
def test_missing_file_is_named(untrained: Path, missing: str) -> None:
    (untrained / missing).unlink()
    with pytest.raises(FileNotFoundError, match=missing):
        VisionEncoder(str(untrained))


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        VisionEncoder(str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("model_cfg"), "model_cfg is None, must be of type dict"),
        (lambda c: c["model_cfg"].pop("embed_dim"), "model_cfg.embed_dim is None, must be of type int"),
        (lambda c: c["preprocess_cfg"].update(std=[1.0]), r"preprocess_cfg.std is \[1.0\], must be three numbers"),
        (lambda c: c["model_cfg"]["vision_cfg"].update(depth=3), "cannot build the vision tower.*depth"),
        (lambda c: c["model_cfg"]["vision_cfg"].update(timm_model_name="vit_of_nobody"), "cannot build.*vit_of_nobody"),
    ],
)
def test_wrong_config_is_named_with_its_field(untrained: Path, change: Any, message: str) -> None:
    path = untrained / "open_clip_config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"open_clip_config.json: .*{message}"):
        VisionEncoder(str(untrained))


def test_config_that_is_not_json_is_named(untrained: Path) -> None:
    (untrained / "open_clip_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"open_clip_config.json: is not JSON"):
        VisionEncoder(str(untrained))


@pytest.mark.parametrize("name", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
def test_damaged_weights_are_named(untrained: Path, name: str) -> None:
    (untrained / "open_clip_model.safetensors").unlink()
    (untrained / name).write_bytes(b"not weights at all")
    with pytest.raises(ValueError, match=f"{name}: cannot be read as weights"):
        VisionEncoder(str(untrained))


def test_weights_of_another_tower_are_named_with_their_keys(untrained: Path) -> None:
    path = untrained / "open_clip_model.safetensors"
    weights = load_file(path)
    weights["visual.extra"] = weights.pop("visual.ln_post.weight")
    weights["visual.proj"] = torch.zeros(2, 3)
    save_file(weights, path)
    with pytest.raises(ValueError, match="open_clip_model.safetensors: the weights do not fit") as error:
        VisionEncoder(str(untrained))
    for problem in ("ln_post.weight is missing", "extra is not part", r"proj has shape (2, 3) instead of (192, 512)"):
        assert f"visual.{problem}" in str(error.value)
