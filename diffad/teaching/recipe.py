"""What a training may be asked for, checked when it is made."""

from __future__ import annotations

from dataclasses import dataclass, field

from diffad.method.features import DEFAULT_BACKBONE
from diffad.method.scoring import PIXEL_SCORES
from diffad.method.unet import UNetConfig

_RANGES = {  # of a recipe's numbers, which are whole numbers if the lower limit is
    "steps": (0, 10**9), "minutes": (1e-9, 1e9), "batch": (1, 2**20), "learning_rate": (1e-12, 1.0),
    "warm_up": (1, 10**9), "ema": (0.0, 1.0), "clip": (1e-9, 1e9), "low_t": (0.01, 100.0),
    "spoiled": (0.0, 1.0), "holes": (0.0, 1.0), "shift": (0, 2048), "variants": (1, 1000),
    "held_out": (0.0, 0.5), "stressed": (0, 48), "stride": (1, 999), "seed": (0, 2**53),
}  # fmt: skip


@dataclass(frozen=True)
class TrainConfig:
    """Recipe of one run.

    Attributes:
        steps, minutes: give exactly one; it determines the learning rate and the end. 0 steps fit profiles
            only.
        batch: pictures of a step and process; every category has the same share of them.
        low_t: t = T·u^low_t, so that 2 favours the timesteps that are scored; 1 is uniform.
        spoiled: share of the pictures shown with one to three artificial defects, to be removed like noise.
        holes: share of the pictures that are noised only in holes, to learn to fill these (from t = 100 on;
            below, variances are learned).
        shift: largest random translation, px.
        variants: different shifts and turns (`draws.symmetries`) of each picture.
        held_out: share of each category's pictures kept from training, which show how much lower the maps of
            the others are for having been trained on (4 to 48 pictures, the same ones whatever the seed).
        stressed: how many of those held out are judged changed in the end (`stress.robustness`); if three
            times as many are held out, the statistics are made without them.
        pixel_score, stride: of `scoring.evidence`.
        size: px a side of the square in which pictures are looked at, and trained on if there are steps.
            None: trained on at the network's own size, then looked at as large as necessary
            (`sizes.find_size`).
    """

    steps: int | None = None
    minutes: float | None = None
    unet: UNetConfig = field(default_factory=UNetConfig)
    backbone: str = DEFAULT_BACKBONE
    batch: int = 16
    learning_rate: float = 8e-4
    warm_up: int = 50
    ema: float = 0.999
    clip: float = 1.0
    low_t: float = 2.0
    spoiled: float = 0.5
    holes: float = 0.3
    shift: int = 4
    variants: int = 6
    held_out: float = 0.15
    stressed: int = 4
    pixel_score: str = "perceptual"
    stride: int = 4
    seed: int = 0
    licence: str = ""
    size: int | None = None

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.minutes is None):
            raise ValueError("give either steps or minutes")
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if value is None and name in ("steps", "minutes"):
                continue
            if not low <= value <= high or (isinstance(low, int) and value != int(value)):
                kind = "a whole number" if isinstance(low, int) else "a number"
                raise ValueError(f"{name} is {kind} from {low} to {high}, not {value}")
        if self.shift >= self.unet.size:
            raise ValueError(f"shift is less than the {self.unet.size} px of a picture, not {self.shift}")
        if self.pixel_score not in PIXEL_SCORES:  # otherwise noticed hours later, by the profile
            raise ValueError(f"the pixel score is one of {', '.join(PIXEL_SCORES)}, not {self.pixel_score!r}")
        if self.unet.feature_grid % 4:  # blocks of a profile's covariances
            raise ValueError(f"a size of {self.unet.size} px does not suit: give a multiple of 32")
        if self.size is not None:
            self.unet.checked_size(self.size)
