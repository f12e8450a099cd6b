"""Lumbar discs on sagittal slices and stacks."""
