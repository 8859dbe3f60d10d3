"""`Inspector`: load once, inspect and repair pictures. The one object that the page, the command line and
library users call.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffad import checkpoint as checkpoints
from diffad.checkpoint import Checkpoint, CheckpointError
from diffad.data import Geometry, read_image, to_square
from diffad.features import FeatureExtractor
from diffad.reconstruction import gradient_denoising, repair_weight
from diffad.scoring import (
    TIMESTEPS,
    Calibration,
    RawMaps,
    Region,
    evidence,
    feature_maps,
    find_regions,
    fuse,
    image_score,
    rate_for,
    threshold_for,
)
from diffad.unet import UNet, pick_device

Picture = str | Path | Image.Image | np.ndarray
METHODS = {"weighed": (0.03, 600), "paper": (0.02, 32)}  # repair method → its usual step size s and t
SCALE_TOP = 8.0  # σ; where the colours of maps end, unless a category's threshold asks for more
_MAX_TIMESTEPS = 12
_SMALLEST_REGION = 8  # px at 256 × 256
# Median squared Mahalanobis distance per dimension: some 0.7 for parts, good or not, 3 or more for other
# things.
_FITS = 2.0


@dataclass(frozen=True, eq=False, repr=False)
class Inspection:
    """One inspected picture; everything in σ of good pictures' maps, maps float32 [H, W] in the picture's own
    geometry.

    image: uint8 [H, W, 3]. recognised: the category was not given. category_fits: the picture resembles that
    category at all. score: mean of the 64 highest values of the fused map at the model's resolution.
    good_scores: the same for held-out good pictures at this α and these timesteps. seconds: what the
    inspection took, network included.
    """

    image: np.ndarray
    category: str
    recognised: bool
    category_fits: bool
    alpha: float
    timesteps: tuple[int, ...]
    seed: int
    seconds: float
    score: float
    threshold: float
    good_scores: np.ndarray
    _maps: Mapping[int, tuple[np.ndarray, np.ndarray]]  # t → (pixel, feature) at the model's resolution
    _geometry: Geometry
    _calibration: Calibration

    def __repr__(self) -> str:
        verdict = "anomalous" if self.is_anomalous else "good"
        return (
            f"<Inspection: {self.category} {verdict}, score {self.score:.3g}, threshold {self.threshold:.3g}>"
        )

    @property
    def is_anomalous(self) -> bool:
        return self.score > self.threshold

    @cached_property
    def square_map(self) -> np.ndarray:
        """The fused map at the model's resolution, float32 [size, size], letterbox included."""
        pixel, feature = (np.stack([self._maps[t][branch] for t in self.timesteps]) for branch in (0, 1))
        return fuse(pixel, feature, self.alpha)

    @cached_property
    def anomaly_map(self) -> np.ndarray:
        """The fused map (11)."""
        return self._geometry.to_picture(self.square_map)

    @cached_property
    def pixel_maps(self) -> dict[int, np.ndarray]:
        """ŝ_t by t."""
        return {t: self._geometry.to_picture(self._maps[t][0]) for t in self.timesteps}

    @cached_property
    def feature_maps(self) -> dict[int, np.ndarray]:
        """ŝ^f_t by t."""
        return {t: self._geometry.to_picture(self._maps[t][1]) for t in self.timesteps}

    @cached_property
    def regions(self) -> tuple[Region, ...]:
        """Connected parts of the map above the threshold, highest peak first; none in a good picture, none
        below 8 px of a 256 px picture.
        """
        if not self.is_anomalous:
            return ()
        scale = (
            self._geometry.height
            * self._geometry.width
            / (self._geometry.inner_height * self._geometry.inner_width)
        )
        smallest = _SMALLEST_REGION * scale * (self._geometry.size / 256) ** 2
        return find_regions(self.anomaly_map, self.threshold, max(1, round(smallest)))

    @property
    def computed_timesteps(self) -> tuple[int, ...]:
        """The timesteps that `fused` can choose among."""
        return tuple(sorted(self._maps))

    def fused(
        self,
        alpha: float | None = None,
        timesteps: Sequence[int] | None = None,
        threshold: float | None = None,
    ) -> Inspection:
        """The same evidence weighed otherwise, without the network. What is not given stays; a new α or new
        timesteps bring their own threshold unless one is given. Raises ValueError for timesteps that were not
        computed or α outside [0, 1].
        """
        alpha = self.alpha if alpha is None else _checked_alpha(alpha)
        chosen = self.timesteps if timesteps is None else _checked_timesteps(timesteps)
        if missing := [t for t in chosen if t not in self._maps]:
            raise ValueError(
                f"t = {missing} was not computed; choose from {list(self.computed_timesteps)} or inspect anew"
            )
        good = self._calibration.good_scores(alpha, chosen)
        if threshold is None:
            same = alpha == self.alpha and chosen == self.timesteps
            threshold = self.threshold if same else threshold_for(good)
        changed = replace(self, alpha=alpha, timesteps=chosen, good_scores=good, threshold=float(threshold))
        return replace(
            changed, score=image_score(changed.square_map[self._geometry.inner], self._geometry.size)
        )

    def to_dict(self) -> dict:
        """JSON-able summary, without the maps."""
        return {
            "category": self.category,
            "recognised": self.recognised,
            "category_fits": self.category_fits,
            "score": self.score,
            "threshold": self.threshold,
            "is_anomalous": self.is_anomalous,
            "regions": [
                {"box": list(region.box), "area": region.area, "peak": region.peak, "mean": region.mean}
                for region in self.regions
            ],
            "alpha": self.alpha,
            "timesteps": list(self.timesteps),
            "seed": self.seed,
            "seconds": self.seconds,
        }


@dataclass(frozen=True, eq=False, repr=False)
class RepairStep:
    """One step of a repair. index: 0 (the untouched picture) … total. image: uint8 [H, W, 3].

    score: anomaly score, measured at step 0, after every denoising step and at the end, carried over in
    between. mahalanobis: mean squared Mahalanobis distance per dimension (12), where the repair acts.
    anomaly_map: float32 [H, W] where the score was measured anew, else None. done: the last one.
    """

    index: int
    total: int
    image: np.ndarray
    score: float
    mahalanobis: float
    anomaly_map: np.ndarray | None
    done: bool


class Inspector:
    """A loaded checkpoint. Thread-safe: nothing changes after loading."""

    def __init__(self, checkpoint: Checkpoint, device: str = "auto", name: str = "model") -> None:
        """Raises CheckpointError if the weights do not fit their configuration, ValueError for a device that
        is not there.
        """
        self.name = name
        self.device = pick_device(device)
        self.size = checkpoint.config.size
        self.provenance = dict(checkpoint.provenance)
        self.timesteps = TIMESTEPS
        self.categories = tuple(checkpoint.profiles)
        self._kind, self._stride = checkpoint.pixel_score, checkpoint.stride
        self._schedule = checkpoint.make_schedule()
        self._calibrations = {
            category: profile.calibration for category, profile in checkpoint.profiles.items()
        }
        self._gaussians = {
            category: p.gaussian.to(self.device) for category, p in checkpoint.profiles.items()
        }
        self._whitenings = {
            category: p.whitening.to(self.device) for category, p in checkpoint.profiles.items()
        }
        self._extractor = FeatureExtractor(checkpoint.backbone, checkpoint.config.feature_grid)
        self._network = UNet(checkpoint.config)
        try:
            self._network.load_state_dict(checkpoint.network)
            self._extractor.mean.copy_(checkpoint.feature_mean)
            self._extractor.std.copy_(checkpoint.feature_std)
        except RuntimeError as error:
            raise CheckpointError(
                f"the weights do not fit their configuration ({str(error).splitlines()[0]})"
            ) from None
        self._extractor.to(self.device)
        self._network.to(self.device).eval().requires_grad_(False)
        self.parameters = sum(parameter.numel() for parameter in self._network.parameters())

    @classmethod
    def load(cls, path: str | Path, device: str = "auto") -> Inspector:
        """From a checkpoint file. device: "auto" (CUDA if present), "cpu", "cuda", "cuda:1". Raises
        CheckpointError, ValueError.
        """
        return cls(checkpoints.load(path), device, Path(path).stem)

    # -- good parts ------------------------------------------------------------------------------------------

    def good_scores(
        self, category: str, alpha: float = 0.5, timesteps: Sequence[int] = TIMESTEPS
    ) -> np.ndarray:
        """Scores of held-out good pictures of a category at that setting, float32 [pictures]; no network."""
        return self._calibrations[self._known(category)].good_scores(
            _checked_alpha(alpha), _checked_timesteps(timesteps)
        )

    def threshold(
        self, category: str, alpha: float = 0.5, timesteps: Sequence[int] = TIMESTEPS, rate: float = 0.01
    ) -> float:
        """Score that a share `rate` of good parts would exceed; no network."""
        return threshold_for(self.good_scores(category, alpha, timesteps), rate)

    def rate(
        self, category: str, score: float, alpha: float = 0.5, timesteps: Sequence[int] = TIMESTEPS
    ) -> float:
        """Share of good parts expected above `score`, in [0, 1]; no network."""
        return rate_for(self.good_scores(category, alpha, timesteps), score)

    def _known(self, category: str) -> str:
        if category not in self._calibrations:
            raise ValueError(
                f"there is no category {category!r} in {self.name}; it knows {', '.join(self.categories)}"
            )
        return category

    def scale_top(self, category: str) -> float:
        """Top of the colour scale in σ, the same for every picture of a category, so that two can be
        compared.
        """
        return max(SCALE_TOP, 2 * self.threshold(category))

    # -- inspection ------------------------------------------------------------------------------------------

    def inspect(
        self,
        image: Picture,
        category: str | None = None,
        timesteps: Sequence[int] = TIMESTEPS,
        alpha: float = 0.5,
        seed: int = 0,
        draws: int = 1,
        threshold: float | None = None,
    ) -> Inspection:
        """Inspect one picture: a path, Pillow picture or array of any size.

        category: None recognises it. timesteps: 1 to 12 of 0 … 999. draws: noise draws a timestep, 1 to 16,
        averaged. threshold: None takes the score that 1 good part in 100 would exceed. Same arguments, same
        result. Raises DataError for a picture that cannot be read, ValueError for settings out of range.
        """
        timesteps, alpha = _checked_timesteps(timesteps), _checked_alpha(alpha)
        if not 1 <= draws <= 16:
            raise ValueError(f"draws must lie in 1 … 16, not {draws}")
        begun = time.perf_counter()
        pixels = read_image(image)
        square, geometry = to_square(pixels, self.size)
        x_start = square[None].to(self.device)
        features = self._features(x_start)
        fits = self._fit(features)
        chosen = self._known(category) if category is not None else max(fits, key=lambda name: fits[name][0])
        maps = self._standard_maps(x_start, features, chosen, timesteps, seed, draws)
        pixel, feature = maps.pixel[0].cpu().numpy(), maps.feature[0].cpu().numpy()
        calibration = self._calibrations[chosen]
        good = calibration.good_scores(alpha, timesteps)
        return Inspection(
            image=pixels,
            category=chosen,
            recognised=category is None,
            category_fits=fits[chosen][1],
            alpha=alpha,
            timesteps=timesteps,
            seed=seed,
            score=image_score(fuse(pixel, feature, alpha)[geometry.inner], self.size),
            threshold=float(threshold_for(good) if threshold is None else threshold),
            good_scores=good,
            _maps={t: (pixel[i], feature[i]) for i, t in enumerate(timesteps)},
            _geometry=geometry,
            _calibration=calibration,
            seconds=time.perf_counter() - begun,
        )

    @torch.no_grad()
    def _features(self, x: Tensor) -> Tensor:
        return self._extractor(x)

    @torch.no_grad()
    def _fit(self, features: Tensor) -> dict[str, tuple[float, bool]]:
        """By category: mean log-likelihood of the features, and whether most places are near that category's
        Gaussian.
        """
        return {
            name: (
                float(gaussian.log_likelihood(features).mean()),
                float(gaussian.squared_mahalanobis(features).median()) < _FITS,
            )
            for name, gaussian in self._gaussians.items()
        }

    @torch.no_grad()
    def _standard_maps(
        self,
        x_start: Tensor,
        features: Tensor,
        category: str,
        timesteps: tuple[int, ...],
        seed: int,
        draws: int,
    ) -> RawMaps:
        pixel, residual = evidence(
            self._schedule,
            self._network,
            x_start,
            features,
            timesteps,
            seed=seed,
            draws=draws,
            kind=self._kind,
            stride=self._stride,
        )
        feature = feature_maps(residual, self._whitenings[category], self.size)
        return self._calibrations[category].standardise(RawMaps(pixel, feature, timesteps))

    # -- repair ----------------------------------------------------------------------------------------------

    def reconstruct(
        self,
        image: Picture,
        category: str | None = None,
        steps: int = 100,
        denoise_every: int = 5,
        step_size: float | None = None,
        timestep: int | None = None,
        method: str = "weighed",
        stop_at_threshold: bool = False,
        seed: int = 0,
        alpha: float = 0.5,
        threshold: float | None = None,
    ) -> Iterator[RepairStep]:
        """Repair a picture by gradient denoising; yields step 0 (untouched), then every step.

        steps: N. denoise_every: N_d. step_size: s. timestep: t of the reverse steps. method: "weighed" by the
        anomaly map (s and t are the first ones, they fall; 0.03 and 600 if not given), or "paper" as printed
        (0.02 and 32, the authors' values, if not given; their N is 500).
        stop_at_threshold: end as soon as the score is below the threshold. Only the change is resized, so
        details outside the repair keep the picture's own resolution. Raises DataError, ValueError before the
        first step.
        """
        if method not in METHODS:
            raise ValueError(f"method is one of {', '.join(METHODS)}, not {method!r}")
        step_size = METHODS[method][0] if step_size is None else step_size
        timestep = METHODS[method][1] if timestep is None else timestep
        if (
            not 1 <= steps <= 5000
            or denoise_every < 1
            or not 0 < step_size < 1
            or not 0 <= timestep < self._schedule.steps
        ):
            raise ValueError(
                "steps lie in 1 … 5000, denoise_every is at least 1, step_size in (0, 1), timestep in 0 … 999"
            )
        first = self.inspect(image, category, alpha=alpha, seed=seed, threshold=threshold)
        return self._repair(first, steps, denoise_every, step_size, timestep, method, stop_at_threshold)

    def _repair(
        self,
        first: Inspection,
        steps: int,
        denoise_every: int,
        step_size: float,
        timestep: int,
        method: str,
        stop: bool,
    ) -> Iterator[RepairStep]:
        geometry, gaussian = first._geometry, self._gaussians[first.category]
        x_start = to_square(first.image, self.size)[0][None].to(self.device)
        weight = None
        if method == "weighed":
            square = torch.from_numpy(first.square_map)
            high = max(first.threshold, 1.0)  # a threshold moved below good parts must not repair everything
            weight = repair_weight(square, 0.5 * high, high).to(self.device)
        before = float(gaussian.squared_mahalanobis(self._features(x_start)).mean())
        score, done = (
            first.score,
            (stop and first.score <= first.threshold) or (weight is not None and not bool(weight.any())),
        )
        yield RepairStep(0, steps, first.image, score, before, first.anomaly_map, done)
        if done:  # nothing to repair
            return

        for repair in gradient_denoising(
            self._schedule,
            self._network,
            self._extractor,
            gaussian,
            x_start,
            steps=steps,
            denoise_every=denoise_every,
            step_size=step_size,
            timestep=timestep,
            weight=weight,
            seed=first.seed,
        ):
            anomaly_map, last = None, repair.index == steps
            if repair.denoised or last:
                maps = self._standard_maps(
                    repair.x, self._features(repair.x), first.category, first.timesteps, first.seed, 1
                )
                square_map = fuse(maps.pixel[0].cpu().numpy(), maps.feature[0].cpu().numpy(), first.alpha)
                score, anomaly_map = (
                    image_score(square_map[geometry.inner], self.size),
                    geometry.to_picture(square_map),
                )
            done = last or (stop and score <= first.threshold)
            change = geometry.to_picture((repair.x - x_start)[0].cpu().numpy()).transpose(1, 2, 0) * 127.5
            image = np.clip(np.rint(first.image + change), 0, 255).astype(np.uint8)
            yield RepairStep(repair.index, steps, image, score, repair.mahalanobis, anomaly_map, done)
            if done:
                return


def _checked_timesteps(timesteps: Sequence[int]) -> tuple[int, ...]:
    chosen = tuple(dict.fromkeys(int(t) for t in timesteps))
    if not 1 <= len(chosen) <= _MAX_TIMESTEPS or not all(0 <= t <= 999 for t in chosen):
        raise ValueError(f"give 1 to {_MAX_TIMESTEPS} timesteps between 0 and 999, not {list(timesteps)}")
    return chosen


def _checked_alpha(alpha: float) -> float:
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha lies between 0 and 1, not {alpha}")
    return float(alpha)
