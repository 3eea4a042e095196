"""What AptSynthesis.py needs, without Slicer."""
