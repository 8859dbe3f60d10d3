"""A category's profile from its normal pictures: Gaussian, covariances of what the network cannot explain,
calibration, forecast.

Whether maps are divided by how hard each place is suits some categories and spoils others. No real defect
may decide that, so artificial ones on normal pictures do (`judged_artificial_defects`); what
they say is kept, as the only forecast there is before defects are measured.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffad.checkpoint import Profile
from diffad.method.artificial_defects import MEASURED_KINDS, add_defect
from diffad.method.calibration import CALIBRATION_TIMESTEPS, Calibration, coarse_maps, place_level
from diffad.method.diffusion import Schedule
from diffad.method.features import FeatureExtractor
from diffad.method.fusion import fuse
from diffad.method.gaussian import (
    LeftOut,
    PlaceGaussian,
    PlainGaussian,
    PlainLeftOut,
    ResidualGaussian,
    Scatter,
)
from diffad.method.image_score import ImageScore, law_of_changed
from diffad.method.metrics import aupro, auroc
from diffad.method.nuisances import random_copy
from diffad.method.scoring import (
    TIMESTEPS,
    Embedding,
    RawMaps,
    evidence,
    plain_map,
    residual_maps,
    shifted_embeddings,
)
from diffad.method.unet import UNet
from diffad.pictures.geometry import to_float
from diffad.pictures.quality import measured as measured_quality
from diffad.pictures.quality import ranges
from diffad.teaching.stress import in_words as changes_in_words

FITTED = 768  # pictures that the covariances are fitted on, at most
CALIBRATED = 192  # of them, whose scores are remembered
_USUAL = 32  # places a side of what is seen at 256 px; on finer grids fewer pictures say as much
_KEPT_PLACES = 96 * 64**2  # of all calibrated pictures, whose residuals are in memory at once: 2 GB
_MAPS = 256  # cells a side, below twice which calibration has all of a map, and not every other one
_LOOKED = 24  # of those, seen at all calibrated timesteps
ENOUGH = 30  # good pictures, for the threshold to be more than a guess
SPOILED = 24  # of those, that carry artificial defects
_DEFECTS_EACH = 2
_COPIES, _ENOUGH_COPIES = 4, 128  # of a picture at most, of all
_NAMED = 5  # unusual pictures, at most
_ROWS = 4  # pictures a network call; a CPU is slower with more
FEATURE_BLOCK = 2  # places a side that share a covariance of the features' residual; more on finer grids
_BLOCKS = 4, FEATURE_BLOCK  # of the perceptual residual and of the features'


@torch.no_grad()
def fit_profile(
    network: UNet,
    extractor: FeatureExtractor,
    schedule: Schedule,
    used: Tensor,
    held: Tensor,
    inside: Tensor | None = None,
    *,
    kind: str = "perceptual",
    stride: int = 4,
    seed: int = 0,
    plain: bool = False,
) -> Profile:
    """The profile of one category. used: uint8 [n, 3, s, s], normal pictures that the network was trained on;
    held: held out of that, at least 2. inside: bool [n, s, s], where those held out, then those used, are and
    not their padding (None: everywhere).

    The Gaussian and the covariances of residuals are of all pictures and of a changed copy of each, several
    where pictures are few (`nuisances.random_copy`), at every timestep on its grid: what light, noise,
    compression and position do to a good picture must not count as a defect. The calibration is of the first
    192 as they are, measured as if neither the picture nor its copies were among those that the covariances
    are fitted on (`LeftOut`). That the network was trained on some is allowed for by raising their maps to
    those of the pictures held out. plain: also fit a Gaussian of the features themselves, for a category that
    the network never learned from: it explains some of such a part's defects away.
    Above 256 px fewer pictures are fitted and calibrated (`limits`), so that time and memory stay bounded.
    """
    network.eval()
    device, cpu = next(network.parameters()).device, torch.device("cpu")
    pictures = torch.cat([held, used])
    inside = torch.ones_like(pictures[:, 0], dtype=torch.bool) if inside is None else inside
    size = pictures.shape[-1]
    grid = size // extractor.cell
    most, calibrated = limits(grid)
    blocks = [block(grid, least) for least in _BLOCKS]

    def find(
        x_start: Tensor, embeddings: Mapping[int, Embedding], timesteps: tuple[int, ...], kind: str
    ) -> tuple[Tensor, Tensor]:
        return evidence(
            schedule, network, x_start, embeddings, timesteps,
            perceive=extractor.perceptual, seed=seed, kind=kind, stride=stride,
        )  # fmt: skip

    def look(pictures: Tensor, timesteps: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """`evidence` of the kind that is scored by, residuals in fp16, on the CPU."""
        found = []
        for picture in pictures.split(1):
            x_start = to_float(picture, device)
            embeddings = shifted_embeddings(extractor.embed, x_start, extractor.embed(x_start), timesteps)
            pixel, feature = find(x_start, embeddings, timesteps, kind)
            found.append(((pixel.half() if pixel.dim() > 4 else pixel).cpu(), feature.half().cpu()))
        pixel, feature = zip(*found)
        return torch.cat(pixel), torch.cat(feature)

    first = list(range(len(pictures[:calibrated])))
    # of both branches, grid by grid
    sums = [[Scatter(places) for _ in TIMESTEPS] for places in blocks]
    copies = [changed_copies(pictures[:most], seed, number) for number in range(copies_of(len(pictures)))]
    shape = len(first), 1 + len(copies), len(TIMESTEPS), extractor.channels, grid, grid
    own = [torch.empty(shape, dtype=torch.float16) for _ in _BLOCKS]  # of a picture and of its copies
    known: list[Tensor] = []
    for begin in range(0, len(pictures[:most]), _ROWS):
        rows = slice(begin, begin + _ROWS)
        for number, some in enumerate(each[rows] for each in (pictures[:most], *copies)):
            x_start = to_float(some, device)
            embedding = extractor.embed(x_start)
            known.append(embedding.features.half())
            embeddings = shifted_embeddings(extractor.embed, x_start, embedding, TIMESTEPS)
            for nth, t in enumerate(TIMESTEPS):
                for total, kept, residual in zip(sums, own, find(x_start, embeddings, (t,), "perceptual")):
                    total[nth].add(residual[:, 0, 0])
                    room = kept[rows, number, nth]
                    room.copy_(residual[: len(room), 0, 0])
    others = (extractor(to_float(batch, device)) for batch in pictures[most:].split(_ROWS))
    gaussian = PlaceGaussian.fit(chain(known, others), block=blocks[0])
    plainly = _Plainly.fit(known, shape[:2], blocks[1], extractor, inside) if plain else None
    fitted = [ResidualGaussian.fit(grids, stages=extractor.stage_channels) for grids in sums]
    (perceptual, _), (residual, _) = fitted = [[each.to(cpu) for each in both] for both in fitted]

    def maps(found: Sequence[Tensor], timesteps: tuple[int, ...], of: Sequence[int]) -> RawMaps:
        """As if no picture were part of the covariances. of: the numbers of the good pictures that these are,
        or were made of.
        """
        branches = []
        for values, fit, (_, left_out) in zip(found, own, fitted):
            if values.dim() > 4:
                values = _left_out_maps(values, timesteps, left_out, fit[of], size)
            elif step > 1:
                values = values[..., ::step, ::step]
            branches.append(_levelled(values, inside[of][:, ::step, ::step]))
        return RawMaps(*branches, timesteps)

    def plain_maps(pictures: Tensor, of: Sequence[int]) -> Tensor | None:
        return None if plainly is None else plainly.maps(pictures, of)

    step = max(1, size // _MAPS)

    def looked_at(pictures: Tensor, timesteps: tuple[int, ...], of: Sequence[int]) -> RawMaps:
        """Of pictures with defects or at other timesteps, some at a time: all residuals fill the memory."""
        parts = [
            maps(look(pictures[i : i + 2 * _ROWS], timesteps), timesteps, of[i : i + 2 * _ROWS])
            for i in range(0, len(pictures), 2 * _ROWS)
        ]
        pixel, feature = (torch.cat(both) for both in zip(*((part.pixel, part.feature) for part in parts)))
        return RawMaps(pixel, feature, timesteps)

    def fitted_maps(number: int) -> RawMaps:
        """Of the calibrated pictures (0) or of a changed copy of each."""
        of = (pictures, *copies)[number][first]
        found = [fit[:, number, :, None] for fit in own] if kind == "perceptual" else look(of, TIMESTEPS)
        return replace(maps(found, TIMESTEPS, first), plain=plain_maps(of, first))

    good = fitted_maps(0)
    raised = _raised(good, len(held))
    good = _scaled(good, raised)
    rest = tuple(t for t in CALIBRATION_TIMESTEPS if t not in TIMESTEPS)
    looked = _scaled(looked_at(pictures[:_LOOKED], rest, first[:_LOOKED]), raised)
    looked = _together(_first(good, _LOOKED), looked)
    coarse = coarse_maps(good)
    changed = [coarse_maps(_scaled(fitted_maps(1 + nth), raised)) for nth in range(len(copies))]
    # no picture is part of the level that it is judged by
    _, levels = place_level(torch.stack([coarse.pixel, coarse.feature], dim=1))

    def calibrated(by_place: bool) -> Calibration:
        fit = Calibration.fit(looked, by_place, coarse)
        score = fit.scorer()
        standard = [fit.standardise(maps, levels if by_place else None) for maps in changed]
        scores = [score(fused, coarse.pixel.shape[-1]) for maps in standard for fused in fused_maps(maps)]
        return replace(fit, changed=law_of_changed(score.good, np.array(scores)))

    calibration = calibrated(False)
    choice: dict[str, Any] = {"by_place": False, "defects": 0}
    defects, masks, kinds, origins = artificial_defects(pictures[:SPOILED], inside, used, seed)
    masks = [mask[::step, ::step] for mask in masks]
    if kinds:
        spoiled = _scaled(looked_at(defects, TIMESTEPS, origins), raised[origins])
        spoiled = replace(spoiled, plain=plain_maps(defects, origins))
        either = []
        for by_place in (False, True):
            each = calibrated(True) if by_place else calibration
            standard = (
                each.standardise(maps, levels[rows] if by_place else None)
                for maps, rows in ((_first(good, SPOILED), slice(SPOILED)), (spoiled, origins))
            )
            judged = judged_artificial_defects(*standard, masks, kinds, each.scorer())
            either.append((judged | {"by_place": by_place}, each))
        choice, calibration = max(either, key=lambda judged: judged[0]["worth"])
    choice = choice | {"good": len(first)}
    quality = ranges(
        measured_quality(picture.permute(1, 2, 0).numpy(), there.numpy())
        for some in (pictures, *copies)
        for picture, there in zip(some[:most], inside)
    )
    return Profile(
        gaussian.to(cpu), residual, perceptual, calibration, choice, quality=quality, size=size,
        plain=None if plainly is None else plainly.left_out.plain,
    )  # fmt: skip


@dataclass(frozen=True)
class _Plainly:
    """Maps of the plain features as if no picture were part of their Gaussian. own: the features of good
    pictures and of their copies, fp16 [n, 1 + copies, c, g, g].
    """

    left_out: PlainLeftOut
    own: Tensor
    extractor: FeatureExtractor
    inside: Tensor

    @staticmethod
    def fit(
        known: Sequence[Tensor], shape: tuple[int, int], block: int, extractor: FeatureExtractor,
        inside: Tensor,
    ) -> _Plainly:  # fmt: skip
        """known: features of a batch of pictures, then of their copies, and so on; shape: how many of the
        first pictures' maps will be asked for, and 1 + copies of each.
        """
        _, left_out = PlainGaussian.fit(known, block=block, stages=extractor.stage_channels)
        count, number = shape
        own = torch.stack([torch.cat(known[i::number]).cpu()[:count] for i in range(number)], dim=1)
        return _Plainly(left_out.to(torch.device("cpu")), own, extractor, inside)

    def maps(self, pictures: Tensor, of: Sequence[int]) -> Tensor:
        """Raw maps [n, s, s] of uint8 [n, 3, size, size]: good pictures of these numbers, or made of them; of
        large ones every other cell.
        """
        size = pictures.shape[-1]
        step, found = max(1, size // _MAPS), []
        for picture, number in zip(pictures, of):
            features = self.extractor(to_float(picture[None], self.extractor.mean.device)).cpu()
            distance = self.left_out.squared_mahalanobis(features, self.own[number][None])
            found.append(plain_map(distance, size)[:, ::step, ::step])
        return _levelled(torch.cat(found)[:, None], self.inside[of][:, ::step, ::step])[:, 0]


def limits(grid: int) -> tuple[int, int]:
    """How many pictures the covariances are fitted on, at most, and how many of them are calibrated on a grid
    of so many places a side. A block of a finer grid has more places, hence as many observations of fewer
    pictures; and residuals of the calibrated are all kept until the end.
    """
    most = min(FITTED, FITTED * _USUAL**2 // grid**2)
    return most, min(CALIBRATED, most, _KEPT_PLACES // grid**2)


def block(grid: int, least: int) -> int:
    """Places a side of a block that shares a covariance: `least` of a grid of up to 32, and more of a finer
    one, so that there are no more blocks: a file stays as small.
    """
    wanted = max(least, least * grid / _USUAL)
    return next(places for places in range(1, grid + 1) if grid % places == 0 and places >= wanted)


def _left_out_maps(
    residuals: Tensor, timesteps: tuple[int, ...], left_out: LeftOut, own: Tensor, size: int
) -> Tensor:
    """Raw maps [n, n_t, size, size] of residuals [n, n_t, 1, c, g, g] of pictures that are part of the fit by
    own [n, m, 3, c, g, g]; of large ones every other cell, [n, n_t, size / 2, size / 2].
    """
    maps, step = [], max(1, size // _MAPS)
    for begin in range(0, len(residuals), 2 * _ROWS):  # all in float32 fill the memory
        rows = slice(begin, begin + 2 * _ROWS)

        def distance(residual: Tensor, grid: int, fit: Tensor = own[rows]) -> Tensor:
            return left_out.squared_mahalanobis(residual, fit[:, :, grid].float(), grid)

        large = residual_maps(residuals[rows].float(), distance, size, timesteps)
        maps.append(large[..., ::step, ::step])
    return torch.cat(maps)


def copies_of(count: int) -> int:
    """How many changed copies of each of so many pictures statistics are fitted on: more of few, which show
    less of what may change by themselves.
    """
    return max(1, min(_COPIES, _ENOUGH_COPIES // count))


def changed_copies(pictures: Tensor, seed: int, number: int = 0) -> Tensor:
    """A changed copy of each picture uint8 [n, 3, s, s]: for the same seed and number always the same one of
    a picture, whatever the others are.
    """
    images = [picture.permute(1, 2, 0).contiguous().numpy() for picture in pictures]
    drawn = [np.random.default_rng((seed, zlib.crc32(image), number)) for image in images]
    copies = [random_copy(image, rng) for image, rng in zip(images, drawn)]
    return torch.from_numpy(np.stack(copies)).permute(0, 3, 1, 2).contiguous()


def _levelled(maps: Tensor, inside: Tensor) -> Tensor:
    """Maps [n, n_t, s, s] with each one's mean inside [n, s, s] elsewhere too: no inspection looks there."""
    there = inside[:, None].to(maps)
    mean = (maps * there).sum(dim=(2, 3), keepdim=True) / there.sum(dim=(2, 3), keepdim=True)
    return torch.where(inside[:, None], maps, mean)


def _raised(good: RawMaps, held: int) -> Tensor:
    """How much higher a typical picture lies that the network was not trained on than one that it was, the
    factor by which the maps of the latter are raised: [n, 2 (pixel, feature)], 1 for the first `held` and at
    least 1.
    """
    factors = torch.ones(len(good.pixel), 2)
    if held < len(good.pixel):
        for branch, maps in enumerate((good.pixel, good.feature)):
            means = maps.mean(dim=(2, 3))  # [n, n_t]
            typical = means[:held].quantile(0.5, dim=0) / means[held:].quantile(0.5, dim=0)
            factors[held:, branch] = typical.mean().clamp(min=1)
    return factors


def _scaled(maps: RawMaps, factors: Tensor) -> RawMaps:
    pixel, feature = factors[: len(maps.pixel), :, None, None, None].unbind(dim=1)
    return RawMaps(maps.pixel * pixel, maps.feature * feature, maps.timesteps, maps.plain)


def _first(maps: RawMaps, count: int) -> RawMaps:
    plain = None if maps.plain is None else maps.plain[:count]
    return RawMaps(maps.pixel[:count], maps.feature[:count], maps.timesteps, plain)


def _together(one: RawMaps, two: RawMaps) -> RawMaps:
    """Of the same pictures at different timesteps: all, rising."""
    timesteps = one.timesteps + two.timesteps
    order = sorted(range(len(timesteps)), key=timesteps.__getitem__)
    pixel, feature = (
        torch.cat(both, dim=1)[:, order] for both in ((one.pixel, two.pixel), (one.feature, two.feature))
    )
    return RawMaps(pixel, feature, tuple(sorted(timesteps)), one.plain)


def artificial_defects(
    pictures: Tensor, inside: Tensor, used: Tensor, seed: int
) -> tuple[Tensor, list[np.ndarray], list[str], list[int]]:
    """Two defects on copies of each picture: uint8 [n, 3, s, s], masks bool [s, s] without what lies
    in the padding, kinds, and the pictures' numbers. Fewer where one hardly shows, none on pictures that are
    all but black.
    """
    rng = np.random.default_rng(seed)
    others = [picture.permute(1, 2, 0).numpy() for picture in used[:96]]  # enough to take patches from
    spoiled, masks, kinds, origins = [], [], [], []
    for index in range(_DEFECTS_EACH * len(pictures)):
        kind = MEASURED_KINDS[index % len(MEASURED_KINDS)]
        origin = index // _DEFECTS_EACH
        picture, mask = add_defect(pictures[origin].permute(1, 2, 0).numpy(), others, kind, rng)
        mask = mask & inside[origin].numpy()
        if mask.sum() * 256**2 >= 12 * mask.size:  # smaller ones are nothing that anyone could find
            spoiled.append(torch.from_numpy(picture).permute(2, 0, 1))
            masks.append(mask)
            kinds.append(kind)
            origins.append(origin)
    return torch.stack(spoiled) if spoiled else pictures[:0], masks, kinds, origins


def fused_maps(maps: RawMaps) -> list[np.ndarray]:
    """Of standardised maps, at α = 0.5."""
    return [
        fuse(pixel.numpy(), feature.numpy(), 0.5, None if maps.plain is None else maps.plain[i].numpy())
        for i, (pixel, feature) in enumerate(zip(maps.pixel, maps.feature))
    ]


def judged_artificial_defects(
    good: RawMaps, spoiled: RawMaps, masks: list[np.ndarray], kinds: list[str], score: ImageScore
) -> dict:
    """How artificial defects are told from good pictures at α = 0.5, from standardised maps. score: at that.

    Keys: worth (mean of image AUROC and AUPRO, by which settings are chosen), image_auroc, aupro, found
    (share above the threshold), found_by_kind, good, defects (counts).
    """
    fused = fused_maps(good) + fused_maps(spoiled)
    count, size = len(good.pixel), good.pixel.shape[-1]
    scores = np.array([score(anomaly_map, size) for anomaly_map in fused])
    threshold = score.threshold()
    labels = np.arange(len(fused)) >= count
    nothing = np.zeros((size, size), bool)
    image, pixel = auroc(scores, labels), aupro(fused, [nothing] * count + masks)
    found = scores[count:] > threshold
    return {
        "worth": (image + pixel) / 2,
        "image_auroc": image,
        "aupro": pixel,
        "found": float(found.mean()),
        "found_by_kind": {
            kind: float(found[[each == kind for each in kinds]].mean()) for kind in dict.fromkeys(kinds)
        },
        "good": count,
        "defects": len(masks),
    }


def in_words(category: str, forecast: Mapping[str, Any]) -> str:
    """What may be expected of a category, in a few honest sentences."""
    good = forecast["good"]
    few = ""
    if good < ENOUGH:
        few = f" With {good} good pictures take the threshold as a guess: {ENOUGH} or more are better."
    if "changed" in forecast:
        few = f" {changes_in_words(forecast['changed'])}{few}"
    few += "".join(f" {sentence}" for sentence in forecast.get("duplicates", ()))
    odd = sorted(forecast.get("unusual", {}).items(), key=lambda item: -item[1])
    odd = [f"{name} ({score:.1f})" for name, score in odd[:_NAMED]]
    if odd:
        few += (
            f" Unusual among the good pictures: {', '.join(odd)}. Look at them, and train again "
            "without those that are not good."
        )
    gone = sorted(forecast.get("left_out", {}).items(), key=lambda item: -item[1])
    if gone:
        few += (
            f" Left out of the statistics, since hardly a good picture lies so far from the others: "
            f"{', '.join(f'{name} ({score:.1f})' for name, score in gone)}."
        )
    if not forecast["defects"]:
        return (
            f"{category}: its pictures are too dark for artificial defects to show, so that there is no "
            f"forecast: measure with `diffad evaluate`.{few}"
        )
    share = forecast["found"]
    judgement = (
        "a promising first guess" if share >= 0.8 and good < ENOUGH
        else "good enough to try" if share >= 0.8
        else "it will miss subtle defects" if share >= 0.5
        else "it misses most of them: train longer, or with more pictures"
    )  # fmt: skip
    weak = [kind for kind, found in forecast["found_by_kind"].items() if found < 0.5]
    missed = f"; most often missed: {', '.join(weak)}" if weak else ""
    return (
        f"{category}: of {forecast['defects']} artificial defects {share:.0%} were found at 1 false alarm "
        f"in 100 (image AUROC {forecast['image_auroc']:.2f}, AUPRO {forecast['aupro']:.2f}), "
        f"{judgement}{missed}. Real defects may be harder: measure with `diffad evaluate`.{few}"
    )
