"""What every test gets, those in tests/ and the examples in docstrings: one thread, no network, a folder of its own."""

from __future__ import annotations

import importlib.util
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.utils import set_determinism

# What only the server's environment can import (`make test-label`).
collect_ignore = (
    [] if importlib.util.find_spec("monailabel") else ["apt_monai/apps/label.py", "apt_monai/apps/routes.py"]
)

# Set before any test module imports huggingface_hub, and inherited by the processes that tests start.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# The tests' tensors are tiny: more threads are slower, and the order of a sum would depend on the machine.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse connections to other machines; this one (gloo, TensorBoard) is allowed."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise RuntimeError(f"a test tried to reach {address[0]}: tests run without a network")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(autouse=True)
def _examples_write_elsewhere(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """An example that writes a file does so in a temporary folder, not in the checkout."""
    if isinstance(request.node, pytest.DoctestItem):
        folder: Path = request.getfixturevalue("tmp_path")
        monkeypatch.chdir(folder)


@pytest.fixture(autouse=True)
def _global_randomness_is_put_back() -> Iterator[None]:
    """A bundle's workflow seeds the global generator; the next test must not see that."""
    state = torch.get_rng_state()
    yield
    set_determinism(None)
    torch.set_rng_state(state)
