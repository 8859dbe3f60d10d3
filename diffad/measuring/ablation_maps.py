"""The maps that ablations combine.

The network runs once per picture, timestep and noise draw, and its outputs are scored in every way. Pictures
are inspected whole, at the model's size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from diffad.inspector import Inspector
from diffad.measuring.ablation_settings import ALPHA, DRAWS, SINGLE_TIMESTEPS
from diffad.method.calibration import Calibration
from diffad.method.devices import sharing
from diffad.method.diffusion import Prediction
from diffad.method.fusion import branch_weights
from diffad.method.scoring import TIMESTEPS, RawMaps, denoise_all, evidence, shifted_embeddings
from diffad.pictures.reading import read_image
from diffad.pictures.samples import Sample


def kept_maps(
    inspector: Inspector,
    image: npt.NDArray[np.uint8],
    category: str,
    fitted: Mapping[str, Calibration],
    scores: Mapping[str, tuple[str, int]],
    expert: Inspector | None,
    seed: int,
) -> dict[str, np.ndarray]:
    """All maps of one picture that the settings combine.

    Args:
        inspector: the model.
        image: uint8 [H, W, 3].
        category: of the picture.
        fitted: by name, the statistics of other pixel scores (`fit`).
        scores: by name, kind and stride of these scores.
        expert: a model of this category alone, if there is one.
        seed: of the noise.

    Returns:
        By name, fp16 [h, w] in the rectangle that the picture fills at the model's resolution.
    """
    answers = _Answers(inspector, image, category, seed)
    answers.ask(TIMESTEPS, max(DRAWS))
    answers.ask([t for t in SINGLE_TIMESTEPS if t not in TIMESTEPS])

    single = answers.profile.calibration.standardise(answers.raw(SINGLE_TIMESTEPS))
    kept = {f"pixel {t}": answers.kept(single.pixel[:, i]) for i, t in enumerate(SINGLE_TIMESTEPS)}
    kept |= {f"feature {t}": answers.kept(single.feature[:, i]) for i, t in enumerate(SINGLE_TIMESTEPS)}
    for draws in DRAWS[1:]:
        standard = answers.profile.calibration.standardise(answers.raw(TIMESTEPS, draws))
        kept[f"draws {draws}"] = answers.kept(_fuse(standard))
    kept["per image"] = answers.kept(_fuse(_by_its_own_values(answers)))
    for name, calibration in fitted.items():
        standard = calibration.standardise(answers.raw(TIMESTEPS, 1, *scores[name]))
        kept[name] = answers.kept(standard.pixel.mean(dim=1))
    if expert is not None:
        other = _Answers(expert, image, category, seed)
        other.ask(TIMESTEPS)
        kept["single"] = other.kept(_fuse(other.profile.calibration.standardise(other.raw(TIMESTEPS))))
    return kept


def fit(
    inspector: Inspector,
    category: str,
    pictures: Sequence[Sample],
    scores: Mapping[str, tuple[str, int]],
    seed: int,
    bits: int | None = None,
) -> dict[str, Calibration]:
    """Fit statistics of the pixel scores that the checkpoint does not store, from normal training pictures.

    As in the checkpoint, maps are divided by the level at each place, or not.
    """
    if not pictures:
        return {}
    maps: dict[str, list[Tensor]] = {name: [] for name in scores}
    for sample in pictures:
        with sharing(inspector.device):
            answers = _Answers(inspector, read_image(sample.image, bits), category, seed)
            answers.ask(TIMESTEPS)
            for name, (kind, stride) in scores.items():
                maps[name].append(answers.raw(TIMESTEPS, 1, kind, stride).pixel.cpu())
    by_place = bool((inspector.profiles[category].calibration.level != 1).any())
    return {
        name: Calibration.fit(RawMaps(torch.cat(some), torch.cat(some), TIMESTEPS), by_place)
        for name, some in maps.items()
    }


def fused(maps: Mapping[str, np.ndarray], weights: Mapping[str, float]) -> np.ndarray:
    """The weighted sum of kept maps, float32 [h, w]."""
    total = np.zeros_like(next(iter(maps.values())), np.float32)
    for name, weight in weights.items():
        total += np.float32(weight) * maps[name].astype(np.float32)
    return total


# ---------------------------------------------------------------------------------------------------------


class _Answers:
    """The network's outputs for one picture, computed once, then scored in any number of ways."""

    @torch.no_grad()
    def __init__(self, inspector: Inspector, image: npt.NDArray[np.uint8], category: str, seed: int) -> None:
        self.inspector, self.seed = inspector, seed
        self.tiling = inspector.whole(image, category)
        (self.tile,) = self.tiling.tiles
        self.x_start = self.tiling.square(image, self.tile)[None].to(inspector.device)
        embed = inspector.extractor.embed
        self.cell = inspector.extractor.cell
        self.embeddings = shifted_embeddings(embed, self.x_start, embed(self.x_start), SINGLE_TIMESTEPS)
        self.profile = inspector.profiles[category]
        self.known: dict[tuple[int, int], Prediction] = {}

    @torch.no_grad()
    def ask(self, timesteps: Sequence[int], draws: int = 1) -> None:
        """Run the network at these timesteps and noise draws, and keep its predictions."""
        *_, answers = denoise_all(
            self.inspector.schedule, self._denoise, self.x_start, timesteps, self.seed, draws, self.cell
        )
        keys = [(t, draw) for t in timesteps for draw in range(draws)]  # as denoise_all orders its batch
        for index, key in enumerate(keys):
            self.known[key] = Prediction(*(value[index : index + 1] for value in answers))

    def _denoise(self, x_t: Tensor, t: Tensor) -> Prediction:
        """Predict in batches of an inspection's size, to save memory and to round bf16 in the same way."""
        size = len(TIMESTEPS)
        parts = [self.inspector.network(*part) for part in zip(x_t.split(size), t.split(size))]
        return Prediction(*(torch.cat(values) for values in zip(*parts)))

    @torch.no_grad()
    def raw(
        self, timesteps: Sequence[int], draws: int = 1, kind: str | None = None, stride: int | None = None
    ) -> RawMaps:
        """Raw maps from the predictions of `ask`, by default with the checkpoint's pixel score."""
        rows = [self.known[t, draw] for t in timesteps for draw in range(draws)]
        answers = Prediction(*(torch.cat(values) for values in zip(*rows)))
        found = evidence(
            self.inspector.schedule, lambda x_t, t: answers, self.x_start, self.embeddings, timesteps,
            perceive=self.inspector.extractor.perceptual, seed=self.seed, draws=draws,
            kind=kind or self.inspector.pixel_score,
            stride=self.inspector.stride if stride is None else stride,
        )  # fmt: skip
        return self.profile.raw_maps(*found, self.embeddings[0].features, self.x_start.shape[-1], timesteps)

    def kept(self, maps: Tensor) -> np.ndarray:
        """Maps [1, size, size] → fp16 [h, w], without padding."""
        limit = torch.finfo(torch.float16).max
        cells = self.tiling.to_cells(maps[0].cpu(), self.tile)
        return cells.clamp(-limit, limit).half().numpy()


def _fuse(maps: RawMaps) -> Tensor:
    """Equation (11) at the default α: [1, n_t, size, size] of both branches → [1, size, size].

    Plain features are left out, because the settings differ only in their use of the network.
    """
    pixel, feature = branch_weights(ALPHA)
    return pixel * maps.pixel.mean(dim=1) + feature * maps.feature.mean(dim=1)


def _by_its_own_values(answers: _Answers) -> RawMaps:
    """Raw maps, each standardised by its own mean and standard deviation, without padding."""
    inside = answers.tiling.inside(answers.tile).to(answers.x_start.device)

    def normalised(maps: Tensor) -> Tensor:
        values = maps[..., inside]
        mean, std = values.mean(dim=-1)[..., None, None], values.std(dim=-1)[..., None, None]
        return (maps - mean) / std.clamp(min=1e-8)

    raw = answers.raw(TIMESTEPS)
    return RawMaps(normalised(raw.pixel), normalised(raw.feature), TIMESTEPS)
