"""The systems: one system, one file, one contract."""

from apt_monai.methods.apt import APT
from apt_monai.methods.base import INTERVAL, Batch, Method
from apt_monai.methods.calibration import Calibration
from apt_monai.methods.direct import Direct
from apt_monai.methods.trivial import Copy, Prior

METHODS: dict[str, type[Method]] = {method.name: method for method in (APT, Direct)}
"""The methods that a model folder can hold, by the name that ``model.json`` gives them."""

__all__ = ["APT", "INTERVAL", "METHODS", "Batch", "Calibration", "Copy", "Direct", "Method", "Prior"]
