"""Measuring a model: detection and localisation, repairs, its choices one by one, other methods beside it."""
