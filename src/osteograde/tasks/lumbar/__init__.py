"""The 25 gradings of a lumbar spine from three MR series."""
