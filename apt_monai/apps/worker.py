"""A process of its own that synthesises, one request after the other, so that the server's other answers never wait.

A thread would not do: ITK's registration holds Python's lock for seconds, and what runs out of memory takes its process
along.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import shutil
import tempfile
import threading
import traceback
import warnings
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from apt_monai.apps.guards import Refused
from apt_monai.apps.service import Answer, Asked, SynthesisService
from apt_monai.errors import StudyError

logger = logging.getLogger(__name__)

_services: list[SynthesisService] = []  # of the process that synthesises: one


class Worker:
    """The process; requests queue for it.

    Args:
        service: what it does; its models are loaded there.
    """

    def __init__(self, service: SynthesisService) -> None:
        self.service = service
        self._pool = self._started()

    async def __call__(self, asked: Asked) -> Answer:
        """What :class:`SynthesisService` answers.

        Raises:
            Refused: likewise; and 500 where the process was ended, twice.
            StudyError, OSError: likewise.
        """
        for _ in range(2):
            pool = self._pool
            try:
                return await asyncio.get_running_loop().run_in_executor(pool, _answer, asked)
            except BrokenProcessPool:
                logger.error("the process that synthesises was ended; another one is started")
                if self._pool is pool:
                    self._pool = self._started()
        raise Refused(
            500, "the process that synthesises was ended twice, perhaps as the memory is too small; ask again"
        )

    def _started(self) -> ProcessPoolExecutor:
        temporary = Path(tempfile.gettempdir()) / "worker"
        shutil.rmtree(temporary, ignore_errors=True)  # what one that was ended left
        temporary.mkdir(mode=0o700)
        spawn = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(1, spawn, initializer=_begin, initargs=(self.service, str(temporary)))
        pool.submit(os.getpid)  # so that it starts now
        return pool


def quieten() -> None:
    """What libraries and readers say names files and headers; of a study the log has its id alone."""
    logging.getLogger("apt_monai").setLevel(logging.CRITICAL)
    logging.getLogger("apt_monai.apps").setLevel(logging.INFO)
    logging.getLogger("apt_monai.models").setLevel(logging.WARNING)
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module="pydicom")


def log_failure(error: Exception) -> None:
    """The kind of an error and its place; its message could name a patient."""
    places = "".join(traceback.format_tb(error.__traceback__))
    logger.error("%s\n%s", type(error).__name__, places)


def _begin(service: SynthesisService, temporary: str) -> None:
    quieten()
    tempfile.tempdir = temporary
    _services.append(service)
    threading.Thread(target=_end_with_the_server, daemon=True).start()


def _end_with_the_server() -> None:
    server = multiprocessing.parent_process()
    if server is not None:
        server.join()
        os._exit(0)


def _answer(asked: Asked) -> Answer:
    try:
        return _services[0](asked)
    except (Refused, StudyError):
        raise
    except Exception as error:
        log_failure(error)  # here, where its place is known
        raise
