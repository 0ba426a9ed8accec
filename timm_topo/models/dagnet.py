"""One graph over all resolutions (Janik & Nowak, 2020, arXiv:2006.12195).

``dagnet60`` is the paper's: a complete DAG of 60 nodes in three stages whose edges weigh tanh(w)
under an L1 penalty. After training, :func:`timm_topo.analysis.prune.prune` with threshold 0.006
leaves the network its data set needs.
"""

from collections.abc import Sequence
from functools import partial
from typing import ClassVar

from timm.models import generate_default_cfgs, register_model

from ..checks import check_integer
from ..connectivity import build_connectivity
from ..generators import is_explicit, make_wiring
from ..nodes import NODES
from ..stages import CrossStageGraph, jumps
from ..wiring import Wiring
from .base import create_network, imagenet_cfg, per_stage
from .cross_stage import CrossStageNet

__all__ = ['DagNet']

#: The paper's rule; with weights on sole in-edges the parameters would not be those printed.
_TANH = {'name': 'tanh', 'weigh_sole': False}


class DagNet(CrossStageNet):
    """One graph from the image to the last feature map, then pooling and classifier (section 3).

    Nodes are spread evenly over the stages, each with half the resolution and twice the channels
    of the one before. The first node reads the image; the last, unlike that of a TopoNet stage,
    computes as well. Transitions to later stages are nodes too, with a stride.

    Args:
        num_nodes: Nodes, input and output included: the paper's 60. None where ``wiring`` is an
            explicit graph that says so.
        num_stages: Resolutions; divides ``num_nodes``.
        channels: C, channels of the first stage.
        input_stride: Stride of the first node.
        node: What nodes compute, a key of :data:`timm_topo.nodes.NODES`: the first node and the
            transitions are entries of that kind.
        wiring: What :func:`timm_topo.generators.make_wiring` takes.
        connectivity: What :func:`timm_topo.connectivity.build_connectivity` takes, a static rule.
        node_ids: The ids of the nodes that pruning left, 0 and ``num_nodes - 1`` among them; by
            default all.
        **common: Options of every network, see :class:`timm_topo.models.base.NetworkOptions`.

    Raises:
        TypeError: An unknown option, or a description of the wrong type.
        ValueError: Nodes that the stages do not divide, numbers that disagree, or an unknown
            wiring, connectivity, sparsity or normalisation.
    """

    defaults: ClassVar[dict] = dict(sparsity='uniform', sparsity_weight=1e-3, num_classes=10)

    def __init__(
        self,
        num_nodes: int | None = 60,
        num_stages: int = 3,
        channels: int = 11,
        input_stride: int = 1,
        node: str = 'conv_residual',
        wiring: str | dict | Wiring | Sequence = 'complete',
        connectivity: str | dict | type | Sequence = _TANH,
        node_ids: Sequence | None = None,
        **common,
    ):
        common = self.common_options(common)
        super().__init__(common)
        (spec,), (rule,) = (
            per_stage('wiring', wiring, 1),
            per_stage('connectivity', connectivity, 1),
        )
        if num_nodes is None and is_explicit(spec):
            num_nodes = make_wiring(spec).num_nodes
        sizes = dict(num_nodes=num_nodes, num_stages=num_stages, channels=channels)
        for name, size in {**sizes, 'input_stride': input_stride}.items():
            check_integer(name, size)
        if num_nodes % num_stages:
            raise ValueError(f'num_nodes={num_nodes} is not divisible by num_stages={num_stages}')
        wiring = make_wiring(spec, num_nodes if node_ids is None else None)
        ids = list(range(num_nodes)) if node_ids is None else _only(node_ids)
        if ids[0] != 0 or ids[-1] != num_nodes - 1:
            raise ValueError(f'node_ids must lead from 0 to {num_nodes - 1}, got {ids}')
        parts = partial(NODES.find(node), dilation=1, **common.layer)
        self.sizes = {**sizes, 'input_stride': input_stride}

        levels = [i // (num_nodes // num_stages) for i in ids]
        self.widths = [channels * 2**level for level in range(num_stages)]
        self.strides = [input_stride * 2**level for level in range(num_stages)]
        widths = [self.widths[level] for level in levels]
        if len(ids) != wiring.num_nodes:
            raise ValueError(f'{wiring} needs as many node_ids, got {ids}')
        self.dag = CrossStageGraph(
            wiring,
            build_connectivity(rule, wiring, channels, **common.placement),
            parts(common.in_chans, channels, 0, input_stride).entry,
            [parts(width, width, 1, 1).nodes[0] for width in widths[1:-1]],
            levels,
            {
                (source, level): parts(
                    widths[source], self.widths[level], 0, 2 ** (level - levels[source])
                ).entry
                for source, level in jumps(wiring, levels)
            },
            node_ids=ids,
            level_sizes=[num_nodes // num_stages] * num_stages,
        )
        self.output = parts(widths[-1], widths[-1], 1, 1).nodes[0]
        self.finish(common, widths[-1])

    def topology(self) -> dict:
        return {**self.sizes, **super().topology()}


def _only(node_ids: Sequence) -> list[int]:
    """Ids of the one graph, which a saved network has in a list of its own."""
    return list(node_ids[0]) if isinstance(node_ids[0], (list, tuple)) else list(node_ids)


_CFG = imagenet_cfg(
    input_size=(3, 32, 32), pool_size=(8, 8), num_classes=10, crop_pct=1.0,
    mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616),  # CIFAR-10
    first_conv=('dag.entry.conv', 'dag.entry.residual.conv'), classifier='head.fc',
)  # fmt: skip

default_cfgs = generate_default_cfgs(
    {f'{name}.untrained': _CFG for name in ('dagnet', 'dagnet60', 'test_dagnet')}
)


def _levels_left(options: dict) -> int:
    """Stages that have nodes; one, where the constructor will refuse."""
    stages, ids = options['num_stages'], options['node_ids']
    nodes = options['num_nodes'] or stages
    try:
        return len({i * stages // nodes for i in _only(ids or range(nodes))})
    except (TypeError, ZeroDivisionError):
        return 1


_create = partial(create_network, DagNet, levels=_levels_left)


@register_model
def dagnet(pretrained: bool = False, **kwargs) -> DagNet:
    """A complete DAG of ``num_nodes`` in ``num_stages`` from ``channels`` on; any wiring."""
    return _create('dagnet', pretrained, dict(num_nodes=60, channels=11), kwargs)


@register_model
def dagnet60(pretrained: bool = False, **kwargs) -> DagNet:
    """The paper's network: 863.3k parameters, as a ResNet-56 has (section 4)."""
    return _create('dagnet60', pretrained, dict(num_nodes=60, channels=11), kwargs)


@register_model
def test_dagnet(pretrained: bool = False, **kwargs) -> DagNet:
    """Minimal network for tests, of 12 nodes as in the paper's Fig. 1b."""
    return _create('test_dagnet', pretrained, dict(num_nodes=12, channels=8), kwargs)
