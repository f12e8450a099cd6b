"""How nets are applied to studies: load, crop, predict, calibrate. Training and inference share these functions."""
