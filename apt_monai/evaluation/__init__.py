"""Evaluation: methods × subsets of acquired contrasts, as tables and pictures."""
