"""Costs of a network: parameters, multiply-adds, measured milliseconds."""

import copy
import logging
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..executors import evaluation_mode
from ..extras import needs
from ..stages import Stage
from .outputs import named_outputs

__all__ = ['Flops', 'Latency', 'count_flops', 'count_parameters', 'input_size_of', 'latency']


@dataclass(frozen=True)
class Flops:
    """Multiply-adds of one image (1 FLOP = 1 multiply-add, as in the papers).

    Attributes:
        conv: Convolutions, the only thing most papers count.
        linear: The classifier.
        edges: Weighted sums over edges, one per edge and element.
    """

    conv: int
    linear: int
    edges: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.conv + self.linear + self.edges


@dataclass(frozen=True)
class Latency:
    """Measured time of one forward pass, in milliseconds.

    Attributes:
        median: Median over the repetitions.
        low: First quartile.
        high: Third quartile.
        ratio: Median of the ratios to the first model, repetition by repetition.
        ratios: First and third quartile of these ratios.
    """

    median: float
    low: float
    high: float
    ratio: float
    ratios: tuple[float, float]


def count_parameters(model: nn.Module) -> int:
    """Number of parameters, edge weights included."""
    return sum(p.numel() for p in model.parameters())


def input_size_of(model: nn.Module) -> tuple[int, int, int]:
    """``(C, H, W)`` that a timm model is made for.

    Raises:
        ValueError: The model does not tell.
    """
    if not getattr(model, 'pretrained_cfg', None):
        raise ValueError(f'{type(model).__name__} does not tell the size of its images: give one')
    channels, height, width = model.pretrained_cfg['input_size']
    return getattr(model, 'in_chans', channels), height, width


def count_flops(model: nn.Module, input_size: Sequence[int] | None = None) -> Flops:
    """Multiply-adds of ``model`` for one image, convolutions and linear layers by fvcore.

    Args:
        model: Any timm model.
        input_size: ``(C, H, W)``; the model's own by default.
    """
    analysis = fvcore_nn().FlopCountAnalysis
    size = input_size or input_size_of(model)
    reference = next(model.parameters())
    image = torch.zeros(1, *size, device=reference.device, dtype=reference.dtype)
    edges = []

    def count(weighted_sum, in_degree):
        edges.append(int(in_degree * weighted_sum[0].numel()))  # each edge multiplies such a map

    hooks = []
    for stage in (module for module in model.modules() if isinstance(module, Stage)):
        *by_node, last = stage.edge_macs()
        for node, degree in zip(stage.nodes, by_node):
            hooks.append(node.register_forward_pre_hook(lambda _, x, d=degree: count(x[0], d)))
        hooks.append(stage.register_forward_hook(lambda _, x, y, d=last: count(y, d)))
    log = logging.getLogger('fvcore.nn.jit_analysis')
    level = log.level
    log.setLevel(logging.ERROR)  # it lists every operation that is not counted
    try:
        with torch.no_grad(), evaluation_mode(model):
            try:
                model(image)
            finally:
                for hook in hooks:
                    hook.remove()
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')  # of torch.jit.trace
                counted = analysis(model, image).by_operator()
    finally:
        log.setLevel(level)
    return Flops(int(counted['conv']), int(counted['linear']), sum(edges))


def fvcore_nn():
    """``fvcore.nn``, which is optional and, when imported, warns of its own use of TorchScript.

    Raises:
        ImportError: fvcore is missing.
    """
    with warnings.catch_warnings(), needs('timm-topo[analysis]'):
        warnings.simplefilter('ignore', FutureWarning)
        import fvcore.nn
    return fvcore.nn


def latency(
    models: dict[str, nn.Module],
    input_size: Sequence[int],
    batch_size: int = 1,
    repeats: int = 20,
    images: Tensor | None = None,
    training: bool = False,
) -> dict[str, Latency]:
    """Time of a pass of several models, measured in turn so that noise hits all alike.

    Each pass that counts follows one of the same model that does not.

    Args:
        models: Models by label, all on one device; the first is the unit of the ratios.
        input_size: ``(C, H, W)`` of the noise, where no images are given.
        batch_size: Images per pass.
        repeats: Rounds, after one that does not count.
        images: Images to take the batches from, ``(n, C, H, W)``, n >= batch_size, the same for
            all models of a round; by default noise, which tells nothing where time depends on
            the image.
        training: Whether to measure forward and backward of copies in training mode, instead of
            forward in evaluation mode.

    Raises:
        ValueError: No model, fewer than one round, or fewer images than a batch has.
    """
    if images is not None and not 1 <= batch_size <= len(images):
        raise ValueError(f'{len(images)} images make no batch of {batch_size}')
    if not models or repeats < 1:
        raise ValueError(f'latency needs models and rounds, got {len(models)} and {repeats}')
    times = {label: [] for label in models}
    if training:
        models = {label: copy.deepcopy(model).train() for label, model in models.items()}
    pass_ms = _training_ms if training else _forward_ms
    with ExitStack() as stack:
        for model in () if training else models.values():
            stack.enter_context(evaluation_mode(model))
        for round_ in tqdm(range(repeats + 1), 'time', leave=False, disable=None):
            if images is None:
                batch = torch.randn(batch_size, *input_size)
            else:
                batch = images.roll(-round_ * batch_size, 0)[:batch_size]
            for label, model in models.items():
                pass_ms(model, batch)  # what ran before has left its maps in caches
                if round_:
                    times[label].append(pass_ms(model, batch))
    unit = next(iter(times.values()))
    return {label: _summary(taken, unit) for label, taken in times.items()}


@torch.inference_mode()
def _forward_ms(model: nn.Module, images: Tensor) -> float:
    images = images.to(next(model.parameters()))
    return _ms(lambda: model(images), images.device)


def _training_ms(model: nn.Module, images: Tensor) -> float:
    images = images.to(next(model.parameters()))
    model.zero_grad()

    def step() -> None:
        outputs = named_outputs(model(images)).values()
        sum(output.logsumexp(-1).mean() for output in outputs).backward()

    return _ms(step, images.device)


def _ms(run: Callable[[], object], device: torch.device) -> float:
    on_gpu = device.type == 'cuda'
    if on_gpu:
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if on_gpu:
        torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - start)


def _summary(taken: list[float], unit: list[float]) -> Latency:
    low, median, high = _quartiles(taken)
    least, ratio, most = _quartiles([t / u for t, u in zip(taken, unit)])
    return Latency(median=median, low=low, high=high, ratio=ratio, ratios=(least, most))


def _quartiles(values: list[float]) -> list[float]:
    return statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
