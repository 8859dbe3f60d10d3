"""A training of a small network on small pictures."""

from diffad.method.unet import UNetConfig
from diffad.teaching.recipe import TrainConfig

SMALL = UNetConfig(size=64, channels=(64, 64), feature_channels=192)


def config(**changes):
    small = {"steps": 6, "unet": SMALL, "batch": 4, "warm_up": 2, "shift": 2, "stressed": 0}
    return TrainConfig(**small | changes)
