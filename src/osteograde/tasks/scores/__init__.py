"""What scores are made of: counts, rankings, intervals."""
