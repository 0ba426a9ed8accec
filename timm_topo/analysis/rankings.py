"""How much a network needs each of its nodes: one function per ranking, by name."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..registry import Registry
from ..stages import GraphStage, graph_stages
from .node_costs import Node
from .prune import edge_weights

__all__ = ['RANKINGS', 'register_ranking']

#: By name: a function of the network, the nodes, calibration images ``(n, C, H, W)``, their labels
#: ``(n,)``, the loss of the network without a node, and a seed; it gives what each node is worth.
RANKINGS = Registry('ranking')
register_ranking = RANKINGS.register


@register_ranking('loss')
def by_loss(
    model: nn.Module, nodes: list[Node], images: Tensor, labels: Tensor,
    loss_without: Callable[[Node], float], seed: int,
) -> dict[Node, float]:  # fmt: skip
    """The loss on the calibration images without the node."""
    return {node: loss_without(node) for node in nodes}


@register_ranking('weight')
def by_weight(
    model: nn.Module, nodes: list[Node], images: Tensor, labels: Tensor,
    loss_without: Callable[[Node], float], seed: int,
) -> dict[Node, float]:  # fmt: skip
    """The sum of |edge weight| over the out-edges (TopoNet, section 4.4, of edges).

    Raises:
        ValueError: All weights are alike, and tell nothing.
    """
    weights = edge_weights(model, images[:128])
    if len(torch.cat([value.abs() for value in weights.values()]).unique()) == 1:
        raise ValueError('all edge weights are alike: learn them, or rank by another measure')
    worth = {}
    stages = graph_stages(model)
    for node in nodes:
        wiring, ids = stages[node.stage].wiring, stages[node.stage].node_ids
        out = [ids[source] == node.id for source, _ in wiring.edges]
        worth[node] = weights[node.stage].abs()[torch.tensor(out)].sum().item()
    return worth


@register_ranking('taylor')
def by_taylor(
    model: nn.Module, nodes: list[Node], images: Tensor, labels: Tensor,
    loss_without: Callable[[Node], float], seed: int,
) -> dict[Node, float]:  # fmt: skip
    """|sum of dL/dx (x - x')| over the images: what the loss loses, to the first order.

    x is the map of the node, x' what takes its place: zero, or what it read, where nodes are whole
    blocks (Molchanov et al., 2017, arXiv:1611.06440, section 2.2, of channels).
    """
    stages = graph_stages(model)
    modules = {}
    for node in nodes:
        stage = stages[node.stage]
        if not isinstance(stage, GraphStage):
            raise ValueError(f'{node.stage} has nodes of several branches: rank by another measure')
        modules[node] = (stage.nodes[stage.node_ids.index(node.id) - 1], stage.whole_blocks)
    worth = dict.fromkeys(nodes, 0.0)
    maps, hooks = {}, []
    for node, (module, whole) in modules.items():

        def keep(_, inputs: tuple, output: Tensor, node=node, whole=whole) -> None:
            output.retain_grad()
            maps[node] = (output, inputs[0].detach().clone() if whole else None)

        hooks.append(module.register_forward_hook(keep))
    needs = [parameter.requires_grad for parameter in model.parameters()]
    try:
        model.requires_grad_(True)
        for batch, target in zip(images.split(64), labels.split(64)):
            cross_entropy(model(batch), target, reduction='sum').backward()
            for node, (output, instead) in maps.items():
                gone = output.detach() if instead is None else output.detach() - instead
                worth[node] += (output.grad * gone).sum().item()
    finally:
        for hook in hooks:
            hook.remove()
        model.zero_grad()
        for parameter, needed in zip(model.parameters(), needs):
            parameter.requires_grad_(needed)
    return {node: abs(value) / len(images) for node, value in worth.items()}


@register_ranking('random')
def by_chance(
    model: nn.Module, nodes: list[Node], images: Tensor, labels: Tensor,
    loss_without: Callable[[Node], float], seed: int,
) -> dict[Node, float]:  # fmt: skip
    """A random order: the control of the others."""
    generator = torch.Generator().manual_seed(seed)
    return dict(zip(nodes, torch.rand(len(nodes), generator=generator).tolist()))
