"""Weights as a file: what is saved comes back, what does not fit is refused, nothing half-written is left."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_files import almost_full_disk
from torch import nn

from apt_monai.errors import ModelError
from apt_monai.files import file_sha256
from apt_monai.weights import load_weights, save_weights


def test_a_full_disk_is_one_error_that_names_the_folder(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"cannot write fusion.pt in the folder .*File too large"), almost_full_disk(5000):
        save_weights(nn.Linear(100, 100), tmp_path / "fusion.pt")
    assert list(tmp_path.iterdir()) == []


def test_weights_come_back_bit_for_bit(tmp_path: Path) -> None:
    saved = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    save_weights(saved, tmp_path / "model.pt")
    loaded = load_weights(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)), tmp_path / "model.pt")
    for key, value in saved.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)


def test_the_same_weights_give_the_same_bytes(tmp_path: Path) -> None:
    module = nn.Conv2d(3, 2, 3)
    save_weights(module, tmp_path / "a.pt")
    save_weights(module.to(memory_format=torch.channels_last), tmp_path / "folder" / "another name.pt")
    assert file_sha256(tmp_path / "a.pt") == file_sha256(tmp_path / "folder" / "another name.pt")


def test_weights_that_do_not_fit_are_refused_and_named(tmp_path: Path) -> None:
    save_weights(nn.Linear(3, 2), tmp_path / "model.pt")
    with pytest.raises(ModelError, match=r"model.pt: weights that do not fit.*weight \(2, 3\) instead of \(2, 4\)"):
        load_weights(nn.Linear(4, 2), tmp_path / "model.pt")
    with pytest.raises(ModelError, match=r"1 unexpected \(bias\)"):
        load_weights(nn.Linear(3, 2, bias=False), tmp_path / "model.pt")
    network = nn.Sequential(*(nn.Linear(3, 2) for _ in range(3)))
    with pytest.raises(ModelError, match=r"6 missing \(0.weight, 0.bias, 1.weight, ...\); 2 unexpected"):
        load_weights(network, tmp_path / "model.pt")


@pytest.mark.parametrize("size", [0, 100, 1000])
def test_truncated_weights_are_one_clear_error(tmp_path: Path, size: int) -> None:
    path = tmp_path / "model.pt"
    save_weights(nn.Linear(30, 20), path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ModelError, match="model.pt: cannot be read as PyTorch weights"):
        load_weights(nn.Linear(30, 20), path)


def test_a_file_with_more_than_tensors_is_not_unpickled(tmp_path: Path) -> None:
    torch.save(nn.Linear(3, 2), tmp_path / "model.pt")
    with pytest.raises(ModelError, match="not only tensors"):
        load_weights(nn.Linear(3, 2), tmp_path / "model.pt")


def test_a_checkpoint_is_not_taken_for_weights(tmp_path: Path) -> None:
    torch.save({"model": nn.Linear(3, 2).state_dict()}, tmp_path / "model.pt")
    with pytest.raises(ModelError, match="not a state_dict"):
        load_weights(nn.Linear(3, 2), tmp_path / "model.pt")


def test_missing_weights_are_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such weights file"):
        load_weights(nn.Linear(3, 2), tmp_path / "model.pt")
