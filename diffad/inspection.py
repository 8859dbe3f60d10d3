"""What an inspection finds: verdict, maps, regions, and the same evidence weighed otherwise. What a step of a
repair is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from diffad.method.calibration import Calibration
from diffad.method.fusion import branch_weights, fuse, weights_in_words
from diffad.method.image_score import ImageScore, checked_rate
from diffad.method.regions import Region, find_regions
from diffad.method.tiling import Tiling, letterboxed
from diffad.pictures.arrays import F32, U8, Array, Bools
from diffad.pictures.drawing import hatched
from diffad.pictures.geometry import Geometry, resize_maps

Verdict = Literal["good", "look", "anomalous"]
VERDICTS: dict[Verdict, tuple[str, str]] = {  # each with its word and its mark, for people
    "good": ("Good", "✓"), "look": ("Look at it", "!"), "anomalous": ("Anomalous", "✕"),
}  # fmt: skip
LOOK_RATE = 0.1  # share of good parts above the usual look limit
_MAX_TIMESTEPS = 12
_SMALLEST_REGION = 8  # px at 256 × 256


@dataclass(frozen=True, eq=False, repr=False)
class Inspection:
    """One inspected picture; everything in σ of good pictures' maps, maps float32 [H, W] in the picture's own
    geometry.

    image: uint8 [H, W, 3]. recognised: the category was not given. category_fits: the picture resembles that
    category at all. alpha: see `scoring.branch_weights`. seconds: what the inspection took, network included.
    bits: how many the picture's values were taken to have, 8 of an 8-bit file. notes: sentences that a person
    must see beside the verdict.
    """

    image: U8
    category: str
    recognised: bool
    category_fits: bool
    alpha: float
    timesteps: tuple[int, ...]
    seed: int
    seconds: float
    threshold: float
    _look: float  # the look limit, whether or not the threshold is as high
    _maps: Mapping[int, tuple[Array, Array]]  # t → (pixel, feature), on the tiling's grid
    _tiling: Tiling
    _calibration: Calibration
    _plain: Array | None = None  # of the plain features, on the same grid
    _ignored: F32 | None = None  # share of each cell that is not judged, on the same grid
    bits: int = 8
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return (
            f"<Inspection: {self.category} {self.verdict}, score {self.score:.3g}, "
            f"look_threshold {self.look_threshold:.3g}, threshold {self.threshold:.3g}>"
        )

    @property
    def look_threshold(self) -> float:
        """The look limit: a part that scores between it and the threshold is neither good nor anomalous, but
        one that a person should look at. At most the threshold; as high as that, nothing lies between.
        """
        return min(self._look, self.threshold)

    @property
    def verdict(self) -> Verdict:
        """ "anomalous" above the threshold, "look" above the look limit, else "good"."""
        return verdict_for(self.score, self.threshold, self.look_threshold)

    @property
    def is_anomalous(self) -> bool:
        return self.score > self.threshold

    @property
    def map_limit(self) -> float:
        """Above it the map is outlined and cut into regions, see `map_limit_for`."""
        return map_limit_for(self.verdict, self.threshold, self.look_threshold, self._fused_map)

    @property
    def tile(self) -> int | None:
        """Side in px of the squares that the picture was cut into; None: it was inspected whole."""
        return self._tiling.side

    @property
    def pixel_weight(self) -> float:
        """The pixel branch's share of what the network has to say, in [0, 1]; the rest is the feature
        branch's.
        """
        return branch_weights(self.alpha)[0]

    @property
    def weights_in_words(self) -> str:
        """The shares of all branches of the fused map."""
        return weights_in_words(self.alpha, self._plain is not None)

    @property
    def turned(self) -> bool:
        """Whether the model saw the part turned upright."""
        return self._tiling.turn is not None

    @cached_property
    def ignored(self) -> Bools | None:
        """Where nothing is judged, bool [H, W]; None if everything is."""
        if self._ignored is None:
            return None
        ignored: Bools = resize_maps(self._ignored, self.image.shape[:2]) > 0.5
        return ignored

    @property
    def hatched(self) -> U8:
        """The picture to draw maps on: hatched where nothing is judged, uint8 [H, W, 3]."""
        return self.image if self.ignored is None else hatched(self.image, self.ignored)

    @property
    def chances(self) -> float:
        """How many tiles' worth of picture were inspected, 1 of a whole one. So many independent pictures
        would give as many false alarms, and the threshold allows for it.
        """
        return self._tiling.chances

    @cached_property
    def score(self) -> float:
        """How far from good the fused map is, see `scoring.ImageScore`; of a tiled picture its worst tile."""
        return self._tiling.score(self._fused_map, self.scorer)

    @cached_property
    def scorer(self) -> ImageScore:
        """How the category's maps are scored at this α and these timesteps."""
        return self._calibration.scorer(self.alpha, self.timesteps)

    @property
    def good_scores(self) -> F32:
        """The score of good pictures, each left out of the statistics, inspected whole, at this α and these
        timesteps, float32 [pictures].
        """
        return self.scorer.good

    def threshold_at(self, rate: float = 0.01) -> float:
        """Score that a share `rate` of good pictures of this size would exceed at this α and these timesteps:
        of one tile a share 1 − (1 − rate)^(1 / chances). Raises ValueError unless 0 < rate < 1.
        """
        checked_rate(rate)
        return self.scorer.threshold(-math.expm1(math.log1p(-rate) / self.chances))

    @property
    def rate(self) -> float:
        """Share of good pictures of this size expected above the threshold, in [0, 1]."""
        return self.rate_above(self.threshold)

    def rate_above(self, score: float) -> float:
        """Share of good pictures of this size expected above a score, in [0, 1]."""
        return self._of_all_tiles(self.scorer.rate(score))

    @property
    def rate_bounds(self) -> tuple[float, float]:
        """Between which shares `rate` lies in 19 of 20 cases, as far as the number of good pictures goes."""
        low, high = self.scorer.rate_bounds(self.threshold)
        return self._of_all_tiles(low), self._of_all_tiles(high)

    def _of_all_tiles(self, rate: float) -> float:
        return 1.0 if rate >= 1 else -math.expm1(self.chances * math.log1p(-rate))

    @cached_property
    def _fused_map(self) -> F32:
        """On the grid of `_maps`."""
        pixel, feature = (np.stack([self._maps[t][branch] for t in self.timesteps]) for branch in (0, 1))
        return fuse(pixel, feature, self.alpha, self._plain)

    @property
    def square_map(self) -> F32:
        """The fused map in the model's letterbox, float32 [size, size]; the padding repeats the edge."""
        return letterboxed(
            self._fused_map, Geometry.letterbox(self._tiling.height, self._tiling.width, self._tiling.size)
        )

    @cached_property
    def anomaly_map(self) -> F32:
        """The fused map (11)."""
        return resize_maps(self._fused_map, self.image.shape[:2])

    @property
    def pixel_maps(self) -> Mapping[int, Array]:
        """ŝ_t by t, each brought to the picture's size when it is asked for and not kept."""
        return _PictureMaps(self, 0)

    @property
    def feature_maps(self) -> Mapping[int, Array]:
        """ŝ^f_t by t, likewise."""
        return _PictureMaps(self, 1)

    @property
    def plain_map(self) -> Array | None:
        """Of the features alone, without the network; None if the category does without."""
        return None if self._plain is None else resize_maps(self._plain, self.image.shape[:2])

    def grid_maps(self, longest: int = 512) -> dict[int, tuple[Array, Array]]:
        """t → (ŝ_t, ŝ^f_t) for all `computed_timesteps`, float32 [h, w] in the picture's aspect, small enough
        to be shown. Of a picture inspected whole: as the model saw it, whatever `longest`. Of a tiled one: at
        most `longest` cells a side, which gives its score but nearly, where its own grid is finer. The score
        is the highest of its `windows`, by `scorer` at `scored_size`.
        """
        shape = self._grid_shape(longest)
        return {
            t: (resize_maps(pixel, shape), resize_maps(feature, shape))
            for t, (pixel, feature) in self._maps.items()
        }

    def grid_plain(self, longest: int = 512) -> Array | None:
        """`plain_map` like the `grid_maps`."""
        return None if self._plain is None else resize_maps(self._plain, self._grid_shape(longest))

    @property
    def scored_size(self) -> float:
        """How many px of `grid_maps()` make the side of the model's square, for `scoring.cells_of`."""
        return self._tiling.scored_size * self._grid_shape()[0] / self._tiling.shape[0]

    @property
    def windows(self) -> list[tuple[int, int, int, int]]:
        """Top, left, bottom and right of the tiles in `grid_maps()`; of a picture inspected whole all of
        it.
        """
        down, across = (shown / own for shown, own in zip(self._grid_shape(), self._tiling.shape))
        return [
            (round(down * y.start), round(across * x.start), round(down * y.stop), round(across * x.stop))
            for y, x in (tile.cells for tile in self._tiling.tiles)
        ]

    def _grid_shape(self, longest: int = 512) -> tuple[int, int]:
        shrink = 1.0 if self.tile is None else min(1.0, longest / max(self._tiling.shape))
        height, width = (max(1, round(side * shrink)) for side in self._tiling.shape)
        return height, width

    def good_evidence(self) -> tuple[Array, list[int], Array | None]:
        """The maps of good pictures over cells, in the codes of `scoring.to_codes`, uint8: of both branches
        [pictures, 2 (pixel, feature), m, CELLS, CELLS], which of the m belongs to each of
        `computed_timesteps`, and those of the plain features [pictures, CELLS, CELLS], None without. Fused,
        they are what `scoring.ImageScore.of` makes the good scores from.
        """
        calibration = self._calibration
        plain = None if calibration.good_plain is None else calibration.good_plain.numpy()
        return calibration.good_maps.numpy(), calibration.nearest(self.computed_timesteps), plain

    @cached_property
    def regions(self) -> tuple[Region, ...]:
        """Connected parts of the map above the threshold, or above the look limit if the part is one to look
        at, highest peak first; none in a good picture, none below `smallest_region`.
        """
        if self.verdict == "good":
            return ()
        return regions_above(self.anomaly_map, self.map_limit, self.image.shape[:2], self.smallest_region)

    @property
    def smallest_region(self) -> int:
        """Area in px of the picture below which nothing is a region."""
        return smallest_region(self.image.shape[:2], self.tile)

    @property
    def computed_timesteps(self) -> tuple[int, ...]:
        """The timesteps that `fused` can choose among."""
        return tuple(sorted(self._maps))

    def fused(
        self,
        alpha: float | None = None,
        timesteps: Sequence[int] | None = None,
        threshold: float | None = None,
        look_threshold: float | None = None,
    ) -> Inspection:
        """The same evidence weighed otherwise, without the network. What is not given stays; another α or
        other timesteps (their order does not count) bring their own threshold and look limit unless these are
        given. A look limit above the threshold counts as the threshold for as long as it is. Raises
        ValueError for timesteps that were not computed, α outside [0, 1] or a limit of NaN.
        """
        alpha = self.alpha if alpha is None else checked_alpha(alpha)
        chosen = self.timesteps if timesteps is None else checked_timesteps(timesteps)
        if missing := [t for t in chosen if t not in self._maps]:
            raise ValueError(
                f"t = {missing} was not computed; choose from {list(self.computed_timesteps)} or inspect anew"
            )
        changed = replace(self, alpha=alpha, timesteps=chosen)
        same = alpha == self.alpha and chosen == self.timesteps
        if threshold is None:
            threshold = self.threshold if same else changed.threshold_at()
        if look_threshold is None:
            look_threshold = self._look if same else changed.threshold_at(LOOK_RATE)
        return replace(
            changed, threshold=checked_threshold(threshold), _look=checked_threshold(look_threshold)
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-able summary, without the maps."""
        return {
            "category": self.category,
            "recognised": self.recognised,
            "category_fits": self.category_fits,
            "score": self.score,
            "threshold": self.threshold,
            "look_threshold": self.look_threshold,
            "verdict": self.verdict,
            "is_anomalous": self.is_anomalous,
            "rate": self.rate,
            "rate_bounds": list(self.rate_bounds),
            "regions": [region.to_dict() for region in self.regions],
            "alpha": self.alpha,
            "pixel_weight": self.pixel_weight,
            "timesteps": list(self.timesteps),
            "seed": self.seed,
            "tile": self.tile,
            "ignored": 0.0 if self._ignored is None else float(self._ignored.mean()),
            "bits": self.bits,
            "seconds": self.seconds,
            "notes": list(self.notes),
        }


class _PictureMaps(Mapping[int, Array]):
    """t → one branch's map at the picture's size. A picture of 12 MP has 48 MB a map: none is kept."""

    def __init__(self, inspection: Inspection, branch: int) -> None:
        self._inspection, self._branch = inspection, branch

    def __getitem__(self, t: int) -> F32:
        if t not in self._inspection.timesteps:
            raise KeyError(t)
        return resize_maps(self._inspection._maps[t][self._branch], self._inspection.image.shape[:2])

    def __iter__(self) -> Iterator[int]:
        return iter(self._inspection.timesteps)

    def __len__(self) -> int:
        return len(self._inspection.timesteps)


@dataclass(frozen=True, eq=False, repr=False)
class RepairStep:
    """One step of a repair. index: 0 (the untouched picture) … total at most, which grows when another round
    begins. image: uint8 [H, W, 3].

    score: anomaly score, measured at step 0, after some of the denoising steps and at the end, carried over
    in between. mahalanobis: mean squared Mahalanobis distance per dimension, where the repair acts, from the
    features that the network expects; by the method as printed from those of good parts (12).
    anomaly_map: float32 [H, W] where the score was measured anew, else None. done: the last one, which is the
    best that was measured if the repair is weighed by the map. notes: the inspection's.
    """

    index: int
    total: int
    image: U8
    score: float
    mahalanobis: float
    anomaly_map: F32 | None
    done: bool
    notes: tuple[str, ...] = ()


def verdict_for(score: float, threshold: float, look_threshold: float) -> Verdict:
    """By a score and the two limits. The page does the same (`judged` in scores.js)."""
    return "anomalous" if score > threshold else "look" if score > look_threshold else "good"


def map_limit_for(verdict: Verdict, threshold: float, look_threshold: float, fused: F32) -> float:
    """Above which values, in σ, a fused map shows where a part differs: of a part to look at the look limit,
    for a person must see where to look; else the threshold. Where nothing is as high in a part that differs,
    since that is by its excess, half of the map's highest. The page does the same (`outlinedFrom` in
    scores.js).
    """
    limit, highest = look_threshold if verdict == "look" else threshold, float(fused.max())
    return limit if verdict == "good" or highest > limit else highest / 2


def smallest_region(shape: tuple[int, int], tile: int | None) -> int:
    """Area in px below which nothing is a region: 8 px of a picture, or of a tile, of 256 px. shape: of the
    picture; tile: the tiles' side, None of a picture inspected whole.
    """
    return max(1, round(_SMALLEST_REGION * ((tile or max(shape)) / 256) ** 2))


def regions_above(fused: F32, threshold: float, shape: tuple[int, int], smallest: int) -> tuple[Region, ...]:
    """Regions of at least `smallest` px in a picture of that shape, from its fused map on any grid, in px of
    the picture. The page finds the same (`regionsAbove` in page.js) by the same rule in `grid_maps`.
    """
    if fused.size > shape[0] * shape[1]:  # of a picture smaller than the model's
        fused = resize_maps(fused, shape)
    down, across = (full / own for full, own in zip(shape, fused.shape))
    return tuple(
        replace(region, box=_scaled(region.box, across, down), area=round(region.area * across * down))
        for region in find_regions(fused, threshold, smallest / (across * down))
    )


def _scaled(box: tuple[int, int, int, int], across: float, down: float) -> tuple[int, int, int, int]:
    x, y, width, height = box
    return round(x * across), round(y * down), round(width * across), round(height * down)


def checked_timesteps(timesteps: Sequence[int]) -> tuple[int, ...]:
    """As a set, rising, so that order and repetition change nothing; raises ValueError unless 1 to 12 of 0 …
    999.
    """
    chosen = tuple(sorted({int(t) for t in timesteps}))
    if not 1 <= len(chosen) <= _MAX_TIMESTEPS or not all(0 <= t <= 999 for t in chosen):
        raise ValueError(f"give 1 to {_MAX_TIMESTEPS} timesteps between 0 and 999, not {list(timesteps)}")
    return chosen


def checked_threshold(threshold: float) -> float:
    """Raises ValueError for NaN, above which no score lies."""
    if math.isnan(threshold):
        raise ValueError("a threshold of NaN would call every part good: give a number")
    return float(threshold)


def checked_alpha(alpha: float) -> float:
    """Raises ValueError outside [0, 1]."""
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha lies between 0 and 1, not {alpha}")
    return float(alpha)
