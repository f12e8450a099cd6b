"""Synthetic knees and films."""
