"""The errors that every part of the package raises for what it refuses."""

from __future__ import annotations


class StudyError(ValueError):
    """A study that cannot be used. The message names the file or folder, what was found and what to do."""


class ModelError(ValueError):
    """A model that cannot be used. The message names the file, what was found and what to do."""
