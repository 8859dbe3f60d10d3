"""The recipe of a training, whose values are checked when it is made."""

from __future__ import annotations

from dataclasses import dataclass, field

from diffad.method.features import DEFAULT_BACKBONE
from diffad.method.scoring import PIXEL_SCORES
from diffad.method.unet import UNetConfig

_RANGES = {  # of the numbers; where the lower limit is an int, only whole numbers are valid
    "steps": (0, 10**9), "minutes": (1e-9, 1e9), "batch": (1, 2**20), "learning_rate": (1e-12, 1.0),
    "warm_up": (1, 10**9), "ema": (0.0, 1.0), "clip": (1e-9, 1e9), "low_t": (0.01, 100.0),
    "spoiled": (0.0, 1.0), "holes": (0.0, 1.0), "shift": (0, 2048), "variants": (1, 1000),
    "held_out": (0.0, 0.5), "stressed": (0, 48), "stride": (1, 999), "seed": (0, 2**53),
}  # fmt: skip


@dataclass(frozen=True)
class TrainConfig:
    """Recipe of one run.

    Attributes:
        steps, minutes: the length of the training, which also determines the learning rate; give exactly one.
            With 0 steps only profiles are fitted.
        unet: the network's size.
        backbone: timm's name of the network that computes the features.
        batch: pictures per step and process, with the same share for every category.
        learning_rate: the highest; it rises during `warm_up` steps, then falls along a cosine.
        ema: decay of the moving average of the weights.
        clip: largest norm of the gradient.
        low_t: timesteps are drawn as T·u^low_t: 1 is uniform, 2 favours the low ones that are scored.
        spoiled: share of pictures that get one to three artificial defects, which the network learns to
            remove like noise.
        holes: share of pictures that are noised only in holes, which the network learns to fill (for t of
            100 and more).
        shift: largest random translation, px.
        variants: number of different shifts and turns (`draws.symmetries`) of each picture.
        held_out: share of each category's pictures that are not trained on (4 to 48 pictures, which do not
            depend on the seed). They show how much lower the maps of trained pictures are.
        stressed: number of pictures held out that are used to test robustness (`robustness.robustness`). If
            at least three times as many are held out, the statistics are fitted without them.
        pixel_score, stride: as for `scoring.evidence`.
        seed: the random seed.
        licence: of the pictures, kept in the checkpoint.
        size: side of the square in which pictures are inspected, and trained if there are steps, px. With
            None, training uses the network's own size, and inspections the smallest that suffices
            (`sizes.find_size`).

    Raises:
        ValueError: a value is out of range.
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
            raise ValueError(f"shift must be below the picture's {self.unet.size} px, not {self.shift}")
        if self.pixel_score not in PIXEL_SCORES:  # otherwise the profile would fail hours later
            raise ValueError(f"the pixel score is one of {', '.join(PIXEL_SCORES)}, not {self.pixel_score!r}")
        if self.unet.feature_grid % 4:  # blocks of a profile's covariances
            raise ValueError(f"a size of {self.unet.size} px does not suit: give a multiple of 32")
        if self.size is not None:
            self.unet.checked_size(self.size)
