"""Topologies of the optimization process: edge weights of a snapshot, frozen (TopoNet, 4.5)."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..connectivity.fixed import FixedConnectivity
from ..stages import graph_stages

__all__ = ['set_edge_weights']


def set_edge_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """Replace every rule of ``model`` by the weights given, fixed; in place.

    Args:
        model: A model with graph stages; left as it is where there is an error.
        weights: ``(E,)`` by stage name, as from :func:`timm_topo.analysis.history.read_snapshot`.

    Raises:
        ValueError: A stage has no weights, weights are of no stage or not one per edge, or a weight
            is not finite; or the model has no graph stage.
    """
    stages = graph_stages(model)
    for told, names in (
        ('no weights for', stages.keys() - weights.keys()),
        ('weights for unknown', weights.keys() - stages.keys()),
    ):
        if names:
            raise ValueError(
                f'{told} {", ".join(sorted(names))}: the stages are {", ".join(stages)}'
            )
    reference = next(model.parameters())
    values = {name: torch.as_tensor(weights[name]).to(reference) for name in stages}
    for name, stage in stages.items():
        wiring, given = stage.wiring, values[name]
        if given.shape != (wiring.num_edges,):
            raise ValueError(
                f'weights for {name} must be ({wiring.num_edges},), one per edge, got '
                f'{tuple(given.shape)}'
            )
        if not given.isfinite().all():
            edge = given.isfinite().int().argmin().item()
            source, target = wiring.edges[edge]
            raise ValueError(
                f'weights for {name} must be finite, got {given[edge].item()} for the edge from '
                f'node {source} to node {target}'
            )
    for name, stage in stages.items():
        rule = FixedConnectivity(stage.wiring, values[name])
        stage.connectivity = rule.train(stage.training)
    return model
