"""Settings of a repair. Imports nothing heavy, so that the command line can show the defaults quickly."""

from __future__ import annotations

from dataclasses import dataclass

METHODS = {"weighed": (0.03, 900), "paper": (0.02, 32)}  # default step size s and t by repair method
MOST_STEPS = 5000


@dataclass(frozen=True)
class RepairOptions:
    """Settings of a repair, checked on creation.

    Args:
        steps: N, steps per round, 1 to 5000.
        denoise_every: N_d, gradient steps between two denoising steps, at least 1.
        step_size: s, in (0, 1); None is the method's default, 0.03 for "weighed" and 0.02 for "paper".
        timestep: t of the denoising steps, 0 to 999; None is the method's default, 900 for "weighed" and 32
            for "paper".
        method: "weighed" repairs by the anomaly map, with s and t as initial values that fall; "paper" is the
            published algorithm (whose authors use N = 500).
        stop_at_threshold: end as soon as the score is at most the threshold.

    Raises:
        ValueError: a value is out of range.
    """

    steps: int = 90
    denoise_every: int = 5
    step_size: float | None = None
    timestep: int | None = None
    method: str = "weighed"
    stop_at_threshold: bool = False

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method is one of {', '.join(METHODS)}, not {self.method!r}")
        usual_step_size, usual_timestep = METHODS[self.method]
        step_size = usual_step_size if self.step_size is None else self.step_size
        timestep = usual_timestep if self.timestep is None else self.timestep
        if (
            not 1 <= self.steps <= MOST_STEPS
            or self.denoise_every < 1
            or not 0 < step_size < 1
            or not 0 <= timestep < 1000
        ):
            raise ValueError(
                f"steps lie in 1 … {MOST_STEPS}, denoise_every is at least 1, step_size in (0, 1), "
                "timestep in 0 … 999"
            )
        object.__setattr__(self, "step_size", step_size)
        object.__setattr__(self, "timestep", timestep)
