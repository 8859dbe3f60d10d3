"""Diffusion-based anomaly detection, localisation and repair for pictures of industrial parts.

    from diffad import Inspector
    inspection = Inspector.load("checkpoints/parts.safetensors").inspect("part.png")

The names in `__all__` are the public interface; everything else may change between versions.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_HOMES = {
    "CheckpointError": "checkpoint.files",
    "DataError": "pictures.reading",
    "Inspection": "inspection",
    "Inspector": "inspector",
    "Region": "method.regions",
    "RepairOptions": "method.repair_options",
    "RepairStep": "inspection",
    "TrainConfig": "teaching.recipe",
    "evaluate": "measuring.evaluation",
    "find_samples": "pictures.samples",
    "train": "teaching.training",
}
__all__ = ["__version__", *sorted(_HOMES)]

if TYPE_CHECKING:
    from diffad.checkpoint.files import CheckpointError as CheckpointError
    from diffad.inspection import Inspection as Inspection
    from diffad.inspection import RepairStep as RepairStep
    from diffad.inspector import Inspector as Inspector
    from diffad.measuring.evaluation import evaluate as evaluate
    from diffad.method.regions import Region as Region
    from diffad.method.repair_options import RepairOptions as RepairOptions
    from diffad.pictures.reading import DataError as DataError
    from diffad.pictures.samples import find_samples as find_samples
    from diffad.teaching.recipe import TrainConfig as TrainConfig
    from diffad.teaching.training import train as train


def __getattr__(name: str) -> object:
    """Import a public name on first use: torch takes seconds to load, and `diffad --help` needs no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'diffad' has no attribute {name!r}")
    return getattr(import_module(f"diffad.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
