"""Regions of a map: known boxes, areas, peaks and means."""

import numpy as np
import pytest

from diffad.method.regions import find_regions


def marked() -> np.ndarray:
    """Three regions: a bar of 5, a diagonal of 3 that touches by corners, a single pixel; background 0.5."""
    field = np.full((12, 20), 0.5, dtype=np.float32)
    field[2, 3:8] = [2, 3, 4, 3, 2]
    field[6, 10] = field[7, 11] = 1.5
    field[8, 12] = 9
    field[11, 19] = 5
    return field


def test_regions_have_the_known_boxes_areas_peaks_and_means():
    regions = find_regions(marked(), 1.0)
    assert [region.box for region in regions] == [(10, 6, 3, 3), (19, 11, 1, 1), (3, 2, 5, 1)]
    assert [region.area for region in regions] == [3, 1, 5]
    assert [region.peak for region in regions] == [9, 5, 4]
    assert [region.mean for region in regions] == pytest.approx([4, 5, 2.8])


def test_regions_lie_above_the_threshold_and_are_large_enough():
    assert [region.peak for region in find_regions(marked(), 4.0)] == [9, 5]  # above, not at
    assert [region.area for region in find_regions(marked(), 1.0, min_area=3)] == [3, 5]
    assert find_regions(marked(), 9.0) == ()
    assert find_regions(np.zeros((4, 4), np.float32), -1.0)[0].area == 16


def test_a_ring_does_not_own_what_lies_in_its_hole():
    field = np.zeros((9, 9), dtype=np.float32)
    field[1:8, 1:8], field[2:7, 2:7], field[4, 4] = 2, 0, 8
    regions = find_regions(field, 1.0)
    assert [(region.peak, region.area) for region in regions] == [(8, 1), (2, 24)]
    assert regions[1].mean == 2
