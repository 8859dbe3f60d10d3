"""Fusion of the maps of all timesteps and branches into one anomaly map, equation (11)."""

from __future__ import annotations

from diffad.pictures.arrays import F32

# Weight of a σ of the pixel branch relative to one of the feature branch, since pixels are less informative
# in every category. It is not tuned on artificial defects: the network is trained to remove them, which
# favours its pixels.
PIXEL_TRUST = 0.05
# Share of the plain features in categories that the network was not trained on.
PLAIN_WEIGHT = 0.5


def branch_weights(alpha: float) -> tuple[float, float]:
    """Weights of the pixel and the feature branch in (11), with sum 1 and ratio α · PIXEL_TRUST : 1 − α.

    α is the balance of the two branches: 0 features only, 1 pixels only; at 0.5 a σ of the pixels counts a
    twentieth (PIXEL_TRUST) of a σ of the features, which gives weights of 0.048 and 0.952.
    """
    pixel, feature = alpha * PIXEL_TRUST, 1 - alpha
    return pixel / (pixel + feature), feature / (pixel + feature)


def weights_in_words(alpha: float, plain: bool = False) -> str:
    """The branches' shares, such as "pixels 4.8 %, features 95.2 %"; the page shows the same text.

    plain: whether the category has plain features.
    """
    rest = 1 - PLAIN_WEIGHT if plain else 1.0
    pixel, feature = (f"{round(100 * rest * weight, 1):g}" for weight in branch_weights(alpha))
    added = f", plain features {100 * PLAIN_WEIGHT:g} %" if plain else ""
    return f"pixels {pixel} %, features {feature} %{added}"


def fuse(pixel: F32, feature: F32, alpha: float, plain: F32 | None = None) -> F32:
    """Fuse standardised maps, equation (11).

    Args:
        pixel, feature: maps of the two branches, [n_t, h, w], averaged over the timesteps.
        alpha: see `branch_weights`.
        plain: map of the plain features [h, w], if the category has them.

    Returns:
        [h, w].
    """
    return weighed(pixel.mean(axis=0), feature.mean(axis=0), alpha, plain)


def weighed(pixel: F32, feature: F32, alpha: float, plain: F32 | None = None) -> F32:
    """Weighted mean of both branches (`branch_weights`), and of the plain map (PLAIN_WEIGHT) if given."""
    of_pixel, of_feature = branch_weights(alpha)
    fused = of_pixel * pixel + of_feature * feature
    return fused if plain is None else (1 - PLAIN_WEIGHT) * fused + PLAIN_WEIGHT * plain
