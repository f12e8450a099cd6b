"""Find the joint, crop it, grade it, submit it: a two-stage competition kit for spine and knee images."""
