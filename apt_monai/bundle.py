"""The bundles' workflows in this process, and what their configs need beside MONAI's bundle commands: an error that
ends with what went wrong, and paths with a ``#``.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

USER_ERRORS = (ValueError, OSError, ImportError)
"""What a message without a traceback is enough for: it names the file or the setting, and says what to do."""

TRACEBACK = "APT_MONAI_TRACEBACK"
"""The environment variable that brings the traceback back."""

_REFERENCES = ("$", "@", "%")  # how MONAI's expressions, references and macros start: theirs is the '#'
_NO_CONFIG_VALUES = {"", "config_file", "meta_file", "logging_file", "args_file", "tracking", "run_id"}


def run_workflow(run_id: str, config_files: Sequence[str | Path], overrides: Mapping[str, Any]) -> None:
    """Run a bundle's workflow in this process: what ``python -m monai.bundle run`` does in one of its own.

    Args:
        run_id: what to run, such as ``"training"``.
        config_files: later ones over earlier ones; ``logging.conf`` and ``metadata.json`` lie beside the first one.
        overrides: values that take the place of the config's, by key.

    Raises:
        RuntimeError: of MONAI's config parser; what went wrong is its :func:`root_cause`.

    Example::

        >>> _ = Path("metadata.json").write_text("{}")
        >>> _ = Path("hello.yaml").write_text("name: world\\nrun: $print('hello', @name)")
        >>> run_workflow("run", ["hello.yaml"], {"name": "phantom #7"})
        hello phantom #7
    """
    with quick_imports():
        from monai.bundle import ConfigWorkflow
    files = [str(path) for path in config_files]
    logging_file = Path(files[0]).with_name("logging.conf")
    with _logging_is_put_back():
        logging_setting = str(logging_file) if logging_file.is_file() else False
        workflow = ConfigWorkflow(files, run_id=run_id, logging_file=logging_setting, **overrides)
        workflow.parser.set(literal(workflow.parser.get()))
        workflow.initialize()
        workflow.run()
        workflow.finalize()


def literal(value: Any) -> Any:
    """A value for a bundle's config in which a ``#`` stays a ``#``.

    MONAI's config parser makes ``::`` of it, in paths too. A text with one becomes an expression that gives this text;
    expressions, references and macros of MONAI are left as they are.

    Args:
        value: a text, or lists and dictionaries with texts in them.

    Example::

        >>> print(literal("/data/cohort #7"))
        $"/data/cohort \\x237"
        >>> literal("/data/cohort 7"), literal("@train#dataset")
        ('/data/cohort 7', '@train#dataset')
    """
    if isinstance(value, Mapping):
        return {key: literal(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(literal(entry) for entry in value)
    if not _is_misread(value):
        return value
    return "$" + json.dumps(value, ensure_ascii=False).replace("#", r"\x23").replace("@", r"\x40")


def read_argument(word: str) -> Any:
    """A value of a command line as MONAI's, which is Fire's, reads it; but a ``#`` does not begin a comment.

    Example::

        >>> read_argument("7"), read_argument("[1, 'a']"), read_argument("out #7")
        (7, [1, 'a'], 'out #7')
    """
    from fire.parser import DefaultParseValue

    value = DefaultParseValue(word)
    return word if "#" in word and "#" not in str(value) else value


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import in this block: the garbage collector, which takes a quarter of the time of large imports, is off.

    Example::

        >>> with quick_imports():
        ...     import json
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # what was imported stays; nothing looks through it again
        if enabled:
            gc.enable()


def show_cause_last() -> None:
    """From here on, a command that fails ends with what went wrong; and what cannot be passed to it is refused.

    MONAI's config parser passes an error on as a ``RuntimeError`` that quotes the config's expression, below a long
    traceback. Where the cause is an error of a file or a setting, its message is printed alone (the environment
    variable ``APT_MONAI_TRACEBACK`` brings the traceback back); else it is repeated below the traceback. Of a run on
    several ranks, torchrun has the last word: it is told the message.

    Raises:
        ValueError: a value on the command line of ``python -m monai.bundle`` has a ``#``.

    Example::

        >>> show_cause_last()
        >>> sys.excepthook is not sys.__excepthook__
        True
    """
    sys.excepthook = _report
    if Path(sys.argv[0]).parts[-3:] == ("monai", "bundle", "__main__.py"):
        _refuse_misread(sys.argv[1:])


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
    cause = root_cause(error)
    if isinstance(cause, USER_ERRORS) and not os.environ.get(TRACEBACK):
        print(f"\n{TRACEBACK}=1 in the environment shows where in the code this comes from", file=sys.stderr)
        print(f"{type(cause).__name__}: {cause}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)
        if cause is not error:
            print(f"\n{type(cause).__name__}: {cause}", file=sys.stderr)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        try:  # it is recorded with the traceback of the exception that is being handled
            raise cause
        except BaseException as handled:
            get_error_handler().record_exception(handled)


def _is_misread(value: object) -> bool:
    return isinstance(value, str) and "#" in value and not value.startswith(_REFERENCES)


def _refuse_misread(words: Sequence[str]) -> None:
    """Raise if there is a ``#`` in a value of its command line."""
    key = ""
    for word in words:
        if word.startswith("--"):
            key, _, word = word[2:].partition("=")
        value = read_argument(word)
        if key not in _NO_CONFIG_VALUES and literal(value) != value:
            raise ValueError(
                f"--{key} {word}: MONAI makes '::' of a '#' in a value, or leaves out what follows; give it as "
                f"an expression, --{key} {shlex.quote(str(literal(value)))}, or use python -m apt_monai, which does so"
            )


@contextmanager
def _logging_is_put_back() -> Iterator[None]:
    """A workflow's logging.conf holds for the workflow."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
