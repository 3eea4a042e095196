"""Transforms: load a study, scale its intensities, fit its slices, Bézier curves; array and dictionary form."""

from apt_monai.transforms.bezier import (
    BEZIER_CURVES,
    BezierIntensity,
    BezierIntensityD,
    BezierIntensityd,
    BezierIntensityDict,
    bezier_curve,
)
from apt_monai.transforms.intensity import (
    ScaleIntensityInBrain,
    ScaleIntensityInBrainD,
    ScaleIntensityInBraind,
    ScaleIntensityInBrainDict,
)
from apt_monai.transforms.preprocessing import StudyPreprocessing
from apt_monai.transforms.slices import FitInPlane, FitInPlaneD, FitInPlaned, FitInPlaneDict, InPlaneFit
from apt_monai.transforms.study import LoadStudyD, LoadStudyd, LoadStudyDict

__all__ = [
    "BEZIER_CURVES",
    "BezierIntensity",
    "BezierIntensityD",
    "BezierIntensityDict",
    "BezierIntensityd",
    "FitInPlane",
    "FitInPlaneD",
    "FitInPlaneDict",
    "FitInPlaned",
    "InPlaneFit",
    "LoadStudyD",
    "LoadStudyDict",
    "LoadStudyd",
    "ScaleIntensityInBrain",
    "ScaleIntensityInBrainD",
    "ScaleIntensityInBrainDict",
    "ScaleIntensityInBraind",
    "StudyPreprocessing",
    "bezier_curve",
]
