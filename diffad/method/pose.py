"""Pose normalisation for parts that are photographed at any angle.

Statistics by place are most useful if a place always shows the same part of the object. If the silhouettes of
a category's good parts have a long axis of varying direction, its pictures are rotated until the axis is
horizontal, with the heavier end to the left, and the resulting maps are rotated back. Coordinates are those
of torch's `affine_grid`: −1 to 1 from edge to edge of the model's square, x to the right, y down.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from diffad.pictures.arrays import U8
from diffad.pictures.geometry import to_float, to_square, to_uint8

_AREA = 0.01, 0.6  # minimum and maximum share of the square that a silhouette covers
_ON_RIM = 0.02  # maximum share of the outline on the square's border; more means that the part is cut off
_LONG = 1.3  # minimum ratio of the standard deviations along and across a long axis
_LOOKED_AT = 48  # maximum number of good pictures examined
_FOUND = 0.95  # minimum share of them that must have a pose
_LEVEL = 0.8  # maximum resultant length of the doubled angles; above (σ < 19°), all parts are aligned already
_ALIKE = 0.5  # maximum share of the variance by place that remains after rotation
_CELLS = 32  # per side, for computing that variance
_REACH = 0.95  # maximum distance of a part's ends from the centre of the square


@dataclass(frozen=True)
class Pose:
    """Position and orientation of a part.

    Attributes:
        angle: direction of the long axis from the heavier to the lighter end, radians.
        x, y: centroid of the silhouette.
        left, right, top, bottom: extent from the centroid, along the axis and across it.
    """

    angle: float
    x: float
    y: float
    left: float
    right: float
    top: float
    bottom: float


def find_pose(square: Tensor) -> Pose | None:
    """Find the pose of the part in a picture, float32 [3, s, s] in [−1, 1].

    The silhouette is the largest region enclosed by sharp edges, which excludes shadows. Returns None if
    there is no silhouette, if it is cut off, or if it has no long axis.
    """
    pixels = to_uint8(square).permute(1, 2, 0).numpy()
    size = len(pixels)
    soft = cv2.GaussianBlur(pixels, (0, 0), size / 256).astype(np.float32)
    slope = np.hypot(cv2.Sobel(soft, cv2.CV_32F, 1, 0), cv2.Sobel(soft, cv2.CV_32F, 0, 1)).max(axis=2)
    levels = (slope * (255 / max(1.0, float(slope.max())))).astype(np.uint8)
    split, _ = cv2.threshold(levels, 0, 1, cv2.THRESH_OTSU)
    reach = round(4 * size / 256)
    near = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    edges = cv2.morphologyEx((levels > split).astype(np.uint8), cv2.MORPH_CLOSE, near)
    outlines, _ = cv2.findContours(edges, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    if not outlines:
        return None
    outline = max(outlines, key=cv2.contourArea)
    silhouette = cv2.drawContours(np.zeros((size, size), np.uint8), [outline], -1, 1, cv2.FILLED)
    on_rim = ((outline < reach) | (outline >= size - reach)).any(axis=2).mean()
    if not _AREA[0] < silhouette.mean() < _AREA[1] or on_rim > _ON_RIM:
        return None
    places = (np.argwhere(silhouette)[:, ::-1] + 0.5) * 2 / size - 1  # [n, 2 (x, y)]
    centroid = places.mean(axis=0)
    variances, axes = np.linalg.eigh(np.cov((places - centroid).T))
    if variances[1] < _LONG**2 * variances[0]:
        return None
    axis = axes[:, 1]
    if (((places - centroid) @ axis) ** 3).mean() < 0:  # the lighter end is farther from the centroid
        axis = -axis
    turned = (places - centroid) @ np.stack([axis, [-axis[1], axis[0]]], axis=1)
    (left, top), (right, bottom) = np.quantile(turned, (0.005, 0.995), axis=0).tolist()
    x, y = centroid.tolist()
    return Pose(math.atan2(axis[1], axis[0]), x, y, left, right, top, bottom)


@dataclass(frozen=True)
class Upright:
    """The normalised pose of a category: axis horizontal, centroid at (x, y), scaled by `scale` ≤ 1."""

    scale: float
    x: float
    y: float

    @staticmethod
    def fit(pictures: Tensor) -> Upright | None:
        """Fit the pose to good pictures, uint8 [n, 3, s, s].

        Returns None if too many pictures have no pose, if all parts are aligned already, or if rotating them
        does not make them much more alike.
        """
        few = pictures[:: math.ceil(len(pictures) / _LOOKED_AT)].float() / 127.5 - 1
        found = [(square, pose) for square, pose in zip(few, map(find_pose, few)) if pose is not None]
        if len(found) < _FOUND * len(few):
            return None
        squares, poses = zip(*found)
        # angles are doubled, since an axis with equally heavy ends has no direction
        if abs(np.mean([np.exp(2j * pose.angle) for pose in poses])) > _LEVEL:
            return None
        ends = np.array([[(pose.left, pose.right), (pose.top, pose.bottom)] for pose in poses])
        middle = np.median(ends.mean(axis=2), axis=0)  # [2 (x, y)]
        reach = np.abs(ends - middle[:, None]).max(axis=(1, 2))
        scale = min(1.0, _REACH / float(np.quantile(reach, 0.95)))
        upright = Upright(scale, *(-scale * middle).tolist())
        turned = [Turn.of(pose, upright).forth(square, "reflection") for square, pose in found]
        lying, standing = (
            F.adaptive_avg_pool2d(torch.stack(each), _CELLS).var(dim=0).mean() for each in (squares, turned)
        )
        return upright if standing < _ALIKE * lying else None

    def turn(self, square: Tensor) -> Turn | None:
        """The rotation for a letterboxed picture, float32 [3, s, s]; None if it has no pose."""
        pose = find_pose(square)
        return None if pose is None else Turn.of(pose, self)


@dataclass(frozen=True)
class Turn:
    """Rotation of a part with its axis at `angle` and its centroid at (x, y) to the pose `upright`."""

    angle: float
    x: float
    y: float
    upright: Upright

    @classmethod
    def of(cls, pose: Pose, upright: Upright) -> Turn:
        return cls(pose.angle, pose.x, pose.y, upright)

    def square(self, image: U8, size: int) -> Tensor:
        """Letterbox a picture as `geometry.to_square` and rotate it: float32 [3, size, size].

        Uncovered areas are mirrored, since a repeated edge would leave streaks that the model detects. The
        letterboxed square is rotated rather than the picture, so that the result does not depend on the
        picture's resolution.
        """
        square, _ = to_square(image, size)
        whole = to_uint8(self.forth(square, "reflection", "bicubic"))
        return to_float(whole, whole.device)

    def forth(self, maps: Tensor, outside: str = "zeros", mode: str = "bilinear") -> Tensor:
        """Rotate maps [..., s, s] of the letterboxed square to the normalised pose, float32.

        Args:
            maps: of the letterboxed square.
            outside: padding of uncovered areas, "zeros" or "reflection".
            mode: interpolation, "bilinear" or "bicubic".
        """
        cos, sin = math.cos(self.angle) / self.upright.scale, math.sin(self.angle) / self.upright.scale
        x, y = self.upright.x, self.upright.y
        rows = (cos, -sin, self.x - cos * x + sin * y), (sin, cos, self.y - sin * x - cos * y)
        return _resampled(maps, rows, outside, mode)

    def back(self, maps: Tensor) -> Tensor:
        """Inverse of `forth`; 0 in areas outside the rotated square."""
        cos, sin = math.cos(self.angle) * self.upright.scale, math.sin(self.angle) * self.upright.scale
        x, y = self.upright.x, self.upright.y
        rows = (cos, sin, x - cos * self.x - sin * self.y), (-sin, cos, y + sin * self.x - cos * self.y)
        return _resampled(maps, rows, "zeros")


def _resampled(maps: Tensor, rows: Sequence[Sequence[float]], outside: str, mode: str = "bilinear") -> Tensor:
    """Resample maps affinely. rows: [2, 3], maps output coordinates to input coordinates."""
    flat = maps.reshape(-1, 1, *maps.shape[-2:]).float()
    theta = torch.tensor([rows], dtype=torch.float32, device=maps.device).expand(len(flat), -1, -1)
    grid = F.affine_grid(theta, list(flat.shape), align_corners=False)
    return F.grid_sample(flat, grid, mode, padding_mode=outside, align_corners=False).reshape(maps.shape)
