"""Equation (11): the maps of all timesteps and branches become one anomaly map."""

from __future__ import annotations

from diffad.pictures.arrays import F32

# Weight of a σ of the pixel branch beside one of the features: pixels tell less in every category. Artificial
# defects do not decide how much less: the network is taught to remove them, which flatters its pixels.
PIXEL_TRUST = 0.05
# Network and plain features count equally in a category that the network never learned from.
PLAIN_WEIGHT = 0.5


def branch_weights(alpha: float) -> tuple[float, float]:
    """Weights of the pixel and the feature branch in (11); their sum is 1, their ratio α PIXEL_TRUST : 1 − α.

    α is the balance of the two branches: 0 features only, 1 pixels only; at 0.5 a σ of the pixels counts a
    twentieth (PIXEL_TRUST) of a σ of the features, which gives weights of 0.048 and 0.952.
    """
    pixel, feature = alpha * PIXEL_TRUST, 1 - alpha
    return pixel / (pixel + feature), feature / (pixel + feature)


def weights_in_words(alpha: float, plain: bool = False) -> str:
    """The branches' shares, such as "pixels 4.8 %, features 95.2 %"; the page says the same.

    plain: whether the category has plain features.
    """
    rest = 1 - PLAIN_WEIGHT if plain else 1.0
    pixel, feature = (f"{round(100 * rest * weight, 1):g}" for weight in branch_weights(alpha))
    added = f", plain features {100 * PLAIN_WEIGHT:g} %" if plain else ""
    return f"pixels {pixel} %, features {feature} %{added}"


def fuse(pixel: F32, feature: F32, alpha: float, plain: F32 | None = None) -> F32:
    """(11): mean over t of the two branches, `weighed`; standardised maps [n_t, h, w] → [h, w].

    plain: the map of the plain features [h, w], if the category has one.
    """
    return weighed(pixel.mean(axis=0), feature.mean(axis=0), alpha, plain)


def weighed(pixel: F32, feature: F32, alpha: float, plain: F32 | None = None) -> F32:
    """Both branches by `branch_weights(α)`; plain features, if given, make half of it (PLAIN_WEIGHT)."""
    of_pixel, of_feature = branch_weights(alpha)
    fused = of_pixel * pixel + of_feature * feature
    return fused if plain is None else (1 - PLAIN_WEIGHT) * fused + PLAIN_WEIGHT * plain
