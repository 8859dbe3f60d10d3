"""A toy inspector whose anomaly is how much redder than grey a pixel is, and pictures for it."""

from __future__ import annotations

from types import SimpleNamespace

import cv2
import numpy as np

from diffad.pictures.geometry import Geometry
from diffad.pictures.reading import read_image
from diffad.pictures.samples import Sample


class ToyInspector:
    name, categories, size = "toy", ("nut", "ring"), 64
    parameters, provenance = 7, {"licence": "<none>", "data": {"nut": 3}, "by_place": True}

    def __init__(self, touched: int = 0):
        self.touched = touched  # grey levels that a repair changes outside the defect
        self.asked: list[str | None] = []

    def scale_top(self, category):
        return 8.0

    def size_of(self, category):
        return self.size

    def features(self, image):
        small = cv2.resize(image, (8, 8), interpolation=cv2.INTER_AREA)
        return small.transpose(2, 0, 1).astype(np.float32)

    def inspect(self, image, category=None, timesteps=(20,), alpha=0.5, seed=0, threshold=None):
        self.asked.append(category)
        image = read_image(image)
        redness = (image[..., 0].astype(np.float32) - image[..., 1]) / 10
        geometry = Geometry.letterbox(*image.shape[:2], self.size)
        shape = (geometry.inner_width, geometry.inner_height)
        inner = cv2.resize(redness, shape, interpolation=cv2.INTER_AREA)
        padded = np.zeros((self.size, self.size), np.float32)
        padded[geometry.inner] = inner
        padded[: geometry.top], padded[:, : geometry.left] = 99, 99  # must never count
        score = float(np.sort(inner.ravel())[-64:].mean())
        limit = 3.0 if threshold is None else threshold
        return SimpleNamespace(
            image=image,
            hatched=image,
            category=category or self.recognise(image),
            recognised=category is None,
            score=score,
            threshold=limit,
            is_anomalous=score > limit,
            square_map=padded,
            seconds=0.25,
            threshold_at=lambda rate: {0.001: 20.0, 0.01: 3.0, 0.05: -1.0}[rate],
            anomaly_map=redness,
            timesteps=timesteps,
            alpha=alpha,
            pixel_maps=dict.fromkeys(timesteps, redness),
            feature_maps=dict.fromkeys(timesteps, redness),
            plain_map=None,
            weights_in_words="both",
            verdict="anomalous" if score > limit else "good",
            look_threshold=limit,
            map_limit=limit,
        )

    def recognise(self, image):
        return "nut" if image[..., 2].mean() < 128 else "ring"

    def repair(self, image, category=None, options=None, **settings):
        steps = options.steps
        for index in range(steps + 1):
            rest = index / steps
            red = image[..., 0].astype(np.float32)
            frame = image.copy()
            frame[..., 0] = np.round(red + (image[..., 1] - red) * 0.75 * rest) + self.touched * rest
            yield SimpleNamespace(index=index, total=steps, image=frame, done=index == steps)


def write_part(folder, stem, kind, shape=(64, 64), blue=60, depth=60):
    """A grey part with a mark of its own; a kind other than good adds a red square of 16 px and its mask."""
    image = np.full((*shape, 3), 100, np.uint8)
    image[..., 2] = blue
    own = sum(map(ord, stem + kind)) % 50
    image[own : own + 8, 4:12] += 40
    path = folder / "test" / kind / f"{stem}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = None
    if kind != "good":
        defect = np.zeros(shape, np.uint8)
        defect[20:36, 24:40] = 255
        image[defect > 0, 0] += np.uint8(depth)
        mask = folder / "ground_truth" / kind / f"{stem}_mask.png"
        mask.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(mask), defect)
    cv2.imwrite(str(path), image[..., ::-1])
    return Sample(path, folder.name, "test", kind, mask)


def nuts_and_rings(folder):
    """Six labelled test pictures of two categories, one without a label, one of training."""
    nut, ring = folder / "nut", folder / "ring"
    return [
        write_part(nut, "0", "good"),
        write_part(nut, "1", "good"),
        write_part(nut, "0", "scratch"),
        write_part(nut, "1", "scratch", depth=20),
        write_part(ring, "0", "good", shape=(128, 96), blue=200),
        write_part(ring, "0", "dent", shape=(128, 96), blue=200),
        Sample(nut / "test" / "good" / "0.png", "nut"),  # nobody said what it is
        Sample(nut / "train" / "good" / "1.png", "nut", "train", "good"),
    ]
