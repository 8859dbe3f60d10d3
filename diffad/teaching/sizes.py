"""Choose the size at which a category is inspected: the smallest that shows small defects.

The network is convolutional and works at any size, but the statistics belong to one. On fine textures, small
defects show only at a large size. For parts at any angle with few good pictures, a large size gives worse
maps, and it costs several times as much. Real defects must not influence the choice, so artificial ones do:
just visible, put on good pictures at full resolution and scaled down with them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from diffad.method.artificial_defects import MEASURED_KINDS, add_small_defect
from diffad.method.diffusion import Schedule
from diffad.method.features import FeatureExtractor
from diffad.method.gaussian import ResidualGaussian, Scatter
from diffad.method.image_score import threshold_for, top_mean
from diffad.method.metrics import aupro, auroc
from diffad.method.pose import Upright
from diffad.method.scoring import TIMESTEPS, denoise_all, evidence, shifted_embeddings, smooth
from diffad.method.tiling import Tiling
from diffad.method.unet import UNet, UNetConfig
from diffad.pictures.geometry import to_float, to_square, to_uint8
from diffad.pictures.reading import read_image
from diffad.teaching.residuals import FEATURE_BLOCK, block, changed_copies

_TIMES = 1, 1.5, 2  # sizes to try, relative to the network's own
_LARGEST = 512  # px, the largest size to try
_PICTURES = 24  # number of good pictures, and of artificial defects
_MEASURED = 5  # pictures whose resolution is checked
# A defect is drawn in a window of 256 px, or of half a large picture's side: specks have a radius of 1.5 to
# 5 px in a picture of 512 px.
_WINDOW, _WINDOWS = 256, 2
_TRIES = 4  # to draw a visible defect
_CLEARLY = 0.05  # margin in worth by which a larger size must beat a smaller one
_MIDDLE = TIMESTEPS[1]  # the only timestep used
_SHOWN = -0.8  # a scaled mask in [−1, 1] above this: at least a tenth of the pixel is defective


class _Shown(NamedTuple):
    """Pictures at one size, uint8 [n, 3, s, s], and where they are without padding, bool [n, s, s]."""

    good: Tensor
    spoiled: Tensor
    inside: Tensor


def find_size(
    network: UNet,
    extractor: FeatureExtractor,
    schedule: Schedule,
    paths: Sequence[Path],
    upright: Upright | None = None,
    bits: int | None = None,
) -> dict[str, Any]:
    """Find the size at which a category's pictures are inspected.

    The trial uses 24 pictures at one timestep and the features alone, which dominate the score.

    Args:
        network, extractor, schedule: the model.
        paths: good pictures.
        upright: how to turn them upright, if necessary.
        bits: as for `read_image`.

    Returns:
        size: px.
        good, defects: counts.
        tried: by size (as text) found (share of the artificial defects above the score that 1 good picture
            in 100 exceeds), image_auroc, aupro, worth (the mean of these three, which decides: see
            `smallest_that_finds`) and seconds (of an inspection, roughly).
        Empty if the pictures have too few pixels for more than the network's own size.

    Raises:
        DataError: a picture cannot be read.
    """
    network.eval()
    some = [paths[i] for i in np.linspace(0, len(paths) - 1, min(_PICTURES, len(paths))).round().astype(int)]
    longest = np.median([max(read_image(path, bits).shape[:2]) for path in some[:_MEASURED]])
    sizes = sizes_for(network.config, int(longest))
    if len(sizes) == 1:
        return {}
    shown, masks, origins = _pictures(some, sizes, upright, bits)
    if not masks:  # nearly black pictures show no defect
        return {}
    inside = shown[sizes[0]].inside.numpy()[[*range(len(some)), *origins]]

    def judge(size: int) -> dict[str, float]:
        maps = _maps(network, extractor, schedule, shown[size], origins, sizes[0])
        maps = [np.where(where, values, values[where].min()) for values, where in zip(maps, inside)]
        one = to_float(shown[size].good[:1], extractor.mean.device)
        return _judged(maps, masks) | {"seconds": _seconds(network, extractor, schedule, one)}

    chosen, tried = smallest_that_finds(sizes, judge)
    return {
        "size": chosen, "tried": {str(size): values for size, values in tried.items()},
        "good": len(some), "defects": len(masks),
    }  # fmt: skip


def sizes_for(config: UNetConfig, longest: int) -> list[int]:
    """The sizes to try, in ascending order from the network's own; none larger than the pictures.

    Args:
        longest: the pictures' longest side, px.
    """
    larger = [round(config.size * times) for times in _TIMES[1:]]
    suits = [size for size in larger if size <= min(longest, _LARGEST) and not size % config.step]
    return [config.size, *suits]


def smallest_that_finds(
    sizes: Sequence[int], judge: Callable[[int], dict[str, float]]
) -> tuple[int, dict[int, dict[str, float]]]:
    """Find the smallest size that no larger one clearly beats.

    A size beats another if its worth is clearly higher and its AUPRO no lower. Sizes are tried in ascending
    order, until none can be better, because each costs about twice as much as the one before.

    Args:
        sizes: in ascending order.
        judge: size → its values, among them worth and aupro.

    Returns:
        The size, and the values of the sizes that were tried.
    """
    tried: dict[int, dict[str, float]] = {}
    for size in sizes:
        tried[size] = judge(size)
        if tried[size]["worth"] > 1 - _CLEARLY:
            break

    def beaten(size: int) -> bool:
        own = tried[size]
        return any(
            values["worth"] >= own["worth"] + _CLEARLY and values["aupro"] >= own["aupro"]
            for larger, values in tried.items() if larger > size
        )  # fmt: skip

    return next(size for size in tried if not beaten(size)), tried


def in_words(category: str, found: Mapping[str, Any]) -> str:
    """A sentence on the size at which a category is inspected, and why."""
    tried = dict(found["tried"])
    own = tried.pop(str(found["size"]))
    others = ", ".join(
        f"{values['found']:.0%} at {size} px (AUPRO {values['aupro']:.2f})" for size, values in tried.items()
    )
    return (
        f"{category}: inspected at {found['size']} px: of {found['defects']} small artificial defects "
        f"{own['found']:.0%} were found (AUPRO {own['aupro']:.2f}), {others}; {own['seconds']:.2g} s per "
        "inspection."
    )


def _pictures(
    paths: Sequence[Path], sizes: Sequence[int], upright: Upright | None, bits: int | None
) -> tuple[dict[int, _Shown], list[np.ndarray], list[int]]:
    """Put small defects on good pictures.

    Returns:
        By size, the good and the defective pictures; the defects' masks at the smallest size; the numbers of
        the good pictures that each defective one was made from.
    """
    rng = np.random.default_rng(0)
    good, spoiled, inside = (dict[int, list[Tensor]]((size, []) for size in sizes) for _ in range(3))
    masks, origins = [], []
    for number, path in enumerate(paths):
        image = read_image(path, bits)
        for size in sizes:
            where, square = _square(image, size, upright)
            good[size].append(square)
            inside[size].append(where)
        for nth in range(number, _PICTURES, len(paths)):  # few pictures get several defects each
            defective, mask = _with_defect(image, MEASURED_KINDS[nth % len(MEASURED_KINDS)], rng)
            white = np.repeat(255 * mask[..., None].astype(np.uint8), 3, axis=2)
            tiling = _tiling(defective, sizes[0], upright)
            covered = (tiling.square(white, tiling.tiles[0])[0] > _SHOWN).numpy()
            if not covered.any():
                continue
            masks.append(covered)
            origins.append(number)
            for size in sizes:
                spoiled[size].append(_square(defective, size, upright)[1])
    if not masks:
        return {}, [], []
    shown = {size: _Shown(*(torch.stack(some[size]) for some in (good, spoiled, inside))) for size in sizes}
    return shown, masks, origins


def _with_defect(
    image: npt.NDArray[np.uint8], kind: str, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A copy with a small defect, and its mask, which is empty if no try gave a visible defect."""
    side = max(_WINDOW, max(image.shape[:2]) // _WINDOWS)
    for _ in range(_TRIES):
        defective, mask = add_small_defect(image, kind, side, rng)
        if mask.any():
            break
    return defective, mask


def _tiling(image: npt.NDArray[np.uint8], size: int, upright: Upright | None) -> Tiling:
    turn = None if upright is None else upright.turn(to_square(image, size)[0])
    height, width = image.shape[:2]
    return Tiling.whole(height, width, size, turn)


def _square(image: npt.NDArray[np.uint8], size: int, upright: Upright | None) -> tuple[Tensor, Tensor]:
    """Where the model's square shows the picture, bool [s, s], and the square itself, uint8 [3, s, s]."""
    tiling = _tiling(image, size, upright)
    (tile,) = tiling.tiles
    return tiling.inside(tile), to_uint8(tiling.square(image, tile))


@torch.no_grad()
def _maps(
    network: UNet, extractor: FeatureExtractor, schedule: Schedule, pictures: _Shown,
    origins: Sequence[int], cells: int,
) -> list[np.ndarray]:  # fmt: skip
    """Leave-one-out maps [cells, cells] of the good pictures, then of those with defects.

    The statistics for each picture exclude the good picture it was made from and its changed copy.
    """
    device = extractor.mean.device

    def residuals(some: Tensor) -> Tensor:
        rows = []
        for picture in some.split(1):
            x_start = to_float(picture, device)
            *_, prediction = denoise_all(schedule, network, x_start, (_MIDDLE,))
            rows.append((extractor(x_start) - prediction.features).half().cpu())
        return torch.cat(rows)

    good, changed, spoiled = map(residuals, (pictures.good, changed_copies(pictures.good), pictures.spoiled))
    total = Scatter(block(good.shape[-1], FEATURE_BLOCK)).add(good).add(changed)
    _, left_out = ResidualGaussian.fit([total], stages=extractor.stage_channels)
    own = torch.stack([good, changed], dim=1)
    maps = []
    for some, of in ((good, range(len(good))), (spoiled, origins)):
        for residual, number in zip(some.split(1), of):
            distance = left_out.squared_mahalanobis(residual.float(), own[number][None].float())
            large = F.interpolate(distance[:, None], (cells, cells), mode="bicubic", align_corners=False)
            maps.append(smooth(large)[0, 0].numpy())
    return maps


def _judged(maps: Sequence[np.ndarray], masks: Sequence[npt.NDArray[np.bool_]]) -> dict[str, float]:
    """How well the maps of defects, which come last, are distinguished from those of good pictures."""
    good, size = len(maps) - len(masks), len(masks[0])
    scores = np.array([top_mean(values, size) for values in maps])
    image = auroc(scores, np.arange(len(maps)) >= good)
    pixel = aupro(list(maps), [np.zeros_like(masks[0])] * good + list(masks))
    assert image is not None and pixel is not None  # there are good pictures and defects
    found = float((scores[good:] > threshold_for(scores[:good])).mean())
    return {"found": found, "image_auroc": image, "aupro": pixel, "worth": (found + image + pixel) / 3}


@torch.no_grad()
def _seconds(network: UNet, extractor: FeatureExtractor, schedule: Schedule, x_start: Tensor) -> float:
    """Seconds that the networks take for an inspection, the best of two runs."""

    def look() -> None:
        embeddings = shifted_embeddings(extractor.embed, x_start, extractor.embed(x_start), TIMESTEPS)
        found = evidence(schedule, network, x_start, embeddings, TIMESTEPS, perceive=extractor.perceptual)
        float(found[0].sum())  # waits for a GPU to finish

    return min(_timed(look) for _ in range(2))


def _timed(call: Callable[[], None]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun
