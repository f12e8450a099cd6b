"""MedViT: convolution and attention side by side, for medical images.

Manzari et al., "MedViT: A robust vision transformer for generalized medical image classification", Computers in Biology
and Medicine 157:106791, 2023 (arXiv 2302.09462). Written anew from the paper; widths, depths, activations and the
order of layers are those of the nets that its authors released as small, base and large, so the parameter counts are
theirs. tiny is a smaller member of the family that two processor cores can train; it was not released. The paper's
Patch Momentum Changer, which mixes features of a batch in training, has no weights and is left out.

Every block keeps a map: Grad-CAM works as for a convolutional net.

Shape legend: N images, C channels, H W pixels, L = H W tokens.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from timm.layers import DropPath, trunc_normal_
from torch import nn
from torch.nn import functional

HEAD = 32  # channels of an attention head and of a group of a grouped convolution
STEM = (64, 32, 64)
STRIDES = (1, 2, 2, 2)
POOLED = (8, 4, 2, 1)  # keys and values are averaged over the square of so many tokens
GLOBAL_SHARE = 0.75  # of the channels of a transformer block that come from attention
GROUP = 5  # blocks of the third stage: four of convolution, then one transformer

# blocks of each stage, largest share of blocks that are left out in training (stochastic depth)
SIZES: Mapping[str, tuple[tuple[int, int, int, int], float]] = {
    "medvit_tiny": ((2, 2, 5, 2), 0.1),
    "medvit_small": ((3, 4, 10, 3), 0.1),
    "medvit_base": ((3, 4, 20, 3), 0.2),
    "medvit_large": ((3, 4, 30, 3), 0.2),
}


class MedVit(nn.Module):
    """(N, in_channels, H, W) -> (N, 1024): stem, four stages, norm and global mean. Sides should be multiples of 32."""

    features = 1024

    def __init__(self, name: str, in_channels: int = 3) -> None:
        super().__init__()
        depths, drop = SIZES[name]
        stem = (in_channels, STEM[0], STEM[1], STEM[2], STEM[2])
        self.stem = nn.Sequential(*(_stem_layer(stem[i], stem[i + 1], 2 if i in (0, 3) else 1) for i in range(4)))
        last = sum(depths) - 1
        blocks: list[nn.Module] = []
        width = STEM[-1]
        for stage, plan in enumerate(_stages(depths)):
            for position, (out, is_transformer) in enumerate(plan):
                stride = STRIDES[stage] if position == 0 else 1
                rate = drop * len(blocks) / last
                blocks.append(
                    LocalTransformerBlock(width, out, stride, POOLED[stage], rate)
                    if is_transformer
                    else ConvolutionBlock(width, out, stride, rate)
                )
                width = out
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(width)
        self.apply(_initialise)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.norm(self.blocks(self.stem(images))).mean((-2, -1))


def _stages(depths: tuple[int, int, int, int]) -> list[list[tuple[int, bool]]]:
    """Per stage its blocks: (channels, whether it is a transformer block). The first stage has none, the others end
    with one, and in the third one every fifth is."""
    first, second, third, fourth = depths
    return [
        [(96, False)] * first,
        [(192, False)] * (second - 1) + [(256, True)],
        ([(384, False)] * (GROUP - 1) + [(512, True)]) * (third // GROUP),
        [(768, False)] * (fourth - 1) + [(1024, True)],
    ]


class ConvolutionBlock(nn.Module):
    """The paper's efficient convolution block: convolutional attention, then a feed-forward with local reach."""

    def __init__(self, channels: int, out: int, stride: int, drop: float) -> None:
        super().__init__()
        self.embed = _embed(channels, out, stride)
        self.attend = _convolutional_attention(out)
        self.drop = DropPath(drop)
        self.norm = nn.BatchNorm2d(out)
        self.feed = FeedForward(out, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        x = x + self.drop(self.attend(x))
        return x + self.feed(self.norm(x))


class LocalTransformerBlock(nn.Module):
    """The paper's local transformer block: most channels by attention over the whole image, the others by convolution
    of those, both side by side through a feed-forward with local reach."""

    def __init__(self, channels: int, out: int, stride: int, pooled: int, drop: float) -> None:
        super().__init__()
        wide = round(out * GLOBAL_SHARE / HEAD) * HEAD
        self.embed = _embed(channels, wide, stride)
        self.norm_attention = nn.BatchNorm2d(wide)
        self.attention = PooledAttention(wide, pooled)
        self.drop_attention = DropPath(drop * GLOBAL_SHARE)
        self.project = _embed(wide, out - wide, 1)
        self.convolve = _convolutional_attention(out - wide)
        self.drop_convolution = DropPath(drop * (1 - GLOBAL_SHARE))
        self.norm = nn.BatchNorm2d(out)
        self.feed = FeedForward(out, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        tokens = self.attention(self.norm_attention(x).flatten(2).mT)
        x = x + self.drop_attention(tokens).mT.unflatten(2, x.shape[-2:])
        local = self.project(x)
        local = local + self.drop_convolution(self.convolve(local))
        x = torch.cat([x, local], 1)
        return x + self.feed(self.norm(x))


class PooledAttention(nn.Module):
    """Self-attention (N, L, C) -> (N, L, C) whose keys and values are means over ``pooled`` squared tokens that follow
    each other in the order of rows; where there are fewer tokens, over all."""

    def __init__(self, width: int, pooled: int) -> None:
        super().__init__()
        self.heads, self.count = width // HEAD, pooled**2
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.norm = nn.BatchNorm1d(width) if pooled > 1 else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        source = x
        if self.norm is not None:
            count = min(self.count, x.shape[1])
            source = self.norm(functional.avg_pool1d(x.mT, count, count)).mT
        query, key, value = (
            layer(one).unflatten(-1, (self.heads, HEAD)).transpose(1, 2)
            for layer, one in ((self.query, x), (self.key, source), (self.value, source))
        )
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return self.out(mixed.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """The paper's locally enhanced feed-forward, with its own residual sum: widen, 3 x 3 convolution of each channel, a
    weight for each channel from its mean (squeeze and excitation), narrow."""

    def __init__(self, width: int, ratio: int) -> None:
        super().__init__()
        hidden = width * ratio
        self.widen = nn.Sequential(nn.Conv2d(width, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.Hardswish())
        self.local = nn.Sequential(
            nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, bias=False), nn.BatchNorm2d(hidden), nn.Hardswish()
        )
        self.weigh = nn.Sequential(nn.Linear(hidden, ratio), nn.ReLU(), nn.Linear(ratio, hidden), nn.Hardsigmoid())
        self.narrow = nn.Sequential(nn.Conv2d(hidden, width, 1, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.local(self.widen(x))
        return x + self.narrow(hidden * self.weigh(hidden.mean((-2, -1)))[..., None, None])


def _stem_layer(channels: int, out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU())


def _embed(channels: int, out: int, stride: int) -> nn.Module:
    """A 1 x 1 convolution to another width, after a mean over 2 x 2 pixels where stride is 2; nothing if both stay."""
    if stride == 1 and channels == out:
        return nn.Identity()
    pool = [nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False)] if stride == 2 else []
    return nn.Sequential(*pool, nn.Conv2d(channels, out, 1, bias=False), nn.BatchNorm2d(out))


def _convolutional_attention(width: int) -> nn.Sequential:
    """The paper's multi-head convolutional attention: a grouped 3 x 3 convolution, then one of 1 x 1 over all heads."""
    return nn.Sequential(
        nn.Conv2d(width, width, 3, padding=1, groups=width // HEAD, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 1, bias=False),
    )


def _initialise(module: nn.Module) -> None:
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
