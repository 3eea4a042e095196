"""The settings: what the preprocessed volumes depend on beside the scans."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from apt_monai.contrasts import ContrastSet

REFERENCE = "reference"
"""Instead of a template: the volumes come in the pose of the study's reference scan."""

MASK_TOOLS = ("itk", "deepbet")
"""The tools that make a brain mask."""


@dataclass(frozen=True)
class PreprocessingSettings:
    """What the preprocessed volumes depend on beside the scans.

    Args:
        grid: the contrasts on whose grid the volumes come, the first that the study has; or a number: isotropic voxels
            of that edge in mm, along the axes and over the field of view of the study's reference scan (the first that
            it has of the contrast set's ``references``). None is the contrast set's own: for BraTS 1 mm, for ADNI the
            grid of PD and T2.
        mask: the brain mask. ``"deepbet"``: a network for T1 (``pip install deepbet``, weights included, MIT licence);
            a study without T1 gives it T1Gd, and one without a T1-weighted scan FLAIR or PD less T2; T2 or PD alone is
            refused. ``"itk"``: the filters, which need no other package and know no anatomy. Or a path with
            ``{subject}`` in it, such as ``masks/{subject}_mask.nii.gz``: masks of your own, above 0 in the brain, on
            the grid of one of the study's scans. On the phantom's T1 (3 mm, two subjects) deepbet's Dice with the true
            mask was 0.97 and 0.97, that of the filters 0.96 and 0.92 (the second one atrophic).
        template: in whose pose isotropic volumes come, on a grid of BraTS's extent, 240 × 240 × 155 mm: ``"mni152"``
            (it is in nilearn's package), the path of another skull-stripped head such as SRI24, or ``"reference"``:
            as the study's reference scan lies, over its field of view. None is the contrast set's own: for BraTS
            MNI152. Where volumes come on a contrast's own grid there is none.
        bias_spacing: the voxel size in mm at which the bias field is estimated.
        levels: the voxel sizes in mm of the registration, coarse to fine.
        brain_ml: the least and greatest volume of a mask that a tool made. What is within the skull has about 1,100 to
            1,900 ml in adults, with atrophy too (fluid takes the brain's place), and 600 or more from a few months of
            age on; a mask with the scalp in it has more than 2,000. A mask of the user's own is taken as it is.

    Raises:
        ValueError: a setting is not valid.

    Example::

        >>> PreprocessingSettings(grid=1.5).grid
        1.5
        >>> from apt_monai.contrasts import ADNI
        >>> PreprocessingSettings().grid_of(ADNI)
        ('pd', 't2', 't1')
    """

    grid: tuple[str, ...] | float | None = None
    mask: str = "deepbet"
    template: str | None = None
    bias_spacing: float = 6.0
    levels: tuple[float, ...] = (8.0, 4.0, 2.0)
    brain_ml: tuple[float, float] = (600.0, 2000.0)

    def __post_init__(self) -> None:
        if isinstance(self.grid, (int, float)) and not 0.2 <= self.grid <= 20:
            raise ValueError(f"grid is {self.grid} mm: valid is 0.2 to 20, or names of contrasts")
        if self.grid == ():
            raise ValueError("grid names no contrast: give at least one, or a voxel edge in mm")
        if self.mask not in MASK_TOOLS and "{subject}" not in self.mask:
            raise ValueError(
                f"mask is {self.mask!r}: valid are {', '.join(MASK_TOOLS)}, or a path with {{subject}} in it, such as "
                "masks/{subject}_mask.nii.gz"
            )
        if not self.levels or min(self.levels) <= 0 or self.bias_spacing <= 0:
            raise ValueError(
                f"levels {self.levels} and bias_spacing {self.bias_spacing} must be voxel sizes above 0 mm"
            )
        if not 0 <= self.brain_ml[0] < self.brain_ml[1]:
            raise ValueError(f"brain_ml is {self.brain_ml[0]:g} to {self.brain_ml[1]:g} ml: valid is low to high")

    def grid_of(self, contrasts: ContrastSet) -> tuple[str, ...] | float:
        """The grid that is asked for, or else the contrast set's own."""
        return contrasts.grid if self.grid is None else self.grid

    def template_of(self, contrasts: ContrastSet) -> str | None:
        """The template that is asked for, or else the contrast set's own; None for the pose of the reference.

        Example::

            >>> from apt_monai.contrasts import BRATS
            >>> PreprocessingSettings().template_of(BRATS), PreprocessingSettings(grid=("t1",)).template_of(BRATS)
            ('mni152', None)
        """
        if not isinstance(self.grid_of(contrasts), (int, float)) or self.template == REFERENCE:
            return None
        return self.template or contrasts.template

    def own_mask(self, study: Mapping[str, str]) -> str | None:
        """The path of the user's own mask of a study: that in the study, else of the settings; None where a tool works.

        Example::

            >>> PreprocessingSettings(mask="masks/{subject}_mask.nii.gz").own_mask({"subject": "case"})
            'masks/case_mask.nii.gz'
        """
        if "mask" in study:
            return study["mask"]
        return None if self.mask in MASK_TOOLS else self.mask.replace("{subject}", study["subject"])
