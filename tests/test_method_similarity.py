"""How alike two pictures are, against hand-computed cases and other libraries."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from diffad.method.similarity import psnr, ssim


def noisy_pair():
    rng = np.random.default_rng(2)
    image = cv2.GaussianBlur(rng.integers(0, 256, (48, 60, 3), np.uint8), (7, 7), 2)
    return image, np.clip(image + rng.normal(0, 9, image.shape), 0, 255).astype(np.uint8)


def test_psnr():
    image, other = noisy_pair()
    tensors = [torch.from_numpy(x).float() for x in (image, other)]
    expected = peak_signal_noise_ratio(*tensors, data_range=255.0)
    assert psnr(image, other) == pytest.approx(float(expected), abs=1e-4)
    assert psnr(image, image) == 100.0
    assert psnr(np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 255, np.uint8)) == 0.0
    where = np.zeros(image.shape[:2], bool)
    assert psnr(image, other, where) is None
    where[5:9] = True
    changed = other.copy()
    changed[~where] = 0
    assert psnr(image, changed, where) == psnr(image[5:9], other[5:9])


def test_ssim():
    image, other = noisy_pair()
    tensors = [torch.from_numpy(x).permute(2, 0, 1)[None].double() for x in (image, other)]
    _, everywhere = structural_similarity_index_measure(
        *tensors, sigma=1.5, data_range=255.0, return_full_image=True
    )
    whole_windows = everywhere[..., 5:-5, 5:-5]  # torchmetrics averages over reflected borders too
    assert ssim(image, other) == pytest.approx(float(whole_windows.mean()), abs=1e-5)
    assert ssim(image, image) == pytest.approx(1.0)
    where = np.zeros(image.shape[:2], bool)
    where[:, :30] = True
    changed = other.copy()
    changed[~where] = 0
    assert ssim(image, changed, where) == pytest.approx(ssim(image[:, :30], other[:, :30]), abs=1e-9)
    assert ssim(image, other, np.zeros_like(where)) is None
