"""How the browser judges: what it sends along, applied to an inspection on the server."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from diffad.ui.layout import RATE
from diffad.verdicts import LOOK_RATE

if TYPE_CHECKING:
    from diffad.inspection import Inspection


def is_wanted(judging: Any) -> bool:
    """Whether the person wants inspections kept. judging: what `diffad.judging()` in page.js returned."""
    return not isinstance(judging, dict) or judging.get("keep") is not False


def as_judged(raw: Inspection, model: str, judging: Any) -> tuple[Inspection, dict[str, Any]]:
    """A new inspection as the browser is about to show it, and what chose its limits (`keeping.About`).

    Args:
        raw: the new inspection.
        model: the page's name of it.
        judging: what `diffad.judging()` in page.js returned; malformed parts are ignored.
    """
    judging = judging if isinstance(judging, dict) else {}
    kind = f"{model}/{raw.category}"
    own = _mapping(_mapping(judging.get("own")).get(kind) or judging.get("first"))
    limits = {
        "rate": _share(judging.get("rate"), RATE), "look_rate": _share(judging.get("lookRate"), LOOK_RATE),
        "threshold": _score(own.get("threshold")), "look": _score(own.get("look")),
    }  # fmt: skip
    last = _mapping(judging.get("last"))
    same = (last.get("kind"), last.get("timesteps")) == (kind, list(raw.computed_timesteps))
    chosen = [t for t in last["chosen"] if t in raw.computed_timesteps] if same and last.get("chosen") else []
    return judged(raw.fused(timesteps=chosen or None), limits), limits


def judged(inspection: Inspection, limits: Mapping[str, Any]) -> Inspection:
    """The inspection by limits as `keeping.About` names them."""
    threshold, look = limits["threshold"], limits["look"]
    return inspection.fused(
        threshold=inspection.threshold_at(limits["rate"]) if threshold is None else threshold,
        look_threshold=inspection.threshold_at(limits["look_rate"]) if look is None else look,
    )


def limits_of(choices: Mapping[str, Any]) -> dict[str, Any]:
    """What chose the limits. choices: what `diffad.choices()` in page.js returned."""
    return {
        "rate": _share(choices.get("rate"), RATE), "look_rate": _share(choices.get("lookRate"), LOOK_RATE),
        "threshold": choices["threshold"] if choices.get("own") else None,
        "look": choices["look"] if choices.get("ownLook") else None,
    }  # fmt: skip


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _share(value: Any, usual: float) -> float:
    return float(value) if type(value) in (int, float) and 0 < value < 1 else usual


def _score(value: Any) -> float | None:
    return float(value) if type(value) in (int, float) and math.isfinite(value) else None
