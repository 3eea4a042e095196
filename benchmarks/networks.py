"""Networks and slices of the paper's sizes, with random values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from monai.networks.nets import DiffusionModelUNet
from monai.networks.schedulers import DDPMScheduler
from open_clip.timm_model import TimmModel
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from apt_monai.codebook import CodebookEntry, PriorCodebook
from apt_monai.contrasts import BRATS
from apt_monai.engines import to_device
from apt_monai.inferers import TwoStageInferer
from apt_monai.methods import APT
from apt_monai.networks import MutualInformationFusion, PublishedDenoiser, VisionEncoder, write_untrained_encoder
from apt_monai.transforms import StudyPreprocessing
from apt_monai.transforms.bezier import BEZIER_CURVES
from benchmarks.workloads import MISSING, Variant, Workload


def make_method(workload: Workload, variant: Variant, s: int, n: int, encoder_folder: str, device: torch.device) -> APT:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = DiffusionModelUNet(**workload.network_settings)
        fusion = MutualInformationFusion()
        with torch.no_grad():
            for p in network.parameters():
                if not p.any():  # MONAI starts some layers at zero, and a trained network has none
                    nn.init.normal_(p, std=0.02)
    network = network.to(device).eval()
    if variant.fast:
        network = network.to(memory_format=torch.channels_last)
    scheduler = paper_scheduler()
    inferer = TwoStageInferer(scheduler, sampling_steps=s, unroll_iterations=n, guidance_scale=variant.guidance_scale)
    denoiser = PublishedDenoiser(network, scheduler, "bfloat16" if variant.fast else "float32")
    encoder = VisionEncoder(encoder_folder).to(device)
    entries = {
        target: [CodebookEntry(source, "unchanged", 1, 1.0, 1.0) for source in BRATS.names if source != target]
        for target in BRATS.names
    }
    codebook = PriorCodebook(BRATS, entries, BEZIER_CURVES, encoder.fingerprint, encoder.source, "", 0, 0)
    preprocessing = StudyPreprocessing(BRATS, workload.image_size)
    return APT(denoiser, fusion.to(device), inferer, preprocessing, codebook, encoder)


def paper_scheduler() -> DDPMScheduler:
    return DDPMScheduler(num_train_timesteps=1000, schedule="cosine")


def make_batch(workload: Workload, slices: int, device: torch.device) -> tuple[dict[str, Any], Tensor]:
    """Slices of noise in a round brain, and the mask of the acquired contrasts."""
    size = workload.image_size
    axis = torch.linspace(-1, 1, size)
    brain = (axis[:, None].square() + axis.square() < 0.5)[None, None].expand(slices, 1, -1, -1)
    noise = torch.rand(slices, len(BRATS), size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    batch = {
        "image": torch.where(brain, noise, torch.full_like(noise, -1.0)),
        "region": brain.to(torch.uint8),
        "subject": ["noise"] * slices,
        "slice": list(range(slices)),
    }
    available = torch.tensor(BRATS.mask(name for name in BRATS.names if name != MISSING)).expand(slices, -1)
    return to_device(batch, device), available.to(device)


def write_encoder(folder: Path, model: str | None) -> str:
    """A vision encoder of the real architecture with random weights, in the layout of BiomedCLIP's files."""
    if model is None:
        return str(write_untrained_encoder(folder))
    folder.mkdir()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tower = TimmModel(model, embed_dim=512, pool="", proj="linear", pretrained=False)
    weights = {f"visual.{name}": value.contiguous() for name, value in tower.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    vision = {"timm_model_name": model, "timm_pool": "", "timm_proj": "linear", "image_size": 224}
    clip = {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]}
    config = {"model_cfg": {"embed_dim": 512, "vision_cfg": vision}, "preprocess_cfg": clip}
    (folder / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
    return str(folder)


def describe_network(workload: Workload) -> dict[str, Any]:
    """The U-Net's parameters, and the floating-point operations of a forward pass with one slice."""
    with torch.device("meta"):
        network = DiffusionModelUNet(**workload.network_settings)
    x = torch.empty(1, len(BRATS), workload.image_size, workload.image_size, device="meta")
    context = torch.empty(1, 1, 512, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(x=x, timesteps=torch.empty(1, device="meta"), context=context)
    return {"parameters": sum(p.numel() for p in network.parameters()), "operations": counter.get_total_flops()}
