"""TopoNet (Yuan et al., ECCV 2020, arXiv:2008.08261): stages that are weighted complete graphs."""

import re
from collections.abc import Sequence
from functools import partial

from timm.models import generate_default_cfgs, register_model
from torch import nn

from ..connectivity import build_connectivity
from ..generators import make_wiring
from ..nodes import NODES, ConvNorm
from ..stages import GraphStage
from ..wiring import Wiring
from .base import create_network, imagenet_cfg, per_stage
from .staged import StagedNet

__all__ = ['TopoNet']

WiringSpec = str | dict | Wiring


class TopoNet(StagedNet):
    """Stem, graph stages, ReLU, pooling, linear classifier (TopoNet, Table 3).

    Args:
        num_nodes: Nodes per stage, input and output included: the paper's N. None where
            ``wiring`` holds explicit graphs for all stages.
        widths: Channels per stage.
        strides: Stride per stage.
        stem_width: Channels of the stem convolution.
        stem_kernel: Its kernel size.
        stem_stride: Its stride.
        node: Operation of the nodes, a key of :data:`timm_topo.nodes.NODES`.
        wiring: What :func:`timm_topo.generators.make_wiring` takes, for all stages or one each.
        connectivity: What :func:`timm_topo.connectivity.build_connectivity` takes, likewise.
        node_ids: Per stage, the ids of the nodes that pruning left; by default all.
        output_stride: 8, 16 or 32; smaller than the network's own stride: stages dilate instead.
        **common: Options of every network, see :class:`timm_topo.models.base.NetworkOptions`.

    Raises:
        TypeError: An unknown option, or a description of the wrong type.
        ValueError: Numbers of stages that disagree, or an unknown node, wiring, connectivity,
            sparsity, normalisation or output stride.
    """

    def __init__(
        self,
        num_nodes: Sequence[int] | None = (14, 20, 26, 14),
        widths: Sequence[int] = (128, 256, 512, 1024),
        strides: Sequence[int] = (2, 2, 2, 2),
        stem_width: int = 64,
        stem_kernel: int = 7,
        stem_stride: int = 2,
        node: str = 'sepconv',
        wiring: WiringSpec | Sequence[WiringSpec] = 'complete',
        connectivity: str | dict | type | Sequence = 'alpha',
        node_ids: Sequence[Sequence[int]] | None = None,
        output_stride: int = 32,
        **common,
    ):
        common = self.common_options(common)
        super().__init__(common)
        if node_ids is not None and len(node_ids) != len(widths):
            raise ValueError(f'node_ids has {len(node_ids)} entries for {len(widths)} stages')
        if output_stride not in (8, 16, 32):
            raise ValueError(f'output_stride must be 8, 16 or 32, got {output_stride}')
        make_parts, layer = NODES.find(node), common.layer
        depth = len(widths)
        strides = per_stage('strides', strides, depth)
        wirings = [
            make_wiring(spec, nodes, stage)
            for stage, (spec, nodes) in enumerate(
                zip(
                    per_stage('wiring', wiring, depth),
                    per_stage('num_nodes', num_nodes, depth),
                )
            )
        ]

        self.stem = ConvNorm(common.in_chans, stem_width, stem_kernel, stem_stride, **layer)
        self.feature_info = [dict(num_chs=stem_width, reduction=stem_stride, module='stem')]
        stages, in_chs, reduction, dilation = [], stem_width, stem_stride, 1
        for stage, rule in enumerate(per_stage('connectivity', connectivity, depth)):
            stride = strides[stage]
            if reduction * stride > output_stride:
                stride, dilation = 1, dilation * stride
            reduction *= stride
            out_chs = widths[stage]
            ids = range(wirings[stage].num_nodes) if node_ids is None else node_ids[stage]
            parts = make_parts(in_chs, out_chs, ids[-1] - 1, stride, dilation, **layer)
            stages.append(
                GraphStage(
                    wirings[stage],
                    build_connectivity(rule, wirings[stage], out_chs, **common.placement),
                    parts.entry,
                    [parts.nodes[i - 1] for i in ids[1:-1]],
                    first_reads_input=parts.first_reads_input and ids[1] == 1,
                    node_ids=ids,
                )
            )
            in_chs = out_chs
            self.feature_info.append(
                dict(num_chs=out_chs, reduction=reduction, module=f'stages.{stage}')
            )
        self.stages = nn.Sequential(*stages)
        self.act, self.final = nn.ReLU(), nn.Identity()
        self.finish(common, in_chs)


def _cfg(**kwargs) -> dict:
    return imagenet_cfg(first_conv='stem.conv', classifier='head.fc', **kwargs)


_SMALL = dict(input_size=(3, 32, 32), pool_size=(8, 8), num_classes=10, crop_pct=1.0)

_IMAGENET_MODELS = (
    'adaptive', 'uniform', 'alpha', 'complete', 'residual2', 'residual3', 'residual4',
    'random8', 'random6', 'random4', 'er', 'ba', 'ws',
)  # fmt: skip

default_cfgs = generate_default_cfgs(
    {
        **{f'toponet_{name}.untrained': _cfg() for name in _IMAGENET_MODELS},
        'toponet_tiny_adaptive.untrained': _cfg(**_SMALL),
        'toponet_tiny_residual2.untrained': _cfg(**_SMALL),
        'test_toponet.untrained': _cfg(input_size=(3, 96, 96), pool_size=(3, 3), crop_pct=1.0),
    }
)


def checkpoint_filter_fn(state_dict: dict, model: nn.Module) -> dict:
    """Accept weights of a ``features_only`` network too, whose stages are called ``stages_0``..."""
    return {re.sub(r'^stages_(\d+)\.', r'stages.\1.', key): v for key, v in state_dict.items()}


create_toponet = partial(
    create_network,
    TopoNet,
    levels=lambda options: 1 + len(options['widths']),
    pretrained_filter_fn=checkpoint_filter_fn,
    feature_cls='list',
    flatten_sequential=True,
)


#: Wiring fixed by rule, every edge weighs 1 (Table 4, upper part).
_RULE = dict(connectivity='fixed')
#: For 32 px images; not in the paper.
_TINY = dict(
    num_nodes=(8, 10, 8), widths=(32, 64, 128), strides=(1, 2, 2),
    stem_width=16, stem_kernel=3, stem_stride=1, num_classes=10,
)  # fmt: skip


@register_model
def toponet_adaptive(pretrained: bool = False, **kwargs) -> TopoNet:
    """Complete graphs, learned alpha, L1 growing with log in-degree (Table 4: 78.60% top-1)."""
    return create_toponet('toponet_adaptive', pretrained, dict(sparsity='adaptive'), kwargs)


@register_model
def toponet_uniform(pretrained: bool = False, **kwargs) -> TopoNet:
    """Complete graphs, learned alpha, the same L1 on every edge."""
    return create_toponet('toponet_uniform', pretrained, dict(sparsity='uniform'), kwargs)


@register_model
def toponet_alpha(pretrained: bool = False, **kwargs) -> TopoNet:
    """Complete graphs, learned alpha, no sparsity."""
    return create_toponet('toponet_alpha', pretrained, {}, kwargs)


@register_model
def toponet_complete(pretrained: bool = False, **kwargs) -> TopoNet:
    """Complete graphs, every edge weighs 1."""
    return create_toponet('toponet_complete', pretrained, _RULE, kwargs)


@register_model
def toponet_residual2(pretrained: bool = False, **kwargs) -> TopoNet:
    """Residual wiring with interval 2."""
    defaults = dict(_RULE, wiring=dict(name='residual', interval=2))
    return create_toponet('toponet_residual2', pretrained, defaults, kwargs)


@register_model
def toponet_residual3(pretrained: bool = False, **kwargs) -> TopoNet:
    """Residual wiring with interval 3."""
    defaults = dict(_RULE, wiring=dict(name='residual', interval=3))
    return create_toponet('toponet_residual3', pretrained, defaults, kwargs)


@register_model
def toponet_residual4(pretrained: bool = False, **kwargs) -> TopoNet:
    """Residual wiring with interval 4."""
    defaults = dict(_RULE, wiring=dict(name='residual', interval=4))
    return create_toponet('toponet_residual4', pretrained, defaults, kwargs)


@register_model
def toponet_random8(pretrained: bool = False, **kwargs) -> TopoNet:
    """Each pair of nodes linked with probability 0.8."""
    defaults = dict(_RULE, wiring=dict(name='random', p=0.8))
    return create_toponet('toponet_random8', pretrained, defaults, kwargs)


@register_model
def toponet_random6(pretrained: bool = False, **kwargs) -> TopoNet:
    """Each pair of nodes linked with probability 0.6."""
    defaults = dict(_RULE, wiring=dict(name='random', p=0.6))
    return create_toponet('toponet_random6', pretrained, defaults, kwargs)


@register_model
def toponet_random4(pretrained: bool = False, **kwargs) -> TopoNet:
    """Each pair of nodes linked with probability 0.4."""
    defaults = dict(_RULE, wiring=dict(name='random', p=0.4))
    return create_toponet('toponet_random4', pretrained, defaults, kwargs)


@register_model
def toponet_er(pretrained: bool = False, **kwargs) -> TopoNet:
    """Erdos-Renyi graphs, p = 0.2."""
    defaults = dict(_RULE, wiring=dict(name='erdos_renyi', p=0.2))
    return create_toponet('toponet_er', pretrained, defaults, kwargs)


@register_model
def toponet_ba(pretrained: bool = False, **kwargs) -> TopoNet:
    """Barabasi-Albert graphs, m = 5."""
    defaults = dict(_RULE, wiring=dict(name='barabasi_albert', m=5))
    return create_toponet('toponet_ba', pretrained, defaults, kwargs)


@register_model
def toponet_ws(pretrained: bool = False, **kwargs) -> TopoNet:
    """Watts-Strogatz graphs, k = 4, p = 0.75."""
    defaults = dict(_RULE, wiring=dict(name='watts_strogatz', k=4, p=0.75))
    return create_toponet('toponet_ws', pretrained, defaults, kwargs)


@register_model
def toponet_tiny_adaptive(pretrained: bool = False, **kwargs) -> TopoNet:
    """For 32 px: stages of {8, 10, 8} nodes, learned alpha, adaptive sparsity."""
    defaults = dict(_TINY, sparsity='adaptive')
    return create_toponet('toponet_tiny_adaptive', pretrained, defaults, kwargs)


@register_model
def toponet_tiny_residual2(pretrained: bool = False, **kwargs) -> TopoNet:
    """The same nodes in residual wiring with interval 2."""
    defaults = dict(_TINY, **_RULE, wiring=dict(name='residual', interval=2))
    return create_toponet('toponet_tiny_residual2', pretrained, defaults, kwargs)


@register_model
def test_toponet(pretrained: bool = False, **kwargs) -> TopoNet:
    """Minimal adaptive TopoNet for tests."""
    defaults = dict(
        num_nodes=(4, 4, 5, 4), widths=(16, 24, 32, 48), stem_width=16, sparsity='adaptive'
    )  # fmt: skip
    return create_toponet('test_toponet', pretrained, defaults, kwargs)
