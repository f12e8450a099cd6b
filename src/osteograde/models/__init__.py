"""Nets, their losses, and weights that describe themselves."""
