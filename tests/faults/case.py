"""What a case of the fault tables is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.faults.studies import Study

HEALTHY, PRIOR, VALID = "healthy", "prior", "valid"
DROPPED = "the third file empty"  # the case that every other loss of that one file must equal
NO_T2 = "no sagittal T2 series"
NO_AXIAL = "no axial series"


@dataclass(frozen=True)
class Case:
    """One broken study.

    fault: number in the catalogue. like: whose rows it must have, to the byte: the healthy study's (nothing is lost:
    polarity, order and geometry are right), those of another case by name, the priors, or just valid ones. near: how
    far probabilities may lie from them instead. codes: reasons that must be counted, exactly these and no other.
    """

    fault: int
    name: str
    make: Callable[[Study], None]
    like: str = HEALTHY
    codes: tuple[str, ...] = ()
    near: float = 0.0
