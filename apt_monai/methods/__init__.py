"""The systems: one system, one file, one contract."""

from apt_monai.methods.adm import ADM
from apt_monai.methods.adversary import Adversary, TrainingStep
from apt_monai.methods.apt import APT
from apt_monai.methods.base import INTERVAL, Batch, Method
from apt_monai.methods.calibration import Calibration
from apt_monai.methods.compared import ComparedMethod
from apt_monai.methods.direct import Direct
from apt_monai.methods.hinet import HiNet
from apt_monai.methods.m2dn import M2DN
from apt_monai.methods.mmgan import MMGAN
from apt_monai.methods.regression import Regression
from apt_monai.methods.resvit import ResViT
from apt_monai.methods.sampled import SampledMethod
from apt_monai.methods.syndiff import SynDiff
from apt_monai.methods.trivial import Copy, Prior

COMPARED: dict[str, type[ComparedMethod]] = {
    method.name: method for method in (MMGAN, HiNet, ResViT, ADM, SynDiff, M2DN, Regression)
}
"""The systems that the paper compares with, and the plain regression, in the order of its Table 1."""

METHODS: dict[str, type[SampledMethod]] = {APT.name: APT, Direct.name: Direct, **COMPARED}
"""The methods that a model folder can hold, by the name that ``model.json`` gives them."""

__all__ = [
    "APT",
    "COMPARED",
    "INTERVAL",
    "METHODS",
    "Adversary",
    "Batch",
    "Calibration",
    "ComparedMethod",
    "Copy",
    "Direct",
    "Method",
    "Prior",
    "SampledMethod",
    "TrainingStep",
]
