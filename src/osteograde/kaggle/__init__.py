"""How it gets there: the kernel builder."""
