"""Defects as edits of a good scene's surface layers.

`SPOIL[category, defect]` takes the good scene, a random generator, a power that is increased until the change
is visible, and a function that rebuilds the part with a `Fault`; it returns a new scene.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np

from diffad.synthetic.layers import Fault, Scene, axis, blur, mix, noise, smooth
from diffad.synthetic.marks import blob, canvas_place, finish, inner_area, path, random_place, stroke, taper
from diffad.synthetic.scenes import BODY, LEADS, PITCH, TEETH, board_art

_Rebuild = Callable[[Fault], Scene]
_Spoil = Callable[[Scene, np.random.Generator, float, _Rebuild], Scene]


def _scratch(colour: Sequence[float], metal: float, depth: float) -> _Spoil:
    def spoil(scene: Scene, rng: np.random.Generator, power: float, rebuild: _Rebuild) -> Scene:
        s, n = scene.copy(), scene.x.shape[0]
        angle, length = rng.uniform(0, np.pi), rng.uniform(0.16, 0.62)
        at = random_place(rng, inner_area(scene, 0.03))
        line = np.zeros_like(s.x)
        for i in range(int(rng.integers(1, 4))):
            gap = 0 if i == 0 else rng.uniform(-0.05, 0.05)
            where = (at[0] - gap * np.sin(angle), at[1] + gap * np.cos(angle))
            lean, part = rng.normal(0, 0.06), 1 if i == 0 else rng.uniform(0.3, 0.8)
            points = path(rng, where, angle + lean, length * part, rng.normal(0, 0.25), 0.03)
            width = taper(len(points), rng.uniform(0.008, 0.016) * (1 if i == 0 else 0.7))
            line = np.maximum(line, stroke(n, points, width * power))
        line *= s.part
        broken = np.clip(0.85 + 0.25 * noise(rng, n, 60), 0.3, 1)
        s.height -= np.float32(depth * power) * (line - 0.5 * blur(line, 0.010))
        mix(s.albedo, colour, line * broken * 0.75)
        mix(s.metal, metal, line * 0.6)
        finish(s, 0.35, line)
        return s

    return spoil


def _dent(scene: Scene, rng: np.random.Generator, power: float, rebuild: _Rebuild) -> Scene:
    s, n = scene.copy(), scene.x.shape[0]
    radius = rng.uniform(0.030, 0.070) * (0.8 + 0.2 * power)
    at, squeeze = random_place(rng, inner_area(scene, 0.03)), rng.uniform(1, 1.8)
    spot = blob(rng, n, at, radius, ragged=0.22, soft=0.6, squeeze=squeeze)
    spot *= s.part
    rim = np.maximum(blur(spot, 0.3 * radius) - spot, 0)
    s.height -= np.float32(radius * 0.75 * power) * (spot - 0.7 * rim)
    s.height += spot * np.float32(0.0015) * noise(rng, n, 90)
    mix(s.albedo, s.albedo.mean(axis=(0, 1)) * 0.8, spot * 0.25)
    finish(s, 0.22, spot)
    return s


def _corrosion(scene: Scene, rng: np.random.Generator, power: float, rebuild: _Rebuild) -> Scene:
    s, n = scene.copy(), scene.x.shape[0]
    at, radius = random_place(rng, inner_area(scene, 0.04)), rng.uniform(0.07, 0.19)
    spot = blob(rng, n, at, radius, ragged=0.8, soft=0.35)
    for _ in range(int(rng.integers(1, 4))):
        other = (at[0] + rng.normal(0, 1.1 * radius), at[1] + rng.normal(0, 1.1 * radius))
        spot = np.maximum(spot, blob(rng, n, other, radius * rng.uniform(0.2, 0.5), ragged=0.6, soft=0.4))
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
    finish(s, 0.5, spot)
    return s


def _broken_tooth(scene: Scene, rng: np.random.Generator, power: float, rebuild: _Rebuild) -> Scene:
    n = scene.x.shape[0]
    angle = (rng.integers(TEETH) + 0.5 + rng.uniform(-0.15, 0.15)) * 2 * np.pi / TEETH
    reach = rng.uniform(0.83, 0.89)
    at = canvas_place(scene, reach * np.cos(angle), reach * np.sin(angle))
    return rebuild({"bite": blob(rng, n, at, rng.uniform(0.062, 0.135) * power, ragged=0.5, soft=0.05)})


def _crack(scene: Scene, rng: np.random.Generator, power: float, rebuild: _Rebuild) -> Scene:
    s, n = scene.copy(), scene.x.shape[0]
    angle = rng.uniform(0, 2 * np.pi)
    length = rng.uniform(0.22, 0.42)
    start = rng.choice([0.30, 0.52, 0.68])
    x, y = canvas_place(scene, start * np.cos(angle), start * np.sin(angle))
    points = path(rng, (x, y), angle + rng.normal(0, 0.5), length, rng.normal(0, 0.4), 0.45)
    line = stroke(n, points, taper(len(points), rng.uniform(0.010, 0.016)) * power, 0.0015)
    k = int(rng.integers(8, 16))
    branch = path(rng, (0, 0), angle + rng.choice([-0.9, 0.9]), length * 0.4, 0, 0.5)
    branch += points[k] - branch[0]
    line = np.maximum(line, stroke(n, branch, 0.008 * power, 0.0015)) * s.part
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
    at = canvas_place(s, *((out, along), (along, out), (-out, along), (along, -out))[side])
    radius = rng.uniform(0.045, 0.070) * power
    spot = blob(rng, n, at, radius, ragged=0.45, soft=0.9, squeeze=rng.uniform(1, 1.5))
    solid = smooth(0.25, 0.4, spot)
    s.height = s.height * (1 - 0.7 * solid) + np.float32(0.9 * radius) * blur(spot, 0.01) * solid
    mix(s.albedo, (0.80, 0.81, 0.82), solid)
    mix(s.metal, 1.0, solid)
    finish(s, 0.10, solid)
    return s


def _chipped_edge(scene: Scene, rng: np.random.Generator, power: float, rebuild: _Rebuild) -> Scene:
    s, n = scene.copy(), scene.x.shape[0]
    place = rng.uniform(-BODY, BODY) if rng.random() < 0.6 else BODY * rng.choice([-0.97, 0.97])
    x, y = (place, BODY * rng.choice([-1, 1]))[:: int(rng.choice([-1, 1]))]
    radius = rng.uniform(0.07, 0.15) * power
    spot = blob(rng, n, canvas_place(s, x, y), radius, ragged=0.6, soft=0.12) * s.part
    depth = blur(spot, 0.25 * radius) * spot
    facet = blur(noise(rng, n, 2.2 / radius), 0.006)
    s.height += spot * np.float32(0.016) * facet - np.float32(0.35 * radius) * depth
    s.lift = s.lift - 0.03 * spot
    mix(s.albedo, (0.150, 0.147, 0.140), spot * np.clip(0.8 + 0.25 * noise(rng, n, 110), 0, 1))
    finish(s, 0.45, spot)
    return s


def _smeared_print(scene: Scene, rng: np.random.Generator, power: float, rebuild: _Rebuild) -> Scene:
    n = scene.x.shape[0]
    laser = board_art(n)[1]
    at = random_place(rng, laser > 0.6)
    weight = blob(rng, n, at, rng.uniform(0.10, 0.22) * power, ragged=0.5, soft=0.3)
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
    at = random_place(rng, np.maximum(np.abs(s.x), np.abs(s.y)) < 0.62)
    radius = rng.uniform(0.06, 0.15) * power
    spot = blob(rng, n, at, radius, ragged=0.7, soft=0.18, squeeze=rng.uniform(1, 1.6))
    if rng.random() < 0.5:  # amber flux residue: a thin glossy film, darker at its rim
        rim = np.clip(spot - blur(spot, 0.25 * radius), 0, 1)
        mix(s.albedo, (0.30, 0.155, 0.035), spot * np.float32(0.50) + rim * 0.3)
        mix(s.metal, 0.0, spot * 0.75)
        s.height += np.float32(0.022) * blur(spot, 0.012)
        finish(s, 0.08, spot)
    else:  # pale powder
        grit = np.clip(0.55 + 0.45 * noise(rng, n, 100) + 0.3 * noise(rng, n, 40), 0, 1)
        dust = spot * grit
        mix(s.albedo, (0.55, 0.53, 0.48), dust * 0.85)
        mix(s.metal, 0.0, dust)
        s.height += np.float32(0.004) * dust
        finish(s, 0.5, dust)
    return s


def _broken_weave(scene: Scene, rng: np.random.Generator, power: float, rebuild: _Rebuild) -> Scene:
    n = scene.x.shape[0]
    at = random_place(rng, inner_area(scene, 0.12))
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
    slit = path(rng, at, angle, radius * rng.uniform(0.7, 1.4), rng.normal(0, 0.3), 0.1)
    gap = stroke(n, slit, taper(len(slit), rng.uniform(0.025, 0.045)), 0.006)
    s.height -= np.float32(0.012) * gap
    s.albedo *= (1 - 0.85 * gap)[..., None]
    hair = np.zeros_like(gap)
    for _ in range(int(rng.integers(4, 9))):  # torn filaments stand up along the gap
        root = slit[int(rng.integers(3, len(slit) - 3))] + rng.normal(0, 0.012, 2)
        lean, length = rng.normal(0.5, 0.6), rng.uniform(0.05, 0.14)
        strand = path(rng, root, angle + lean, length, rng.normal(0, 1), 0.15)
        hair = np.maximum(hair, stroke(n, strand, 0.005, 0.0015))
    s.lift = s.lift + np.float32(0.012) * hair
    mix(s.albedo, (0.36, 0.37, 0.39), hair)
    mix(s.metal, 0.3, hair)
    return s


def _void(scene: Scene, rng: np.random.Generator, power: float, rebuild: _Rebuild) -> Scene:
    s, n = scene.copy(), scene.x.shape[0]
    at = random_place(rng, inner_area(scene, 0.08))
    for i in range(int(rng.integers(1, 5))):
        radius = rng.uniform(0.028, 0.075 if i == 0 else 0.04) * power
        where = at if i == 0 else (at[0] + rng.normal(0, 0.13), at[1] + rng.normal(0, 0.13))
        spot = blob(rng, n, where, radius, ragged=0.3, soft=0.25, squeeze=rng.uniform(1, 1.6))
        s.height -= np.float32(0.45 * radius) * blur(spot, 0.006)
        s.lift = s.lift - np.float32(0.03) * spot
        mix(s.albedo, (0.018, 0.018, 0.020), spot * 0.92)
        mix(s.metal, 0.1, spot)
    return s


def _stain(colours: Sequence[tuple[float, float, float]], strength: float, dull: float) -> _Spoil:
    def spoil(scene: Scene, rng: np.random.Generator, power: float, rebuild: _Rebuild) -> Scene:
        s, n = scene.copy(), scene.x.shape[0]
        at, radius = random_place(rng, inner_area(scene, 0.05)), rng.uniform(0.08, 0.22)
        spot = blob(rng, n, at, radius, ragged=0.6, soft=0.16, squeeze=rng.uniform(1, 1.7))
        for _ in range(int(rng.integers(0, 4))):
            drop = (at[0] + rng.normal(0, 1.3 * radius), at[1] + rng.normal(0, 1.3 * radius))
            small = radius * rng.uniform(0.1, 0.25)
            spot = np.maximum(spot, blob(rng, n, drop, small, ragged=0.3, soft=0.2))
        rim = np.clip(spot - blur(spot, 0.2 * radius), 0, 1)  # a drying drop leaves its ring
        weight = np.clip(strength * power * spot * (0.85 + 0.12 * noise(rng, n, 12)) + 0.35 * rim, 0, 0.95)
        mix(s.albedo, colours[int(rng.integers(len(colours)))], weight)
        mix(s.metal, 0.1, weight)
        finish(s, dull, spot)
        return s

    return spoil


def _loose_fibre(scene: Scene, rng: np.random.Generator, power: float, rebuild: _Rebuild) -> Scene:
    s, n = scene.copy(), scene.x.shape[0]
    at = random_place(rng, inner_area(scene, 0.2))
    points = path(rng, at, rng.uniform(0, np.pi), rng.uniform(0.45, 1.1), rng.normal(0, 2.0), 0.20)
    width = rng.uniform(0.008, 0.014) * power
    line = stroke(n, points, width, 0.002)
    s.height = s.height * (1 - line) + np.float32(0.012) * line
    s.lift = s.lift + np.float32(0.018) * line
    colour = ((0.46, 0.43, 0.37), (0.36, 0.29, 0.18), (0.42, 0.43, 0.46))[int(rng.integers(3))]
    mix(s.albedo, colour, np.clip(line * 1.2, 0, 1))
    mix(s.metal, 0.0, line)
    finish(s, 0.3, line)
    return s


def _cut(scene: Scene, rng: np.random.Generator, power: float, rebuild: _Rebuild) -> Scene:
    s, n = scene.copy(), scene.x.shape[0]
    at = random_place(rng, inner_area(scene, 0.12))
    points = path(rng, at, rng.uniform(0, np.pi), rng.uniform(0.22, 0.65), rng.normal(0, 0.4), 0.06)
    width = taper(len(points), rng.uniform(0.016, 0.032) * power)
    core = stroke(n, points, width, 0.003)
    lips = np.maximum(stroke(n, points, width + 0.03, 0.010) - core, 0)
    s.height += np.float32(0.010) * lips - np.float32(0.022) * core
    s.lift = s.lift - np.float32(0.02) * core
    mix(s.albedo, (0.40, 0.225, 0.115), lips * 0.5)
    mix(s.albedo, (0.036, 0.018, 0.010), smooth(0.25, 0.9, core))
    return s


def _hole(scene: Scene, rng: np.random.Generator, power: float, rebuild: _Rebuild) -> Scene:
    s, n = scene.copy(), scene.x.shape[0]
    radius = rng.uniform(0.035, 0.080) * power
    at = random_place(rng, inner_area(scene, 0.1))
    spot = blob(rng, n, at, radius, ragged=0.45, soft=0.12)
    rim = np.maximum(blur(spot, 0.35 * radius) - spot, 0) * 2
    s.height += np.float32(0.30 * radius) * rim
    s.lift = s.lift - np.float32(0.05) * spot
    mix(s.albedo, (0.42, 0.235, 0.12), np.clip(rim, 0, 1) * 0.5)
    mix(s.albedo, (0.030, 0.018, 0.011), spot * 0.97)
    s.height *= 1 - spot
    return s


def _crease(scene: Scene, rng: np.random.Generator, power: float, rebuild: _Rebuild) -> Scene:
    s, n = scene.copy(), scene.x.shape[0]
    at, angle = random_place(rng, inner_area(scene, 0.12)), rng.uniform(0, np.pi)
    for i in range(int(rng.integers(1, 4))):
        gap = 0 if i == 0 else rng.choice([-1, 1]) * rng.uniform(0.05, 0.10)
        where = (at[0] - gap * np.sin(angle), at[1] + gap * np.cos(angle))
        lean, length = rng.normal(0, 0.1), rng.uniform(0.45, 1.1) * (1 if i == 0 else 0.7)
        points = path(rng, where, angle + lean, length, rng.normal(0, 0.7), 0.06)
        width = taper(len(points), rng.uniform(0.020, 0.036))
        valley = stroke(n, points, width, 0.014)
        ridge = stroke(n, points, width + 0.08, 0.032)
        s.height += np.float32(power) * (0.060 * ridge - 0.060 * valley)
        s.albedo *= (1 - 0.45 * valley)[..., None]
        s.albedo += (0.10 * np.maximum(ridge - valley, 0))[..., None] * s.albedo
    return s


def _scuff(scene: Scene, rng: np.random.Generator, power: float, rebuild: _Rebuild) -> Scene:
    s, n = scene.copy(), scene.x.shape[0]
    at, radius, squeeze = (
        random_place(rng, inner_area(scene, 0.08)),
        rng.uniform(0.10, 0.22),
        rng.uniform(1.3, 2.4),
    )
    spot = blob(rng, n, at, radius, ragged=0.7, soft=0.5, squeeze=squeeze)
    rubbed = noise(rng, n, 7, n / 4) if rng.random() < 0.5 else noise(rng, n, n / 4, 7)
    streak = np.clip(0.55 + 0.22 * rubbed + 0.30 * noise(rng, n, 45), 0, 1)
    worn = np.clip(spot * streak * power, 0, 1)
    s.height += worn * 0.7 * (blur(s.height, 0.03) - s.height)
    mix(s.albedo, (0.52, 0.31, 0.17), worn * 0.75)
    finish(s, 0.5, worn)
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
