"""Results: `Inspection` with its verdict, maps and regions, and `RepairStep`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from diffad.method.calibration import Calibration
from diffad.method.fusion import branch_weights, fuse, weights_in_words
from diffad.method.image_score import ImageScore, checked_rate
from diffad.method.regions import Region
from diffad.method.tiling import Tiling, letterboxed
from diffad.pictures.arrays import F32, U8, Bools
from diffad.pictures.drawing import hatched
from diffad.pictures.geometry import Geometry, resize_maps, to_uint8
from diffad.pictures.quality import MEASURES, measured
from diffad.verdicts import (
    LOOK_RATE,
    Verdict,
    checked_alpha,
    checked_threshold,
    checked_timesteps,
    map_limit_for,
    regions_above,
    smallest_region,
    verdict_for,
)


@dataclass(frozen=True, eq=False, repr=False)
class Inspection:
    """The result of inspecting one picture.

    Scores, thresholds and maps are in σ of good pictures' maps. Maps are float32 [H, W] at the picture's
    size.

    Attributes:
        image: uint8 [H, W, 3].
        category: given or recognised.
        recognised: whether the category was recognised rather than given.
        category_fits: whether the picture resembles its category.
        alpha: balance of the branches, see `fusion.branch_weights`.
        timesteps: fused in the map.
        seed: of the noise.
        seconds: duration of the inspection.
        threshold: score above which the part is anomalous.
        bits: bit depth with which the picture was read, 8 for an 8-bit file.
        notes: sentences to be shown with the verdict.
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
    _look: float  # the look limit, which may exceed the threshold
    _maps: Mapping[int, tuple[F32, F32]]  # by t: (pixel, feature), on the tiling's grid
    _tiling: Tiling
    _calibration: Calibration
    _plain: F32 | None = None  # map of the plain features, on the same grid
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
        """The look limit: a person should look at parts with scores between it and the threshold.

        At most the threshold; if equal, there is no such range.
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
        """Value above which the map is outlined and divided into regions, see `map_limit_for`."""
        return map_limit_for(self.verdict, self.threshold, self.look_threshold, self._fused_map)

    @property
    def tile(self) -> int | None:
        """Side of the tiles, px; None if the picture was inspected whole."""
        return self._tiling.side

    @property
    def pixel_weight(self) -> float:
        """Weight of the pixel branch relative to both branches, in [0, 1]."""
        return branch_weights(self.alpha)[0]

    @property
    def weights_in_words(self) -> str:
        """The weights of all branches, such as "pixels 4.8 %, features 95.2 %"."""
        return weights_in_words(self.alpha, self._plain is not None)

    @cached_property
    def quality(self) -> dict[str, float]:
        """`quality.measured` of the model's square, or the median over a few tiles, by name."""
        tiling = self._tiling
        squares = ((tiling.square(self.image, tile), tiling.inside(tile)) for tile in tiling.sample())
        values = [
            measured(to_uint8(square).permute(1, 2, 0).numpy(), inside.numpy()) for square, inside in squares
        ]
        return dict(zip(MEASURES, np.median(values, axis=0).tolist()))

    @property
    def turned(self) -> bool:
        """Whether the picture was rotated to its category's pose."""
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
        """Area of the picture in tiles, 1 if inspected whole.

        The threshold takes into account that false alarms are as frequent as in that many pictures.
        """
        return self._tiling.chances

    @cached_property
    def score(self) -> float:
        """The image score, see `ImageScore`; of a tiled picture, that of its worst tile."""
        return self._tiling.score(self._fused_map, self.scorer)

    @cached_property
    def scorer(self) -> ImageScore:
        """The category's image score at this α and these timesteps."""
        return self._calibration.scorer(self.alpha, self.timesteps)

    @property
    def good_scores(self) -> F32:
        """Leave-one-out scores of the good pictures, inspected whole, float32 [pictures]."""
        return self.scorer.good

    def threshold_at(self, rate: float = 0.01) -> float:
        """Score that a share `rate` of good pictures of this size is expected to exceed.

        A single tile exceeds it with a probability of 1 − (1 − rate)^(1 / chances).

        Raises:
            ValueError: rate outside (0, 1).
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
        """95 % confidence interval of `rate`, given the number of good pictures."""
        low, high = self.scorer.rate_bounds(self.threshold)
        return self._of_all_tiles(low), self._of_all_tiles(high)

    def _of_all_tiles(self, rate: float) -> float:
        return 1.0 if rate >= 1 else -math.expm1(self.chances * math.log1p(-rate))

    @cached_property
    def _fused_map(self) -> F32:
        """The fused map on the tiling's grid."""
        pixel, feature = (np.stack([self._maps[t][branch] for t in self.timesteps]) for branch in (0, 1))
        return fuse(pixel, feature, self.alpha, self._plain)

    @property
    def square_map(self) -> F32:
        """The fused map in the model's square, float32 [size, size]; the padding repeats the edge."""
        return letterboxed(
            self._fused_map, Geometry.letterbox(self._tiling.height, self._tiling.width, self._tiling.size)
        )

    @cached_property
    def anomaly_map(self) -> F32:
        """The fused map, equation (11)."""
        return resize_maps(self._fused_map, self.image.shape[:2])

    @property
    def pixel_maps(self) -> Mapping[int, F32]:
        """The pixel branch's maps ŝ_t by t, resized to the picture on access and not cached."""
        return _PictureMaps(self, 0)

    @property
    def feature_maps(self) -> Mapping[int, F32]:
        """The feature branch's maps ŝ^f_t by t, likewise."""
        return _PictureMaps(self, 1)

    @property
    def plain_map(self) -> F32 | None:
        """The map of the plain features; None if the category does not use them."""
        return None if self._plain is None else resize_maps(self._plain, self.image.shape[:2])

    def grid_maps(self, longest: int = 512) -> dict[int, tuple[F32, F32]]:
        """Maps for display, with the picture's aspect ratio.

        The score is the maximum over `windows` of `scorer` at `scored_size`, approximately so for a tiled
        picture whose grid was shrunk.

        Args:
            longest: maximum number of cells per side for a tiled picture. A picture inspected whole has the
                resolution of the model's square.

        Returns:
            (ŝ_t, ŝ^f_t) by t for all `computed_timesteps`, float32 [h, w].
        """
        shape = self._grid_shape(longest)
        return {
            t: (resize_maps(pixel, shape), resize_maps(feature, shape))
            for t, (pixel, feature) in self._maps.items()
        }

    def grid_plain(self, longest: int = 512) -> F32 | None:
        """The plain features' map at the resolution of `grid_maps`; None if there is none."""
        return None if self._plain is None else resize_maps(self._plain, self._grid_shape(longest))

    @property
    def scored_size(self) -> float:
        """Side of the model's square in pixels of `grid_maps()`, for `image_score.cells_of`."""
        return self._tiling.scored_size * self._grid_shape()[0] / self._tiling.shape[0]

    @property
    def windows(self) -> list[tuple[int, int, int, int]]:
        """Top, left, bottom and right of each tile in `grid_maps()`."""
        down, across = (shown / own for shown, own in zip(self._grid_shape(), self._tiling.shape))
        return [
            (round(down * y.start), round(across * x.start), round(down * y.stop), round(across * x.stop))
            for y, x in (tile.cells for tile in self._tiling.tiles)
        ]

    def _grid_shape(self, longest: int = 512) -> tuple[int, int]:
        shrink = 1.0 if self.tile is None else min(1.0, longest / max(self._tiling.shape))
        height, width = (max(1, round(side * shrink)) for side in self._tiling.shape)
        return height, width

    def good_evidence(self) -> tuple[U8, list[int], U8 | None]:
        """Encoded maps of good pictures (`calibration.to_codes`), the input of `ImageScore.of`.

        Returns:
            Maps of both branches, uint8 [pictures, 2 (pixel, feature), m, CELLS, CELLS]; for each of
            `computed_timesteps` its index among the m; maps of the plain features, uint8 [pictures, CELLS,
            CELLS], or None.
        """
        calibration = self._calibration
        plain = None if calibration.good_plain is None else calibration.good_plain.numpy()
        return calibration.good_maps.numpy(), calibration.nearest(self.computed_timesteps), plain

    @cached_property
    def regions(self) -> tuple[Region, ...]:
        """Connected regions of the map above `map_limit`, highest peak first.

        A good picture has none. Regions smaller than `smallest_region` are omitted.
        """
        if self.verdict == "good":
            return ()
        return regions_above(self.anomaly_map, self.map_limit, self.image.shape[:2], self.smallest_region)

    @property
    def smallest_region(self) -> int:
        """Minimum area of a region, px of the picture."""
        return smallest_region(self.image.shape[:2], self.tile)

    @property
    def computed_timesteps(self) -> tuple[int, ...]:
        """The timesteps that are available to `fused`."""
        return tuple(sorted(self._maps))

    def fused(
        self,
        alpha: float | None = None,
        timesteps: Sequence[int] | None = None,
        threshold: float | None = None,
        look_threshold: float | None = None,
    ) -> Inspection:
        """The same inspection with other settings, without running the network again.

        Args:
            alpha: balance of the branches; None keeps it.
            timesteps: a subset of `computed_timesteps`; None keeps them.
            threshold, look_threshold: None keeps them, or if α or the timesteps change, uses the defaults for
                the new ones. A look limit above the threshold counts as the threshold.

        Raises:
            ValueError: a timestep was not computed, α is outside [0, 1], or a limit is NaN.
        """
        alpha = self.alpha if alpha is None else checked_alpha(alpha)
        chosen = self.timesteps if timesteps is None else checked_timesteps(timesteps)
        if missing := [t for t in chosen if t not in self._maps]:
            raise ValueError(
                f"t = {missing} was not computed; choose from {list(self.computed_timesteps)} or inspect the "
                "picture again"
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
        """Summary as JSON values, without maps."""
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


class _PictureMaps(Mapping[int, F32]):
    """One branch's maps by t at the picture's size, not cached: a map of a 12 MP picture has 48 MB."""

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
    """One step of a repair.

    Attributes:
        index: 0 for the unchanged picture.
        total: expected number of steps, which grows when another round begins.
        image: uint8 [H, W, 3].
        score: image score as last measured: at step 0, after some of the denoising steps, and at the end.
        mahalanobis: mean squared Mahalanobis distance per dimension over the place under repair, between the
            features and the predicted ones; by the method "paper", to those of good parts (12).
        anomaly_map: float32 [H, W] if the score was measured at this step, otherwise None.
        done: whether this is the last step; in a weighed repair, it has the best picture measured.
        notes: the inspection's.
    """

    index: int
    total: int
    image: U8
    score: float
    mahalanobis: float
    anomaly_map: F32 | None
    done: bool
    notes: tuple[str, ...] = ()
