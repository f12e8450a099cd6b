"""Synthetic spines: shapes, tissue, grades, and the planes they are seen in."""
