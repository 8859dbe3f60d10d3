"""Connected regions of an anomaly map above a threshold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from diffad.pictures.arrays import F32


@dataclass(frozen=True)
class Region:
    """A connected region of the map above the threshold.

    Attributes:
        box: x, y, width, height, px.
        area: px.
        peak, mean: highest and mean value of the map in the region, σ.
    """

    box: tuple[int, int, int, int]
    area: int
    peak: float
    mean: float

    def to_dict(self) -> dict[str, Any]:
        """The region as JSON values."""
        return {"box": list(self.box), "area": self.area, "peak": self.peak, "mean": self.mean}


def find_regions(anomaly_map: F32, threshold: float, min_area: float = 1) -> tuple[Region, ...]:
    """8-connected components of map > threshold with at least `min_area` px, highest peak first."""
    above = (anomaly_map > threshold).astype(np.uint8)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(above, connectivity=8)
    regions = []
    for label in range(1, count):
        x, y, width, height, area = (int(value) for value in stats[label])
        if area >= min_area:
            values = anomaly_map[y : y + height, x : x + width][
                labels[y : y + height, x : x + width] == label
            ]
            regions.append(Region((x, y, width, height), area, float(values.max()), float(values.mean())))
    return tuple(sorted(regions, key=lambda region: -region.peak))
