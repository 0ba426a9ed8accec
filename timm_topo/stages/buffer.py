"""The adjacency of a batch: what every node of every stage reads, per image (DG-Net, 3.4)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..wiring import Wiring
from .graph_stage import GraphStage, graph_stages

__all__ = ['adjacency', 'record_adjacency']


@torch.no_grad()
def adjacency(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Adjacency matrices of every graph stage for a batch of images, in evaluation mode.

    Entry ``[b, j, i]`` is what node j multiplies x_i by for image b: rows are targets, columns
    sources, as in the paper. Closed and absent edges are 0. Rules that do not depend on the image
    give every image the same matrix.

    Args:
        model: A model with graph stages; its mode is restored.
        images: ``(B, C, H, W)``, preprocessed as in evaluation.

    Returns:
        ``(B, N, N)`` by stage name.

    Raises:
        ValueError: The model has no graph stage.
    """
    training = model.training
    try:
        with record_adjacency(model.eval()) as buffers:
            model(images)
    finally:
        model.train(training)
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
    buffers = {}
    stages = graph_stages(model)
    try:
        for name, stage in stages.items():
            stage.run = _recording(stage, name, buffers)
        yield buffers
    finally:
        for stage in stages.values():
            stage.__dict__.pop('run', None)


def _recording(stage: GraphStage, name: str, buffers: dict):
    def run(x: Tensor):
        output, rows = GraphStage.run(stage, x)
        buffers[name] = _matrices(stage.wiring, rows, len(x))
        return output, rows

    return run


def _matrices(wiring: Wiring, rows: list[Tensor], batch: int) -> Tensor:
    empty = rows[0].new_zeros(batch, wiring.num_nodes)
    matrix = [empty]
    for node, weights in enumerate(rows, start=1):
        sources = torch.tensor(wiring.preds(node), device=weights.device)
        matrix.append(empty.index_copy(1, sources, weights.expand(batch, -1).to(empty.dtype)))
    return torch.stack(matrix, 1)
