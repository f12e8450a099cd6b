"""Anatomy of the lumbar spine that several tasks share: its levels, its sides, how a sagittal stack is turned, and the
rhythm of the way from level to level."""

from __future__ import annotations

from dataclasses import dataclass

LEVELS = ("l1_l2", "l2_l3", "l3_l4", "l4_l5", "l5_s1")  # discs, head to feet
SIDES = ("right", "left")  # right is canonical; left is right, mirrored
SAGITTAL = ((1.0, 0.0, 0.0), (0.0, 0.0, -1.0), (0.0, 1.0, 0.0))  # LPS directions (slice, row, column): left, feet, back


@dataclass(frozen=True)
class Rhythm:
    """How the steps between neighbouring levels of one spine relate to each other: (mean, standard deviation) of each.

    A step is the way from one level's point to that of the next level below it, in the sagittal plane. Nothing here
    depends on millimetres, so it holds for images whose pixel size is not known.

    lengths: of each step, head to feet, divided by the mean of all steps. directions: degrees from straight down,
    positive towards the patient's back. turns: degrees from the direction of one step to that of the next.
    """

    lengths: tuple[tuple[float, float], ...]
    directions: tuple[tuple[float, float], ...]
    turns: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        steps = len(self.lengths)
        if len(self.directions) != steps or len(self.turns) != steps - 1:
            raise ValueError(
                f"rhythm of {steps} lengths, {len(self.directions)} directions and {len(self.turns)} turns; "
                f"expected {steps} directions and {steps - 1} turns"
            )


# Middles of the canal: counted from the published canal coordinates of 1,887 sagittal T2 and STIR series.
CANAL_RHYTHM = Rhythm(
    lengths=((1.082, 0.093), (1.060, 0.072), (0.997, 0.074), (0.861, 0.098)),
    directions=((-11.8, 6.6), (-7.5, 6.8), (2.6, 8.5), (16.6, 10.0)),
    turns=((4.3, 7.4), (10.1, 7.6), (14.1, 8.6)),
)
# Middles of the discs: measured on the 130 annotated images of SPIDER that show all five (99 slices, 31 stacks).
DISC_RHYTHM = Rhythm(
    lengths=((0.979, 0.043), (1.008, 0.048), (1.016, 0.039), (0.997, 0.048)),
    directions=((-11.7, 5.9), (-7.3, 5.3), (0.7, 5.8), (13.7, 9.3)),
    turns=((4.4, 5.1), (8.0, 5.5), (13.0, 8.1)),
)
