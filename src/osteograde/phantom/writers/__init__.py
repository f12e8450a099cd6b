"""Data sets in the layouts of the real ones."""
