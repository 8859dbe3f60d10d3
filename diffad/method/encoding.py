"""Tensors in fewer bytes, as a checkpoint keeps them.

Weights become int8 with a scale for each output channel. Small whole numbers become a stream of Huffman
codes: a covariance's entries take some 2.3 bits, differences of neighbouring cells of a map some 4.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor


def rounded(network: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights as a file gives them back, float32; rounding again changes nothing."""
    return {name: restored(*stored(value)) for name, value in network.items()}


def stored(weight: Tensor) -> tuple[Tensor, Tensor | None]:
    """int8 and a scale for each output channel (fp16), 127 steps to its largest weight; vectors in fp16."""
    if weight.dim() < 2:
        return weight.half(), None
    rows = weight.float().flatten(1)
    scale = (rows.abs().amax(dim=1) / 127).clamp(min=6e-8).half()
    codes = (rows / scale[:, None].float()).round().clamp(-127, 127)
    return codes.to(torch.int8).view_as(weight), scale


def restored(weight: Tensor, scale: Tensor | None) -> Tensor:
    """`stored` undone, float32."""
    if scale is None:
        return weight.float()
    return weight.float() * scale.float().view(-1, *(1,) * (weight.dim() - 1))


def pack(triangular: Tensor, offset: int = 0) -> Tensor:
    """Lower triangles [..., d, d] → [..., d(d+1)/2]; offset −1 leaves the diagonal out."""
    rows, columns = torch.tril_indices(triangular.shape[-2], triangular.shape[-1], offset)
    return triangular[..., rows, columns].contiguous()


def unpack(packed: Tensor, size: int, offset: int = 0) -> Tensor:
    """`pack` undone. Raises ValueError for another number of entries."""
    entries = size * (size + 1) // 2 + offset * size
    if packed.shape[-1] != entries:
        raise ValueError(f"a triangle has {packed.shape[-1]} entries instead of {entries}")
    full = packed.new_zeros(*packed.shape[:-1], size, size)
    rows, columns = torch.tril_indices(size, size, offset)
    full[..., rows, columns] = packed
    return full


def differences(codes: Tensor) -> Tensor:
    """Of neighbours along the last dimension, modulo 256: maps are smooth, so these take fewer bits."""
    return torch.cat([codes[..., :1], codes[..., 1:] - codes[..., :-1]], dim=-1)


def sums(of_differences: Tensor) -> Tensor:
    """`differences` undone."""
    return of_differences.cumsum(dim=-1, dtype=torch.uint8)


def coded(codes: Tensor) -> Tensor:
    """int8 or uint8 of any shape → uint8 [bytes], a zlib stream of Huffman codes."""
    coder = zlib.compressobj(strategy=zlib.Z_HUFFMAN_ONLY)
    stream = coder.compress(codes.numpy().tobytes()) + coder.flush()
    return torch.from_numpy(np.frombuffer(stream, dtype=np.uint8).copy())


def decoded(stream: Tensor, shape: tuple[int, ...]) -> Tensor:
    """`coded` undone, uint8. Raises ValueError for a stream of another length, zlib.error for none."""
    length = math.prod(shape)
    if length > 8 * stream.numel():  # a code has at least one bit: a small file cannot ask for much memory
        raise ValueError(f"{stream.numel()} bytes cannot hold {length} codes")
    plain = zlib.decompressobj().decompress(stream.numpy().tobytes(), length + 1)
    if len(plain) != length:
        raise ValueError(f"{len(plain)} codes instead of {length}")
    return torch.from_numpy(np.frombuffer(plain, dtype=np.uint8).reshape(shape).copy())
