"""The settings that an ablation compares, each as a weighted sum of kept maps (`ablation_maps`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from diffad.inspector import Inspector
from diffad.method.fusion import branch_weights
from diffad.method.scoring import TIMESTEPS

ALPHA = 0.5  # unless α varies
ALPHAS = tuple(i / 10 for i in range(11))
SINGLE_TIMESTEPS = (20, 50, 100, 200, 400, 600)
DRAWS = (1, 2, 4, 8)
# kind, and stride of the KL divergence
PIXEL_SCORES = (("rgb", 0), ("kl", 1), ("kl", 4), ("kl", 20), ("uncertainty", 0), ("perceptual", 0))


@dataclass(frozen=True)
class Setting:
    """A map as a weighted sum of kept maps.

    Attributes:
        label: its name in tables and on the axes of plots.
        weights: name of a kept map → its weight.
        series: its line in the plot, if the table has several.
        value: its position on that line, if it is a number.
        default: whether inspections use it by default.
    """

    label: str
    weights: Mapping[str, float]
    series: str = ""
    value: float | None = None
    default: bool = False

    @property
    def key(self) -> frozenset[tuple[str, float]]:
        """Equal for settings with the same map, which is measured only once."""
        return frozenset(self.weights.items())


@dataclass(frozen=True)
class Table:
    """One ablation.

    Attributes:
        name: used in file names.
        title, axis: labels.
        about: a sentence on what the rows compare.
        settings: the rows.
    """

    name: str
    title: str
    axis: str
    about: str
    settings: tuple[Setting, ...]


def tables(inspector: Inspector, scores: Mapping[str, tuple[str, int]], with_singles: bool) -> list[Table]:
    """All ablations of a model.

    Args:
        inspector: the model.
        scores: name → kind and stride of the pixel scores to compare (`other_pixel_scores`); if empty, that
            table is left out.
        with_singles: whether to compare with models of one category each.
    """
    usual = _fusion(ALPHA, TIMESTEPS)
    result = [_alphas(), _timesteps(), _draws(usual), _normalisations(usual)]
    if with_singles:
        result.append(_singles(usual))
    if scores:
        result.append(_pixel_scores(inspector, scores))
    return result


def other_pixel_scores(inspector: Inspector) -> dict[str, tuple[str, int]]:
    """Name → kind and stride of the pixel scores that the checkpoint has no statistics of."""
    named = {_score_name(kind, stride): (kind, stride) for kind, stride in PIXEL_SCORES}
    named.pop(_score_name(inspector.pixel_score, inspector.stride), None)
    return named


def listed(timesteps: Iterable[int]) -> str:
    return ", ".join(map(str, timesteps))


# ---------------------------------------------------------------------------------------------------------


def _alphas() -> Table:
    rows = (
        Setting(f"{alpha:g}", _fusion(alpha, TIMESTEPS), value=alpha, default=alpha == ALPHA)
        for alpha in ALPHAS
    )
    about = (
        "α: 0 features only, 1 pixels only; at 0.5 a σ of the pixels counts a twentieth of a σ of the "
        "features."
    )
    return Table("alpha", "Balance of the branches", "α", about, tuple(rows))


def _timesteps() -> Table:
    several: dict[str, tuple[int, ...]] = {str(t): (t,) for t in SINGLE_TIMESTEPS}
    several |= {listed(TIMESTEPS): TIMESTEPS, "all": SINGLE_TIMESTEPS}
    rows = (
        Setting(
            label,
            _fusion(alpha, chosen),
            series,
            chosen[0] if len(chosen) == 1 else None,
            default=(alpha, chosen) == (ALPHA, TIMESTEPS),
        )
        for series, alpha in (("both branches", ALPHA), ("pixel branch", 1.0), ("feature branch", 0.0))
        for label, chosen in several.items()
    )
    about = f"Each timestep alone and means of several, both branches at α = {ALPHA:g} and either alone."
    axis = "t (of several: the mean)"
    return Table("timesteps", "Single timesteps against averages", axis, about, tuple(rows))


def _draws(usual: Mapping[str, float]) -> Table:
    rows = (Setting(str(n), usual if n == 1 else {f"draws {n}": 1.0}, value=n, default=n == 1) for n in DRAWS)
    about = "Scores are averaged over this number of noise draws; the calibration is that of one draw."
    return Table("draws", "Noise draws", "noise draws a timestep", about, tuple(rows))


def _normalisations(usual: Mapping[str, float]) -> Table:
    rows = Setting("good pictures", usual, default=True), Setting("its own values", {"per image": 1.0})
    about = "Each map is standardised by good pictures' maps, or by its own values."
    return Table("normalisation", "Normalisation of the maps", "normalised by", about, rows)


def _singles(usual: Mapping[str, float]) -> Table:
    rows = Setting("one for all", usual, default=True), Setting("one per category", {"single": 1.0})
    about = "The same pictures, inspected by one model for all or by one trained on that category alone."
    return Table("single", "One model against one per category", "model", about, rows)


def _pixel_scores(inspector: Inspector, scores: Mapping[str, tuple[str, int]]) -> Table:
    stored = _score_name(inspector.pixel_score, inspector.stride)
    rows = (
        Setting(name, _fusion(1.0, TIMESTEPS) if name == stored else {name: 1.0}, default=name == stored)
        for name in dict.fromkeys([*scores, stored])
    )
    about = (
        f"The pixel branch alone, mean of t = {listed(TIMESTEPS)}; the checkpoint uses {stored}. "
        f"The KL's variance was learned at a stride of {inspector.stride}."
    )
    return Table("pixel_scores", "Pixel scores", "pixel score", about, tuple(rows))


def _fusion(alpha: float, timesteps: Sequence[int]) -> dict[str, float]:
    """Equation (11) as weights of the maps of each branch and timestep."""
    pixel, feature = branch_weights(alpha)
    weights = {f"pixel {t}": pixel / len(timesteps) for t in timesteps}
    weights |= {f"feature {t}": feature / len(timesteps) for t in timesteps}
    return {name: weight for name, weight in weights.items() if weight}


def _score_name(kind: str, stride: int) -> str:
    return f"kl, stride {stride}" if kind == "kl" else kind
