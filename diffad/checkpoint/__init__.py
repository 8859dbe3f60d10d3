"""Weights files: models, and single categories taught to them. Nothing else reads or writes them."""

from diffad.checkpoint.category import Category, load_category, read_about, save_category
from diffad.checkpoint.files import FORMAT, CheckpointError, load_tensors, save_tensors
from diffad.checkpoint.models import Checkpoint, bundled, load, save

__all__ = [
    "FORMAT",
    "Category",
    "Checkpoint",
    "CheckpointError",
    "bundled",
    "load",
    "load_category",
    "load_tensors",
    "read_about",
    "save",
    "save_category",
    "save_tensors",
]
