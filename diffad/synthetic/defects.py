"""Layer edits: what each defect does to the surface of a good scene, and the marks it is drawn with.

``SPOIL[category, defect]`` takes the good scene, a generator, a power that grows while the change is too
faint, and a function that builds the same part again with a fault in its shape; it returns a new scene.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np

from diffad.pictures.arrays import F32, F64, Array, Bools
from diffad.synthetic.scenes import (
    BODY,
    LEADS,
    PITCH,
    TEETH,
    Fault,
    Scene,
    axis,
    blur,
    board_art,
    distance,
    mix,
    noise,
    smooth,
)

_Rebuild = Callable[[Fault], Scene]
_Spoil = Callable[[Scene, np.random.Generator, float, _Rebuild], Scene]


# --- where a defect lies, and its marks -----------------------------------------------------------


def _near(scene: Scene, x: float, y: float) -> tuple[float, float]:
    """Canvas coordinates of a place given in part coordinates."""
    n = scene.x.shape[0]
    away = np.abs(scene.x - np.float32(x)) + np.abs(scene.y - np.float32(y))
    row, col = np.unravel_index(np.argmin(away), (n, n))
    return (col + 0.5) * 2 / n - 1, (row + 0.5) * 2 / n - 1


def _inner(scene: Scene, margin: float) -> Bools:
    """Where a defect may be centred: on the part, at least margin from its edge and from the picture's."""
    part = scene.part.copy()
    part[[0, -1]] = False
    part[:, [0, -1]] = False
    inside: Bools = distance(part) > margin
    edge = int(0.06 * len(inside))
    inside[:edge], inside[-edge:], inside[:, :edge], inside[:, -edge:] = False, False, False, False
    return inside


def _spot(rng: np.random.Generator, allowed: Bools) -> tuple[float, float]:
    """A random place (canvas coordinates) where ``allowed`` holds."""
    n = allowed.shape[0]
    step = max(1, n // 256)
    rows, cols = np.nonzero(allowed[step // 2 :: step, step // 2 :: step])
    if len(rows) == 0:
        return 0.0, 0.0
    i = int(rng.integers(len(rows)))
    return ((int(cols[i]) * step + 0.5) * 2 / n - 1, (int(rows[i]) * step + 0.5) * 2 / n - 1)


def _blob(
    rng: np.random.Generator,
    n: int,
    at: tuple[float, float],
    radius: float,
    ragged: float = 0.35,
    soft: float = 0.25,
    squeeze: float = 1.0,
) -> F32:
    """An irregular spot [n, n], 1 inside, 0 outside."""
    angle, reach = rng.uniform(0, np.pi), radius * (1 + soft + 1.1 * ragged)
    half = int(np.ceil(reach * n / 2)) + 1
    col, row = round((at[0] + 1) * n / 2 - 0.5), round((at[1] + 1) * n / 2 - 0.5)
    a = np.arange(-half, half + 1, dtype=np.float32) * np.float32(2 / n / radius)
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    r = np.hypot(c * a + s * a[:, None], (c * a[:, None] - s * a) * np.float32(squeeze))
    cells = reach / radius
    wave = 0.6 * noise(rng, len(a), 1.3 * cells) + 0.35 * noise(rng, len(a), 3.2 * cells)
    r += np.float32(ragged) * np.clip(wave, -1.1, 1.1) * np.minimum(r, 1)
    spot = 1 - smooth(1 - soft, 1 + soft, r)
    canvas = np.zeros((n, n), np.float32)
    top, left = row - half, col - half
    y0, y1, x0, x1 = max(top, 0), min(top + len(a), n), max(left, 0), min(left + len(a), n)
    if y0 < y1 and x0 < x1:
        canvas[y0:y1, x0:x1] = spot[y0 - top : y1 - top, x0 - left : x1 - left]
    return canvas


def _path(
    rng: np.random.Generator,
    at: tuple[float, float],
    angle: float,
    length: float,
    bend: float,
    jag: float = 0.0,
) -> F64:
    """A curve [24, 2] in canvas coordinates centred on ``at``; bend is its total turn in radians."""
    k = 24
    shake = np.convolve(rng.standard_normal(k + 2), [0.3, 0.4, 0.3], "valid")
    turn = angle + bend * (np.linspace(-0.5, 0.5, k)) + jag * shake
    steps = np.stack([np.cos(turn), np.sin(turn)], axis=1) * length / k
    points = np.cumsum(steps, axis=0)
    return np.asarray(points - points.mean(axis=0) + at)


def _stroke(n: int, points: Array, width: Array | float, soft: float = 0.0025) -> F32:
    """The curve drawn [n, n], 0..1, with a width along it (half canvas widths)."""
    canvas = np.zeros((n, n), np.uint8)
    pixels = ((points + 1) * n / 2 - 0.5) * 16
    widths = np.broadcast_to(width, len(points)) * n / 2
    for p, q, w in zip(pixels[:-1], pixels[1:], widths[:-1], strict=True):
        start, end = tuple(map(int, np.rint(p))), tuple(map(int, np.rint(q)))
        cv2.line(canvas, start, end, 255, max(1, round(float(w))), cv2.LINE_AA, 4)
    soft_line = cv2.GaussianBlur(canvas.astype(np.float32) / 255, (0, 0), max(0.5, soft * n / 2))
    return np.asarray(soft_line, np.float32)


def _taper(k: int, width: float) -> F64:
    return np.asarray(width * np.sqrt(np.clip(np.sin(np.linspace(0.08, np.pi - 0.08, k)), 0, 1)))


def _finish(scene: Scene, roughness: float, weight: Array) -> None:
    """The surface loses its grain and gets that roughness where weight is 1, in place."""
    mix(scene.rough, roughness, weight)
    mix(scene.across, roughness, weight)


# --- the edits ------------------------------------------------------------------------------------


def _scratch(colour: Sequence[float], metal: float, depth: float) -> _Spoil:
    def spoil(scene: Scene, rng: np.random.Generator, power: float, rebuild: _Rebuild) -> Scene:
        s, n = scene.copy(), scene.x.shape[0]
        angle, length = rng.uniform(0, np.pi), rng.uniform(0.16, 0.62)
        at = _spot(rng, _inner(scene, 0.03))
        line = np.zeros_like(s.x)
        for i in range(int(rng.integers(1, 4))):
            gap = 0 if i == 0 else rng.uniform(-0.05, 0.05)
            where = (at[0] - gap * np.sin(angle), at[1] + gap * np.cos(angle))
            lean, part = rng.normal(0, 0.06), 1 if i == 0 else rng.uniform(0.3, 0.8)
            points = _path(rng, where, angle + lean, length * part, rng.normal(0, 0.25), 0.03)
            width = _taper(len(points), rng.uniform(0.008, 0.016) * (1 if i == 0 else 0.7))
            line = np.maximum(line, _stroke(n, points, width * power))
        line *= s.part
        broken = np.clip(0.85 + 0.25 * noise(rng, n, 60), 0.3, 1)
        s.height -= np.float32(depth * power) * (line - 0.5 * blur(line, 0.010))
        mix(s.albedo, colour, line * broken * 0.75)
        mix(s.metal, metal, line * 0.6)
        _finish(s, 0.35, line)
        return s

    return spoil


def _dent(scene: Scene, rng: np.random.Generator, power: float, rebuild: _Rebuild) -> Scene:
    s, n = scene.copy(), scene.x.shape[0]
    radius = rng.uniform(0.030, 0.070) * (0.8 + 0.2 * power)
    at, squeeze = _spot(rng, _inner(scene, 0.03)), rng.uniform(1, 1.8)
    spot = _blob(rng, n, at, radius, ragged=0.22, soft=0.6, squeeze=squeeze)
    spot *= s.part
    rim = np.maximum(blur(spot, 0.3 * radius) - spot, 0)
    s.height -= np.float32(radius * 0.75 * power) * (spot - 0.7 * rim)
    s.height += spot * np.float32(0.0015) * noise(rng, n, 90)
    mix(s.albedo, s.albedo.mean(axis=(0, 1)) * 0.8, spot * 0.25)
    _finish(s, 0.22, spot)
    return s


def _corrosion(scene: Scene, rng: np.random.Generator, power: float, rebuild: _Rebuild) -> Scene:
    s, n = scene.copy(), scene.x.shape[0]
    at, radius = _spot(rng, _inner(scene, 0.04)), rng.uniform(0.07, 0.19)
    spot = _blob(rng, n, at, radius, ragged=0.8, soft=0.35)
    for _ in range(int(rng.integers(1, 4))):
        other = (at[0] + rng.normal(0, 1.1 * radius), at[1] + rng.normal(0, 1.1 * radius))
        spot = np.maximum(spot, _blob(rng, n, other, radius * rng.uniform(0.2, 0.5), ragged=0.6, soft=0.4))
    grit = noise(rng, n, 70)
    spot = spot * s.part * np.clip(0.80 + 0.18 * grit, 0, 1)
    green = np.clip(0.5 * noise(rng, n, 12) - rng.uniform(-0.4, 0.6), 0, 1)[..., None]
    tone = np.exp(0.30 * grit)[..., None]
    crust = (
        np.array([0.062, 0.028, 0.012], np.float32) * (1 - green)
        + np.array([0.055, 0.150, 0.110], np.float32) * green
    )
    crust = crust * tone
    s.albedo += spot[..., None] * (crust - s.albedo)
    mix(s.metal, 0.05, spot)
    s.height += spot * np.float32(0.0022) * noise(rng, n, 110)
    _finish(s, 0.5, spot)
    return s


def _broken_tooth(scene: Scene, rng: np.random.Generator, power: float, rebuild: _Rebuild) -> Scene:
    n = scene.x.shape[0]
    angle = (rng.integers(TEETH) + 0.5 + rng.uniform(-0.15, 0.15)) * 2 * np.pi / TEETH
    reach = rng.uniform(0.83, 0.89)
    at = _near(scene, reach * np.cos(angle), reach * np.sin(angle))
    return rebuild({"bite": _blob(rng, n, at, rng.uniform(0.062, 0.135) * power, ragged=0.5, soft=0.05)})


def _crack(scene: Scene, rng: np.random.Generator, power: float, rebuild: _Rebuild) -> Scene:
    s, n = scene.copy(), scene.x.shape[0]
    angle = rng.uniform(0, 2 * np.pi)
    length = rng.uniform(0.22, 0.42)
    start = rng.choice([0.30, 0.52, 0.68])
    x, y = _near(scene, start * np.cos(angle), start * np.sin(angle))
    points = _path(rng, (x, y), angle + rng.normal(0, 0.5), length, rng.normal(0, 0.4), 0.45)
    line = _stroke(n, points, _taper(len(points), rng.uniform(0.010, 0.016)) * power, 0.0015)
    k = int(rng.integers(8, 16))
    branch = _path(rng, (0, 0), angle + rng.choice([-0.9, 0.9]), length * 0.4, 0, 0.5)
    branch += points[k] - branch[0]
    line = np.maximum(line, _stroke(n, branch, 0.008 * power, 0.0015)) * s.part
    s.height -= np.float32(0.016) * line
    mix(s.albedo, (0.03, 0.022, 0.015), line * 0.95)
    mix(s.metal, 0.0, line)
    return s


def _bent_lead(scene: Scene, rng: np.random.Generator, power: float, rebuild: _Rebuild) -> Scene:
    side, k = int(rng.integers(4)), int(rng.integers(LEADS))
    amount = rng.choice([-1, 1]) * rng.uniform(0.042, 0.066) * power
    bends = [(side, k, amount)]
    if rng.random() < 0.3 and 0 <= k + np.sign(amount) < LEADS:
        bends.append((side, int(k + np.sign(amount)), amount * rng.uniform(0.5, 0.8)))
    return rebuild({"lean": bends})


def _missing_lead(scene: Scene, rng: np.random.Generator, power: float, rebuild: _Rebuild) -> Scene:
    side, k = int(rng.integers(4)), int(rng.integers(LEADS - 1))
    return rebuild({"missing": [(side, k + i) for i in range(int(rng.integers(1, 3)))]})


def _solder_bridge(scene: Scene, rng: np.random.Generator, power: float, rebuild: _Rebuild) -> Scene:
    s, n = scene.copy(), scene.x.shape[0]
    side, k = int(rng.integers(4)), int(rng.integers(LEADS - 1))
    along, out = (k + 0.5 - (LEADS - 1) / 2) * PITCH, rng.uniform(0.58, 0.69)
    at = _near(s, *((out, along), (along, out), (-out, along), (along, -out))[side])
    radius = rng.uniform(0.045, 0.070) * power
    spot = _blob(rng, n, at, radius, ragged=0.45, soft=0.9, squeeze=rng.uniform(1, 1.5))
    solid = smooth(0.25, 0.4, spot)
    s.height = s.height * (1 - 0.7 * solid) + np.float32(0.9 * radius) * blur(spot, 0.01) * solid
    mix(s.albedo, (0.80, 0.81, 0.82), solid)
    mix(s.metal, 1.0, solid)
    _finish(s, 0.10, solid)
    return s


def _chipped_edge(scene: Scene, rng: np.random.Generator, power: float, rebuild: _Rebuild) -> Scene:
    s, n = scene.copy(), scene.x.shape[0]
    place = rng.uniform(-BODY, BODY) if rng.random() < 0.6 else BODY * rng.choice([-0.97, 0.97])
    x, y = (place, BODY * rng.choice([-1, 1]))[:: int(rng.choice([-1, 1]))]
    radius = rng.uniform(0.07, 0.15) * power
    spot = _blob(rng, n, _near(s, x, y), radius, ragged=0.6, soft=0.12) * s.part
    depth = blur(spot, 0.25 * radius) * spot
    facet = blur(noise(rng, n, 2.2 / radius), 0.006)
    s.height += spot * np.float32(0.016) * facet - np.float32(0.35 * radius) * depth
    s.lift = s.lift - 0.03 * spot
    mix(s.albedo, (0.150, 0.147, 0.140), spot * np.clip(0.8 + 0.25 * noise(rng, n, 110), 0, 1))
    _finish(s, 0.45, spot)
    return s


def _smeared_print(scene: Scene, rng: np.random.Generator, power: float, rebuild: _Rebuild) -> Scene:
    n = scene.x.shape[0]
    laser = board_art(n)[1]
    at = _spot(rng, laser > 0.6)
    weight = _blob(rng, n, at, rng.uniform(0.10, 0.22) * power, ragged=0.5, soft=0.3)
    if rng.random() < 0.35:  # worn away
        worn = np.clip(weight * (1.05 + 0.25 * noise(rng, n, 40)), 0, 1)
        return rebuild({"smear": lambda art: art * (1 - worn)})
    reach, angle = max(3, round(rng.uniform(0.05, 0.10) * n / 2)), rng.normal(0, 0.35)
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1), np.float32)
    end = (round(reach + reach * np.cos(angle)), round(reach + reach * np.sin(angle)))
    cv2.line(kernel, (reach, reach), end, 1.0, max(1, n // 256))
    kernel /= kernel.sum()
    return rebuild({"smear": lambda art: art + weight * (1.35 * cv2.filter2D(art, -1, kernel) - 0.75 * art)})


def _contamination(scene: Scene, rng: np.random.Generator, power: float, rebuild: _Rebuild) -> Scene:
    s, n = scene.copy(), scene.x.shape[0]
    at = _spot(rng, np.maximum(np.abs(s.x), np.abs(s.y)) < 0.62)
    radius = rng.uniform(0.06, 0.15) * power
    spot = _blob(rng, n, at, radius, ragged=0.7, soft=0.18, squeeze=rng.uniform(1, 1.6))
    if rng.random() < 0.5:  # amber flux residue: a thin glossy film, darker at its rim
        rim = np.clip(spot - blur(spot, 0.25 * radius), 0, 1)
        mix(s.albedo, (0.30, 0.155, 0.035), spot * np.float32(0.50) + rim * 0.3)
        mix(s.metal, 0.0, spot * 0.75)
        s.height += np.float32(0.022) * blur(spot, 0.012)
        _finish(s, 0.08, spot)
    else:  # pale powder
        grit = np.clip(0.55 + 0.45 * noise(rng, n, 100) + 0.3 * noise(rng, n, 40), 0, 1)
        dust = spot * grit
        mix(s.albedo, (0.55, 0.53, 0.48), dust * 0.85)
        mix(s.metal, 0.0, dust)
        s.height += np.float32(0.004) * dust
        _finish(s, 0.5, dust)
    return s


def _broken_weave(scene: Scene, rng: np.random.Generator, power: float, rebuild: _Rebuild) -> Scene:
    n = scene.x.shape[0]
    at = _spot(rng, _inner(scene, 0.12))
    radius = rng.uniform(0.14, 0.30)
    a = axis(n)
    away2 = (a[None, :] - at[0]) ** 2 + (a[:, None] - at[1]) ** 2
    bump = np.exp(-away2 / np.float32(radius**2)).astype(np.float32)
    sign = rng.choice([-1, 1], 2)
    push = np.array([rng.uniform(0.06, 0.11), rng.uniform(0.0, 0.04)])
    amount = sign * push[:: int(rng.choice([-1, 1]))] * power
    wobble = 0.03 * power * bump * noise(rng, n, 10)
    s = rebuild({"shift": (bump * np.float32(amount[0]) + wobble, bump * np.float32(amount[1]) + wobble)})
    angle = rng.choice([0, np.pi / 2]) + rng.normal(0, 0.12)
    slit = _path(rng, at, angle, radius * rng.uniform(0.7, 1.4), rng.normal(0, 0.3), 0.1)
    gap = _stroke(n, slit, _taper(len(slit), rng.uniform(0.025, 0.045)), 0.006)
    s.height -= np.float32(0.012) * gap
    s.albedo *= (1 - 0.85 * gap)[..., None]
    hair = np.zeros_like(gap)
    for _ in range(int(rng.integers(4, 9))):  # torn filaments stand up along the gap
        root = slit[int(rng.integers(3, len(slit) - 3))] + rng.normal(0, 0.012, 2)
        lean, length = rng.normal(0.5, 0.6), rng.uniform(0.05, 0.14)
        strand = _path(rng, root, angle + lean, length, rng.normal(0, 1), 0.15)
        hair = np.maximum(hair, _stroke(n, strand, 0.005, 0.0015))
    s.lift = s.lift + np.float32(0.012) * hair
    mix(s.albedo, (0.36, 0.37, 0.39), hair)
    mix(s.metal, 0.3, hair)
    return s


def _void(scene: Scene, rng: np.random.Generator, power: float, rebuild: _Rebuild) -> Scene:
    s, n = scene.copy(), scene.x.shape[0]
    at = _spot(rng, _inner(scene, 0.08))
    for i in range(int(rng.integers(1, 5))):
        radius = rng.uniform(0.028, 0.075 if i == 0 else 0.04) * power
        where = at if i == 0 else (at[0] + rng.normal(0, 0.13), at[1] + rng.normal(0, 0.13))
        spot = _blob(rng, n, where, radius, ragged=0.3, soft=0.25, squeeze=rng.uniform(1, 1.6))
        s.height -= np.float32(0.45 * radius) * blur(spot, 0.006)
        s.lift = s.lift - np.float32(0.03) * spot
        mix(s.albedo, (0.018, 0.018, 0.020), spot * 0.92)
        mix(s.metal, 0.1, spot)
    return s


def _stain(colours: Sequence[tuple[float, float, float]], strength: float, dull: float) -> _Spoil:
    def spoil(scene: Scene, rng: np.random.Generator, power: float, rebuild: _Rebuild) -> Scene:
        s, n = scene.copy(), scene.x.shape[0]
        at, radius = _spot(rng, _inner(scene, 0.05)), rng.uniform(0.08, 0.22)
        spot = _blob(rng, n, at, radius, ragged=0.6, soft=0.16, squeeze=rng.uniform(1, 1.7))
        for _ in range(int(rng.integers(0, 4))):
            drop = (at[0] + rng.normal(0, 1.3 * radius), at[1] + rng.normal(0, 1.3 * radius))
            small = radius * rng.uniform(0.1, 0.25)
            spot = np.maximum(spot, _blob(rng, n, drop, small, ragged=0.3, soft=0.2))
        rim = np.clip(spot - blur(spot, 0.2 * radius), 0, 1)  # a drying drop leaves its ring
        weight = np.clip(strength * power * spot * (0.85 + 0.12 * noise(rng, n, 12)) + 0.35 * rim, 0, 0.95)
        mix(s.albedo, colours[int(rng.integers(len(colours)))], weight)
        mix(s.metal, 0.1, weight)
        _finish(s, dull, spot)
        return s

    return spoil


def _loose_fibre(scene: Scene, rng: np.random.Generator, power: float, rebuild: _Rebuild) -> Scene:
    s, n = scene.copy(), scene.x.shape[0]
    at = _spot(rng, _inner(scene, 0.2))
    points = _path(rng, at, rng.uniform(0, np.pi), rng.uniform(0.45, 1.1), rng.normal(0, 2.0), 0.20)
    width = rng.uniform(0.008, 0.014) * power
    line = _stroke(n, points, width, 0.002)
    s.height = s.height * (1 - line) + np.float32(0.012) * line
    s.lift = s.lift + np.float32(0.018) * line
    colour = ((0.46, 0.43, 0.37), (0.36, 0.29, 0.18), (0.42, 0.43, 0.46))[int(rng.integers(3))]
    mix(s.albedo, colour, np.clip(line * 1.2, 0, 1))
    mix(s.metal, 0.0, line)
    _finish(s, 0.3, line)
    return s


def _cut(scene: Scene, rng: np.random.Generator, power: float, rebuild: _Rebuild) -> Scene:
    s, n = scene.copy(), scene.x.shape[0]
    at = _spot(rng, _inner(scene, 0.12))
    points = _path(rng, at, rng.uniform(0, np.pi), rng.uniform(0.22, 0.65), rng.normal(0, 0.4), 0.06)
    width = _taper(len(points), rng.uniform(0.016, 0.032) * power)
    core = _stroke(n, points, width, 0.003)
    lips = np.maximum(_stroke(n, points, width + 0.03, 0.010) - core, 0)
    s.height += np.float32(0.010) * lips - np.float32(0.022) * core
    s.lift = s.lift - np.float32(0.02) * core
    mix(s.albedo, (0.40, 0.225, 0.115), lips * 0.5)
    mix(s.albedo, (0.036, 0.018, 0.010), smooth(0.25, 0.9, core))
    return s


def _hole(scene: Scene, rng: np.random.Generator, power: float, rebuild: _Rebuild) -> Scene:
    s, n = scene.copy(), scene.x.shape[0]
    radius = rng.uniform(0.035, 0.080) * power
    at = _spot(rng, _inner(scene, 0.1))
    spot = _blob(rng, n, at, radius, ragged=0.45, soft=0.12)
    rim = np.maximum(blur(spot, 0.35 * radius) - spot, 0) * 2
    s.height += np.float32(0.30 * radius) * rim
    s.lift = s.lift - np.float32(0.05) * spot
    mix(s.albedo, (0.42, 0.235, 0.12), np.clip(rim, 0, 1) * 0.5)
    mix(s.albedo, (0.030, 0.018, 0.011), spot * 0.97)
    s.height *= 1 - spot
    return s


def _crease(scene: Scene, rng: np.random.Generator, power: float, rebuild: _Rebuild) -> Scene:
    s, n = scene.copy(), scene.x.shape[0]
    at, angle = _spot(rng, _inner(scene, 0.12)), rng.uniform(0, np.pi)
    for i in range(int(rng.integers(1, 4))):
        gap = 0 if i == 0 else rng.choice([-1, 1]) * rng.uniform(0.05, 0.10)
        where = (at[0] - gap * np.sin(angle), at[1] + gap * np.cos(angle))
        lean, length = rng.normal(0, 0.1), rng.uniform(0.45, 1.1) * (1 if i == 0 else 0.7)
        points = _path(rng, where, angle + lean, length, rng.normal(0, 0.7), 0.06)
        width = _taper(len(points), rng.uniform(0.020, 0.036))
        valley = _stroke(n, points, width, 0.014)
        ridge = _stroke(n, points, width + 0.08, 0.032)
        s.height += np.float32(power) * (0.060 * ridge - 0.060 * valley)
        s.albedo *= (1 - 0.45 * valley)[..., None]
        s.albedo += (0.10 * np.maximum(ridge - valley, 0))[..., None] * s.albedo
    return s


def _scuff(scene: Scene, rng: np.random.Generator, power: float, rebuild: _Rebuild) -> Scene:
    s, n = scene.copy(), scene.x.shape[0]
    at, radius, squeeze = _spot(rng, _inner(scene, 0.08)), rng.uniform(0.10, 0.22), rng.uniform(1.3, 2.4)
    spot = _blob(rng, n, at, radius, ragged=0.7, soft=0.5, squeeze=squeeze)
    rubbed = noise(rng, n, 7, n / 4) if rng.random() < 0.5 else noise(rng, n, n / 4, 7)
    streak = np.clip(0.55 + 0.22 * rubbed + 0.30 * noise(rng, n, 45), 0, 1)
    worn = np.clip(spot * streak * power, 0, 1)
    s.height += worn * 0.7 * (blur(s.height, 0.03) - s.height)
    mix(s.albedo, (0.52, 0.31, 0.17), worn * 0.75)
    _finish(s, 0.5, worn)
    return s


SPOIL: dict[tuple[str, str], _Spoil] = {
    ("gear", "broken_tooth"): _broken_tooth,
    ("gear", "scratch"): _scratch((0.93, 0.74, 0.42), 1.0, 0.020),
    ("gear", "dent"): _dent,
    ("gear", "corrosion"): _corrosion,
    ("gear", "crack"): _crack,
    ("chip", "bent_lead"): _bent_lead,
    ("chip", "missing_lead"): _missing_lead,
    ("chip", "solder_bridge"): _solder_bridge,
    ("chip", "scratch"): _scratch((0.24, 0.24, 0.23), 0.0, 0.010),
    ("chip", "chipped_edge"): _chipped_edge,
    ("chip", "smeared_print"): _smeared_print,
    ("chip", "contamination"): _contamination,
    ("carbon_fibre", "scratch"): _scratch((0.62, 0.63, 0.65), 0.1, 0.006),
    ("carbon_fibre", "broken_weave"): _broken_weave,
    ("carbon_fibre", "void"): _void,
    ("carbon_fibre", "stain"): _stain(((0.30, 0.29, 0.27), (0.36, 0.37, 0.38)), 0.55, 0.45),
    ("carbon_fibre", "loose_fibre"): _loose_fibre,
    ("leather", "cut"): _cut,
    ("leather", "hole"): _hole,
    ("leather", "crease"): _crease,
    ("leather", "stain"): _stain(
        ((0.060, 0.026, 0.014), (0.50, 0.42, 0.33), (0.035, 0.035, 0.05)), 0.58, 0.22
    ),
    ("leather", "scuff"): _scuff,
}
