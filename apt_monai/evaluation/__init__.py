"""Evaluation: methods × subsets of acquired contrasts, as tables and pictures."""

from apt_monai.evaluation.run import Results, evaluate_methods
from apt_monai.evaluation.scores import Row

__all__ = ["Results", "Row", "evaluate_methods"]
