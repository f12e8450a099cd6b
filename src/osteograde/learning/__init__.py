"""How weights come to be: folds, data, the loop, recipes."""
