"""The precision is what the device says that it computes natively; each answer is faked."""

from __future__ import annotations

import platform

import pytest
import torch
from monai.networks.nets import SegResNet

from apt_monai import hardware
from apt_monai.hardware import choose_precision, memory_format, native_precision


def x86_that_says(monkeypatch: pytest.MonkeyPatch, avx512_bf16: bool, amx: bool) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)


@pytest.mark.parametrize(
    ("avx512_bf16", "amx", "expected"),
    [(False, False, "float32"), (True, False, "bfloat16"), (False, True, "bfloat16")],
)
def test_an_x86_cpu_computes_in_bfloat16_only_with_instructions_for_it(
    monkeypatch: pytest.MonkeyPatch, avx512_bf16: bool, amx: bool, expected: str
) -> None:
    x86_that_says(monkeypatch, avx512_bf16, amx)
    assert native_precision("cpu") == expected


def test_a_torch_that_cannot_say_means_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    x86_that_says(monkeypatch, True, True)
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, name)
    assert native_precision("cpu") == "float32"


def test_apples_processors_compute_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    assert native_precision("cpu") == native_precision("mps") == "float32"


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "float32"), ((8, 0), "bfloat16")])
def test_a_gpu_computes_in_bfloat16_from_ampere_on(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert native_precision("cuda") == expected


def test_a_precision_by_hand_stands_and_another_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "native_precision", lambda device: "bfloat16")
    assert choose_precision("cpu") == "bfloat16"
    assert choose_precision("cpu", "float32") == "float32"
    with pytest.raises(ValueError, match="precision is 'half': valid are auto, float32, bfloat16"):
        choose_precision("cpu", "half")


@pytest.mark.parametrize("norm", ["GROUP", "BATCH", "INSTANCE"])
def test_channels_come_last_but_for_a_network_that_normalises_on_a_cpu(norm: str) -> None:
    settings = {"GROUP": ("GROUP", {"num_groups": 2})}
    with_norm = SegResNet(spatial_dims=2, init_filters=4, norm=settings.get(norm, norm))
    without = SegResNet(spatial_dims=2, init_filters=4, norm="")
    assert memory_format("cpu", with_norm) == torch.contiguous_format
    assert memory_format("cpu", without) == torch.channels_last
    assert memory_format("cuda", with_norm) == torch.channels_last
