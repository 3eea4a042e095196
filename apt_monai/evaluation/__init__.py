"""Evaluation: methods × subsets of acquired contrasts, as tables and pictures."""

from apt_monai.evaluation.ranking import copy_ranking
from apt_monai.evaluation.row_names import merge_rows
from apt_monai.evaluation.run import Results, evaluate_methods
from apt_monai.evaluation.scores import Row
from apt_monai.evaluation.slices import EvaluationSlices

__all__ = ["EvaluationSlices", "Results", "Row", "copy_ranking", "evaluate_methods", "merge_rows"]
