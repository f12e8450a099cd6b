"""Batch norms folded into the convolutions before them: a trained net that only answers needs no step of their own.

In evaluation mode a batch norm multiplies and shifts each channel by constants, and so does the convolution before it:
its kernels and biases can hold both (Jacob et al., CVPR 2018, section 3.2). On a CPU a small net spends a fifth to a
third of its time in the norms. Answers change in the last digits of float32.

Only where the order of the two is certain: in a row of modules (``nn.Sequential``), and in timm's blocks of
EfficientNets, MobileNets and ResNets, which call their parts by name. Everything else stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from timm.layers import ConvNormAct
from timm.models import _efficientnet_blocks as blocks
from timm.models.efficientnet import EfficientNet, EfficientNetFeatures
from timm.models.mobilenetv3 import MobileNetV3, MobileNetV3Features
from timm.models.resnet import BasicBlock, Bottleneck
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from osteograde.models.packing import PackedConv2d, is_fusible

_STEM = (("conv_stem", "bn1"),)
_TWO = (("conv1", "bn1"), ("conv2", "bn2"))
_PAIRS: dict[type[nn.Module], tuple[tuple[str, str], ...]] = {  # class -> names of convolutions and norms after them
    blocks.ConvBnAct: (("conv", "bn1"),),
    blocks.DepthwiseSeparableConv: (("conv_s2d", "bn_s2d"), ("conv_dw", "bn1"), ("conv_pw", "bn2")),
    blocks.InvertedResidual: (("conv_s2d", "bn_s2d"), ("conv_pw", "bn1"), ("conv_dw", "bn2"), ("conv_pwl", "bn3")),
    blocks.EdgeResidual: (("conv_exp", "bn1"), ("conv_pwl", "bn2")),
    ConvNormAct: (("conv", "bn"),),
    EfficientNet: (*_STEM, ("conv_head", "bn2")),
    EfficientNetFeatures: _STEM,
    MobileNetV3: _STEM,
    MobileNetV3Features: _STEM,
    BasicBlock: _TWO,
    Bottleneck: (*_TWO, ("conv3", "bn3")),
}


def fold_batch_norms(net: nn.Module) -> int:
    """Fold what can be folded, in place, and return how many norms that were. The net must be in evaluation mode (else
    ValueError) and cannot be trained afterwards."""
    if any(module.training for module in net.modules()):
        raise ValueError("a net in training mode still changes its batch norms; call eval() first")
    found = [pair for module in net.modules() for pair in _pairs(module)]
    for owner, convolution, norm in found:
        _fold(owner, convolution, norm)
    return len(found)


def pack_convolutions(net: nn.Module) -> int:
    """Let convolutions whose norms were folded do the activation after them as well, in place, see ``packing``; the
    number of these convolutions. For nets that answer on a CPU; the activations are looked for where the norms were."""
    found = [pair for module in net.modules() for pair in _pairs_folded(module)]
    for owner, convolution, after in found:
        conv, activation = owner._modules[convolution], owner._modules[after[-1]]
        assert isinstance(conv, nn.Conv2d) and activation is not None
        owner._modules[convolution] = PackedConv2d(conv, activation if is_fusible(activation) else nn.Identity())
        if is_fusible(activation):
            owner._modules[after[-1]] = nn.Identity()
    return len(found)


def _pairs_folded(module: nn.Module) -> Iterator[tuple[nn.Module, str, list[str]]]:
    """(owner, name of a convolution, names of what follows it: where its norm was, and in a row what comes next)."""
    names = list(module._modules)
    if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
        candidates = [(name, names[i + 1 : i + 3]) for i, name in enumerate(names[:-1])]
    else:
        candidates = [(first, [second]) for first, second in _PAIRS.get(type(module), ())]
    for convolution, after in candidates:
        conv, norm = module._modules.get(convolution), module._modules.get(after[0])
        if isinstance(conv, nn.Conv2d) and PackedConv2d.fits(conv) and norm is not None:
            if isinstance(norm, nn.BatchNorm2d):
                continue
            yield module, convolution, after if isinstance(norm, nn.Identity) else after[:1]


def _pairs(module: nn.Module) -> Iterator[tuple[nn.Module, str, str]]:
    """(owner, name of a convolution, name of the norm after it) among the parts of one module."""
    names = list(module._modules)
    candidates = _PAIRS.get(type(module), ())
    if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
        candidates = tuple(pairwise(names))
    for first, second in candidates:
        convolution, norm = module._modules.get(first), module._modules.get(second)
        if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d) and _is_constant(norm):
            yield module, first, second


def _is_constant(norm: nn.BatchNorm2d) -> bool:
    """Whether a norm keeps statistics: one without uses those of the batch, also in evaluation mode."""
    return norm.running_mean is not None and norm.running_var is not None


def _fold(owner: nn.Module, convolution: str, norm: str) -> None:
    conv, bn = owner._modules[convolution], owner._modules[norm]
    assert isinstance(conv, nn.Conv2d) and isinstance(bn, nn.BatchNorm2d)
    with torch.no_grad():
        owner._modules[convolution] = fuse_conv_bn_eval(conv, bn)
    owner._modules[norm] = getattr(bn, "act", None) or nn.Identity()  # timm's norms hold the activation after them
