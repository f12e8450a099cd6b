"""Files of starting weights that recipes name, and what has to be known about each of them to read it."""

MOBILENET_V2 = "mobilenet_v2_torchvision_from_tf2_ptq.npz"
MOBILENET_V2_035 = "mobilenet_v2_0.35_float_bn_from_teachablemachine.npz"

# File -> what is added to the variances of its batch norms, 0 where it is not listed. A batch norm divides by
# sqrt(variance + eps); this file was trained with eps 1e-3, and the trunks that read it have eps 1e-5.
EXTRA_VARIANCE = {MOBILENET_V2_035: 1e-3 - 1e-5}
