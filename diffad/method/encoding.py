"""Compression of tensors in checkpoints.

Weights are stored as int8 with a scale per output channel. Small integers are Huffman-coded: about 2.3 bits
per entry of a covariance, and 4 per difference of neighbouring cells of a map.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor


def rounded(network: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights after one round trip through a file, float32; further round trips change nothing."""
    return {name: restored(*stored(value)) for name, value in network.items()}


def stored(weight: Tensor) -> tuple[Tensor, Tensor | None]:
    """Quantise a weight.

    Returns:
        int8 values and an fp16 scale per output channel, with 127 steps up to its largest weight; vectors are
        stored as fp16 without a scale.
    """
    if weight.dim() < 2:
        return weight.half(), None
    rows = weight.float().flatten(1)
    scale = (rows.abs().amax(dim=1) / 127).clamp(min=6e-8).half()
    codes = (rows / scale[:, None].float()).round().clamp(-127, 127)
    return codes.to(torch.int8).view_as(weight), scale


def restored(weight: Tensor, scale: Tensor | None) -> Tensor:
    """Inverse of `stored`, float32."""
    if scale is None:
        return weight.float()
    return weight.float() * scale.float().view(-1, *(1,) * (weight.dim() - 1))


def pack(triangular: Tensor, offset: int = 0) -> Tensor:
    """Entries of lower triangles [..., d, d] as [..., d(d+1)/2]; offset −1 excludes the diagonal."""
    rows, columns = torch.tril_indices(triangular.shape[-2], triangular.shape[-1], offset)
    return triangular[..., rows, columns].contiguous()


def unpack(packed: Tensor, size: int, offset: int = 0) -> Tensor:
    """Inverse of `pack`. Raises ValueError if the number of entries does not match `size`."""
    entries = size * (size + 1) // 2 + offset * size
    if packed.shape[-1] != entries:
        raise ValueError(f"a triangle has {packed.shape[-1]} entries instead of {entries}")
    full = packed.new_zeros(*packed.shape[:-1], size, size)
    rows, columns = torch.tril_indices(size, size, offset)
    full[..., rows, columns] = packed
    return full


def differences(codes: Tensor) -> Tensor:
    """Differences along the last dimension, modulo 256, which need fewer bits since maps are smooth."""
    return torch.cat([codes[..., :1], codes[..., 1:] - codes[..., :-1]], dim=-1)


def sums(of_differences: Tensor) -> Tensor:
    """Inverse of `differences`."""
    return of_differences.cumsum(dim=-1, dtype=torch.uint8)


def coded(codes: Tensor) -> Tensor:
    """Huffman-code int8 or uint8 values of any shape: uint8 [bytes], a zlib stream."""
    coder = zlib.compressobj(strategy=zlib.Z_HUFFMAN_ONLY)
    stream = coder.compress(codes.numpy().tobytes()) + coder.flush()
    return torch.from_numpy(np.frombuffer(stream, dtype=np.uint8).copy())


def decoded(stream: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Inverse of `coded`, uint8.

    Raises:
        ValueError: the number of values does not match the shape.
        zlib.error: not a zlib stream.
    """
    length = math.prod(shape)
    if length > 8 * stream.numel():  # a code has at least one bit; limits memory for malicious files
        raise ValueError(f"{stream.numel()} bytes cannot hold {length} codes")
    plain = zlib.decompressobj().decompress(stream.numpy().tobytes(), length + 1)
    if len(plain) != length:
        raise ValueError(f"{len(plain)} codes instead of {length}")
    return torch.from_numpy(np.frombuffer(plain, dtype=np.uint8).reshape(shape).copy())
