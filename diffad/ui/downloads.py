"""What a person takes away: pictures, maps, numbers and the film of a repair, as (file name, bytes)."""

from __future__ import annotations

import hashlib
import io
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from diffad import __version__
from diffad.batch import json_text
from diffad.method.fusion import fuse
from diffad.pictures import animation, drawing
from diffad.report.document import report, share_in_words
from diffad.report.rendering import number
from diffad.report.sheet import evidence_sheet
from diffad.ui import cards

if TYPE_CHECKING:
    from diffad.inspection import Inspection, RepairStep
    from diffad.inspector import Inspector

# What can be taken away, each with its button's label.
OF_INSPECTION = {
    "report": "Report", "overlay": "Overlay PNG", "map": "Map .npy", "evidence": "Evidence PNG",
    "json": "JSON",
}  # fmt: skip
OF_FILM = {"gif": "GIF", "webp": "WebP"} | ({"mp4": "MP4"} if animation.has_mp4() else {})
PLAYED_PIXELS = 384  # longest side of a frame in the page's player
FRAMES_PLAYED = 60
FULL_PRECISION = 2**22  # px; of larger pictures the zip holds the full-size map as float16


class Film:
    """One repair as it grows: small frames kept for the animation, smaller ones as files for the player.

    `keep(data, name)` stores a file where the page may serve it and returns its path.
    """

    def __init__(
        self, inspection: Inspection, timesteps: Sequence[int], threshold: float,
        keep: Callable[[bytes, str], str],
    ) -> None:
        """timesteps: those at which its pictures are scored, and for which the threshold is."""
        self._inspection = inspection
        self._timesteps = tuple(timesteps)
        self._threshold = threshold
        self._keep = keep
        self.frames: list[np.ndarray] = []
        self.repaired: np.ndarray | None = None  # the newest picture, in its own size
        self.ending = ""  # "stopped" on demand, "done" by itself
        self._best: RepairStep | None = None  # the lowest that was scored
        self._played: list[dict[str, Any]] = []
        self._scores: list[float] = []
        self._losses: list[float] = []
        self._total = self._round = 0

    def add(self, step: RepairStep) -> None:
        if not self._scores:
            self._round = max(1, step.total)  # each further round adds as many
        self._total = step.total
        self._scores.append(float(step.score))
        self._losses.append(float(step.mahalanobis))
        self.repaired = step.image
        if step.anomaly_map is not None and (self._best is None or step.score < self._best.score):
            self._best = step
        if step.index % ceil(max(1, step.total) / FRAMES_PLAYED) and not step.done:
            return
        frame = drawing.shrunk(step.image, animation.FRAME_SIDE)
        self.frames.append(frame)
        played = drawing.png_bytes(drawing.shrunk(frame, PLAYED_PIXELS))
        path = self._keep(played, f"step-{step.index:03d}.png")
        file = {"path": path, "meta": {"_type": "gradio.FileData"}}  # Gradio adds the address
        self._played.append({"step": len(self._scores) - 1, "score": float(step.score), "file": file})

    def end_with_best(self) -> None:
        """Adds the best picture again: a weighed repair that is stopped half-way must not leave a draft."""
        if self._best is not None and self._best.image is not self.repaired:
            self.add(replace(self._best, index=len(self._scores), total=self._total, done=True))

    @property
    def score(self) -> float | None:
        """Of the newest picture; None before there is one."""
        return self._scores[-1] if self._scores else None

    def score_beside(self, inspection: Inspection) -> float | None:
        """The same, unless this verdict's α or timesteps are others than the repair's."""
        alike = (inspection.alpha, inspection.timesteps) == (self._inspection.alpha, self._timesteps)
        return self.score if alike else None

    def value(self) -> dict[str, Any]:
        """What the player shows."""
        if not self._played:
            return no_film()
        first, last, done = self._scores[0], self._scores[-1], len(self._scores) - 1
        steps = cards.plural(done, "step")
        message = self._whereabouts(done)
        if self.ending == "done" and len(self._scores) == 1:
            message = "Nothing to repair: no place of this part is anomalous."
        elif self.ending == "done" and first == last:
            message = f"Nothing better was found in {steps}: the picture is as it was."
        elif self.ending:
            how = "stopped after" if self.ending == "stopped" else "after"
            message = (
                f"score {number(first)} → {number(last)} · {how} {steps} · "
                f"outside the regions {self._unchanged()}"
            )
        return {
            "frames": list(self._played),
            "scores": list(self._scores),
            "losses": list(self._losses),
            "total": done if self.ending else self._total,
            "alpha": self._inspection.alpha,
            "timesteps": list(self._timesteps),
            "threshold": self._threshold,
            "message": message,
            "state": self.ending or "running",
        }

    def _whereabouts(self, done: int) -> str:
        """The round, once there is more than one, and the step in it."""
        before = max(0, done - 1) // self._round
        step = f"step {done - before * self._round} of {self._round}"
        return f"round {before + 1} · {step}" if before else step

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
        if error < 1e-3:
            return "nothing changed"
        return f"hardly changed ({10 * np.log10(255**2 / error):.0f} dB)"


def no_film() -> dict[str, Any]:
    return {
        "frames": [],
        "message": "Repair shows what a part would look like without its defects.",
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

    Pictures and the map have the size of the uploaded picture, but for the evidence sheet, the report and
    the animation (at most 768 px). The zip also holds the picture, the repaired one, and under maps/ each
    branch's map per noise level and the fused one at the resolution at which the model works (more cells
    would be interpolation): float32 `.npy`, and 16-bit PNG whose scale is in the JSON.
    """
    if kind == "report":
        repaired, score = (film.repaired, film.score_beside(inspection)) if _repaired(film) else (None, None)
        page = report(inspection, inspector, name, repaired, score, opacity, colormap)
        return f"{name}-report.html", page.encode()
    if kind == "overlay":
        shown = drawing.overlay(
            inspection.image, inspection.anomaly_map, vmax, inspection.map_limit, opacity, colormap,
            contour=inspection.verdict != "good",
        )  # fmt: skip
        return f"{name}-overlay.png", drawing.png_bytes(shown)
    if kind == "map":
        return f"{name}-map.npy", drawing.npy_bytes(inspection.anomaly_map)
    if kind == "evidence":
        return f"{name}-evidence.png", drawing.png_bytes(evidence_sheet(inspection, vmax, colormap))
    if kind == "json":
        return f"{name}.json", json_text(summary(inspection, inspector, name)).encode()
    if kind in OF_FILM:
        assert film is not None and film.frames
        with tempfile.TemporaryDirectory() as folder:
            path = animation.animation(film.frames, Path(folder) / f"{name}-repair.{kind}")
            return path.name, path.read_bytes()
    assert kind == "all", kind
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr(f"{name}.png", drawing.png_bytes(inspection.image))
        kinds = ["report", "overlay", "evidence", *(OF_FILM if film is not None and film.frames else ())]
        for each in kinds:
            archive.writestr(*contents(each, inspection, inspector, film, vmax, opacity, colormap, name))
        if _repaired(film):
            archive.writestr(f"{name}-repaired.png", drawing.png_bytes(film.repaired))
        small = inspection.image.shape[0] * inspection.image.shape[1] <= FULL_PRECISION
        values = inspection.anomaly_map if small else inspection.anomaly_map.astype(np.float16)
        archive.writestr(f"{name}-map.npy", drawing.npy_bytes(values), zipfile.ZIP_DEFLATED, 1)
        scales = {}
        for key, values in _maps(inspection).items():
            archive.writestr(f"maps/{key}.npy", drawing.npy_bytes(values), zipfile.ZIP_DEFLATED, 1)
            png, scales[f"maps/{key}.png"] = _sixteen_bit(values)
            archive.writestr(f"maps/{key}.png", png)
        about = summary(inspection, inspector, name) | {"maps": {
            "unit": "standard deviations of good parts' maps",
            "png": "low + value / 65535 * (high - low)",
            "scales": scales,
        }}  # fmt: skip
        archive.writestr(f"{name}.json", json_text(about))
    return f"{name}-diffad.zip", data.getvalue()


def summary(inspection: Inspection, inspector: Inspector, name: str) -> dict[str, Any]:
    """Everything about one verdict that is no picture: score, limits and what they mean, regions, settings,
    the picture's size and fingerprint, the model and where it comes from."""
    height, width = inspection.image.shape[:2]
    pixels = np.ascontiguousarray(inspection.image)
    rate = inspection.rate
    return inspection.to_dict() | {
        "threshold_rate": rate,
        "threshold_meaning": f"{share_in_words(rate)} would score above the threshold",
        "look_threshold_rate": inspection.rate_above(inspection.look_threshold),
        "good_scores": [float(score) for score in inspection.good_scores],
        "picture": {
            "name": name, "width": width, "height": height,
            "sha256_of_pixels": hashlib.sha256(pixels.tobytes()).hexdigest(),
        },
        "model": inspector.name,
        "provenance": inspector.provenance,
        "diffad": __version__,
    }  # fmt: skip


def _repaired(film: Film | None) -> bool:
    """Whether a repair has come to an end of its own or on demand, and has changed the picture."""
    return film is not None and film.ending in ("done", "stopped") and len(film.frames) > 1


def _maps(inspection: Inspection) -> dict[str, np.ndarray]:
    """Name → map as small as the model made it, float32 [h, w]; fused last."""
    maps = inspection.grid_maps()
    found = {}
    for t in inspection.timesteps:
        found[f"pixel-t{t:03d}"], found[f"feature-t{t:03d}"] = maps[t]
    pixel, feature = (np.mean([maps[t][branch] for t in inspection.timesteps], axis=0) for branch in (0, 1))
    plain = inspection.grid_plain()
    if plain is not None:
        found["plain"] = plain
    return found | {"fused": fuse(pixel[None], feature[None], inspection.alpha, plain)}


def _sixteen_bit(values: np.ndarray) -> tuple[bytes, dict[str, float]]:
    """A map as 16-bit grey PNG that uses the whole range, and the two values at its ends."""
    low, high = float(values.min()), float(values.max())
    steps = np.rint((values - low) / max(high - low, 1e-12) * 65535).astype(np.uint16)
    return cv2.imencode(".png", steps)[1].tobytes(), {"low": low, "high": high}
