"""Several studies and several processes at once, and how they end."""
