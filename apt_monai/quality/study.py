"""Every check of a prepared study."""

from __future__ import annotations

from apt_monai.contrasts import ContrastSet
from apt_monai.quality.alignment import check_alignment
from apt_monai.quality.appearance import Reference
from apt_monai.quality.checks import check_volumes
from apt_monai.quality.findings import Finding
from apt_monai.quality.volumes import Volumes


def check_study(volumes: Volumes, contrasts: ContrastSet, reference: Reference | None = None) -> list[Finding]:
    """The findings about a prepared study: skull-stripped, on one grid.

    Args:
        volumes: the study's contrasts, its brain and its grid.
        contrasts: the contrast set.
        reference: what contrasts looked like in training; None: how they look is not judged.

    Example::

        >>> import numpy as np
        >>> from apt_monai.contrasts import BRATS
        >>> block = np.zeros((40, 40, 40), np.float32)
        >>> block[5:35, 5:35, 5:35] = 100
        >>> volumes = Volumes({"t1": block}, block > 0, np.diag([8.0, 4.0, 4.0, 1.0]))
        >>> [finding.check for finding in check_study(volumes, BRATS)][:2]
        ['spacing', 'skull']
    """
    found = [*check_volumes(volumes), *check_alignment(volumes)]
    return found if reference is None else [*found, *reference.check(volumes, contrasts)]
