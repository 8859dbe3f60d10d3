"""The four good scenes: surface layers of a gear, a chip, carbon fibre and leather, before light and camera.

`BUILD[category]` makes a scene from a random generator, a canvas width in pixels and a fault in the part's
shape (None for a good part). Lengths are in half canvas widths.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import cv2
import numpy as np

from diffad.pictures.arrays import F32, Array
from diffad.synthetic.layers import Fault, Scene, blur, distance, mix, noise, pose, smooth

# --- gear -----------------------------------------------------------------------------------------

TEETH = 24


def _gear(rng: np.random.Generator, n: int, fault: Fault | None) -> Scene:
    fault = fault or {}
    x, y = pose(rng, n, 0.028, 5.0, 0.012)
    r, theta = cv2.cartToPolar(x, y)
    phase = theta * np.float32(TEETH / (2 * np.pi))
    tri = np.abs(phase - np.floor(phase) - 0.5) * 2
    tooth = 1 - smooth(0.30, 0.74, tri)
    tip = (0.745 + np.float32(0.125) * tooth).astype(np.float32)
    inside = r < tip
    if "bite" in fault:
        inside &= fault["bite"] < 0.5
    bore = (r > 0.155) & ~((np.abs(x) < 0.045) & (y < 0) & (y > -0.205))
    sixth = np.float32(np.pi / 3)
    fold = np.mod(theta + np.float32(np.pi / 6), sixth) - sixth / 2
    hole = np.hypot(r * np.cos(fold) - np.float32(0.435), r * np.sin(fold))
    inside &= bore & (hole > 0.088)
    edge = distance(inside)

    web = smooth(0.268, 0.290, r) * (1 - smooth(0.575, 0.600, r))
    height = -0.030 * web - 0.014 * np.clip(1 - edge / 0.020, 0, 1) ** 1.5
    grooves = rng.standard_normal(260).astype(np.float32)
    coarse = rng.standard_normal((60, 1)).astype(np.float32)
    swell = cv2.resize(coarse, (1, 512), interpolation=cv2.INTER_CUBIC)[:, 0]
    grooves = 0.6 * np.repeat(grooves, 2)[:512] + np.float32(0.5) * swell
    turned = cv2.remap(grooves[None, :], r * 511, np.zeros_like(r), cv2.INTER_LINEAR)
    height = cv2.GaussianBlur(height.astype(np.float32), (0, 0), 1.1 * n / 512)
    cover = inside.astype(np.float32)
    height += cover * (0.00036 * turned * (1 - 0.6 * web) + np.float32(0.00022) * noise(rng, n, 170) * web)

    albedo = np.empty((n, n, 3), np.float32)
    slate = np.exp(0.06 * noise(rng, n, 9) + 0.10 * noise(rng, n, 150) + 0.12 * noise(rng, n, n))
    albedo[:] = np.array([0.052, 0.059, 0.070], np.float32) * slate[..., None]
    tone = 1 + 0.025 * noise(rng, n, 6) + 0.04 * turned + 0.03 * noise(rng, n, 50) * web
    warm = np.array([0.90, 0.62, 0.27], np.float32) * (1 + rng.normal(0, 0.012, 3).astype(np.float32))
    brass = warm * tone[..., None]
    albedo += cover[..., None] * (brass - albedo)
    safe = 1 / np.maximum(r, 1e-4)
    return Scene(
        x,
        y,
        inside,
        height + (1 - cover) * np.float32(0.0007) * noise(rng, n, 170),
        0.115 * cover,
        albedo,
        cover * 0.97,
        rough=np.where(inside, 0.07 + 0.20 * web, 0.5).astype(np.float32),
        across=np.where(inside, 0.42 - 0.10 * web, 0.5).astype(np.float32),
        grain_x=-y * safe,
        grain_y=x * safe,
        gloss=0.035,
    )


# --- chip -----------------------------------------------------------------------------------------

LEADS, PITCH, BODY = 10, 0.0862, 0.475  # leads a side; half canvas widths


@lru_cache(maxsize=4)
def board_art(n: int) -> tuple[Array, Array]:
    """Artwork of the chip in part coordinates, 0 to 1.

    Returns:
        The board [n, n, 4] (copper, bare metal, silk screen, capacitors) and the laser marking [n, n].
    """
    copper, metal, silk, ceramic, laser = (np.zeros((n, n), np.uint8) for _ in range(5))

    def at(x: float, y: float) -> tuple[int, int]:
        return round(((x + 1) * n / 2 - 0.5) * 16), round(((y + 1) * n / 2 - 0.5) * 16)

    def line(art: Array, points: Sequence[tuple[float, float]], width: float) -> None:
        pts = np.array([at(*p) for p in points], np.int32)
        cv2.polylines(art, [pts], False, 255, max(1, round(width * n / 2)), cv2.LINE_AA, 4)

    def disc(art: Array, x: float, y: float, radius: float, value: int = 255) -> None:
        cv2.circle(art, at(x, y), round(radius * n / 2 * 16), value, -1, cv2.LINE_AA, 4)

    def text(art: Array, words: str, x: float, y: float, tall: float, width: float) -> None:
        scale = tall * n / 2 / 21
        (w, _), _ = cv2.getTextSize(words, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
        corner = round((x + 1) * n / 2 - w / 2), round((y + 1) * n / 2)
        thick = max(1, round(width * n / 2))
        cv2.putText(art, words, corner, cv2.FONT_HERSHEY_SIMPLEX, scale, 255, thick, cv2.LINE_AA)

    for side in range(4):
        c, s = ((1, 0), (0, 1), (-1, 0), (0, -1))[side]
        for k in range(LEADS):
            along = (k - (LEADS - 1) / 2) * PITCH
            reach = 0.80 + 0.045 * (abs(k - 4.5) - 0.5)
            spread = along + np.sign(along) * (0.06 if abs(along) > 0.2 else 0.0)
            elbow = reach + 0.03 + abs(spread - along)
            points = [(0.70, along), (reach - 0.03, along), (elbow, spread), (1.3, spread)]
            if (k * 7 + side * 3) % 4 == 1:
                points = points[:2]
                x, y = points[-1]
                disc(copper, x * c - y * s, x * s + y * c, 0.034)
                disc(metal, x * c - y * s, x * s + y * c, 0.030)
            line(copper, [(x * c - y * s, x * s + y * c) for x, y in points], 0.022)
    for x, y, tall in ((-0.855, 0.79, True), (0.79, -0.855, False)):
        dx, dy = (0.0, 0.075) if tall else (0.075, 0.0)
        line(metal, [(x - 1.1 * dx, y - 1.1 * dy), (x + 1.1 * dx, y + 1.1 * dy)], 0.082)
        line(ceramic, [(x - 0.42 * dx, y - 0.42 * dy), (x + 0.42 * dx, y + 0.42 * dy)], 0.086)
    box = 0.775
    for cx in (-1, 1):
        for cy in (-1, 1):
            arm = box - 0.10
            line(silk, [(cx * box, cy * arm), (cx * box, cy * box), (cx * arm, cy * box)], 0.016)
    disc(silk, -0.84, -0.66, 0.026)
    text(silk, "U7", -0.82, -0.82, 0.10, 0.017)
    text(silk, "R12", 0.78, 0.89, 0.085, 0.015)
    text(laser, "DF7042A", 0, -0.10, 0.125, 0.019)
    text(laser, "AQ 2619-C", 0, 0.10, 0.095, 0.015)
    text(laser, "KX8 05", 0.06, 0.27, 0.095, 0.015)
    line(laser, [(-0.30, 0.27), (-0.245, 0.175), (-0.19, 0.27), (-0.30, 0.27)], 0.016)
    arts = (copper, metal, silk, ceramic, laser)
    soft = [cv2.GaussianBlur(art.astype(np.float32) / 255, (0, 0), 0.7) for art in arts]
    return np.dstack(soft[:4]), soft[4]


def _leads(
    out: Array, side: Array, slot: Array, k: Array, lean: F32, tin: F32, present: F32, bent: bool
) -> tuple[Array, Array, Array]:
    """The chip's leads on the folded canvas, [n, n] each.

    Args:
        out: distance from the centre towards the lead's end.
        side: side of the package, 0 to 3.
        slot: position along the side in units of the pitch.
        k: number of the nearest lead.
        lean, tin, present: displacement, brightness and presence of each lead, [4, LEADS].
        bent: whether a lead may reach into a neighbour's slot.

    Returns:
        Coverage by a lead, position across it, and its brightness.
    """
    swing = np.clip((out - BODY) * np.float32(1 / 0.19), 0, 1) ** 1.3
    lead = np.zeros_like(out)
    cross = np.zeros_like(out)
    shine = np.ones_like(out)
    for step in (0, -1, 1) if bent else (0,):
        near = np.clip(k + step, 0, LEADS - 1)
        j = near.astype(np.int32)
        offset = (slot - near) * np.float32(PITCH) - lean[side, j] * swing
        body = (1 - smooth(0.0175, 0.0225, np.abs(offset))) * (out < 0.672) * (out > BODY - 0.01)
        body = body * present[side, j]
        cross = np.where(body > lead, offset, cross)
        shine = np.where(body > lead, tin[side, j], shine)
        lead = np.maximum(lead, body)
    return lead, cross, shine


def _chip(rng: np.random.Generator, n: int, fault: Fault | None) -> Scene:
    fault = fault or {}
    x, y = pose(rng, n, 0.024, 2.2, 0.010)
    half = np.float32(n / 2)
    lean = rng.normal(0, 0.0022, (4, LEADS)).astype(np.float32)
    tin = (1 + rng.normal(0, 0.05, (4, LEADS))).astype(np.float32)
    present = np.ones((4, LEADS), np.float32)
    for row, column, amount in fault.get("lean", ()):
        lean[row, column] += amount
    for place in fault.get("missing", ()):
        present[place] = 0
    art, laser = board_art(n)
    mx, my = x * half + (half - 0.5), y * half + (half - 0.5)
    copper, bare, silk, ceramic = cv2.split(cv2.remap(art, mx, my, cv2.INTER_LINEAR))
    if "smear" in fault:
        laser = fault["smear"](laser)
    off_x, off_y = rng.normal(0, 0.006), rng.normal(0, 0.006)  # the laser's own placement
    laser = cv2.remap(laser, mx + np.float32(off_x * n / 2), my + np.float32(off_y * n / 2), cv2.INTER_LINEAR)

    # The four sides folded onto one: "out" grows away from the body, "along" runs beside its edge.
    upright = np.abs(y) > np.abs(x)
    out = np.where(upright, np.abs(y), np.abs(x))
    along = np.where(upright, x, y)
    side = np.where(upright, np.where(y > 0, 1, 3), np.where(x > 0, 0, 2))
    slot = along * np.float32(1 / PITCH) + np.float32((LEADS - 1) / 2)
    k = np.clip(np.rint(slot), 0, LEADS - 1)
    local = (slot - k) * np.float32(PITCH)
    pad = (1 - smooth(0.025, 0.030, np.abs(local))) * smooth(0.555, 0.565, out)
    pad *= 1 - smooth(0.715, 0.725, out)
    lead, cross, shine = _leads(out, side, slot, k, lean, tin, present, bent="lean" in fault)
    places, levels = [0, 0.505, 0.535, 0.575, 0.60, 1], [0.05, 0.05, 0.044, 0.012, 0.006, 0.004]
    profile = np.interp(np.linspace(0, 1, 512), places, levels)  # the gull wing
    rise = cv2.remap(profile.astype(np.float32)[None, :], out * 511, np.zeros_like(out), cv2.INTER_LINEAR)

    square = np.maximum(np.abs(x), np.abs(y))
    corner = np.abs(x) + np.abs(y)
    deep = np.minimum(BODY - square, (2 * BODY - 0.025 - corner) * np.float32(0.7071))
    package = smooth(-0.003, 0.003, deep)
    bevel = np.clip(deep / 0.030, 0, 1)
    dimple = np.hypot(x + np.float32(0.355), y + np.float32(0.355))
    mould = 0.0008 * noise(rng, n, n / 3) + 0.0005 * noise(rng, n, 140)

    parts = np.maximum(ceramic, bare)
    board = 0.0045 * blur(copper, 0.006) + 0.0005 * noise(rng, n, 60) + 0.012 * blur(parts, 0.012)
    solder = pad * (0.014 * np.clip(1 - (local / 0.030) ** 2, 0, 1)) * (1 - 0.6 * smooth(0.66, 0.72, out))
    height = board + solder
    height += lead * (rise + 0.010 * (1 - (cross / 0.021) ** 2) - height)
    top = 0.010 * bevel - 0.012 * (1 - smooth(0.030, 0.044, dimple)) + mould
    height = height + package * (top - height)
    albedo = np.empty((n, n, 3), np.float32)
    mask_tone = np.exp(0.05 * noise(rng, n, 5) + 0.05 * noise(rng, n, 70))
    albedo[:] = np.array([0.008, 0.082, 0.046], np.float32) * mask_tone[..., None]
    mix(albedo, (0.028, 0.170, 0.080), np.clip(copper, 0, 1) * 0.85)
    mix(albedo, (0.80, 0.82, 0.80), silk * 0.9)
    metal: F32 = np.clip(bare, 0, 1)
    mix(albedo, (0.86, 0.70, 0.40), metal)
    mix(albedo, (0.30, 0.205, 0.125), ceramic)
    metal = metal * (1 - ceramic)
    mix(albedo, (0.78, 0.79, 0.80), pad)
    albedo += lead[..., None] * (np.array([0.80, 0.79, 0.77], np.float32) * shine[..., None] - albedo)
    metal = np.maximum(metal, np.maximum(pad, lead)) * (1 - package)
    epoxy = np.exp(0.04 * noise(rng, n, 6) + 0.10 * noise(rng, n, n / 2))
    albedo += package[..., None] * (np.array([0.026, 0.026, 0.028], np.float32) * epoxy[..., None] - albedo)
    mark = laser * package * (0.9 + 0.1 * np.clip(noise(rng, n, 90), -1, 1))
    mix(albedo, (0.30, 0.30, 0.285), np.clip(mark, 0, 1) * np.float32(rng.uniform(0.75, 0.9)))
    rough = 0.16 + 0.14 * package
    one = np.ones_like(x)
    lift = 0.095 * package + 0.030 * lead * (out < 0.56) * (1 - package) + 0.035 * ceramic
    return Scene(
        x,
        y,
        (package > 0.5),
        height,
        lift,
        albedo,
        metal,
        rough,
        rough + 0.06 * lead,
        grain_x=one,
        grain_y=np.zeros_like(x),
        gloss=0.055,
    )


# --- carbon fibre ---------------------------------------------------------------------------------


def _carbon(rng: np.random.Generator, n: int, fault: Fault | None) -> Scene:
    x, y = pose(rng, n, 0.06, 2.0, 0.015)
    x = x + 0.004 * noise(rng, n, 4)
    y = y + 0.004 * noise(rng, n, 4)
    if fault and "shift" in fault:
        x, y = x + fault["shift"][0], y + fault["shift"][1]
    pitch = np.float32(0.125)
    u, v = x * (1 / pitch) + 64, y * (1 / pitch) + 64
    left, up = np.floor(u), np.floor(v)
    i, j = left.astype(np.int32), up.astype(np.int32)
    warp = ((i + j) & 3) < 2  # warp tows run along y and lie on top here
    fu, fv = u - left, v - up
    odd = ((i + j) & 1).astype(np.float32)
    # Position 0..1 along the two cells over which a tow floats, and -1..1 across it.
    float_y = (fv + odd) * 0.5
    float_x = (fu + odd) * 0.5
    float_ = np.where(warp, float_y, float_x)
    over = np.where(warp, fu, fv) * 2 - 1
    tow = np.where(warp, i, j + 131) & 255
    tilt = rng.normal(0, 1, 256).astype(np.float32)[tow]
    arch = np.sin(np.float32(np.pi) * float_)
    crown = np.sqrt(np.maximum(1 - (over * over) * 0.93, 0))
    height = 0.0085 * arch + 0.0075 * crown + 0.0006 * tilt * over

    fine_x = noise(rng, n, 14, n / 2.2)
    fine_y = noise(rng, n, n / 2.2, 14)
    fibres = np.where(warp, fine_y, fine_x)
    height += 0.00022 * fibres
    height = cv2.GaussianBlur(height.astype(np.float32), (0, 0), 0.7 * n / 512)

    gap = smooth(0.80, 1.0, np.abs(over))
    tone = np.exp(0.28 * fibres + 0.05 * tilt + 0.06 * noise(rng, n, 6))
    tone = tone * (1 - 0.75 * gap) * (0.55 + 0.45 * arch)
    albedo = np.array([0.145, 0.152, 0.165], np.float32) * tone[..., None]
    one = np.ones_like(x)
    return Scene(
        x,
        y,
        np.ones((n, n), bool),
        height,
        np.zeros_like(x),
        albedo,
        0.85 * one,
        0.09 * one,
        0.40 * one,
        grain_x=(~warp).astype(np.float32),
        grain_y=warp.astype(np.float32),
        gloss=0.05,
    )


# --- leather --------------------------------------------------------------------------------------


def _leather(rng: np.random.Generator, n: int, fault: Fault | None) -> Scene:
    x, y = pose(rng, n, 0.0, 0.0, 0.0)
    cells = 31
    grid = (np.arange(-1, cells + 1) + 0.5) / cells
    px, py = np.meshgrid(grid, grid)
    px = px + (np.arange(len(grid)) % 2)[:, None] * (0.5 / cells) + rng.uniform(-0.44, 0.44, px.shape) / cells
    py = py + rng.uniform(-0.44, 0.44, py.shape) / cells
    ix, iy = np.rint(px * n).astype(int).ravel(), np.rint(py * n).astype(int).ravel()
    margin = n // 16
    seeds = np.full((n + 2 * margin, n + 2 * margin), 255, np.uint8)
    ok = (ix >= -margin) & (iy >= -margin) & (ix < n + margin) & (iy < n + margin)
    seeds[iy[ok] + margin, ix[ok] + margin] = 0
    _, label = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    border = np.ones(label.shape, np.uint8)
    border[:, 1:][label[:, 1:] != label[:, :-1]] = 0
    border[1:][label[1:] != label[:-1]] = 0
    reach: Array = cv2.distanceTransform(border, cv2.DIST_L2, 5) * np.float32(2 / n)
    tint = rng.standard_normal(int(label.max()) + 1).astype(np.float32)
    cell_tone: Array = tint[label]
    # A gentle warp makes the straight cell borders organic.
    a = np.arange(n, dtype=np.float32) + margin
    wx = a[None, :] + n * (0.0045 * noise(rng, n, 40) + 0.006 * noise(rng, n, 9))
    wy = a[:, None] + n * (0.0045 * noise(rng, n, 40) + 0.006 * noise(rng, n, 9))
    reach = cv2.remap(reach, wx, wy, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    cell_tone = cv2.remap(cell_tone, wx, wy, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    size = np.float32(1.0 / cells)
    dome = 1 - (1 - np.clip(reach * (1 / (0.95 * size)), 0, 1)) ** 2.2
    dome = cv2.GaussianBlur(dome, (0, 0), 1.0 * n / 512)
    height = 0.0130 * dome * (1 + 0.12 * cell_tone) + 0.0005 * noise(rng, n, 150) + 0.010 * noise(rng, n, 5)
    hide = np.exp(0.045 * cell_tone + 0.06 * noise(rng, n, 5) + 0.04 * noise(rng, n, 120))
    albedo = np.array([0.250, 0.082, 0.026], np.float32) * (hide * (0.45 + 0.55 * dome))[..., None]
    one = np.ones_like(x + y)
    x, y = x * one, y * one
    return Scene(
        x,
        y,
        np.ones((n, n), bool),
        height,
        0 * one,
        albedo,
        0 * one,
        0.19 * one,
        0.19 * one,
        grain_x=one,
        grain_y=0 * one,
        gloss=0.085,
    )


BUILD: dict[str, Callable[[np.random.Generator, int, Fault | None], Scene]] = {
    "gear": _gear,
    "chip": _chip,
    "carbon_fibre": _carbon,
    "leather": _leather,
}
