"""Parts that lie at any angle, shown to the model in one pose.

Statistics by place tell most if a place always shows the same part of the part. So if the silhouettes of a
category's good parts have a long axis that points anywhere, its pictures are turned until that axis is level,
the heavier end to the left, and what the model then finds is turned back. Coordinates are those of torch's
`affine_grid`: −1 … 1 from edge to edge of the model's square, x to the right, y down.
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

_AREA = 0.01, 0.6  # of the square that a silhouette covers
_ON_RIM = 0.02  # of an outline that may lie on the square's rim: of a part cut off no pose is known
_LONG = 1.3  # ratio of a silhouette's deviations along and across, from which it has a long axis
_LOOKED_AT = 48  # good pictures of a category
_FOUND = 0.95  # share of them that must show a pose
_LEVEL = 0.8  # resultant length of their doubled angles from which they lie one way already (σ of 19°)
_ALIKE = 0.5  # of their variance by place that may be left when they are turned
_CELLS = 32  # a side, by which they are compared
_REACH = 0.95  # how far from the middle of the square a part may reach


@dataclass(frozen=True)
class Pose:
    """How a part lies.

    angle: of its long axis in radians, from the heavier end to the lighter one. x, y: centroid of its
    silhouette. left, right, top, bottom: how far it reaches from the centroid, along the axis and across.
    """

    angle: float
    x: float
    y: float
    left: float
    right: float
    top: float
    bottom: float


def find_pose(square: Tensor) -> Pose | None:
    """The pose of the part in a picture, float32 [3, s, s] in [−1, 1].

    Its silhouette is the largest region that sharp edges enclose, so that shadows do not belong to it. None
    if there is no silhouette, if it is cut off, or if it has no long axis.
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
    if (((places - centroid) @ axis) ** 3).mean() < 0:  # the lighter end reaches further
        axis = -axis
    turned = (places - centroid) @ np.stack([axis, [-axis[1], axis[0]]], axis=1)
    (left, top), (right, bottom) = np.quantile(turned, (0.005, 0.995), axis=0).tolist()
    x, y = centroid.tolist()
    return Pose(math.atan2(axis[1], axis[0]), x, y, left, right, top, bottom)


@dataclass(frozen=True)
class Upright:
    """How all parts of a category are shown: level, with their centroid at x, y, scaled by at most 1."""

    scale: float
    x: float
    y: float

    @staticmethod
    def fit(pictures: Tensor) -> Upright | None:
        """From good pictures, uint8 [n, 3, s, s].

        None if more than a few show no pose, if all parts lie the same way already, or if turning them does
        not make them far more alike.
        """
        few = pictures[:: math.ceil(len(pictures) / _LOOKED_AT)].float() / 127.5 - 1
        found = [(square, pose) for square, pose in zip(few, map(find_pose, few)) if pose is not None]
        if len(found) < _FOUND * len(few):
            return None
        squares, poses = zip(*found)
        # doubled, since an axis whose ends weigh the same has no direction
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
        """What a picture in the model's square, float32 [3, s, s], needs; None if it shows no pose."""
        pose = find_pose(square)
        return None if pose is None else Turn.of(pose, self)


@dataclass(frozen=True)
class Turn:
    """What brings a part with its axis at `angle` and its centroid at x, y upright."""

    angle: float
    x: float
    y: float
    upright: Upright

    @classmethod
    def of(cls, pose: Pose, upright: Upright) -> Turn:
        return cls(pose.angle, pose.x, pose.y, upright)

    def square(self, image: U8, size: int) -> Tensor:
        """As `geometry.to_square`, turned: float32 [3, size, size].

        Where there is no picture it is mirrored: a repeated edge would leave streaks, which the model would
        find. The square is turned and not the picture, so that a part looks the same whatever the size of its
        picture.
        """
        square, _ = to_square(image, size)
        whole = to_uint8(self.forth(square, "reflection", "bicubic"))
        return to_float(whole, whole.device)

    def forth(self, maps: Tensor, outside: str = "zeros", mode: str = "bilinear") -> Tensor:
        """Maps [..., s, s] over the letterbox → over the turned square, float32.

        outside: what lies where they do not reach, "zeros" or their "reflection". mode: of interpolation,
        "bilinear" or "bicubic".
        """
        cos, sin = math.cos(self.angle) / self.upright.scale, math.sin(self.angle) / self.upright.scale
        x, y = self.upright.x, self.upright.y
        rows = (cos, -sin, self.x - cos * x + sin * y), (sin, cos, self.y - sin * x - cos * y)
        return _resampled(maps, rows, outside, mode)

    def back(self, maps: Tensor) -> Tensor:
        """`forth` undone; 0 where the model saw nothing."""
        cos, sin = math.cos(self.angle) * self.upright.scale, math.sin(self.angle) * self.upright.scale
        x, y = self.upright.x, self.upright.y
        rows = (cos, sin, x - cos * self.x - sin * self.y), (-sin, cos, y + sin * self.x - cos * self.y)
        return _resampled(maps, rows, "zeros")


def _resampled(maps: Tensor, rows: Sequence[Sequence[float]], outside: str, mode: str = "bilinear") -> Tensor:
    """rows: [2, 3], from where a value comes to lie to where it is taken."""
    flat = maps.reshape(-1, 1, *maps.shape[-2:]).float()
    theta = torch.tensor([rows], dtype=torch.float32, device=maps.device).expand(len(flat), -1, -1)
    grid = F.affine_grid(theta, list(flat.shape), align_corners=False)
    return F.grid_sample(flat, grid, mode, padding_mode=outside, align_corners=False).reshape(maps.shape)
