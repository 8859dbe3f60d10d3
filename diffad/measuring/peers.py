"""Other methods to compare with: anomalib's models, used without its trainer.

PaDiM, PatchCore, FRE and GANomaly keep their own scores, smoothing and default settings. They get the model's
letterboxed squares, train on all normal training pictures of one category and, except for GANomaly, use the
features of diffad's backbone with the same weights. Each is a function of (normal pictures uint8
[n, 3, size, size], backbone, seconds for training).

anomalib is an optional dependency, imported only inside the functions that need it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffad.method.features import FeatureExtractor
from diffad.pictures.geometry import to_float, to_square

CORESET_RATIO = 0.1  # anomalib's default
CORESET_POOL = 40_000  # patches from which PatchCore chooses; all of them would take hours on a CPU
FRE_EPOCHS = 220
BATCH = 32  # anomalib's default for training
_ANOMALIB = 'the peers come from anomalib: pip install "anomalib>=2.7,<3", or compare with --peers none'

Judge = Callable[[npt.NDArray[np.uint8]], tuple[float, "npt.NDArray[np.float32] | None"]]
PeerFit = Callable[[Tensor, FeatureExtractor, float], "Fitted"]


@dataclass(frozen=True)
class Fitted:
    """A method ready to judge one category.

    Attributes:
        judge: picture uint8 [H, W, 3] → image score, and map float32 [h, w] at the model's resolution without
            padding (None if the method has none).
        state: the modules and tensors that `judge` needs.
        note: a sentence on how long it was trained; empty if it was not.
    """

    judge: Judge
    state: tuple[Any, ...]
    note: str = ""


def checked(names: Sequence[str]) -> tuple[str, ...]:
    """The peers' names without repetitions.

    Raises:
        ValueError: a name is unknown, or anomalib is not installed.
    """
    if unknown := [name for name in names if name not in PEERS]:
        raise ValueError(f"there is no peer {', '.join(unknown)}: choose from {', '.join(PEERS)}, or none")
    if names and find_spec("anomalib") is None:
        raise ValueError(_ANOMALIB)
    return tuple(dict.fromkeys(names))


def padim(squares: Tensor, extractor: FeatureExtractor, seconds: float) -> Fitted:
    """Defard et al. 2021: a Gaussian of the features at each place."""
    from anomalib.models.image.padim.torch_model import PadimModel

    stages = _Stages(extractor, (1, 2, 3))
    model = PadimModel(
        extractor.backbone_name, stages.layers, pre_trained=False, n_features=extractor.channels
    )
    _show(model, stages, squares)
    model.fit()
    return Fitted(_judge(model, extractor, squares.shape[-1]), (model,))


def patchcore(squares: Tensor, extractor: FeatureExtractor, seconds: float) -> Fitted:
    """Roth et al. 2022: distance to the nearest patch of a coreset of the training pictures' patches."""
    from anomalib.models.components.dimensionality_reduction import SparseRandomProjection
    from anomalib.models.image.patchcore.torch_model import PatchcoreModel

    stages = _Stages(extractor, (2, 3))
    model = PatchcoreModel(stages.layers, extractor.backbone_name, pre_trained=False)
    _show(model, stages, squares)
    patches = torch.vstack(model.embedding_store)
    model.embedding_store.clear()
    pool = patches[torch.randperm(len(patches))[:CORESET_POOL].to(patches.device)]
    draws = np.random.RandomState(torch.initial_seed() % 2**32)  # anomalib's default has no seed
    projected = SparseRandomProjection(eps=0.9, random_state=draws).fit(pool).transform(pool)
    model.memory_bank = pool[coreset(projected, CORESET_RATIO)]
    return Fitted(_judge(model, extractor, squares.shape[-1]), (model,))


def coreset(patches: Tensor, ratio: float) -> Tensor:
    """Choose patches by greedy k-centres: each is the farthest from all those chosen before it.

    The result equals that of anomalib's KCenterGreedy, but squared distances by a matrix product make it ten
    times as fast.

    Args:
        patches: [n, c].
        ratio: the share to choose.

    Returns:
        Indices of max(1, int(ratio · n)) patches.
    """
    squares = patches.square().sum(dim=1)
    nearest = torch.full_like(squares, torch.inf)
    chosen = [torch.randint(len(patches), (1,), device=patches.device)[0]]
    for _ in range(int(ratio * len(patches)) - 1):
        centre = chosen[-1]
        distance = torch.addmv(squares, patches, patches[centre], alpha=-2) + squares[centre]
        nearest = torch.minimum(nearest, distance)
        chosen.append(nearest.argmax())
    return torch.stack(chosen)


def fre(squares: Tensor, extractor: FeatureExtractor, seconds: float) -> Fitted:
    """Ndiour et al. 2023: reconstruction error of a linear autoencoder of deep features."""
    from anomalib.models.image.fre.torch_model import FREModel

    device = extractor.mean.device
    cells = (squares.shape[-1] // 16 // 2) ** 2  # at stride 16, pooled by 2
    model = FREModel(
        extractor.backbone_name, 3, extractor.stage_channels[-1] * cells, pre_trained=False,
        pooling_kernel_size=2,
    )  # fmt: skip
    model.feature_extractor = _Stages(extractor, (3,))
    model.to(device)
    with torch.no_grad():
        features = torch.cat([model.get_features(batch)[0] for batch in _batches(squares, device)])
    optimiser = torch.optim.Adam(model.fre_model.parameters(), lr=1e-3)
    epochs, started = 0, time.perf_counter()
    while epochs < FRE_EPOCHS and time.perf_counter() - started < seconds:
        for batch in features[torch.randperm(len(features)).to(device)].split(BATCH):
            optimiser.zero_grad()
            F.mse_loss(model.fre_model(batch), batch).backward()
            optimiser.step()
        epochs += 1
    judge = _judge(model, extractor, squares.shape[-1])
    return Fitted(judge, (model,), f"FRE was trained for {epochs} epochs.")


def ganomaly(squares: Tensor, extractor: FeatureExtractor, seconds: float) -> Fitted:
    """Akçay et al. 2018: the distance between the codes of a picture and of its reconstruction by a GAN."""
    from anomalib.models.image.ganomaly.loss import DiscriminatorLoss, GeneratorLoss
    from anomalib.models.image.ganomaly.torch_model import GanomalyModel

    device, size = extractor.mean.device, squares.shape[-1]
    model = GanomalyModel((size, size), num_input_channels=3, n_features=64, latent_vec_size=100)
    model.to(device).train()
    generator_loss, discriminator_loss = GeneratorLoss(), DiscriminatorLoss()
    optimisers = [
        torch.optim.Adam(part.parameters(), lr=2e-4, betas=(0.5, 0.999))
        for part in (model.generator, model.discriminator)
    ]
    steps, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        some = torch.randint(len(squares), (BATCH,))
        real, fake, code, code_again = model(to_float(squares[some], device))
        judged = model.discriminator(real)[0]
        loss = generator_loss(code, code_again, real, fake, judged.detach(), model.discriminator(fake)[0])
        optimisers[0].zero_grad()
        loss.backward()
        optimisers[0].step()
        optimisers[1].zero_grad()
        discriminator_loss(judged, model.discriminator(fake.detach())[0]).backward()
        optimisers[1].step()
        steps += 1
    model.eval()

    @torch.no_grad()
    def judge(image: npt.NDArray[np.uint8]) -> tuple[float, None]:
        square, _ = to_square(image, size)
        return float(model(square[None].to(device)).pred_score), None

    return Fitted(judge, (model.generator,), f"GANomaly was trained for {steps} steps of {BATCH} pictures.")


PEERS: dict[str, tuple[str, PeerFit]] = {  # name → title, function
    "padim": ("PaDiM", padim),
    "patchcore": ("PatchCore", patchcore),
    "fre": ("FRE", fre),
    "ganomaly": ("GANomaly", ganomaly),
}


class _Stages(nn.Module):
    """diffad's backbone in place of anomalib's: normalised pictures → layer → features, float32.

    Args:
        extractor: diffad's backbone.
        layers: timm's numbers of the stages; 1, 2, 3 have strides 4, 8, 16.
    """

    def __init__(self, extractor: FeatureExtractor, layers: tuple[int, ...]) -> None:
        super().__init__()
        self.extractor, self.layers = extractor, layers

    def forward(self, x: Tensor) -> dict[int, Tensor]:
        x = ((x + 1) / 2 - self.extractor.input_mean) / self.extractor.input_std
        stages = self.extractor.network(x.contiguous(memory_format=torch.channels_last))
        return {layer: stages[layer - 1].contiguous() for layer in self.layers}


def _show(model: nn.Module, stages: _Stages, squares: Tensor) -> None:
    """Run all pictures through diffad's backbone once, while anomalib's model collects the features."""
    device = stages.extractor.mean.device
    model.feature_extractor = stages
    model.to(device).train()
    with torch.no_grad():
        for batch in _batches(squares, device):
            model(batch)


def _batches(squares: Tensor, device: torch.device) -> Iterator[Tensor]:
    return map(partial(to_float, device=device), squares.split(BATCH))


def _judge(model: nn.Module, extractor: FeatureExtractor, size: int) -> Judge:
    """anomalib's own score and map of one picture."""
    device = extractor.mean.device
    model.eval()

    @torch.no_grad()
    def judge(image: npt.NDArray[np.uint8]) -> tuple[float, np.ndarray]:
        square, geometry = to_square(image, size)
        output = model(square[None].to(device))
        return float(output.pred_score), output.anomaly_map[0, 0].cpu().numpy()[geometry.inner]

    return judge
