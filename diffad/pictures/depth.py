"""Bit depths of pictures with more than 8 bits, and their conversion to 8 bits.

Cameras with 10, 12 or 14 bits store pictures in 16-bit files whose header does not give the white level. It
is estimated from the highest value, preferably of a whole set, since one picture may be dark.
"""

from __future__ import annotations

import struct

import cv2
import numpy as np

from diffad.pictures.arrays import U8, Array

DEPTHS = (8, 10, 12, 14, 16)  # bits that cameras have
_PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")  # of a PNG
_ROWS = 256  # converted at a time, to save memory


def bits_for(highest: float) -> int:
    """The smallest of DEPTHS that holds a value of at most 65535."""
    return next(bits for bits in DEPTHS if highest <= white(bits))


def most(*found: int | None) -> int | None:
    """The largest of several bit depths; None stands for 8-bit files and is returned if all are None."""
    return max((bits for bits in found if bits is not None), default=None)


def white(bits: int) -> int:
    """The highest value at a bit depth."""
    return (1 << bits) - 1


def read_in_words(bits: int, highest: int) -> str:
    """A sentence about how a set of pictures was read.

    Args:
        bits: the bit depth used.
        highest: the bit depth that the highest value needs.
    """
    beyond = f", those with higher values as up to {highest}" if highest > bits else ""
    return f"Pictures of more than 8 bits were read as {bits} bits{beyond}."


def to_8_bits(values: Array, top: float) -> U8:
    """Scale values from 0 to `top` (white) to uint8, of the same shape."""
    scaled = np.empty(values.shape, np.uint8)
    for row in range(0, len(values), _ROWS):
        some = values[row : row + _ROWS].astype(np.float32) * np.float32(255 / top)
        scaled[row : row + _ROWS] = np.rint(some).clip(0, 255)
    return scaled


def deep_colours(file: bytes) -> Array | None:
    """Decode a 16-bit colour picture with OpenCV, since Pillow would reduce it to 8 bits.

    Args:
        file: the file's bytes.

    Returns:
        uint16 RGB [H, W, 3] or RGBA [H, W, 4], or None if OpenCV does not read 16-bit colours from it. TIFFs
        are turned upright; other formats come as they are stored.
    """
    before = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        found = cv2.imdecode(np.frombuffer(_plain(file), np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return None
    finally:
        cv2.utils.logging.setLogLevel(before)
    if found is None or found.dtype != np.uint16 or found.ndim != 3 or found.shape[2] not in (3, 4):
        return None
    return cv2.cvtColor(found, cv2.COLOR_BGR2RGB if found.shape[2] == 3 else cv2.COLOR_BGRA2RGBA)


def turned(values: Array, orientation: int) -> Array:
    """Turn a stored picture [H, W, …] upright by its EXIF orientation, 1 to 8."""
    if orientation in (5, 6, 7, 8):
        values = values.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    return values


def _plain(file: bytes) -> bytes:
    """Adapt a file to OpenCV.

    PNGs lose their metadata, since libpng prints warnings about colour profiles. Other files get a final line
    break, which OpenCV needs after the last number of a plain-text PNM.
    """
    if not file.startswith(b"\x89PNG\r\n\x1a\n"):
        return file + b"\n"
    kept, place = [file[:8]], 8
    while place + 12 <= len(file):
        length, kind = struct.unpack_from(">I4s", file, place)
        if kind in _PIXEL_CHUNKS:
            kept.append(file[place : place + 12 + length])
        place += 12 + length
    return b"".join(kept)
