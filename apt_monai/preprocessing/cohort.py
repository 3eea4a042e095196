"""A cohort: its studies one after the other or several at a time, kept where they are there already."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path

from tqdm import tqdm

from apt_monai.contrasts import ContrastSet, get_contrast_set
from apt_monai.distributed import lead_first, own_share
from apt_monai.errors import StudyError
from apt_monai.files import write_text
from apt_monai.preprocessing.brain_mask import NO_DEEPBET
from apt_monai.preprocessing.output import DETAILS_FOLDER, SETTINGS_NAME, TRANSFORMS_NAME, VERSION, inputs_of
from apt_monai.preprocessing.settings import PreprocessingSettings
from apt_monai.preprocessing.study import preprocess_study

logger = logging.getLogger(__name__)


@dataclass
class PreprocessingReport:
    """What became of the studies of a cohort, by subject.

    Args:
        written: those preprocessed now.
        kept: those that were there already.
        failed: why the others failed.
    """

    written: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{len(self.written)} preprocessed, {len(self.kept)} there already, {len(self.failed)} failed"]
        return "\n".join(lines + [f"  {subject}: {reason}" for subject, reason in sorted(self.failed.items())])


def preprocess_cohort(
    studies: Sequence[Mapping[str, str]],
    out: str | Path,
    contrasts: str | ContrastSet,
    settings: PreprocessingSettings | None = None,
    workers: int = 1,
    progress: bool = True,
) -> PreprocessingReport:
    """Preprocess the studies of a cohort, several at a time; one bad study never stops the others.

    A study that is there already, from the same files, is kept: an interrupted run goes on where it stopped. The
    settings are written down in ``OUT/preprocessing.json``, and other ones in the same folder are refused. Ranks
    (torchrun) share the studies.

    Args:
        studies: as :func:`apt_monai.data.readers.read_studies` lists them.
        out: the folder; made if absent.
        contrasts: the contrast set, or its name.
        settings: how; the defaults if None.
        workers: processes; 1 works in this one. Each needs about 2 GB, and has one thread.
        progress: whether a progress bar is shown.

    Returns:
        What became of each study. The cohort is complete where ``failed`` is empty.

    Raises:
        ValueError: an argument is not valid, two studies have one name, or the folder holds something else.
        ImportError: the mask's package is not installed.
        OSError: the folder cannot be written.

    Example::

        >>> study, settings = {"subject": "case", "t1": "no_such.nii.gz"}, PreprocessingSettings(mask="itk")
        >>> print(preprocess_cohort([study], "out", "adni", settings, progress=False))
        0 preprocessed, 0 there already, 1 failed
          case: ...no_such.nii.gz: no such file or folder; correct the path or take the contrast out of the study
    """
    contrast_set = get_contrast_set(contrasts)
    settings = settings or PreprocessingSettings()
    folder = Path(out)
    _check_arguments(studies, contrast_set, settings, workers)
    with lead_first():
        _claim_folder(folder, contrast_set, settings)
    studies = own_share(studies)

    report = PreprocessingReport()
    todo: list[Mapping[str, str]] = []
    for study in studies:
        if not (folder / study["subject"]).exists():
            todo.append(study)
        elif reason := _differs(folder / study["subject"], study, settings):
            report.failed[study["subject"]] = reason
        else:
            report.kept.append(study["subject"])

    runs: Iterable[tuple[str, Callable[[], object]]]
    if workers == 1:
        runs = ((s["subject"], partial(preprocess_study, s, folder, contrast_set, settings)) for s in todo)
    else:
        futures = _in_processes(todo, folder, contrast_set, settings, workers)
        runs = ((subject, future.result) for subject, future in futures)
    done = len(studies) - len(todo)
    with tqdm(total=len(studies), initial=done, desc="preprocess", unit="study", disable=not progress) as bar:
        for subject, run in runs:
            if reason := _failure(subject, run):
                logger.warning("%s failed: %s", subject, reason)
                report.failed[subject] = reason
            else:
                report.written.append(subject)
            bar.update()
    report.written.sort()
    return report


def _check_arguments(
    studies: Sequence[Mapping[str, str]], contrasts: ContrastSet, settings: PreprocessingSettings, workers: int
) -> None:
    if workers < 1:
        raise ValueError(f"workers is {workers}: valid is 1 or more")
    grid = settings.grid_of(contrasts)
    if not isinstance(grid, (int, float)):
        contrasts.check(grid)
    if settings.mask == "deepbet" and find_spec("deepbet") is None:
        raise ImportError(NO_DEEPBET)
    subjects = [study["subject"] for study in studies]
    twice = sorted({subject for subject in subjects if subjects.count(subject) > 1})
    if twice:
        raise ValueError(f"two studies are called {twice[0]!r}; each needs a name of its own")


def _failure(subject: str, run: Callable[[], object]) -> str | None:
    """Why a study could not be preprocessed; None if it was."""
    try:
        run()
    except (StudyError, ImportError, OSError) as error:
        return str(error)
    except BrokenProcessPool:
        return "its process was killed (out of memory?); use fewer workers and run again"
    except Exception as error:
        logger.debug("study %s", subject, exc_info=True)
        return f"{type(error).__name__}: {error}"
    return None


def _in_processes(
    studies: Sequence[Mapping[str, str]],
    folder: Path,
    contrasts: ContrastSet,
    settings: PreprocessingSettings,
    workers: int,
) -> Iterator[tuple[str, Future[Path]]]:
    """Yield (subject, finished future). Studies of a pool that broke get a pool of their own: one can't harm others."""
    broken = []
    context = get_context("spawn")  # ITK and torch have threads, which a fork would not survive
    one_thread = os.putenv, ("OMP_NUM_THREADS", "1")  # as ITK has in a study, so torch, for deepbet
    processes = max(1, min(workers, len(studies)))
    with ProcessPoolExecutor(processes, context, *one_thread) as pool:
        futures: dict[Future[Path], Mapping[str, str]] = {}
        for study in studies:
            try:
                futures[pool.submit(preprocess_study, dict(study), folder, contrasts, settings)] = study
            except BrokenProcessPool:
                broken.append(study)
        try:
            for future in as_completed(futures):
                if isinstance(future.exception(), BrokenProcessPool):
                    broken.append(futures[future])
                else:
                    yield futures[future]["subject"], future
        finally:
            pool.shutdown(cancel_futures=True)
    for study in broken:
        with ProcessPoolExecutor(1, context, *one_thread) as pool:
            future = pool.submit(preprocess_study, dict(study), folder, contrasts, settings)
            future.exception()  # waits
            yield study["subject"], future


def _claim_folder(folder: Path, contrasts: ContrastSet, settings: PreprocessingSettings) -> None:
    """Write down what the folder holds, or check that it holds the same already."""
    chosen = {**asdict(settings), "grid": settings.grid_of(contrasts)}
    record = json.loads(json.dumps({"version": VERSION, "contrasts": contrasts.name, **chosen}))
    path = folder / SETTINGS_NAME
    if not path.exists():
        if folder.is_dir() and any(f for f in folder.iterdir() if not f.name.startswith(".")):
            raise ValueError(f"{folder}: is not empty and has no {SETTINGS_NAME}; name an empty or a new folder")
        write_text(path, json.dumps(record, indent=2) + "\n")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON ({error}): delete {folder} or name another folder") from error
    if found != record:
        raise ValueError(
            f"{folder}: was preprocessed otherwise: {SETTINGS_NAME} says {found}, asked for is {record}; "
            "name another folder or use the same settings"
        )


def _differs(folder: Path, study: Mapping[str, str], settings: PreprocessingSettings) -> str | None:
    """Why what is in a study's folder is not what the study would give now; None if it is."""
    path = folder / DETAILS_FOLDER / TRANSFORMS_NAME
    try:
        made_from = json.loads(path.read_text(encoding="utf-8"))["inputs"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{path} cannot be read ({error}); delete the folder {folder} to preprocess the study again"
    try:
        if made_from == inputs_of(study, settings):
            return None
    except (StudyError, OSError) as error:
        return str(error)
    return f"its files changed since it was preprocessed; delete the folder {folder} to preprocess it again"
