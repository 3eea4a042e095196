"""apt_monai: synthesis of missing brain MR contrasts with APT (CVPR 2025) on MONAI.

Research software, not a medical device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apt_monai.synthesis import Synthesizer

__version__ = "0.1.0"


def load(model: str = "brats", **settings: Any) -> Synthesizer:
    """A model, ready to synthesise; everything heavy is imported here, when it is needed.

    Args:
        model: the folder of a trained model; or ``"brats"`` or ``"adni"``: your training of that bundle, if there is
            one, else the phantom weights that come with it.
        settings: see :func:`apt_monai.synthesis.load`.

    Example::

        >>> synthesizer = load("adni", device="cpu")
        >>> synthesizer.contrasts.names
        ('t1', 't2', 'pd')
    """
    from apt_monai.synthesis import load as load_synthesizer

    return load_synthesizer(model, **settings)
