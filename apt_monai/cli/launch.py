"""Run a command of a bundle in a process of its own, or in several that share its work."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from apt_monai.models import find_bundle_root

GRACE_SECONDS = 20  # after Ctrl-C: how long the command may take to end by itself


class BundleError(RuntimeError):
    """A bundle's command that failed; what went wrong is what it printed.

    Args:
        message: which one, and what to do.
        status: its exit status, as a shell counts it: 128 and the number of the signal where one killed it.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def config_files(dataset: str, config: str, overlays: Sequence[str] = (), processes: int = 1) -> list[Path]:
    """A bundle's config and the overlays on it, in the order in which MONAI merges them.

    Args:
        dataset: the dataset's name; its bundle is ``apt_<dataset>``.
        config: ``"train"``, ``"inference"`` or ``"evaluate"``.
        overlays: configs of the bundle by name (``"demo.yaml"``), or paths.
        processes: above 1, ``multi_gpu_<config>.yaml`` is laid over the config first, where the bundle has it.

    Raises:
        ValueError: there is no such bundle or overlay.
    """
    folder = Path(find_bundle_root(f"apt_{dataset}")) / "configs"
    shared = f"multi_gpu_{config}.yaml"
    names = [f"{config}.yaml", *([shared] if processes > 1 and (folder / shared).is_file() else []), *overlays]
    files = []
    for name in names:
        file = next((path for path in (folder / name, Path(name).absolute()) if path.is_file()), None)
        if file is None:
            known = ", ".join(sorted(path.name for path in folder.glob("*.yaml")))
            raise ValueError(f"{name}: no such config; give the path of one, or one of {folder}: {known}")
        files.append(file)
    return files


def run_bundle(run_id: str, configs: Sequence[Path], overrides: Mapping[str, object], processes: int = 1) -> None:
    """Print a command of a bundle, run it, and wait for it.

    Args:
        run_id: what to run, such as ``"training"``.
        configs: the config files, later ones over earlier ones.
        overrides: values that take the place of the config's, by key. A list or dictionary is passed as JSON.
        processes: how many share the work, one a GPU; torchrun starts them where there are several.

    Raises:
        BundleError: the command failed.
        KeyboardInterrupt: it was interrupted, and has ended.
    """
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command += ["-m", "monai.bundle", "run", run_id, "--config_file"]
    files = [shown(path) for path in configs]
    command.append(files[0] if len(files) == 1 else json.dumps(files, ensure_ascii=False))
    for key, value in overrides.items():
        command += [f"--{key}", _argument(value)]
    print(f"$ {shlex.join(command)}", flush=True)
    with subprocess.Popen(command) as process:
        try:
            status = process.wait()
        except KeyboardInterrupt:  # on a terminal, Ctrl-C has reached the command as well
            try:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(GRACE_SECONDS)
            finally:
                process.terminate()  # does nothing where it has ended
            process.wait()
            raise
    if status:
        how = f"ended with exit status {status}" if status > 0 else f"was killed by signal {-status}"
        raise BundleError(
            f"the command above ('{run_id}') {how}; the last lines before this one say why. "
            "Once that is put right, the same command goes on from there",
            status if status > 0 else 128 - status,
        )


def shown(path: Path) -> str:
    """A path as one writes it in the working directory: relative to it where it lies inside, and never like a number.

    (MONAI's command line reads ``2024`` as a number and ``a,b`` as two values.)

    Example::

        >>> shown(Path.cwd() / "2024"), shown(Path("/elsewhere"))
        ('./2024', '/elsewhere')
    """
    return f"./{path.relative_to(Path.cwd())}" if path.is_relative_to(Path.cwd()) else str(path)


def _argument(value: object) -> str:
    if isinstance(value, Path):
        return shown(value)
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else str(value)
