"""Every name of `lumbar-mr`, derived once: levels, sides, conditions, targets, landmarks and how the tables spell them.

Standard library only, so that anything may import it.
"""

from __future__ import annotations

from dataclasses import dataclass

from osteograde.tasks.spine import LEVELS, SIDES

SPINAL, FORAMINAL, SUBARTICULAR = "spinal_canal_stenosis", "neural_foraminal_narrowing", "subarticular_stenosis"
CONDITIONS = (SPINAL, FORAMINAL, SUBARTICULAR)
SHORT = {SPINAL: "spinal", FORAMINAL: "foraminal", SUBARTICULAR: "subarticular"}  # parts of the score
STRUCTURE = {SPINAL: "canal", FORAMINAL: "foramen", SUBARTICULAR: "recess"}  # what a point of the condition marks

CLASS_LABELS = ("Normal/Mild", "Moderate", "Severe")  # cells of train.csv; the index is the class
CLASSES = ("normal_mild", "moderate", "severe")  # columns of the submission
WEIGHTS = (1.0, 2.0, 4.0)

SERIES_DESCRIPTIONS = {"sag_t1": "Sagittal T1", "sag_t2": "Sagittal T2/STIR", "axi_t2": "Axial T2"}  # view -> table
CONDITION_VIEW = {SPINAL: "sag_t2", FORAMINAL: "sag_t1", SUBARTICULAR: "axi_t2"}  # the view that holds its points


@dataclass(frozen=True)
class Target:
    """One graded place. ``side`` is "" for the spinal canal."""

    condition: str
    level: str
    side: str = ""

    @property
    def name(self) -> str:
        """Its column in train.csv and its part of a row id.

        >>> Target("spinal_canal_stenosis", "l1_l2").name
        'spinal_canal_stenosis_l1_l2'
        """
        return "_".join(part for part in (self.side, self.condition, self.level) if part)

    @property
    def landmark(self) -> str:
        """The landmark it is graded at."""
        return landmark(STRUCTURE[self.condition], self.level, self.side)

    @property
    def table_condition(self) -> str:
        """Its condition as train_label_coordinates.csv spells it, e.g. "Left Neural Foraminal Narrowing"."""
        return f"{self.side}_{self.condition}".strip("_").replace("_", " ").title()

    @property
    def table_level(self) -> str:
        """Its level as train_label_coordinates.csv spells it, e.g. "L1/L2"."""
        return self.level.replace("_", "/").upper()


def landmark(structure: str, level: str, side: str = "") -> str:
    """Name of a landmark.

    >>> landmark("foramen", "l5_s1", "left"), landmark("canal", "l1_l2")
    ('foramen_left_l5_s1', 'canal_l1_l2')
    """
    return "_".join(part for part in (structure, side, level) if part)


def _targets() -> tuple[Target, ...]:
    spinal = [Target(SPINAL, level) for level in LEVELS]
    sided = [
        Target(condition, level, side)
        for condition in (FORAMINAL, SUBARTICULAR)
        for side in sorted(SIDES)  # left first, as in train.csv
        for level in LEVELS
    ]
    return (*spinal, *sided)


TARGET_OF = {target.name: target for target in _targets()}
TARGETS = tuple(TARGET_OF)  # columns of train.csv after study_id, in its order
TEMPLATE_TARGETS = tuple(sorted(TARGETS))  # rows of sample_submission.csv, in its order
TARGET_OF_TABLE = {(t.table_condition, t.table_level): t.name for t in TARGET_OF.values()}  # coordinates -> target
CLASS_OF_LABEL = {label: index for index, label in enumerate(CLASS_LABELS)}


def landmark_of(target: str) -> str:
    """The landmark at which a target is graded.

    >>> landmark_of("left_subarticular_stenosis_l4_l5")
    'recess_left_l4_l5'
    """
    return TARGET_OF[target].landmark
