"""The contrast sets: which contrasts a dataset has, in which order, and how their files are called.

Nothing else in the package knows a contrast by its position: every tensor that has a contrast axis is ordered as
:attr:`ContrastSet.names`, and every other module asks the set.

Example::

    >>> BRATS.names
    ('flair', 't1', 't1ce', 't2')
    >>> BRATS.mask(["t1", "t2"])
    (False, True, False, True)
    >>> len(ADNI.subsets())
    6
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations


@dataclass(frozen=True)
class Contrast:
    """One MR contrast.

    Args:
        name: the key under which dictionaries and file names carry it, such as ``"t1ce"``.
        label: the name that people read, such as ``"T1Gd"``.
        suffixes: the file-name suffixes (before ``.nii`` or ``.nii.gz``) that mean it.
        bids: its suffix in BIDS, after ``ce_`` where BIDS names the contrast agent (``sub-01_ce-gadolinium_T1w``).
    """

    name: str
    label: str
    suffixes: tuple[str, ...]
    bids: str

    @property
    def t1_weighted(self) -> bool:
        """Whether it is T1-weighted, with or without a contrast agent, by its suffix in BIDS."""
        return self.bids.endswith("T1w")


@dataclass(frozen=True)
class ContrastSet:
    """The contrasts of one dataset, in the order of every contrast axis.

    Args:
        name: the dataset's name, ``"brats"`` or ``"adni"``.
        contrasts: the contrasts, in order.
        segmentation_suffixes: the file-name suffixes that mean a segmentation; empty where the dataset has none.
        references: every contrast, the best reference of a registration first; empty: in the order of the contrasts.
        echoes: the contrasts that are echoes of one scan: on one voxel grid they show the head in one pose.
        grid: the grid onto which raw scans are preprocessed: the contrasts on whose own grid the volumes come, the
            first that a study has, or the edge of isotropic voxels in mm, in the pose of the reference.
        mask_sources: every contrast, the one that shows the brain best first; empty: in the order of the contrasts.

    Raises:
        ValueError: a role names a contrast that the set does not have, or lacks one.
    """

    name: str
    contrasts: tuple[Contrast, ...]
    segmentation_suffixes: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    echoes: tuple[tuple[str, ...], ...] = ()
    grid: tuple[str, ...] | float = 1.0
    mask_sources: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for role, names in (("references", self.references), ("mask_sources", self.mask_sources)):
            if names and sorted(names) != sorted(self.names):
                raise ValueError(
                    f"{role} of the contrast set {self.name} are {', '.join(names)}: "
                    f"name each of {', '.join(self.names)} once, the best first, or none"
                )
        for names in (*self.echoes, () if isinstance(self.grid, (int, float)) else self.grid):
            self.check(names)

    def __len__(self) -> int:
        return len(self.contrasts)

    @property
    def names(self) -> tuple[str, ...]:
        """The contrasts' names, in the order of every contrast axis."""
        return tuple(c.name for c in self.contrasts)

    @property
    def labels(self) -> tuple[str, ...]:
        """The names that people read, in the same order."""
        return tuple(c.label for c in self.contrasts)

    def index(self, name: str) -> int:
        """The position of a contrast on the contrast axis.

        Raises:
            ValueError: the set has no contrast of that name.
        """
        self.check([name])
        return self.names.index(name)

    def check(self, names: Iterable[str]) -> None:
        """Raise ``ValueError`` for the first name that is not a contrast of this set."""
        for name in names:
            if name not in self.names:
                raise ValueError(
                    f"unknown contrast {name!r}: the {self.name} contrasts are {', '.join(self.names)}; "
                    "use one of these names"
                )

    def mask(self, names: Iterable[str]) -> tuple[bool, ...]:
        """The availability mask m of the named contrasts: True where acquired."""
        chosen = tuple(names)
        self.check(chosen)
        return tuple(name in chosen for name in self.names)

    def subsets(self) -> list[tuple[str, ...]]:
        """Every choice of acquired contrasts that leaves something to synthesise, the largest first.

        14 for BraTS, 6 for ADNI.
        """
        sizes = range(len(self) - 1, 0, -1)
        return [names for size in sizes for names in combinations(self.names, size)]


BRATS = ContrastSet(
    "brats",
    (
        Contrast("flair", "FLAIR", ("flair", "t2f"), "FLAIR"),
        Contrast("t1", "T1", ("t1", "t1n"), "T1w"),
        Contrast("t1ce", "T1Gd", ("t1ce", "t1c"), "ce_T1w"),
        Contrast("t2", "T2", ("t2", "t2w"), "T2w"),
    ),
    segmentation_suffixes=("seg",),
    references=("t1ce", "t1", "flair", "t2"),
    mask_sources=("t1", "t1ce", "t2", "flair"),
)
ADNI = ContrastSet(
    "adni",
    (
        Contrast("t1", "T1", ("t1",), "T1w"),
        Contrast("t2", "T2", ("t2",), "T2w"),
        Contrast("pd", "PD", ("pd",), "PDw"),
    ),
    references=("t1", "t2", "pd"),
    echoes=(("t2", "pd"),),
    # Two of the three contrasts then keep their acquired voxels, and only T1 is resampled, from finer to coarser (with
    # the slice thickness averaged); a finer grid would invent two of three slices of PD and T2. Its slices are axial.
    grid=("pd", "t2", "t1"),
    mask_sources=("t1", "t2", "pd"),
)
CONTRAST_SETS = {s.name: s for s in (BRATS, ADNI)}


def get_contrast_set(name: str) -> ContrastSet:
    """The contrast set of a dataset, by its name in a config.

    Raises:
        ValueError: there is no dataset of that name.
    """
    if name not in CONTRAST_SETS:
        raise ValueError(f"unknown dataset {name!r}: valid are {', '.join(CONTRAST_SETS)}")
    return CONTRAST_SETS[name]
