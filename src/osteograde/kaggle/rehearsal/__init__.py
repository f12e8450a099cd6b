"""A kernel run as the competition runs it, without it."""
