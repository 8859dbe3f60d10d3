"""What the tests of the command line share: a toy inspector and pictures for it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image

from diffad.inspector import Inspector
from diffad.method.fusion import weights_in_words
from diffad.method.repair_options import RepairOptions
from diffad.pictures.geometry import Geometry
from diffad.pictures.reading import read_image
from diffad.verdicts import map_limit_for, verdict_for


def only_error(capsys) -> str:
    """What was said: exactly one line on standard error, nothing on standard output."""
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("diffad: ") and err.count("\n") == 1, (out, err)
    return err


class Toy:
    name, categories, size, parameters, provenance = "toy", ("nut", "ring"), 32, 1, {"licence": "none"}
    score_override: float | None = None
    notes: tuple[str, ...] = ()

    check_knows = Inspector.check_knows

    def size_of(self, category):
        return self.size

    def __init__(self):
        self.calls: list[dict] = []

    def scale_top(self, category):
        return 8.0

    def features(self, image):
        return np.zeros((1, 8, 8), np.float32)

    def inspect(
        self,
        image,
        category=None,
        timesteps=(),
        alpha=0.5,
        seed=0,
        draws=1,
        threshold=None,
        look_threshold=None,
        tile="auto",
    ):
        settings = {"category": category, "timesteps": timesteps, "alpha": alpha, "seed": seed}
        self.calls.append({**settings, "draws": draws, "tile": tile})
        pixels = read_image(image)
        heat = (pixels[..., 0].astype(np.float32) - pixels[..., 1]) / 10
        square = np.zeros((self.size, self.size), np.float32)
        square[Geometry.letterbox(*pixels.shape[:2], self.size).inner] = heat.max()
        score = float(heat.max()) if self.score_override is None else self.score_override
        limit = 1.0 if threshold is None else threshold
        look = min(limit, 0.5 if look_threshold is None else look_threshold)
        verdict = verdict_for(score, limit, look)
        region = {"box": [1, 2, 3, 4], "area": 12, "peak": 5.0, "mean": 4.0}
        result = {
            "category": category or "nut",
            "score": score,
            "threshold": limit,
            "look_threshold": look,
            "verdict": verdict,
            "is_anomalous": score > limit,
            "regions": [] if verdict == "good" else [region],
            "seconds": 0.1,
            "bits": 8,
            "notes": list(self.notes),
        }
        maps = dict.fromkeys(timesteps, heat)
        return SimpleNamespace(
            **result,
            image=pixels,
            hatched=pixels,
            anomaly_map=heat,
            square_map=square,
            pixel_maps=maps,
            feature_maps=maps,
            timesteps=timesteps,
            alpha=alpha,
            to_dict=lambda: result,
            threshold_at=lambda rate: 1.0,
            map_limit=map_limit_for(verdict, limit, look, heat),
            plain_map=None,
            weights_in_words=weights_in_words(alpha),
        )

    def repair(self, image, category=None, options=RepairOptions(), **settings):  # noqa: B008
        self.calls.append({"category": category, **asdict(options), **settings})
        steps = options.steps
        pixels = read_image(image)
        return (
            SimpleNamespace(
                index=i,
                total=steps,
                image=pixels // (i + 1),
                score=9.0 - i,
                done=i == steps,
                notes=self.notes,
            )
            for i in range(steps + 1)
        )


def picture(path: Path, red: int = 0, size: tuple[int, int] = (40, 30)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.full((size[1], size[0], 3), 90, np.uint8)
    image[5:20, 5:20, 0] += np.uint8(red)
    Image.fromarray(image).save(path)
    return path


def labelled(root: Path) -> Path:
    for i in range(2):
        picture(root / "nut" / "test" / "good" / f"{i}.png", size=(32, 32))
        picture(root / "nut" / "test" / "cut" / f"{i}.png", red=50, size=(32, 32))
        mask = np.zeros((32, 32), np.uint8)
        mask[5:20, 5:20] = 255
        (root / "nut" / "ground_truth" / "cut").mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(root / "nut" / "ground_truth" / "cut" / f"{i}_mask.png")
        picture(root / "nut" / "train" / "good" / f"{i}.png")
    return root
