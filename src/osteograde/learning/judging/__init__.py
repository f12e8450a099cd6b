"""What nets say of studies they never saw, and what follows from it."""
