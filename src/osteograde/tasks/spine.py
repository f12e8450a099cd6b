"""Anatomy of the lumbar spine that several tasks share: its levels, its sides, and how a sagittal stack is turned."""

from __future__ import annotations

LEVELS = ("l1_l2", "l2_l3", "l3_l4", "l4_l5", "l5_s1")  # discs, head to feet
SIDES = ("right", "left")  # right is canonical; left is right, mirrored
SAGITTAL = ((1.0, 0.0, 0.0), (0.0, 0.0, -1.0), (0.0, 1.0, 0.0))  # LPS directions (slice, row, column): left, feet, back
