"""What the command line's arguments may be: types for argparse, and the form of its help."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable


def at_least(lowest: int) -> Callable[[str], int]:
    """A type for argparse: a whole number from ``lowest`` on."""

    def whole_number(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = lowest - 1
        if number < lowest:
            raise argparse.ArgumentTypeError(f"{text!r} is not valid: give a whole number, {lowest} or more")
        return number

    return whole_number


def plain_name(text: str) -> str:
    """A type for argparse: a name that a folder and a config can have."""
    if not re.fullmatch(r"\w[\w.-]*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not valid: give letters, digits, '_', '-' and '.'")
    return text


def key_and_value(text: str) -> tuple[str, str]:
    """A type for argparse: ``KEY=VALUE``, as a pair."""
    key, equals, value = text.partition("=")
    if not (key and equals and value):
        raise argparse.ArgumentTypeError(f"{text!r} is not valid: give KEY=VALUE, such as seed=7")
    return key, value


def grid(text: str) -> tuple[str, ...] | float:
    """A type for argparse: names of contrasts, separated by commas, or a number of mm."""
    try:
        return float(text)
    except ValueError:
        return tuple(text.split(","))


class Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Help with the defaults where there are any, and the example as it is typed."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        unsaid = action.default is None or isinstance(action.default, bool | list)
        return action.help if unsaid else super()._get_help_string(action)
