"""Tissues, pulse sequences, and the signal equations that turn the one into contrasts by the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

Real = float | NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Tissue:
    """What the signal equations know of a tissue.

    Args:
        t1: longitudinal relaxation time in ms.
        t2: transverse relaxation time in ms.
        pd: proton density relative to water, in [0, 1].
        gadolinium: concentration of contrast agent after injection, in mmol/L.
    """

    t1: float
    t2: float
    pd: float
    gadolinium: float = 0.0


#: The tissues at 3 T. Grey and white matter: T1 and T2 of Wansapura et al., J Magn Reson Imaging 9:531 (1999). Blood:
#: T1 and T2 of Stanisz et al., Magn Reson Med 54:507 (2005), its density lowered for the signal that flows away. CSF:
#: T1 of Rooney et al., Magn Reson Med 57:308 (2007). Proton densities: relative water contents, after Whittall et al.,
#: Magn Reson Med 37:34 (1997). The T2 of CSF, the tumour tissues and all concentrations are assumptions, not
#: measurements: set between white matter and water so that a tumour looks as it does in BraTS.
TISSUES: Mapping[str, Tissue] = MappingProxyType(
    {
        "csf": Tissue(4300.0, 2000.0, 1.0),
        "grey": Tissue(1331.0, 110.0, 0.82),
        "white": Tissue(832.0, 79.6, 0.70),
        "blood": Tissue(1932.0, 275.0, 0.40, gadolinium=1.5),
        "oedema": Tissue(1450.0, 170.0, 0.82),
        "enhancing": Tissue(1550.0, 140.0, 0.82, gadolinium=0.22),
        "necrosis": Tissue(2600.0, 380.0, 0.93),
    }
)


#: What surrounds the brain, at 3 T. Muscle: Stanisz et al., as above. T1 of fat and marrow: de Bazelaire et al.,
#: Radiology 230:652 (2004). Assumptions: the densities; the T2 of fat and marrow, longer than measured because the fast
#: spin echoes of a clinical scan show fat bright; all of skin, dura and bone, whose T2 is too short for a signal.
COVERINGS: Mapping[str, Tissue] = MappingProxyType(
    {
        "air": Tissue(1000.0, 1.0, 0.0),
        "skin": Tissue(1100.0, 45.0, 0.65),
        "fat": Tissue(382.0, 120.0, 0.64),
        "muscle": Tissue(1412.0, 50.0, 0.72),
        "bone": Tissue(1000.0, 1.0, 0.15),
        "marrow": Tissue(586.0, 90.0, 0.55),
        "dura": Tissue(1100.0, 45.0, 0.60),
    }
)


#: T1 relaxivity of gadobutrol in plasma at 3 T, in L/(mmol s): Szomolanyi et al., Invest Radiol 54:559 (2019).
RELAXIVITY = 4.97


#: R2' in 1/s: how much faster than a spin echo a gradient echo decays. An assumption: about that of brain at 3 T.
DEPHASING = 10.0


@dataclass(frozen=True)
class PulseSequence:
    """A spin echo, or an inversion recovery where an inversion time is given; with a flip angle their gradient echoes.

    Args:
        tr: repetition time in ms.
        te: echo time in ms.
        ti: inversion time in ms; None without an inversion. Of an MPRAGE up to the middle of its echo train.
        gadolinium: whether it is acquired after the contrast agent was injected.
        flip: flip angle in degrees of a spoiled gradient echo or, with an inversion time, of an MPRAGE; None for echoes
            of spins.
        echoes: of an MPRAGE, how many echoes follow one inversion.
        echo_spacing: of an MPRAGE, the time between them in ms.
    """

    tr: float
    te: float
    ti: float | None = None
    gadolinium: bool = False
    flip: float | None = None
    echoes: int = 160
    echo_spacing: float = 7.5


_T1_WEIGHTED = PulseSequence(tr=2000.0, te=4.0, ti=950.0)


#: The sequence of each contrast, under the contrasts' names of both datasets.
SEQUENCES: Mapping[str, PulseSequence] = MappingProxyType(
    {
        "flair": PulseSequence(tr=9000.0, te=120.0, ti=2480.0),
        "t1": _T1_WEIGHTED,
        "t1ce": replace(_T1_WEIGHTED, gadolinium=True),
        "t2": PulseSequence(tr=4500.0, te=100.0),
        "pd": PulseSequence(tr=4500.0, te=15.0),
    }
)


def spin_echo(pd: Real, t1: Real, t2: Real, tr: float, te: float) -> Real:
    """The signal of a spin echo, relative to the equilibrium signal of water.

    Args:
        pd: proton density, in [0, 1].
        t1, t2: relaxation times in ms.
        tr, te: repetition and echo time in ms.

    Example::

        >>> round(float(spin_echo(pd=0.7, t1=832.0, t2=79.6, tr=4500.0, te=100.0)), 3)
        0.198
    """
    # S = PD (1 - exp(-TR / T1)) exp(-TE / T2)
    return pd * (1 - np.exp(-tr / t1)) * np.exp(-te / t2)


def inversion_recovery(pd: Real, t1: Real, t2: Real, tr: float, te: float, ti: float) -> Real:
    """The signed signal of an inversion recovery, relative to the equilibrium signal of water.

    Args:
        pd: proton density, in [0, 1].
        t1, t2: relaxation times in ms.
        tr, te, ti: repetition, echo and inversion time in ms.

    Example::

        >>> round(float(inversion_recovery(pd=1.0, t1=4300.0, t2=2000.0, tr=9000.0, te=120.0, ti=2480.0)), 2)
        -0.0
    """
    # S = PD (1 - 2 exp(-TI / T1) + exp(-TR / T1)) exp(-TE / T2)
    return pd * (1 - 2 * np.exp(-ti / t1) + np.exp(-tr / t1)) * np.exp(-te / t2)


def apparent_t2(t2: Real) -> Real:
    """T2* in ms, which is what a gradient echo decays with: the field's own unevenness adds to T2."""
    # 1 / T2* = 1 / T2 + R2'
    return 1 / (1 / t2 + DEPHASING / 1000)


def spoiled_gradient_echo(pd: Real, t1: Real, t2: Real, tr: float, te: float, flip: float) -> Real:
    """The signal of a spoiled gradient echo (Ernst and Anderson, Rev Sci Instrum 37:93, 1966), relative to water's.

    Args:
        pd: proton density, in [0, 1].
        t1, t2: relaxation times in ms.
        tr, te: repetition and echo time in ms.
        flip: flip angle in degrees.

    Example::

        >>> round(float(spoiled_gradient_echo(pd=0.7, t1=832.0, t2=79.6, tr=8.0, te=3.0, flip=15.0)), 3)
        0.037
    """
    # S = PD sin(a) (1 - E1) / (1 - cos(a) E1) exp(-TE / T2*), E1 = exp(-TR / T1)
    angle, e1 = np.radians(flip), np.exp(-tr / t1)
    return pd * np.sin(angle) * (1 - e1) / (1 - np.cos(angle) * e1) * np.exp(-te / apparent_t2(t2))


def mprage(pd: Real, t1: Real, t2: Real, sequence: PulseSequence) -> Real:
    """The signed signal of an MPRAGE in its steady state, at the middle echo, relative to water's equilibrium signal.

    After each inversion and a delay comes a train of spoiled gradient echoes, then recovery up to the next inversion
    (Deichmann et al., NeuroImage 12:112, 2000).

    Args:
        pd: proton density, in [0, 1].
        t1, t2: relaxation times in ms.
        sequence: with an inversion time and a flip angle; the train has to fit around the inversion time.

    Raises:
        ValueError: it has no inversion time or flip angle, or the train does not fit.

    Example::

        >>> round(float(mprage(0.7, 832.0, 79.6, PulseSequence(tr=2000.0, te=3.0, ti=950.0, flip=9.0))), 3)
        0.034
    """
    half = sequence.echoes * sequence.echo_spacing / 2
    if sequence.ti is None or sequence.flip is None or not half <= sequence.ti <= sequence.tr - half:
        raise ValueError(f"{sequence} is no MPRAGE: it needs a flip angle, and half its train before and after ti")
    angle = np.radians(sequence.flip)
    e1 = np.exp(-sequence.echo_spacing / t1)
    before, after = np.exp(-(sequence.ti - half) / t1), np.exp(-(sequence.tr - sequence.ti - half) / t1)
    # Each echo takes M to M cos(a) E1 + 1 - E1; n of them to M d^n + r (1 - d^n), d = cos(a) E1, r = (1 - E1) / (1 - d)
    decay = np.cos(angle) * e1
    rest, whole = (1 - e1) / (1 - decay), decay**sequence.echoes
    # M just before an inversion is the same in every cycle
    m = (1 - after + after * ((1 - before) * whole + rest * (1 - whole))) / (1 + after * before * whole)
    part = decay ** (sequence.echoes / 2)
    middle = (1 - (1 + m) * before) * part + rest * (1 - part)
    return pd * np.sin(angle) * middle * np.exp(-sequence.te / apparent_t2(t2))


def sequence_signal(sequence: PulseSequence, pd: Real, t1: Real, t2: Real) -> Real:
    if sequence.flip is not None:
        if sequence.ti is not None:
            return mprage(pd, t1, t2, sequence)
        return spoiled_gradient_echo(pd, t1, t2, sequence.tr, sequence.te, sequence.flip)
    if sequence.ti is None:
        return spin_echo(pd, t1, t2, sequence.tr, sequence.te)
    return inversion_recovery(pd, t1, t2, sequence.tr, sequence.te, sequence.ti)


def shorten_t1(t1: Real, concentration: Real) -> Real:
    """T1 in ms once a contrast agent of that concentration (mmol/L) has reached the tissue.

    Example::

        >>> round(float(shorten_t1(1550.0, 0.45)))
        347
    """
    # 1 / T1' = 1 / T1 + r1 c
    return 1 / (1 / t1 + RELAXIVITY / 1000 * concentration)
