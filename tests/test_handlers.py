"""The trainers' handlers: a run that was stopped and started again ends as one that was not, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedTrainer
from monai.networks.schedulers import DDPMScheduler
from test_files import almost_full_disk
from torch.utils.data import DataLoader, Dataset, DistributedSampler

import apt_monai.handlers as handlers
from apt_monai.engines import ContextPrepareBatch
from apt_monai.handlers import CheckpointError, FinalWeights, ResumableCheckpoint, ResumableEMA, TrainingProgress
from apt_monai.inferers import TwoStageInferer
from apt_monai.networks import MutualInformationFusion, PublishedDenoiser
from apt_monai.weights import load_weights


class Slices(Dataset[dict[str, Any]]):
    """Ten samples as a SliceDataset gives them."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(index)
        return {
            "subject": f"s{index // 2}",
            "slice": index,
            "image": torch.rand(4, 8, 8, generator=generator) * 2 - 1,
            "region": torch.ones(1, 8, 8, dtype=torch.uint8),
            "features": torch.rand(4, 8, generator=generator),
        }


class Network(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: torch.Tensor, timesteps: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        return self.conv(x) + context.mean(dim=2)[..., None, None] * timesteps[:, None, None, None] / 100


class Run:
    """A training put together as train.yaml does it, from the same start each time."""

    def __init__(
        self, folder: Path, max_epochs: int = 4, batch_size: int = 4, width: int = 8, interval: int = 1
    ) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.network = Network()
            fusion = MutualInformationFusion(embed_dim=8, num_heads=2, out_dim=width)
        scheduler = DDPMScheduler(100, schedule="cosine")
        dataset = Slices()
        loader = DataLoader(
            dataset,
            batch_size=batch_size,
            sampler=DistributedSampler(dataset, num_replicas=1, rank=0, seed=0),
            drop_last=True,
        )
        denoiser = PublishedDenoiser(self.network, scheduler)
        prepare = ContextPrepareBatch(denoiser, 100, fusion, context="subset", seed=0)
        optimizer = torch.optim.Adam(self.network.parameters(), lr=0.01)
        self.ema = ResumableEMA(self.network, momentum=0.01, momentum_warmup=0.5, warmup_iters=7)
        objects = {"network": self.network, "ema": self.ema, "optimizer": optimizer, "random": prepare}
        self.losses: list[float] = []
        self.trainer = SupervisedTrainer(
            max_epochs=max_epochs,
            device=torch.device("cpu"),
            train_data_loader=loader,
            network=denoiser,
            optimizer=optimizer,
            loss_function=denoiser.loss,
            inferer=TwoStageInferer(scheduler, start_step=40, sampling_steps=5),
            prepare_batch=prepare,
            train_handlers=[
                TrainingProgress("test"),
                self.ema,
                ResumableCheckpoint(folder / "checkpoint.pt", objects, interval),
                FinalWeights(self.ema.ema_model, folder / "model.pt"),
            ],
            decollate=False,
        )

        @self.trainer.on(Events.ITERATION_COMPLETED)
        def note(engine: Engine) -> None:
            self.losses.append(engine.state.output["loss"].item())

    def stop_at(self, iteration: int, error: type[BaseException] = KeyboardInterrupt) -> Run:
        @self.trainer.on(Events.ITERATION_STARTED(once=iteration))
        def stop() -> None:
            raise error

        with pytest.raises(error):
            self.trainer.run()
        return self

    def finish(self) -> Run:
        self.trainer.run()
        return self


class Bar:
    """Stands in for tqdm and notes what it was asked."""

    made: list[Bar] = []

    def __init__(self, total: int, initial: int, **kwargs: Any) -> None:
        self.total, self.initial, self.n, self.closed, self.postfix = total, initial, initial, False, ""
        Bar.made.append(self)

    def update(self, n: int) -> None:
        self.n += n

    def set_postfix(self, loss: str, refresh: bool) -> None:
        self.postfix = loss

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[Bar]:
    Bar.made = []
    monkeypatch.setattr(handlers, "tqdm", Bar)
    return Bar.made


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path]:
    folder = tmp_path_factory.mktemp("straight")
    return Run(folder).finish(), folder


def equal(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("stop", [5, 6, 1])  # the first and last iteration of epoch 3; before any checkpoint
def test_a_resumed_run_ends_as_one_that_was_not_stopped(stop: int, straight: tuple[Run, Path], tmp_path: Path) -> None:
    reference, folder = straight
    first = Run(tmp_path).stop_at(stop)
    assert not (tmp_path / "model.pt").exists()
    second = Run(tmp_path).finish()
    kept = (stop - 1) // 2 * 2  # two iterations an epoch
    assert first.losses[:kept] + second.losses == reference.losses and len(reference.losses) == 8
    assert equal(second.network.state_dict(), reference.network.state_dict())
    assert equal(second.ema.ema_model.state_dict(), reference.ema.ema_model.state_dict())
    assert (tmp_path / "model.pt").read_bytes() == (folder / "model.pt").read_bytes()


def test_a_checkpoint_every_second_epoch_resumes_from_there(straight: tuple[Run, Path], tmp_path: Path) -> None:
    Run(tmp_path, interval=2).stop_at(7)  # in epoch 4
    second = Run(tmp_path, interval=2).finish()
    assert second.losses == straight[0].losses[4:]
    assert equal(second.ema.ema_model.state_dict(), straight[0].ema.ema_model.state_dict())


def test_a_longer_run_goes_on_after_the_last_epoch(straight: tuple[Run, Path], tmp_path: Path) -> None:
    Run(tmp_path, max_epochs=3, interval=2).finish()  # saved after the last epoch too
    assert Run(tmp_path).finish().losses == straight[0].losses[6:]


def test_a_finished_run_that_lost_its_weights_writes_them_again(straight: tuple[Run, Path], tmp_path: Path) -> None:
    Run(tmp_path).finish()
    (tmp_path / "model.pt").unlink()
    assert Run(tmp_path).finish().losses == []
    assert (tmp_path / "model.pt").read_bytes() == (straight[1] / "model.pt").read_bytes()


def test_moving_average_warms_up_once(tmp_path: Path) -> None:
    Run(tmp_path).stop_at(7)
    resumed = Run(tmp_path)
    momenta: list[float] = []
    resumed.trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda e: momenta.append(e.state.ema_momentum))
    resumed.finish()
    assert momenta == [pytest.approx(0.01)] * 2  # not 0.5, which would wipe out the average


def test_moving_average_has_a_state_once_it_is_attached() -> None:
    with pytest.raises(RuntimeError, match="attach it to the trainer first"):
        ResumableEMA(torch.nn.Linear(2, 1), 0.1, momentum_warmup=0.2, warmup_iters=3).state_dict()


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "pickle"])
def test_a_damaged_checkpoint_is_one_clear_error(damage: str, tmp_path: Path) -> None:
    Run(tmp_path, max_epochs=1).finish()
    path = tmp_path / "checkpoint.pt"
    content = path.read_bytes()
    if damage == "pickle":
        torch.save({"epoch": 1, "objects": Path("x")}, path)
    else:
        path.write_bytes({"truncated": content[: len(content) // 2], "empty": b"", "text": b"hello"}[damage])
    with pytest.raises(CheckpointError, match="checkpoint.pt: not a readable checkpoint .*; delete the file") as caught:
        Run(tmp_path).finish()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [{"epoch": 1}, [1, 2], {"iteration": 2, "epoch": 1, "objects": 3}])
def test_a_file_that_is_no_checkpoint_is_one_clear_error(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "checkpoint.pt")
    with pytest.raises(CheckpointError, match="checkpoint.pt: does not fit this run's settings .*; delete the file"):
        Run(tmp_path).finish()


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    Run(tmp_path, max_epochs=1).finish()
    run = Run(tmp_path)
    run.network.conv = torch.nn.Conv2d(4, 4, 5, padding=2)
    with pytest.raises(CheckpointError, match="does not fit this run's settings .*conv.weight") as caught:
        run.finish()
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_another_batch_size_is_refused(tmp_path: Path) -> None:
    Run(tmp_path, max_epochs=1).finish()
    with pytest.raises(CheckpointError, match="2 iterations in 1 epochs, and an epoch now has 5"):
        Run(tmp_path, batch_size=2).finish()


def test_a_full_disk_keeps_the_old_checkpoint(tmp_path: Path) -> None:
    Run(tmp_path, max_epochs=1).finish()
    before = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(OSError, match="cannot write checkpoint.pt in the folder"), almost_full_disk(1000):
        Run(tmp_path).finish()
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    assert sorted(f.name for f in tmp_path.iterdir()) == ["checkpoint.pt", "model.pt"]


@pytest.mark.parametrize("skip_completed", [False, True])
def test_a_run_that_was_terminated_early_has_no_final_weights(
    skip_completed: bool, bars: list[Bar], tmp_path: Path
) -> None:
    run = Run(tmp_path)
    run.trainer.add_event_handler(
        Events.ITERATION_COMPLETED(once=3), lambda engine: engine.terminate(skip_completed=skip_completed)
    )
    run.finish()
    assert bars[0].closed and not (tmp_path / "model.pt").exists()
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["iteration"] == 2  # the last whole epoch
    assert Run(tmp_path).finish().losses[-1] and (tmp_path / "model.pt").exists()


def test_final_weights_are_those_of_the_moving_average(straight: tuple[Run, Path]) -> None:
    run, folder = straight
    loaded = load_weights(Network(), folder / "model.pt")
    assert equal(loaded.state_dict(), run.ema.ema_model.state_dict())
    assert not equal(loaded.state_dict(), run.network.state_dict())


def test_progress_counts_every_iteration_and_shows_the_loss(bars: list[Bar], tmp_path: Path) -> None:
    Run(tmp_path).finish()
    (bar,) = bars
    assert (bar.initial, bar.n, bar.total, bar.closed) == (0, 8, 8, True)
    assert float(bar.postfix) > 0


def test_progress_goes_on_where_a_resumed_run_does(bars: list[Bar], tmp_path: Path) -> None:
    Run(tmp_path).stop_at(5)
    Run(tmp_path).finish()
    assert [(b.initial, b.n, b.total, b.closed) for b in bars] == [(0, 4, 8, True), (4, 8, 8, True)]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_closes_the_bar_and_is_passed_on(error: type[BaseException], bars: list[Bar], tmp_path: Path) -> None:
    Run(tmp_path).stop_at(3, error)
    assert bars[0].closed


def test_an_error_before_the_first_epoch_is_passed_on(bars: list[Bar], tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pt").touch()
    with pytest.raises(CheckpointError):
        Run(tmp_path).finish()
    assert not bars
