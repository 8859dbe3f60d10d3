"""What a person takes away: pictures, maps, numbers and the film of a repair, as (file name, bytes)."""

from __future__ import annotations

import io
import json
import tempfile
import zipfile
from collections.abc import Callable
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from diffad import __version__, render
from diffad.ui import cards

if TYPE_CHECKING:
    from diffad.inspector import Inspection, Inspector, RepairStep

OF_INSPECTION = {"overlay": "Overlay PNG", "map": "Map .npy", "evidence": "Evidence PNG", "json": "JSON"}
OF_FILM = {"gif": "GIF", "webp": "WebP"}
FILM_PIXELS = 768  # longest side of a frame that is kept, as render.animation wants them
PLAYED_PIXELS = 384  # longest side of a frame in the page's player
FRAMES_PLAYED = 60


class Film:
    """One repair as it grows: small frames kept for the animation, smaller ones as files for the player.

    `keep(data, name)` stores a file where the page may serve it and returns its path.
    """

    def __init__(self, inspection: Inspection, threshold: float, keep: Callable[[bytes, str], str]):
        self._inspection = inspection
        self._threshold = threshold
        self._keep = keep
        self.frames: list[np.ndarray] = []
        self.ending = ""  # "stopped" or "abandoned" on demand, "done" by itself
        self._played: list[dict[str, Any]] = []
        self._scores: list[float] = []
        self._losses: list[float] = []
        self._total = 0

    def add(self, step: RepairStep) -> None:
        self._total = step.total
        self._scores.append(float(step.score))
        self._losses.append(float(step.mahalanobis))
        if step.index % ceil(max(1, step.total) / FRAMES_PLAYED) and not step.done:
            return
        frame = cards.reduced(step.image, FILM_PIXELS)
        self.frames.append(frame)
        path = self._keep(render.png_bytes(cards.reduced(frame, PLAYED_PIXELS)), f"step-{step.index:03d}.png")
        file = {
            "path": path,
            "meta": {"_type": "gradio.FileData"},
        }  # Gradio adds the address to serve it under
        self._played.append({"step": len(self._scores) - 1, "score": float(step.score), "file": file})

    def value(self) -> dict[str, Any]:
        """What the player shows."""
        if not self._played:
            return no_film()
        first, last, done = self._scores[0], self._scores[-1], len(self._scores) - 1
        message = f"step {done} of {self._total}"
        if self.ending == "done" and len(self._scores) == 1:
            message = "Nothing to repair: no place of this part is anomalous."
        elif self.ending:
            how = "stopped after" if self.ending == "stopped" else "after"
            message = (
                f"score {cards.number(first)} → {cards.number(last)} {how} {cards.plural(done, 'step')} · "
                f"outside the regions {self._unchanged()}"
            )
        return {
            "frames": list(self._played),
            "scores": list(self._scores),
            "losses": list(self._losses),
            "total": self._total,
            "threshold": self._threshold,
            "message": message,
            "state": self.ending or "running",
        }

    def _unchanged(self) -> str:
        """How like the original the newest frame is where no region was: PSNR in decibels."""
        before, after = self.frames[0].astype(np.float32), self.frames[-1].astype(np.float32)
        heat = cv2.resize(self._inspection.anomaly_map, before.shape[1::-1], interpolation=cv2.INTER_AREA)
        wide = max(3, max(heat.shape) // 32) | 1
        inside = cv2.dilate((heat > self._threshold).astype(np.uint8), np.ones((wide, wide), np.uint8))
        outside = inside == 0
        if not outside.any():
            return "nothing is left"
        error = float(np.mean((before - after)[outside] ** 2))
        return "nothing changed" if error < 1e-3 else f"unchanged to {10 * np.log10(255**2 / error):.0f} dB"


def no_film() -> dict[str, Any]:
    return {
        "frames": [],
        "message": "Press Repair to see what this part would look like without its defects.",
        "state": "empty",
    }


def contents(
    kind: str,
    inspection: Inspection,
    inspector: Inspector,
    film: Film | None,
    vmax: float,
    opacity: float,
    colormap: str,
    name: str = "part",
) -> tuple[str, bytes]:
    """File name and bytes of one download: a key of OF_INSPECTION or OF_FILM, or "all" for a zip of all.

    Pictures and the map have the size of the uploaded picture.
    """
    if kind == "overlay":
        shown = render.overlay(
            inspection.image, inspection.anomaly_map, vmax, inspection.threshold, opacity, colormap
        )
        return f"{name}-overlay.png", render.png_bytes(shown)
    if kind == "map":
        data = io.BytesIO()
        np.save(data, inspection.anomaly_map)
        return f"{name}-map.npy", data.getvalue()
    if kind == "evidence":
        return f"{name}-evidence.png", render.png_bytes(render.evidence_sheet(inspection, vmax, colormap))
    if kind == "json":
        report = inspection.to_dict() | {
            "model": inspector.name,
            "provenance": inspector.provenance,
            "diffad": __version__,
        }
        return f"{name}.json", json.dumps(report, indent=2, default=str).encode()
    if kind in OF_FILM:
        assert film is not None and film.frames
        with tempfile.TemporaryDirectory() as folder:
            path = render.animation(film.frames, Path(folder) / f"{name}-repair.{kind}")
            return path.name, path.read_bytes()
    assert kind == "all", kind
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr(f"{name}.png", render.png_bytes(inspection.image))
        kinds = [*OF_INSPECTION, *(OF_FILM if film is not None and film.frames else ())]
        for each in kinds:
            archive.writestr(*contents(each, inspection, inspector, film, vmax, opacity, colormap, name))
    return f"{name}-diffad.zip", data.getvalue()
