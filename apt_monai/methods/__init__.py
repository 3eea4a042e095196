"""The systems: one system, one file, one contract."""

from apt_monai.methods.apt import APT
from apt_monai.methods.base import Batch, Method

METHODS: dict[str, type[Method]] = {method.name: method for method in (APT,)}
"""The methods by the name that ``model.json`` gives them."""

__all__ = ["APT", "METHODS", "Batch", "Method"]
