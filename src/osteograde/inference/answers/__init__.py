"""What is written down: submission, flags, findings."""
