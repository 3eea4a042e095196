"""What the bundles' configs need beside MONAI's bundle commands: an error that ends with what went wrong."""

from __future__ import annotations

import sys
from types import TracebackType

import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import get_error_handler


def show_cause_last() -> None:
    """From here on, a command that fails ends with what went wrong.

    MONAI's config parser passes an error on as a ``RuntimeError`` that quotes the config's expression. That is the last
    line on the terminal then, and the message that names the file or the field is far above it. This repeats that
    message below the traceback. Of a run on several ranks, torchrun has the last word: it is told the message.

    Example::

        >>> show_cause_last()
        >>> sys.excepthook is not sys.__excepthook__
        True
    """
    sys.excepthook = _report


def root_cause(error: BaseException) -> BaseException:
    """The error without the ``RuntimeError`` that MONAI wraps around it, however often.

    Example::

        >>> try:
        ...     raise RuntimeError("Failed to evaluate ConfigExpression: ...") from ValueError("a.nii.gz: is 4D")
        ... except RuntimeError as error:
        ...     root_cause(error)
        ValueError('a.nii.gz: is 4D')
    """
    while isinstance(error, RuntimeError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _report(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    sys.__excepthook__(kind, error, traceback)
    cause = root_cause(error)
    if cause is not error:
        print(f"\n{type(cause).__name__}: {cause}", file=sys.stderr)
    if dist.is_torchelastic_launched():
        try:  # it is recorded with the traceback of the exception that is being handled
            raise cause
        except BaseException as handled:
            get_error_handler().record_exception(handled)
