"""Run a command of a bundle: in this process, or in several that share its work."""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from apt_monai.bundle import literal, read_argument, run_workflow
from apt_monai.places import find_bundle

GRACE_SECONDS = 20  # after Ctrl-C: how long the command may take to end by itself


class BundleError(RuntimeError):
    """A bundle's command that failed in processes of its own; what went wrong is what they printed.

    Args:
        message: which one, and what to do.
        status: its exit status, as a shell counts it: 128 and the number of the signal where one killed it.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def config_files(bundle: str, config: str, overlays: Sequence[str] = ()) -> list[Path]:
    """A bundle's config and the overlays on it, in the order in which MONAI merges them.

    Args:
        bundle: its name, such as ``"apt_brats"``.
        config: ``"train"``, ``"inference"`` or ``"evaluate"``.
        overlays: configs of the bundle by name (``"demo.yaml"``), or paths.

    Raises:
        ValueError: there is no such bundle or overlay.
    """
    folder = find_bundle(bundle) / "configs"
    files = []
    for name in (f"{config}.yaml", *overlays):
        file = next((path for path in (folder / name, Path(name).absolute()) if path.is_file()), None)
        if file is None:
            known = ", ".join(sorted(path.name for path in folder.glob("*.yaml")))
            raise ValueError(f"{name}: no such config; give the path of one, or one of {folder}: {known}")
        files.append(file)
    return files


PATHS = {"data": "dataset_dir", "series": "series", "model": "model_dir", "work": "work_dir", "out": "output_dir"}
"""What the bundles' configs call the paths that the commands take."""


def run_config(arguments: argparse.Namespace, bundle: str, run_id: str, config: str, **overrides: Any) -> None:
    """Run a bundle's config with what a command was given; paths are made absolute."""
    given = {key: path for name, key in PATHS.items() if (path := getattr(arguments, name, None)) is not None}
    paths: dict[str, object] = {key: Path(path).absolute() for key, path in given.items()}
    if config != "train" and getattr(arguments, "method", None):  # a training's is an overlay
        paths["method"] = arguments.method
    configs = config_files(bundle, config, arguments.overlay)
    run_bundle(run_id, configs, paths | overrides | dict(arguments.set), arguments.gpus)


def run_bundle(run_id: str, configs: Sequence[Path], overrides: Mapping[str, object], processes: int = 1) -> None:
    """Print a command of a bundle, and do what it does: in this process, or in several that torchrun starts.

    Args:
        run_id: what to run, such as ``"training"``.
        configs: the config files, later ones over earlier ones.
        overrides: values that take the place of the config's, by key. A list or dictionary is passed as JSON.
        processes: how many share the work, one a GPU.

    Raises:
        RuntimeError: of MONAI's config parser, in this process; :func:`apt_monai.bundle.root_cause` has the cause.
        BundleError: the several processes failed.
        KeyboardInterrupt: it was interrupted, and has ended.
    """
    words = {key: _argument(value) for key, value in overrides.items()}
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command += ["-m", "monai.bundle", "run", run_id, "--config_file"]
    files = [shown(path) for path in configs]
    command.append(files[0] if len(files) == 1 else json.dumps(files, ensure_ascii=False))
    command += [word for key, text in words.items() for word in (f"--{key}", text)]
    print(f"$ {shlex.join(command)}", flush=True)
    if processes > 1:
        _start(command, run_id)
    else:
        run_workflow(run_id, files, {key: read_argument(text) for key, text in words.items()})


def _start(command: Sequence[str], run_id: str) -> None:
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
    """As a word for MONAI's command line, in which every ``#`` stays one."""
    text = shown(value) if isinstance(value, Path) else value
    read = read_argument(text) if isinstance(text, str) else text
    if isinstance(text, str) and literal(read) == read:
        return text
    kept = literal(read)
    return json.dumps(kept, ensure_ascii=False) if isinstance(kept, list | tuple | dict) else str(kept)
