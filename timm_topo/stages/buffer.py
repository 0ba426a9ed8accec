"""The adjacency of a batch: what every node of every stage reads, per image (DG-Net, 3.4)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..wiring import Wiring
from .graph_stage import GraphStage, graph_stages

__all__ = ['adjacency', 'evaluation_mode', 'record_adjacency', 'record_runs']

Maps = list[Tensor]


@torch.no_grad()
def adjacency(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Adjacency matrices of every graph stage for a batch of images, in evaluation mode.

    Entry ``[b, j, i]`` is what node j multiplies x_i by for image b: rows are targets, columns
    sources, as in the paper. Closed and absent edges are 0. Rules that do not depend on the image
    give every image the same matrix.

    Args:
        model: A model with graph stages; the mode of its modules is restored.
        images: ``(B, C, H, W)``, preprocessed as in evaluation.

    Returns:
        ``(B, N, N)`` by stage name.

    Raises:
        ValueError: The model has no graph stage.
    """
    with evaluation_mode(model), record_adjacency(model) as buffers:
        model(images)
    return buffers


@contextmanager
def record_adjacency(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Keep the adjacency of the latest forward pass, in any mode and with gradients.

    Args:
        model: A model with graph stages, not compiled.

    Yields:
        A dict, filled by every forward pass: ``(B, N, N)`` by stage name, as for
        :func:`adjacency`.

    Raises:
        ValueError: The model has no graph stage.
    """

    def matrices(stage: GraphStage, maps: Maps, rows: list[Tensor]) -> Tensor:
        return _matrices(stage.wiring, rows, len(maps[-1]))

    with record_runs(model, matrices) as buffers:
        yield buffers


@contextmanager
def record_runs(
    model: nn.Module, take: Callable[[GraphStage, Maps, list[Tensor]], Any]
) -> Iterator[dict[str, Any]]:
    """Keep something of how every graph stage ran in the latest forward pass.

    Args:
        model: A model with graph stages, not compiled.
        take: What to keep, from the stage and the two lists that :meth:`GraphStage.run` returns.

    Yields:
        A dict, filled by every forward pass, by stage name.

    Raises:
        ValueError: The model has no graph stage.
    """
    buffers = {}
    stages = graph_stages(model)
    before = {name: vars(stage).get('run') for name, stage in stages.items()}
    try:
        for name, stage in stages.items():
            stage.run = _recording(stage, name, buffers, take)  # around a recorder outside, if any
        yield buffers
    finally:
        for name, stage in stages.items():
            vars(stage).pop('run', None)
            if before[name] is not None:
                stage.run = before[name]


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[nn.Module]:
    """Run ``model`` in evaluation mode and give every module its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield model.eval()
    finally:
        for module, training in modes:
            module.training = training


def _recording(stage: GraphStage, name: str, buffers: dict, take: Callable):
    inner = stage.run

    def run(x: Tensor, *args):
        maps, rows = inner(x, *args)
        buffers[name] = take(stage, maps, rows)
        return maps, rows

    return run


def _matrices(wiring: Wiring, rows: list[Tensor], batch: int) -> Tensor:
    empty = rows[0].new_zeros(batch, wiring.num_nodes)
    matrix = [empty]
    for node, weights in enumerate(rows, start=1):
        sources = torch.tensor(wiring.preds(node), device=weights.device)
        matrix.append(empty.index_copy(1, sources, weights.expand(batch, -1).to(empty.dtype)))
    return torch.stack(matrix, 1)
