"""Sets of red pictures, and an inspector that calls what is red anomalous."""

from __future__ import annotations

import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image

from diffad import batch
from diffad.method.regions import find_regions
from diffad.pictures.reading import read_image
from diffad.pictures.samples import Sample
from diffad.verdicts import map_limit_for, smallest_region, verdict_for

SIDE = 64


def picture(path: Path, red: int = 0, box: tuple[int, int, int, int] = (8, 8, 24, 20)) -> Path:
    """A black picture with a red rectangle (left, top, right, bottom)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (SIDE, SIDE))
    image.paste((red, 0, 0), box)
    image.save(path)
    return path


def category(root: Path) -> Path:
    """An MVTec category with two good and three defective test pictures, one of them without a mask."""
    picture(root / "train/good/0.png")
    for i, red in enumerate((10, 60)):
        picture(root / f"test/good/{i}.png", red)
    for i, red in enumerate((200, 90, 40)):
        picture(root / f"test/dent/{i}.png", red)
        if i < 2:
            mask = Image.new("L", (SIDE, SIDE))
            mask.paste(255, (8, 8, 24, 20))
            (root / "ground_truth/dent").mkdir(parents=True, exist_ok=True)
            mask.save(root / f"ground_truth/dent/{i}_mask.png")
    return root


def zipped(path: Path, entries: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return path


class Toy:
    """Calls anomalous what is red, worth a look what is a little; the map is the red channel over ten, the
    score its highest value.
    """

    name, categories, provenance = "toy", ("nut", "ring"), {"licence": "none"}

    def __init__(self) -> None:
        self.asked: list[tuple[str, str | None]] = []

    def scale_top(self, category: str) -> float:
        return 8.0

    def ignored(self, image, category):
        return None

    def inspect(self, image, category=None, alpha=0.5, timesteps=(20,), threshold=5.0, look_threshold=3.0):
        self.asked.append((Path(image).name, category))
        pixels = read_image(image)
        red = pixels[..., 0].astype(np.float32) / 10
        score = float(red.max())
        smallest = smallest_region(red.shape, None)
        verdict = verdict_for(score, threshold, look_threshold)
        limit = map_limit_for(verdict, threshold, look_threshold, red)
        found = () if verdict == "good" else find_regions(red, limit, smallest)
        result = {
            "category": category or "nut", "category_fits": True, "score": score, "threshold": threshold,
            "look_threshold": look_threshold, "verdict": verdict, "is_anomalous": score > threshold,
            "seconds": 0.1, "tile": None, "bits": 8, "notes": [],
            "regions": [
                {"box": list(r.box), "area": r.area, "peak": r.peak, "mean": r.mean} for r in found
            ],
        }  # fmt: skip
        return SimpleNamespace(
            image=pixels, hatched=pixels, alpha=alpha, timesteps=timesteps, to_dict=lambda: result,
            grid_maps=lambda: dict.fromkeys(timesteps, (red, red)), grid_plain=lambda: None,
        )  # fmt: skip


def judged(pictures: dict[str, Sample], **settings) -> tuple[list[batch.Row], dict[str, np.ndarray]]:
    results = list(batch.run(Toy(), pictures, **settings))
    maps = {row.name: batch.grid_map(inspection) for row, inspection in results if not row.error}
    return [row for row, _ in results], maps
