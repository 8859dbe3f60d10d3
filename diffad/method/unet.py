"""The U-Net, which predicts noise, variance, uncertainty and the clean picture's features from (x_t, t).

Pixel-unshuffle turns the picture into patches, so that a 256 × 256 picture costs as much as a 64 × 64 one. A
patch has 4 × 4 × 3 = 48 values, fewer than the stem's channels, so that no noise is lost. There is attention
only on the coarsest grid.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffad.method.diffusion import Prediction

_LIMITS = {
    "size": (1, 4096), "patch": (1, 64), "blocks": (1, 16), "heads": (1, 256),
    "feature_channels": (1, 65_536), "feature_level": (0, 15),
}  # fmt: skip
LARGEST = 1024  # maximum size of a category, px
_MAX_LEVELS, _MAX_WIDTH = 8, 4096


@dataclass(frozen=True)
class UNetConfig:
    """Size of the network. The default has 8.4 M parameters and takes 8.4 GFLOP for a 256 × 256 picture.

    Attributes:
        size: side of the training pictures, px; other sizes work too (`checked_size`).
        patch: side of a patch, px.
        channels: width of each level; each level halves the grid.
        blocks: residual blocks per level, in each direction.
        feature_channels: width of the feature head.
        feature_level: decoder level of the features; level 0 has a grid of size/patch.
        heads: of the attention.
    """

    size: int = 256
    patch: int = 4
    channels: tuple[int, ...] = (64, 128, 192, 192)
    blocks: int = 1
    feature_channels: int = 192
    feature_level: int = 1
    heads: int = 4

    def __post_init__(self) -> None:
        """Raise ValueError for invalid sizes."""
        for name, (low, high) in _LIMITS.items():
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high:
                raise ValueError(f"{name} is a whole number from {low} to {high}, not {value!r}")
        if not 1 <= len(self.channels) <= _MAX_LEVELS:
            raise ValueError(f"give the channels of 1 to {_MAX_LEVELS} levels, not of {len(self.channels)}")
        for width in self.channels:
            if type(width) is not int or width % 32 or not 32 <= width <= _MAX_WIDTH:
                listed = ", ".join(map(str, self.channels))
                raise ValueError(f"channels are multiples of 32 from 32 to {_MAX_WIDTH}, not {listed}")
        if self.size % (self.patch << (len(self.channels) - 1)):
            raise ValueError(f"size {self.size} is not divisible by {self.patch << (len(self.channels) - 1)}")
        if 3 * self.patch**2 > self.channels[0]:
            raise ValueError(
                f"{self.channels[0]} stem channels cannot carry the {3 * self.patch**2} values of a patch"
            )
        if self.heads < 1 or self.channels[-1] % self.heads:
            raise ValueError(f"{self.channels[-1]} channels do not divide among {self.heads} heads")
        if not 0 <= self.feature_level < len(self.channels):
            raise ValueError(
                f"feature_level {self.feature_level} is none of the {len(self.channels)} levels: give the "
                "channels of more levels"
            )

    @property
    def cell(self) -> int:
        """Px per place of the feature map."""
        return self.patch << self.feature_level

    @property
    def feature_grid(self) -> int:
        """Side of the feature map in places."""
        return self.size // self.cell

    def checked_size(self, size: int) -> int:
        """Return a category's size in px. Raises ValueError unless a multiple of `step` up to LARGEST."""
        if type(size) is not int or size % self.step or not self.step <= size <= LARGEST:
            raise ValueError(
                f"a size of {size} px does not suit: give a multiple of {self.step} up to {LARGEST}"
            )
        return size

    @property
    def step(self) -> int:
        """Sizes of categories must be multiples of this, px, so that the coarsest grids divide them."""
        return max(32, self.patch << (len(self.channels) - 1))  # 32 for the backbone


class ResidualBlock(nn.Module):
    """GroupNorm – SiLU – 3×3 convolution, twice, with scale and shift by the timestep in between."""

    def __init__(self, channels_in: int, channels_out: int, embedding: int) -> None:
        super().__init__()
        self.norm_in = nn.GroupNorm(channels_in // 16, channels_in)
        self.conv_in = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.modulate = nn.Linear(embedding, 2 * channels_out)
        self.norm_out = nn.GroupNorm(channels_out // 16, channels_out)
        self.conv_out = zeroed(nn.Conv2d(channels_out, channels_out, 3, padding=1))
        self.skip = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:  # [b, in, h, w], [b, e] -> [b, out, h, w]
        h: Tensor = self.conv_in(F.silu(self.norm_in(x)))
        scale, shift = self.modulate(embedding)[:, :, None, None].chunk(2, dim=1)
        h = self.conv_out(F.silu(self.norm_out(h) * (1 + scale) + shift))
        skip: Tensor = self.skip(x)
        return skip + h


class Blocks(nn.ModuleList):
    """The residual blocks of one level, one after the other."""

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        for block in self:
            x = block(x, embedding)
        return x


class Attention(nn.Module):
    """Multi-head self-attention over all places of a grid."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(channels // 16, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:  # [b, c, h, w]
        b, c, h, w = x.shape
        q, k, v = (
            self.qkv(self.norm(x))
            .reshape(b, 3, self.heads, c // self.heads, h * w)
            .transpose(-1, -2)
            .unbind(1)
        )
        attended = F.scaled_dot_product_attention(q, k, v)  # [b, heads, h·w, c/heads]
        out: Tensor = self.out(attended.transpose(-1, -2).reshape(b, c, h, w))
        return x + out


class UNet(nn.Module):
    """`unet(x_t, t)` → `Prediction`, float32. x_t [b, 3, size, size]; t int64 [b], in the full chain."""

    def __init__(self, config: UNetConfig = UNetConfig()) -> None:
        super().__init__()
        self.config = config
        widths, embedding = config.channels, 4 * config.channels[0]
        self.frequencies = widths[0]
        self.embed = nn.Sequential(
            nn.Linear(widths[0], embedding), nn.SiLU(), nn.Linear(embedding, embedding), nn.SiLU()
        )
        # weight of x_t itself in the noise, by timestep, so that the layers need not pass x_t through
        self.gain = zeroed(nn.Linear(embedding, 1))
        self.stem = nn.Conv2d(3 * config.patch**2, widths[0], 3, padding=1)

        self.down, self.shrink, self.up, self.grow = (nn.ModuleList() for _ in range(4))
        width = widths[0]
        for level, out in enumerate(widths):
            self.down.append(
                Blocks(ResidualBlock(width if i == 0 else out, out, embedding) for i in range(config.blocks))
            )
            width = out
            last = level == len(widths) - 1
            self.shrink.append(nn.Identity() if last else nn.Conv2d(width, width, 3, stride=2, padding=1))
        self.middle_in = ResidualBlock(width, width, embedding)
        self.attention = Attention(width, config.heads)
        self.middle_out = ResidualBlock(width, width, embedding)
        for level, out in reversed(list(enumerate(widths))):
            self.up.append(
                Blocks(
                    ResidualBlock(width + out if i == 0 else out, out, embedding)
                    for i in range(config.blocks)
                )
            )
            width = out
            self.grow.append(nn.Identity() if level == 0 else nn.Conv2d(width, width, 3, padding=1))

        self.pixel_head = nn.Sequential(
            nn.GroupNorm(widths[0] // 16, widths[0]),
            nn.SiLU(),
            nn.Conv2d(widths[0], 9 * config.patch**2, 3, padding=1),
        )
        feature_width = widths[config.feature_level]
        self.feature_head = nn.Sequential(
            nn.GroupNorm(feature_width // 16, feature_width),
            nn.SiLU(),
            nn.Conv2d(feature_width, config.feature_channels, 3, padding=1),
        )
        self.to(memory_format=torch.channels_last)

    def forward(self, x_t: Tensor, t: Tensor) -> Prediction:
        patch = self.config.patch
        with autocast(x_t.device):
            embedding = self.embed(timestep_embedding(t.to(x_t.device), self.frequencies))  # [b, e]
            h = self.stem(F.pixel_unshuffle(x_t, patch).contiguous(memory_format=torch.channels_last))
            skips = []
            for blocks, shrink in zip(self.down, self.shrink):
                h = blocks(h, embedding)
                skips.append(h)
                h = shrink(h)
            h = self.middle_out(self.attention(self.middle_in(h, embedding)), embedding)
            features: Tensor  # of the level `feature_level`
            for level, blocks, grow in zip(reversed(range(len(self.up))), self.up, self.grow):
                h = blocks(torch.cat([h, skips.pop()], dim=1), embedding)
                if level == self.config.feature_level:
                    features = self.feature_head(h)
                if level:
                    h = grow(F.interpolate(h, scale_factor=2, mode="nearest"))
            pixels, gain = self.pixel_head(h), self.gain(embedding)
        # float32 from here on, also for all arithmetic on predictions
        noise, variance, log_variance = F.pixel_shuffle(pixels.float(), patch).chunk(3, dim=1)
        return Prediction(
            noise=noise + gain.float()[:, :, None, None] * x_t,
            variance=torch.sigmoid(variance),
            # bounded, since x_0 is in [−1, 1] in steps of 1/127.5
            x_start_log_variance=(log_variance - 3).clamp(-11, 1),
            features=features.float(),
        )


def autocast(device: torch.device) -> torch.autocast:
    """bf16 autocast if the processor supports it natively (about five times faster), otherwise float32."""
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported()
    else:
        native = device.type == "cpu" and (
            torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        )
    return torch.autocast(device.type if native else "cpu", torch.bfloat16, enabled=native)


def timestep_embedding(t: Tensor, width: int) -> Tensor:
    """Cosines and sines of t [b] at `width`/2 frequencies from 1 down to 1e-4 rad, float32 [b, width]."""
    frequencies = torch.exp(-math.log(10_000) * torch.arange(width // 2, device=t.device) / (width // 2))
    angles = t.float()[:, None] * frequencies[None]
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def zeroed(layer: nn.Module) -> nn.Module:
    """Set all parameters of a layer to 0, so that its branch initially contributes nothing."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
