"""Nets that find landmarks, and the way from their maps to points."""
