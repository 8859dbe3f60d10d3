"""Procedural pictures of parts with defects and exact masks, for demonstration, tests and quick training.

Each category is a small scene of surface layers (height, albedo, metalness, roughness, grain direction), lit
by three soft boxes and photographed with slight blur, vignetting, grain, and varying exposure and white
balance:

- `gear`: a turned brass spur gear with hub, keyway and six lightening holes on a slate plate;
- `chip`: a black quad flat package with laser marking, its 40 gull-wing leads soldered to a green board;
- `carbon_fibre`: a 2×2 twill of carbon tows under clear resin;
- `leather`: pebbled, semi-gloss cognac leather.

A defect changes the layers rather than the pixels, so it is lit like the rest. The good and the defective
part are rendered from the same random state and compared before grain is added; the mask is where they differ
visibly.

This module has the light, the camera, the masks and the sets; the good scenes are in `scenes`, the defects in
`defects`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from diffad.output import write
from diffad.pictures.arrays import F32, U8, Array, Bools
from diffad.pictures.reading import DataError
from diffad.synthetic.defects import SPOIL
from diffad.synthetic.layers import Fault, Scene, axis, blur
from diffad.synthetic.scenes import BUILD

DEFECTS: dict[str, tuple[str, ...]] = {
    "gear": ("broken_tooth", "scratch", "dent", "corrosion", "crack"),
    "chip": (
        "bent_lead",
        "missing_lead",
        "solder_bridge",
        "scratch",
        "chipped_edge",
        "smeared_print",
        "contamination",
    ),
    "carbon_fibre": ("scratch", "broken_weave", "void", "stain", "loose_fibre"),
    "leather": ("cut", "hole", "crease", "stain", "scuff"),
}
CATEGORIES: tuple[str, ...] = tuple(DEFECTS)
SIZES = (64, 1024)

_VISIBLE = (
    9.0  # minimum visible change of any channel, grey values of 255; the grain has a deviation of about 2
)
_STRONG = 26.0  # 80th percentile of the change that every defect must reach
_SMALLEST = 40.0  # minimum area of a defect at 256 × 256, px
_TRIES = 16


@dataclass(frozen=True)
class Part:
    """A picture of a part.

    Attributes:
        image: uint8 RGB [size, size, 3].
        mask: of the defect, bool [size, size].
        category: one of CATEGORIES.
        defect: "good" or the kind of defect.
    """

    image: U8
    mask: Bools
    category: str
    defect: str


def make_part(category: str, seed: int, defect: str = "good", size: int = 256) -> Part:
    """Render one picture of a part; deterministic.

    At 1024 px a good part takes about half a second on one core, and a defective one a second or more.

    Args:
        category: one of CATEGORIES.
        seed: at least 0; a good part and its defects share a seed.
        defect: "good" or one of the category's DEFECTS.
        size: side in px, 64 to 1024.

    Raises:
        DataError: unknown category or defect, negative seed, or size out of range.
    """
    _check(category, size, seed)
    if defect != "good" and defect not in DEFECTS[category]:
        kinds = ", ".join(("good", *DEFECTS[category]))
        raise DataError(f"{category} has no defect {defect!r}: choose from {kinds}.")
    n = size * (2 if size <= 512 else 1)  # above, the lens blur hides aliasing

    def build(fault: Fault | None = None) -> Scene:
        return BUILD[category](_rng(category, seed, "part"), n, fault)

    def photograph(scene: Scene) -> Array:
        return _photograph(scene, _rng(category, seed, "camera"), size)

    scene = build()
    picture, mask = photograph(scene), np.zeros((size, size), bool)
    if defect != "good":
        for attempt in range(_TRIES):
            rng = _rng(category, seed, defect, attempt)
            spoiled = photograph(SPOIL[category, defect](scene, rng, 1.0 + 0.2 * attempt, build))
            change = np.abs(spoiled - picture).max(axis=2)
            mask = _clean(change > _VISIBLE, size, 0.035 if defect == "broken_weave" else 0.012)
            if mask.sum() >= _SMALLEST * (size / 256) ** 2 and np.percentile(change[mask], 80) >= _STRONG:
                break
        else:
            raise RuntimeError(f"{category} {seed}: no visible {defect} in {_TRIES} tries")
        # Outside the mask the good picture is used; the change there is too faint to see.
        inside = cv2.GaussianBlur(cv2.dilate(mask.astype(np.float32), np.ones((3, 3))), (0, 0), 0.6)
        inside[cv2.dilate(mask.astype(np.uint8), np.ones((7, 7))) == 0] = 0
        picture = picture + (spoiled - picture) * inside[..., None]
    return Part(_grain(picture, _rng(category, seed, "grain")), mask, category, defect)


def write_set(
    root: Path | str,
    categories: Sequence[str] = CATEGORIES,
    train: int = 200,
    good: int = 30,
    defective: int = 60,
    size: int = 256,
    seed: int = 0,
) -> Path:
    """Write a data set of PNG files as an MVTec tree.

    The folders are root/<category>/train/good, test/good, test/<defect> and ground_truth/<defect>, with masks
    called <stem>_mask.png.

    Args:
        root: the folder to write to.
        categories: some of CATEGORIES.
        train, good: number of good training and test pictures per category.
        defective: number of defective pictures per category, spread evenly over its kinds of defects.
        size: side in px, 64 to 1024.
        seed: sets of different seeds have no part in common, nor do training and test pictures.

    Returns:
        The root.

    Raises:
        DataError: root is a file, no or unknown categories, or a number out of range.
    """
    root = Path(root)
    if root.exists() and not root.is_dir():
        raise DataError(f"{root} is a file: name a folder to write the set to.")
    if isinstance(categories, str):
        categories = (categories,)
    if not categories:
        raise DataError(f"No category to write: choose from {', '.join(CATEGORIES)}.")
    for category in categories:
        _check(category, size, seed)
    if min(train, good, defective) < 0 or max(train, good, defective) > 100_000:
        raise DataError("The numbers of train, good and defective pictures must lie between 0 and 100000.")
    first = seed * 1_000_000
    for category in categories:
        home = root / category
        for i in range(train):
            _write(home / "train/good" / f"{i:03d}.png", make_part(category, first + i, size=size).image)
        for i in range(good):
            part = make_part(category, first + 300_000 + i, size=size)
            _write(home / "test/good" / f"{i:03d}.png", part.image)
        kinds = DEFECTS[category]
        for i in range(defective):
            kind, stem = kinds[i % len(kinds)], f"{i // len(kinds):03d}"
            part = make_part(category, first + 600_000 + i, kind, size)
            _write(home / "test" / kind / f"{stem}.png", part.image)
            _write(home / "ground_truth" / kind / f"{stem}_mask.png", part.mask.astype(np.uint8) * 255)
    return root


def _check(category: str, size: int, seed: int) -> None:
    if category not in DEFECTS:
        raise DataError(f"Unknown category {category!r}: choose from {', '.join(CATEGORIES)}.")
    if not SIZES[0] <= size <= SIZES[1]:
        raise DataError(f"Size {size} is out of range: choose {SIZES[0]} to {SIZES[1]} pixels.")
    if seed < 0:
        raise DataError(f"Seed {seed} is negative: choose 0 or more.")


def _write(path: Path, image: U8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    ok, data = cv2.imencode(".png", image[..., ::-1] if image.ndim == 3 else image)
    assert ok
    write(path, data.tobytes(), sync=False)


def _rng(*key: object) -> np.random.Generator:
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))


# --- light, camera, mask --------------------------------------------------------------------------

# Soft boxes: direction (slope of the half vector in x and y), angular radius, radiance.
_LIGHTS = ((-0.22, -0.42, 0.13, 7.5), (0.50, -0.12, 0.13, 2.4), (0.10, 0.60, 0.20, 0.6))


def _photograph(scene: Scene, rng: np.random.Generator, size: int) -> F32:
    """Render a scene without sensor grain: float32 [size, size, 3], 0 to 255."""
    n = scene.x.shape[0]
    h = scene.height
    jitter = rng.normal(0, 0.015, (3, 2))
    exposure = np.float32(np.exp(rng.normal(0, 0.035)))
    balance = np.exp(rng.normal(0, 0.010, 3)).astype(np.float32)
    defocus = rng.uniform(0.45, 0.7)
    sx = np.clip(cv2.Sobel(h, cv2.CV_32F, 1, 0, scale=-n / 16), -2.5, 2.5)
    sy = np.clip(cv2.Sobel(h, cv2.CV_32F, 0, 1, scale=-n / 16), -2.5, 2.5)

    relief = h + scene.lift
    lx, ly, lz = -0.50, -0.56, 0.66
    shade = np.zeros_like(h)
    for reach in (0.012, 0.03, 0.06, 0.10):
        move = np.array([[1, 0, lx * reach * n / 2], [0, 1, ly * reach * n / 2]], np.float32)
        higher = cv2.warpAffine(
            relief,
            move,
            (n, n),
            flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        )
        np.maximum(shade, (higher - relief) * np.float32(1 / reach) - 0.35, out=shade)
    lit = 1 - 0.8 * blur(np.minimum(shade * 1.2, 1), 0.009)
    open_sky = np.exp(-9 * np.maximum(blur(relief, 0.07) - relief, 0))

    a = axis(n)
    falloff = (1 + 0.10 * (-0.8 * a[None, :] - a[:, None])).astype(np.float32)
    cosine = np.maximum((sx * lx + sy * ly + lz) / np.sqrt(1 + sx * sx + sy * sy), 0)
    diffuse = (0.42 * open_sky + 1.15 * cosine * lit) * falloff

    along2, across2 = scene.rough**2, scene.across**2
    mirror = 0.10 + 0.08 * np.clip(-sy - 0.4 * sx, -1, 1)
    for i, (hx, hy, radius, radiance) in enumerate(_LIGHTS):
        # Perspective: the half vector depends on the place, so that flat shiny faces have a gradient.
        dx = sx - (np.float32(hx + jitter[i, 0]) - 0.16 * a)[None, :]
        dy = sy - (np.float32(hy + jitter[i, 1]) - 0.16 * a)[:, None]
        along = dx * scene.grain_x + dy * scene.grain_y
        over = dy * scene.grain_x - dx * scene.grain_y
        va, vo = along2 + radius * radius, across2 + radius * radius
        lobe = np.exp(-(along * along / va + over * over / vo))
        lobe = lobe * (radiance * radius * radius) / np.sqrt(va * vo)
        mirror += lobe * lit if i == 0 else lobe
    mirror *= open_sky * falloff

    plain = 1 - scene.metal
    picture = scene.albedo * (plain * diffuse + scene.metal * mirror)[..., None]
    picture += (scene.gloss * plain * mirror)[..., None]
    picture = cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA)

    glow = cv2.GaussianBlur(np.maximum(picture - 0.8, 0), (0, 0), 0.012 * size)
    picture = cv2.GaussianBlur(picture + 0.25 * glow, (0, 0), defocus * max(1.0, size / 256))
    b = axis(size)
    picture *= (1 - 0.07 * (b[None, :] ** 2 + b[:, None] ** 2))[..., None]
    picture *= exposure * balance
    # Film-like tone curve: soft highlights, deep blacks.
    tone = np.power(1 - np.exp(-1.15 * picture), 1 / 2.2, dtype=np.float32)
    return np.asarray(255 * (tone + 0.55 * (tone * tone * (3 - 2 * tone) - tone)), np.float32)


def _grain(picture: U8, rng: np.random.Generator) -> Array:
    size = picture.shape[0]
    luma = rng.standard_normal((size, size, 1), dtype=np.float32)
    colour = rng.standard_normal((size, size, 3), dtype=np.float32)
    noise = cv2.GaussianBlur(np.concatenate([luma * 1.9 + colour * 0.9], axis=2), (0, 0), 0.45)
    shot = 0.75 + 0.5 * np.sqrt(np.clip(picture, 0, 255) / 255)
    return np.clip(picture + noise * shot + 0.5, 0, 255).astype(np.uint8)


def _clean(changed: Array, size: int, reach: float) -> Bools:
    """Close gaps narrower than `reach` (a fraction of the picture) and remove invisibly small specks."""
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * round(reach * size / 2) + 1,) * 2)
    whole = cv2.morphologyEx(changed.astype(np.uint8), cv2.MORPH_CLOSE, disc)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(whole, connectivity=8)
    keep = stats[:, cv2.CC_STAT_AREA] >= max(4, 10 * (size / 256) ** 2)
    keep[0] = False
    return keep[labels] if count > 1 else np.zeros_like(changed)
