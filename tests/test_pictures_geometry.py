"""The way of pictures, maps and masks into the square and back."""

import numpy as np
import pytest
import torch

from diffad.pictures.geometry import Geometry, mask_to_square, to_square
from diffad.pictures.reading import DataError

HEIGHT, WIDTH = 20, 30


def ramp() -> np.ndarray:
    """uint8 [20, 30], every value different from its mirror image and its transpose."""
    return (np.arange(HEIGHT)[:, None] * 8 + np.arange(WIDTH)[None] * 3).astype(np.uint8)


def colours() -> np.ndarray:
    return np.stack([ramp(), 255 - ramp(), ramp() // 2], axis=-1)


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, axis=-1)


SHAPES = [(64, 64), (512, 512), (300, 200), (90, 400), (400, 90), (40, 64), (30, 17), (101, 67), (20, 2000)]


def test_a_square_of_the_right_size_is_untouched():
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    square, geometry = to_square(image, 64)
    assert square.dtype == torch.float32
    expected = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1) / 127.5 - 1
    assert torch.equal(square, expected)
    assert square.min() >= -1
    assert square.max() <= 1
    assert geometry == Geometry(64, 64, 64, 0, 0, 64, 64)
    maps = np.random.default_rng(1).normal(size=(2, 3, 64, 64)).astype(np.float32)
    assert np.array_equal(geometry.to_picture(maps), maps)


def test_letterbox_keeps_aspect_and_repeats_the_edge():
    image = np.full((100, 200, 3), 50, np.uint8)
    image[:50] = 200
    square, geometry = to_square(image, 64)
    assert geometry == Geometry(100, 200, 64, 16, 0, 32, 64)
    level = (square[0] + 1) * 127.5
    # beside the edge Lanczos's filter swings
    assert torch.allclose(level[:29], torch.tensor(200.0), atol=1) and level[:31].min() > 180
    assert torch.allclose(level[35:], torch.tensor(50.0), atol=1) and level[33:].max() < 70


@pytest.mark.parametrize("shape", SHAPES)
def test_geometry_stays_inside_the_square(shape):
    square, geometry = to_square(np.full((*shape, 3), 127, np.uint8), 64)
    assert square.shape == (3, 64, 64)
    assert max(geometry.inner_height, geometry.inner_width) == 64
    assert min(geometry.inner_height, geometry.inner_width) >= 1
    for start, inner in ((geometry.top, geometry.inner_height), (geometry.left, geometry.inner_width)):
        assert 0 <= start
        assert 0 <= 64 - start - inner - start <= 1  # centred; an odd pixel goes below or right
    assert abs(geometry.inner_height - shape[0] * 64 / max(shape)) <= 0.5
    assert abs(geometry.inner_width - shape[1] * 64 / max(shape)) <= 0.5


def centre_of_mass(values: np.ndarray) -> np.ndarray:
    rows, columns = np.indices(values.shape) + 0.5
    return np.array([(values * rows).sum(), (values * columns).sum()]) / values.sum()


@pytest.mark.parametrize(
    "shape", [(64, 64), (512, 512), (300, 200), (90, 400), (40, 64), (30, 17), (101, 67)]
)
@pytest.mark.parametrize("place", [(0.3, 0.4), (0.5, 0.5), (0.65, 0.7)])
def test_a_marker_comes_back_to_its_place(shape, place):
    """Blurred spot → square → picture: its centre moves by far less than half a pixel of the coarser grid."""
    rows, columns = np.indices(shape) + 0.5
    centre = np.array([place[0] * shape[0], place[1] * shape[1]])
    radius = max(shape) / 16
    reach = ((rows - centre[0]) ** 2 + (columns - centre[1]) ** 2) / (2 * radius**2)
    spot = np.rint(255 * np.exp(-reach))
    spot[reach > 4.5] = 0
    true_centre = centre_of_mass(spot)
    square, geometry = to_square(grey(spot.astype(np.uint8)), 64)

    inner = (square[0].numpy()[geometry.inner] + 1) / 2
    inner[inner < 0.004] = 0
    scale = np.array([geometry.inner_height / shape[0], geometry.inner_width / shape[1]])
    assert np.abs(centre_of_mass(inner) - true_centre * scale).max() < 0.1

    back = geometry.to_picture((square[0] + 1) / 2).numpy()
    assert back.shape == shape
    assert np.abs(centre_of_mass(np.where(back < 0.004, 0, back)) - true_centre).max() < 0.1 / scale.min()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_ramp_over_the_square_is_a_ramp_over_the_picture(shape):
    """Known answer: column x of the square holds x + ½ − left; the picture must show (X + ½) · inner / W."""
    geometry = Geometry.letterbox(*shape, 64)
    rows, columns = np.indices((64, 64)).astype(np.float32) + 0.5
    ramps = np.stack([rows - geometry.top, columns - geometry.left])
    back = geometry.to_picture(ramps)
    assert back.dtype == np.float32
    expected = (np.indices(shape) + 0.5) * np.array(
        [[[geometry.inner_height / shape[0]]], [[geometry.inner_width / shape[1]]]]
    )
    for ramp_back, ramp_expected, inner, axis in zip(
        back, expected, (geometry.inner_height, geometry.inner_width), (0, 1), strict=True
    ):
        reach = max(1, inner / shape[axis])  # of the filter: nearer to the ends it is cut off
        inside = (ramp_expected > reach) & (ramp_expected < inner - reach)
        exact = 1e-3 if inner <= shape[axis] else 0.05  # a sampled triangle bends a ramp a little
        assert np.abs(ramp_back - ramp_expected)[inside].max(initial=0) < exact, axis


def test_tensors_stay_tensors_with_all_leading_dimensions():
    geometry = Geometry.letterbox(30, 50, 64)
    maps = torch.rand(2, 5, 64, 64, dtype=torch.float64)
    back = geometry.to_picture(maps)
    assert isinstance(back, torch.Tensor)
    assert back.dtype == torch.float32
    assert back.shape == (2, 5, 30, 50)
    assert torch.equal(geometry.to_picture(maps[1, 3]), back[1, 3])
    with pytest.raises(DataError):
        geometry.to_picture(maps[..., :32])


@pytest.mark.parametrize("shape", SHAPES)
def test_mask_and_picture_go_through_the_same_geometry(shape):
    """A filled rectangle as mask and as picture agree at every square pixel that is not on its edge."""
    mask = np.zeros(shape, bool)
    mask[shape[0] // 4 : shape[0] // 2, shape[1] // 3 : 3 * shape[1] // 4] = True
    square, geometry = to_square(grey(mask.astype(np.uint8) * 255), 64)
    small = mask_to_square(mask, geometry)
    assert small.shape == (64, 64)
    assert small.dtype == bool
    padding = np.ones((64, 64), bool)
    padding[geometry.inner] = False
    assert not small[padding].any()
    level = (square[0].numpy() + 1) / 2
    clear = ~padding & ((level < 0.001) | (level > 0.999))
    assert np.array_equal(small[clear], level[clear] > 0.5)
    if min(geometry.inner_height, geometry.inner_width) > 8:
        assert small[geometry.inner].mean() == pytest.approx(mask.mean(), rel=0.2)


def test_mask_to_square_identity_and_mismatch():
    mask = np.random.default_rng(0).random((64, 64)) > 0.5
    assert np.array_equal(mask_to_square(mask, Geometry.letterbox(64, 64, 64)), mask)
    with pytest.raises(DataError, match="64 × 64 pixels"):
        mask_to_square(mask, Geometry.letterbox(64, 65, 64))


def test_to_square_refuses_undecoded_arrays():
    for wrong in (ramp(), colours().astype(np.float32), np.dstack([colours(), ramp()])):
        with pytest.raises(DataError, match="read_image"):
            to_square(wrong, 64)
