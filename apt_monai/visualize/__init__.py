"""Figures: the qualitative panel, the codebook, the planes of volumes, the checks of a raw study. Each function writes
one picture file.

Slices are shown as radiologists see them: front up, the patient's right on the left. Every synthesised image carries
the word SYNTHETIC.
"""

from apt_monai.visualize.canvas import display_orientation
from apt_monai.visualize.codebook import draw_codebook
from apt_monai.visualize.raw import draw_registration, draw_restored
from apt_monai.visualize.synthesis import SynthesisRow, draw_synthesis
from apt_monai.visualize.validation import SynthesisPicture
from apt_monai.visualize.volumes import draw_volume

__all__ = [
    "SynthesisPicture",
    "SynthesisRow",
    "display_orientation",
    "draw_codebook",
    "draw_registration",
    "draw_restored",
    "draw_synthesis",
    "draw_volume",
]
