"""Files to download: pictures, maps, numbers and the animation of a repair, as (file name, bytes)."""

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
import numpy.typing as npt

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

# Kinds of files → labels of their buttons.
OF_INSPECTION = {
    "report": "Report", "overlay": "Overlay PNG", "map": "Map .npy", "evidence": "Evidence PNG",
    "json": "JSON",
}  # fmt: skip
OF_FILM = {"gif": "GIF", "webp": "WebP"} | ({"mp4": "MP4"} if animation.has_mp4() else {})
PLAYED_PIXELS = 384  # longest side of a frame in the page's player
FRAMES_PLAYED = 60
FULL_PRECISION = 2**22  # px; larger maps are float16 in the zip


class Film:
    """A repair in progress: frames for the animation, and smaller ones, stored as files, for the player."""

    def __init__(
        self,
        inspection: Inspection,
        timesteps: Sequence[int],
        threshold: float,
        keep: Callable[[bytes, str], str],
    ) -> None:
        """Starts without frames.

        Args:
            inspection: the part before the repair.
            timesteps: the timesteps at which the repair is scored.
            threshold: the threshold at these timesteps.
            keep: stores a file (data, name) where the page can fetch it, and returns its path.
        """
        self._inspection = inspection
        self._timesteps = tuple(timesteps)
        self._threshold = threshold
        self._keep = keep
        self.frames: list[npt.NDArray[np.uint8]] = []
        self.repaired: npt.NDArray[np.uint8] | None = None  # the newest picture, in full size
        self.ending = ""  # "stopped" by the user, "done", or empty while it runs
        self._best: RepairStep | None = None  # the scored step with the lowest score
        self._played: list[dict[str, Any]] = []
        self._scores: list[float] = []
        self._losses: list[float] = []
        self._total = self._round = 0

    def add(self, step: RepairStep) -> None:
        """Adds a step; not every step becomes a frame."""
        if not self._scores:
            self._round = max(1, step.total)  # further rounds have as many steps
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
        """Ends with the best picture so far, because the newest one is unfinished."""
        if self._best is not None and self._best.image is not self.repaired:
            self.add(replace(self._best, index=len(self._scores), total=self._total, done=True))

    @property
    def score(self) -> float | None:
        """The newest picture's score; None before the first picture."""
        return self._scores[-1] if self._scores else None

    def score_beside(self, inspection: Inspection) -> float | None:
        """The same, but None if the inspection has another α or other timesteps than the repair."""
        alike = (inspection.alpha, inspection.timesteps) == (self._inspection.alpha, self._timesteps)
        return self.score if alike else None

    def value(self) -> dict[str, Any]:
        """The player's value."""
        if not self._played:
            return no_film()
        first, last, done = self._scores[0], self._scores[-1], len(self._scores) - 1
        steps = cards.plural(done, "step")
        message = self._progress(done)
        if self.ending == "done" and len(self._scores) == 1:
            message = "Nothing to repair: this part has no anomalous region."
        elif self.ending == "done" and first == last:
            message = f"Nothing better was found in {steps}: the picture is unchanged."
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

    def _progress(self, done: int) -> str:
        """The step within its round, and the round unless it is the first."""
        before = max(0, done - 1) // self._round
        step = f"step {done - before * self._round} of {self._round}"
        return f"round {before + 1} · {step}" if before else step

    def _unchanged(self) -> str:
        """How much changed outside the anomalous regions, in words, from the PSNR."""
        before, after = self.frames[0].astype(np.float32), self.frames[-1].astype(np.float32)
        heat = cv2.resize(self._inspection.anomaly_map, before.shape[1::-1], interpolation=cv2.INTER_AREA)
        margin = max(3, max(heat.shape) // 32) | 1
        inside = cv2.dilate((heat > self._threshold).astype(np.uint8), np.ones((margin, margin), np.uint8))
        outside = inside == 0
        if not outside.any():
            return "there is nothing"
        error = float(np.mean((before - after)[outside] ** 2))
        if error < 1e-3:
            return "nothing changed"
        return f"hardly changed ({10 * np.log10(255**2 / error):.0f} dB)"


def no_film() -> dict[str, Any]:
    """The player's value before a repair."""
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
    """File name and bytes of one download.

    Overlay and map have the size of the uploaded picture; the animation has at most 768 px.

    Args:
        kind: a key of OF_INSPECTION or OF_FILM, or "all" for a zip of everything (see `_everything`).
        inspection: as the browser shows it.
        inspector: the model.
        film: the repair, if there was one.
        vmax: end of the colour scale, σ.
        opacity: of the overlay.
        colormap: of overlay and maps.
        name: the picture's name without suffix.
    """
    if kind == "report":
        repaired = _repaired(film)
        score = film.score_beside(inspection) if film is not None and repaired is not None else None
        page = report(inspection, inspector, name, repaired, score, opacity, colormap)
        return f"{name}-report.html", page.encode()
    if kind == "overlay":
        shown = drawing.overlay(
            inspection.hatched, inspection.anomaly_map, vmax, inspection.map_limit, opacity, colormap,
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
    kinds = ("report", "overlay", "evidence", *(OF_FILM if film is not None and film.frames else ()))
    files = [contents(each, inspection, inspector, film, vmax, opacity, colormap, name) for each in kinds]
    return f"{name}-diffad.zip", _everything(files, inspection, inspector, film, name)


def _everything(
    files: Sequence[tuple[str, bytes]], inspection: Inspection, inspector: Inspector, film: Film | None,
    name: str,
) -> bytes:  # fmt: skip
    """A zip of these files, the picture before and after a repair, the map, and the maps it was made from.

    The latter are in maps/, at the model's resolution, as float32 `.npy` and as 16-bit PNG, whose scales are
    in the JSON file.
    """
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr(f"{name}.png", drawing.png_bytes(inspection.image))
        for file in files:
            archive.writestr(*file)
        if (repaired := _repaired(film)) is not None:
            archive.writestr(f"{name}-repaired.png", drawing.png_bytes(repaired))
        small = inspection.image.shape[0] * inspection.image.shape[1] <= FULL_PRECISION
        values = inspection.anomaly_map if small else inspection.anomaly_map.astype(np.float16)
        archive.writestr(f"{name}-map.npy", drawing.npy_bytes(values), zipfile.ZIP_DEFLATED, 1)
        scales = {}
        for key, values in _maps(inspection).items():
            archive.writestr(f"maps/{key}.npy", drawing.npy_bytes(values), zipfile.ZIP_DEFLATED, 1)
            png, scales[f"maps/{key}.png"] = _sixteen_bit(values)
            archive.writestr(f"maps/{key}.png", png)
        maps = {
            "unit": "standard deviations of good parts' maps",
            "png": "low + value / 65535 * (high - low)",
            "scales": scales,
        }
        about = summary(inspection, inspector, name) | {"maps": maps}
        archive.writestr(f"{name}.json", json_text(about))
    return data.getvalue()


def summary(inspection: Inspection, inspector: Inspector, name: str) -> dict[str, Any]:
    """One verdict for JSON: score, limits, regions, settings, the picture's size and hash, the model."""
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


def _repaired(film: Film | None) -> np.ndarray | None:
    """The repaired picture; None unless a repair has ended, by itself or on demand, and changed something."""
    if film is None or film.ending not in ("done", "stopped") or len(film.frames) < 2:
        return None
    return film.repaired


def _maps(inspection: Inspection) -> dict[str, np.ndarray]:
    """Both branches' maps and the fused one by name, float32 [h, w] at the model's resolution."""
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
    """A map as a 16-bit grey PNG that uses the full range, and the values at both ends of the range."""
    low, high = float(values.min()), float(values.max())
    steps = np.rint((values - low) / max(high - low, 1e-12) * 65535).astype(np.uint16)
    return cv2.imencode(".png", steps)[1].tobytes(), {"low": low, "high": high}
