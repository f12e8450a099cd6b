"""How weights are used: volumes to points to boxes to probabilities to submission.csv."""
