"""How a study of the varied phantom is acquired: field strength, relaxation times, contrast agent, pulse sequences."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from apt_monai.phantom.acquisition import vary_timing
from apt_monai.phantom.sequences import TISSUES, PulseSequence, Tissue, sequence_signal, shorten_t1
from apt_monai.phantom.studies import subject_generator

Ranges = Mapping[str, tuple[float, float]]


#: The sequences that each contrast may be acquired with, and the ranges of their settings (ms and degrees). The TI of
#: FLAIR is relative to the one that nulls CSF. T1Gd is acquired with a sequence of T1.
SEQUENCE_RANGES: Mapping[str, Mapping[str, Ranges]] = MappingProxyType(
    {
        "t1": {
            "spin echo": {"tr": (400, 750), "te": (8, 18)},
            "inversion recovery": {"tr": (1700, 2500), "te": (4, 18), "ti": (750, 1000)},
            "MPRAGE": {"tr": (1950, 2600), "te": (2, 5), "ti": (850, 1050), "flip": (7, 13), "echo_spacing": (6, 8)},
            "spoiled gradient echo, 3D": {"tr": (6, 12), "te": (2, 5), "flip": (12, 25)},
            "spoiled gradient echo, 2D": {"tr": (130, 300), "te": (2.5, 6), "flip": (60, 85)},
        },
        "t2": {"spin echo": {"tr": (2500, 6500), "te": (80, 130)}},
        "pd": {"spin echo": {"tr": (2000, 5000), "te": (8, 30)}},
        "flair": {"inversion recovery": {"tr": (6000, 11000), "te": (90, 150), "ti": (0.97, 1.03)}},
    }
)


@dataclass(frozen=True)
class Physics:
    """How the physics of the studies differs. Ranges are uniform, spreads standard deviations of a logarithm.

    Args:
        nominal: the part of the studies whose protocol is the plain phantom's.
        low_field: the part of the others that is acquired at 1.5 T; the rest at 3 T.
        low_t1: range of T1 at 1.5 T relative to 3 T, of grey and white matter and what grows in them.
        low_t2: range of T2 at 1.5 T relative to 3 T.
        spread: of T1, T2 and proton density of each healthy tissue.
        lesion_spread: of those of each tissue of a lesion.
        dose: range of the dose of contrast agent relative to the usual one, logarithmically uniform.
        enhancement: spread of what a tissue takes up of it.
        same_t1: the probability that T1 and T1Gd are acquired with the same sequence.
        same_tr: the probability that PD and T2 are two echoes of one scan and share its TR.
        poor_nulling: the probability that FLAIR's inversion time is a poor one.
        poor_ti: range of a poor inversion time, relative to the one that nulls CSF.
        tries: how many protocols are drawn until one shows the tissues in the right order.
    """

    nominal: float = 0.25
    low_field: float = 0.45
    low_t1: tuple[float, float] = (0.72, 0.80)
    low_t2: tuple[float, float] = (1.03, 1.15)
    spread: tuple[float, float, float] = (0.05, 0.08, 0.015)
    lesion_spread: tuple[float, float, float] = (0.13, 0.2, 0.02)
    dose: tuple[float, float] = (0.4, 1.6)
    enhancement: float = 0.25
    same_t1: float = 0.8
    same_tr: float = 0.6
    poor_nulling: float = 0.25
    poor_ti: tuple[float, float] = (0.92, 1.07)
    tries: int = 50


@dataclass(frozen=True)
class Protocol:
    """How one study is acquired.

    Args:
        nominal: whether it is the plain phantom's protocol.
        field: in T.
        factors: for each tissue, what its T1, T2, proton density and concentration of contrast agent are multiplied by.
        sequences: each contrast's.
    """

    nominal: bool
    field: float
    factors: Mapping[str, tuple[float, float, float, float]]
    sequences: Mapping[str, PulseSequence]

    def tissues(self, usual: Mapping[str, Tissue] = TISSUES) -> dict[str, Tissue]:
        """The tissues as they are in this study, from the usual ones at 3 T; those that it does not know stay."""
        found = {}
        for name, tissue in usual.items():
            t1, t2, pd, agent = self.factors.get(name, (1.0, 1.0, 1.0, 1.0))
            density = min(1.0, tissue.pd * pd)
            found[name] = Tissue(tissue.t1 * t1, tissue.t2 * t2, density, tissue.gadolinium * agent)
        return found


def draw_protocol(
    seed: int, subject: int, usual: Mapping[str, PulseSequence], physics: Physics | None = None
) -> Protocol:
    """The protocol of one study, from (seed, subject).

    Args:
        seed: of the whole data set, 0 or above.
        subject: number within the data set, 0 or above.
        usual: the plain phantom's sequence of each contrast.
        physics: how protocols differ.

    Example::

        >>> usual = {"t1": PulseSequence(tr=2000.0, te=4.0, ti=950.0), "t2": PulseSequence(tr=4500.0, te=100.0)}
        >>> protocol = draw_protocol(0, 0, usual)
        >>> sorted(protocol.sequences), protocol.field in (1.5, 3.0)
        (['t1', 't2'], True)
    """
    physics = physics or Physics()
    rng = subject_generator(seed, subject, "protocol")
    if rng.random() >= physics.nominal:
        for _ in range(physics.tries):
            protocol = _draw_other(usual, physics, rng)
            if all(shows_tissues_in_order(name, protocol) for name in usual):
                return protocol
    sequences = {name: vary_timing(sequence, rng) for name, sequence in usual.items()}
    if {"pd", "t2"} <= set(usual):
        sequences["pd"] = replace(sequences["pd"], tr=sequences["t2"].tr)
    return Protocol(True, 3.0, {}, sequences)


def _draw_other(usual: Mapping[str, PulseSequence], physics: Physics, rng: np.random.Generator) -> Protocol:
    field = 1.5 if rng.random() < physics.low_field else 3.0
    factors = _draw_factors(field, physics, rng)
    kinds = list(SEQUENCE_RANGES["t1"])
    kind = kinds[rng.integers(len(kinds))]
    sequences: dict[str, PulseSequence] = {}
    for name in usual:
        if name in ("t1", "t1ce"):
            chosen = kind if rng.random() < physics.same_t1 else kinds[rng.integers(len(kinds))]
            settings = _draw_settings(SEQUENCE_RANGES["t1"][chosen], rng)
            if usual[name].gadolinium and chosen == kind and "t1" in sequences:  # the same scan, again
                sequences[name] = replace(vary_timing(sequences["t1"], rng), gadolinium=True)
                continue
        else:
            (ranges,) = SEQUENCE_RANGES[name].values()
            settings = _draw_settings(ranges, rng)
        if name == "flair":
            relative = rng.uniform(*physics.poor_ti) if rng.random() < physics.poor_nulling else settings["ti"]
            settings["ti"] = relative * nulling_time(TISSUES["csf"].t1 * factors["csf"][0], settings["tr"])
        sequences[name] = PulseSequence(gadolinium=usual[name].gadolinium, **settings)
    if {"pd", "t2"} <= set(usual) and rng.random() < physics.same_tr:
        sequences["pd"] = replace(sequences["pd"], tr=sequences["t2"].tr)
    return Protocol(False, field, factors, sequences)


def _draw_settings(ranges: Ranges, rng: np.random.Generator) -> dict[str, Any]:
    return {name: float(rng.uniform(*bounds)) for name, bounds in ranges.items()}


def _draw_factors(
    field: float, physics: Physics, rng: np.random.Generator
) -> dict[str, tuple[float, float, float, float]]:
    """What the properties of each tissue are multiplied by in one study."""
    low = field < 3
    shorter, longer = rng.uniform(*physics.low_t1), rng.uniform(*physics.low_t2)
    dose = math.exp(rng.uniform(*np.log(physics.dose)))
    found = {}
    for name in TISSUES:
        ill = name in ("oedema", "enhancing", "necrosis")
        spread = rng.normal(0, physics.lesion_spread if ill else physics.spread)
        t1, t2, pd = np.exp(spread if name != "csf" else spread * (0.6, 1.0, 0.0))
        # The more water, the less T1 depends on the field: that of CSF hardly does
        wetness = {"csf": 0.97, "necrosis": 0.6}.get(name, 0.0)
        if low:
            t1, t2 = t1 * (shorter + wetness * (1 - shorter)), t2 * longer
        agent = dose * math.exp(rng.normal(0, physics.enhancement))
        found[name] = (float(t1), float(t2), float(pd), agent)
    return found


def nulling_time(t1: float, tr: float) -> float:
    """The inversion time in ms at which an inversion recovery of that TR (ms) shows nothing of a T1 (ms).

    Example::

        >>> round(nulling_time(t1=4300.0, tr=9000.0))
        2481
    """
    # 1 - 2 exp(-TI / T1) + exp(-TR / T1) = 0
    return t1 * (math.log(2) - math.log1p(math.exp(-tr / t1)))


def shows_tissues_in_order(name: str, protocol: Protocol) -> bool:
    """Whether a contrast shows the healthy tissues in the order that it is known by, each clearly from the next."""
    sequence, tissues = protocol.sequences[name], protocol.tissues()

    def signal(tissue: str) -> float:
        known = tissues[tissue]
        t1 = shorten_t1(known.t1, known.gadolinium) if sequence.gadolinium else known.t1
        return float(np.abs(sequence_signal(sequence, known.pd, t1, known.t2)))

    csf, grey, white = (signal(tissue) for tissue in ("csf", "grey", "white"))
    if name in ("t1", "t1ce"):
        return white > 1.07 * grey and grey > 1.3 * csf
    if name == "flair":
        return grey > 1.03 * white and white > 2 * csf
    if name == "t2":
        return csf > 1.2 * grey and grey > 1.1 * white
    return grey > 1.03 * white  # PD
