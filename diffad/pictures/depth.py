"""How many bits a picture's values use, where its file does not say, and what they are in eight.

A camera of 10, 12 or 14 bits stores its pictures in files of 16. What is white in them, no header tells: the
highest value does, of a whole set rather than of one dark picture.
"""

from __future__ import annotations

import struct

import cv2
import numpy as np

from diffad.pictures.arrays import U8, Array

DEPTHS = (8, 10, 12, 14, 16)  # bits that cameras have
_DRAWN = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")  # a PNG's chunks that make its pixels
_ROWS = 256  # converted at once: all would take four times the memory
_WARNS_OF_NOTHING = cv2.utils.logging.LOG_LEVEL_SILENT


def bits_for(highest: float) -> int:
    """The fewest of DEPTHS that hold a value of at most 65535."""
    return next(bits for bits in DEPTHS if highest <= white(bits))


def most(*found: int | None) -> int | None:
    """The most bits of several sets of pictures; None, as each of them, where all are 8-bit files."""
    return max((bits for bits in found if bits is not None), default=None)


def white(bits: int) -> int:
    """The highest value of this number of bits."""
    return (1 << bits) - 1


def read_in_words(bits: int, highest: int) -> str:
    """How a set of pictures was read. highest: the bits that its highest value needs."""
    beyond = f", those with higher values as up to {highest}" if highest > bits else ""
    return f"Pictures of more than 8 bits were read as {bits} bits{beyond}."


def to_8_bits(values: Array, top: float) -> U8:
    """Values from 0 to `top`, which is white, as uint8."""
    scaled = np.empty(values.shape, np.uint8)
    for row in range(0, len(values), _ROWS):
        some = values[row : row + _ROWS].astype(np.float32) * np.float32(255 / top)
        scaled[row : row + _ROWS] = np.rint(some).clip(0, 255)
    return scaled


def deep_colours(file: bytes) -> Array | None:
    """All 16 bits of a colour picture's values, uint16 [H, W, 3 or 4] as RGB or RGBA; a TIFF turned upright,
    other kinds as they are stored. None where OpenCV reads something else.
    """
    before = cv2.utils.logging.setLogLevel(_WARNS_OF_NOTHING)
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
    """A picture [H, W, …] as EXIF's orientation 1 … 8 says that it is to be seen."""
    if orientation in (5, 6, 7, 8):
        values = values.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    return values


def _plain(file: bytes) -> bytes:
    """A PNG without what is no pixel (about colour profiles libpng writes to standard error); others with a
    line's end, which OpenCV wants after the last number of a picture in plain text.
    """
    if not file.startswith(b"\x89PNG\r\n\x1a\n"):
        return file + b"\n"
    kept, place = [file[:8]], 8
    while place + 12 <= len(file):
        length, kind = struct.unpack_from(">I4s", file, place)
        if kind in _DRAWN:
            kept.append(file[place : place + 12 + length])
        place += 12 + length
    return b"".join(kept)
