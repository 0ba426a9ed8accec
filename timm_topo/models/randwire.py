"""Randomly wired networks (Xie et al., 2019), as DG-Net compares with them (section 4.3, Table 4).

DG-Net's authors rebuilt the small regime of RandWire with networkx. ``randwire_{er,ba,ws}_small``
are these networks, ``randwire_complete_small`` has the complete graph in their place and
``dgnet_randwire_small`` a router in each of its nodes: the four rows of the table.
"""

from collections.abc import Sequence
from functools import partial

from timm.models import generate_default_cfgs, register_model
from torch import nn

from ..checks import check_flag, check_integer
from ..connectivity import build_connectivity
from ..generators import make_wiring
from ..nodes import ConvNorm, SepConvNode
from ..stages import GraphStage
from ..wiring import Wiring
from .base import create_network, imagenet_cfg, per_stage
from .staged import StagedNet

__all__ = ['RandWire']

#: Weights are positive; nodes with one source need none; outputs take the mean.
_SIGMOID = {'name': 'sigmoid', 'weigh_sole': False, 'mean_output': True}


class RandWire(StagedNet):
    """Two convolutions, three stages with the same wiring, 1x1 convolution, pooling, classifier.

    A node is ReLU, separable 3x3 convolution and norm. Nodes that read no other node read the stage
    input, with stride 2; the stage output is the mean of the nodes that no other reads.

    Args:
        num_nodes: Nodes per stage, N computing ones (the paper: 32) and input and output.
        channels: C, channels of the first stage; each next has twice as many. Convolutions
            before have C / 2 and C.
        features: Channels of the last convolution.
        wiring: What :func:`timm_topo.generators.make_wiring` takes; rules draw the same graph in
            every stage.
        projection: Whether nodes other than the first may read the stage input beside others, by a
            strided 1x1 convolution and norm: needed for complete graphs.
        connectivity: What :func:`timm_topo.connectivity.build_connectivity` takes, for all stages
            or one each.
        node_ids: Per stage, the ids of the nodes that pruning left; by default all.
        **common: Options of every network, see :class:`timm_topo.models.base.NetworkOptions`.

    Raises:
        TypeError: An unknown option, or a description of the wrong type.
        ValueError: A node that reads the stage input and others without ``projection``, numbers
            that disagree, or an unknown wiring, connectivity, sparsity or normalisation.
    """

    def __init__(
        self,
        num_nodes: int | Sequence[int] | None = 34,
        channels: int = 78,
        features: int = 1280,
        wiring: str | dict | Wiring | Sequence = 'watts_strogatz',
        projection: bool = False,
        connectivity: str | dict | type | Sequence = _SIGMOID,
        node_ids: Sequence[Sequence[int]] | None = None,
        **common,
    ):
        common = self.common_options(common)
        super().__init__(common)
        before = max(1, check_integer('channels', channels) // 2)
        check_integer('features', features)
        check_flag('projection', projection)
        layer = common.layer
        nodes = per_stage('num_nodes', num_nodes, 3)
        wirings = [make_wiring(w, n) for w, n in zip(per_stage('wiring', wiring, 3), nodes)]
        rules = per_stage('connectivity', connectivity, 3)
        all_ids = [list(range(w.num_nodes)) for w in wirings] if node_ids is None else node_ids
        self.sizes = dict(channels=channels, features=features, projection=projection)

        self.stem = nn.Sequential(
            ConvNorm(common.in_chans, before, 3, 2, **layer),
            nn.ReLU(inplace=True),
            ConvNorm(before, channels, 3, 2, **layer),
        )
        self.feature_info = [dict(num_chs=channels, reduction=4, module='stem')]
        stages, in_chs = [], channels
        for stage, (wiring, rule, ids) in enumerate(zip(wirings, rules, all_ids)):
            chs = channels * 2**stage
            rule = build_connectivity(rule, wiring, chs, **common.placement)
            stages.append(_stage(wiring, rule, ids, in_chs, chs, projection, layer))
            self.feature_info.append(
                dict(num_chs=chs, reduction=8 * 2**stage, module=f'stages.{stage}')
            )
            in_chs = chs
        self.stages = nn.Sequential(*stages)
        self.act = nn.ReLU()
        self.final = nn.Sequential(ConvNorm(in_chs, features, 1, 1, **layer), nn.ReLU(inplace=True))
        self.finish(common, features)

    def topology(self) -> dict:
        return {**self.sizes, **super().topology()}


def _stage(wiring, rule, ids, in_chs, chs, projection, layer) -> GraphStage:
    """One stage: the input is halved by those who read it, or by a projection too."""
    if len(ids) != wiring.num_nodes:
        raise ValueError(f'{wiring} needs as many node_ids, got {list(ids)}')
    reads_input = [set(wiring.preds(node)) == {0} for node in range(wiring.num_nodes)]
    if projection:
        entry = ConvNorm(in_chs, chs, 1, 2, **layer)
        reads_input = [id_ == 1 for id_ in ids]  # the others read what the projection makes
    else:
        entry = nn.Identity()
        mixed = [n for n in wiring.succs(0) if not reads_input[n] or n == wiring.num_nodes - 1]
        if mixed:
            raise ValueError(
                f'node {mixed[0]} of {wiring} reads the stage input beside other nodes, or is the '
                'output: that takes projection=True'
            )
        if rule.needs_context:
            raise ValueError(
                f'{type(rule).__name__} reads features of all nodes, which have as many channels '
                'only with projection=True'
            )
    nodes = [
        SepConvNode(in_chs, chs, 2, **layer)
        if reads_input[node]
        else SepConvNode(chs, chs, **layer)
        for node in range(1, wiring.num_nodes - 1)
    ]
    return GraphStage(
        wiring, rule, entry, nodes, first_reads_input=projection and ids[1] == 1, node_ids=ids
    )


_CFG = imagenet_cfg(first_conv='stem.0.conv', classifier='head.fc')
_NAMES = (
    'randwire_er_small', 'randwire_ba_small', 'randwire_ws_small', 'randwire_complete_small',
    'dgnet_randwire_small',
)  # fmt: skip
default_cfgs = generate_default_cfgs(
    {
        **{f'{name}.untrained': _CFG for name in _NAMES},
        'test_randwire.untrained': imagenet_cfg(
            input_size=(3, 64, 64), pool_size=(2, 2), first_conv='stem.0.conv', classifier='head.fc'
        ),
    }
)


_create = partial(create_network, RandWire, levels=lambda options: 4)
_COMPLETE = dict(wiring='complete', projection=True)


@register_model
def randwire_er_small(pretrained: bool = False, **kwargs) -> RandWire:
    """ER(0.2) (Table 4: 71.5% top-1). The printed 602 M multiply-adds need one source node.

    That is rare: ``wiring={'name': 'erdos_renyi', 'seed': 305}`` is the first such graph, the
    usual five source nodes make 582.
    """
    defaults = dict(wiring=dict(name='erdos_renyi', p=0.2, seed=1))
    return _create('randwire_er_small', pretrained, defaults, kwargs)


@register_model
def randwire_ba_small(pretrained: bool = False, **kwargs) -> RandWire:
    """BA(5) (Table 4: 71.2% top-1, 582 M multiply-adds)."""
    defaults = dict(wiring=dict(name='barabasi_albert', m=5, seed=1))
    return _create('randwire_ba_small', pretrained, defaults, kwargs)


@register_model
def randwire_ws_small(pretrained: bool = False, **kwargs) -> RandWire:
    """WS(4, 0.75) (Table 4: 72.2% top-1, 572 M multiply-adds)."""
    defaults = dict(wiring=dict(name='watts_strogatz', k=4, p=0.75, seed=1))
    return _create('randwire_ws_small', pretrained, defaults, kwargs)


@register_model
def randwire_complete_small(pretrained: bool = False, **kwargs) -> RandWire:
    """The complete graph of the same nodes, one learned weight per edge; not in the table."""
    defaults = dict(_COMPLETE, connectivity={'name': 'sigmoid', 'weigh_sole': False})
    return _create('randwire_complete_small', pretrained, defaults, kwargs)


@register_model
def dgnet_randwire_small(pretrained: bool = False, **kwargs) -> RandWire:
    """The complete graph with routers (Table 4, DG-Net: 73.1% top-1, 611 M multiply-adds)."""
    defaults = dict(_COMPLETE, connectivity='router')
    return _create('dgnet_randwire_small', pretrained, defaults, kwargs)


@register_model
def test_randwire(pretrained: bool = False, **kwargs) -> RandWire:
    """Minimal network for tests: WS graphs of 6 nodes."""
    defaults = dict(
        num_nodes=8, channels=8, features=32, wiring=dict(name='watts_strogatz', k=2, seed=1)
    )  # fmt: skip
    return _create('test_randwire', pretrained, defaults, kwargs)
