"""Knees on radiographs."""
