"""A method that says no more than scores and maps."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from diffad.measuring.measures import Scored


def scored(n=12, size=24):
    """A method that says no more than scores and maps."""
    rng = np.random.default_rng(5)
    for i in range(n):
        mask = np.zeros((size, size), bool)
        if i >= n // 3:
            mask[4 : 9 + i % 4, 6:14] = True
        anomaly_map = (rng.normal(size=mask.shape) + mask).astype(np.float32)
        yield Scored(
            Path(f"{i}.png"),
            bool(mask.any()),
            float(rng.normal() + mask.any()),
            anomaly_map,
            mask,
            defect=("cut", "dent")[i % 2] if mask.any() else "good",
        )
