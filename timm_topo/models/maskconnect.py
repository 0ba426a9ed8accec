"""MaskConnect (Ahmed & Torresani, 2018) on ResNets: a block reads K of all earlier blocks."""

from collections.abc import Sequence
from typing import ClassVar

from timm.models import generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock
from torch import nn

from ..checks import check_flag
from ..connectivity import build_connectivity
from ..generators import check_edges, make_wiring
from ..nodes import ConvNorm, Subsample
from ..stages import CrossStageGraph, jumps
from ..wiring import Wiring
from .base import create_network, per_stage
from .cross_stage import CrossStageNet
from .masking import (
    BY_RULE,
    CIFAR_CFG,
    Rule,
    check_sizes,
    fan_in_left,
    kept_ids,
    masking_rule,
)

__all__ = ['MaskConnectResNet']

_WIDTHS = (16, 32, 64)


class MaskConnectResNet(CrossStageNet):
    """A ResNet for CIFAR whose blocks read any K of the earlier blocks, across stages (Fig. 1a).

    The first block reads the stem. What a block reads from an earlier stage is subsampled and
    padded with zero channels, without parameters (ours: the paper does not say how), like the
    shortcuts of the blocks themselves ("option A"). The first block of a stage reads at the
    resolution of the stage before, so that blocks are those of the ResNet; with ``fan_in=1`` and
    ``masks='prev'`` it is the ResNet.

    The paper prints the sum of what is read. Maps then grow K times per block: with the paper's
    K = 10 and learning rate 0.1, training ends in NaN within an epoch. Here it is the mean, unless
    ``average`` is False; for K = 1 both are the same.

    Args:
        num_blocks: Blocks per stage.
        widths: Channels per stage.
        fan_in: K; a block with fewer before it reads all. None: all, but 1 for ``'prev'``.
            (``timm.create_model`` drops None: a registered network has its K then.)
        masks: ``'learned'``, or fixed: ``'prev'`` (the K latest), ``'full'``, ``'random'``.
        mask_seed: Of ``'random'``.
        average: Whether a block reads the mean of its K sources, not their sum.
        wiring: What blocks may read: nodes 0 (stem) to the last (last block), as
            :func:`timm_topo.generators.make_wiring` takes it. By default all earlier blocks.
        connectivity: Instead of the options of masks, what
            :func:`timm_topo.connectivity.build_connectivity` takes, a static rule; rules other than
            masks make sums.
        node_ids: The ids of the nodes that pruning left; by default all.
        **common: Options of every network, see :class:`timm_topo.models.base.NetworkOptions`.

    Raises:
        TypeError: An unknown option, or a description of the wrong type.
        ValueError: Numbers that disagree, options of masks beside ``connectivity``, or an unknown
            wiring, connectivity, sparsity or normalisation.
    """

    defaults: ClassVar[dict] = dict(num_classes=100)

    def __init__(
        self,
        num_blocks: int = 6,
        widths: Sequence[int] = _WIDTHS,
        fan_in: int | None = None,
        masks: str = 'learned',
        mask_seed: int = 0,
        average: bool = True,
        wiring: str | dict | Wiring | Sequence | None = None,
        connectivity: Rule = None,
        node_ids: Sequence | None = None,
        **common,
    ):
        common = self.common_options(common)
        super().__init__(common)
        check_sizes(num_blocks=num_blocks, widths=widths)
        layer = common.layer
        num_nodes = 1 + num_blocks * len(widths)
        ids = kept_ids(node_ids, num_nodes)
        (wiring,) = per_stage('wiring', _earlier(num_nodes) if wiring is None else wiring, 1)
        wiring = make_wiring(wiring, len(ids))
        masking = dict(
            fan_in=fan_in,
            masks=masks,
            seed=mask_seed,
            average=average,
        )
        check_flag('average', average)
        rule = build_connectivity(
            masking_rule(connectivity, masking, 'average'), wiring, **common.placement
        )
        self.sizes = {'num_blocks': num_blocks, 'widths': list(widths)}
        self.widths = list(widths)
        self.strides = [2**level for level in range(len(widths))]

        levels = [max(i - 1, 0) // num_blocks for i in ids]
        first = [i > 1 and (i - 1) % num_blocks == 0 for i in ids]
        reads = [level - is_first for level, is_first in zip(levels, first)]
        blocks = [
            _basic_block(*(self.widths[at] for at in ends), 2 ** (ends[1] - ends[0]), layer)
            for ends in zip(reads[1:], levels[1:])
        ]
        self.dag = CrossStageGraph(
            wiring,
            rule,
            nn.Sequential(ConvNorm(common.in_chans, widths[0], 3, 1, **layer), nn.ReLU()),
            blocks[:-1],
            levels,
            {
                (source, level): Subsample(
                    widths[levels[source]], widths[level], 2 ** (level - levels[source])
                )
                for source, level in jumps(wiring, levels, reads)
            },
            node_ids=ids,
            level_sizes=[1 + num_blocks] + [num_blocks] * (len(widths) - 1),
            reads=reads,
        )
        self.output = blocks[-1]
        self.finish(common, widths[-1])

    def topology(self) -> dict:
        return {**self.sizes, **BY_RULE, 'average': True, **super().topology()}


def _earlier(num_nodes: int) -> Wiring:
    """Every block reads all earlier blocks, the first the stem."""
    check_edges(num_nodes * (num_nodes - 1) // 2)
    pairs = [(i, j) for j in range(2, num_nodes) for i in range(1, j)]
    return Wiring(num_nodes, ((0, 1), *pairs))


def _basic_block(in_chs: int, out_chs: int, stride: int, layer: dict) -> BasicBlock:
    same = in_chs == out_chs and stride == 1
    return BasicBlock(
        in_chs,
        out_chs,
        stride,
        downsample=None if same else Subsample(in_chs, out_chs, stride),
        **layer,
    )


default_cfgs = generate_default_cfgs(
    {
        **{f'maskconnect_resnet{depth}.untrained': CIFAR_CFG for depth in (38, 74, 110)},
        'test_maskconnect_resnet.untrained': CIFAR_CFG,
    }
)


def _create(variant: str, pretrained: bool, defaults: dict, overrides: dict) -> MaskConnectResNet:
    overrides = {**overrides, **fan_in_left(overrides)}
    return create_network(
        MaskConnectResNet, variant, pretrained, defaults, overrides, levels=_levels_left
    )


def _levels_left(options: dict) -> int:
    """Stages that have blocks, pruning may leave one none; one, where the constructor refuses."""
    blocks, widths, ids = (options[name] for name in ('num_blocks', 'widths', 'node_ids'))
    try:
        ids = kept_ids(ids, 1 + blocks * len(widths))
        return len({max(i - 1, 0) // blocks for i in ids})
    except (TypeError, ValueError, ZeroDivisionError):
        return 1


def _resnet(variant: str, pretrained: bool, depth: int, fan_in: int, kwargs: dict):
    defaults: ClassVar[dict] = dict(num_blocks=(depth - 2) // 6, fan_in=fan_in)
    return _create(variant, pretrained, defaults, kwargs)


@register_model
def maskconnect_resnet38(pretrained: bool = False, **kwargs) -> MaskConnectResNet:
    """K = 10 of up to 17 earlier blocks (Table 1: 70.40% top-1, CIFAR-100; ResNet: 68.54%)."""
    return _resnet('maskconnect_resnet38', pretrained, 38, 10, kwargs)


@register_model
def maskconnect_resnet74(pretrained: bool = False, **kwargs) -> MaskConnectResNet:
    """K = 15 of up to 35 earlier blocks (Table 1: 72.81%; ResNet: 70.64%)."""
    return _resnet('maskconnect_resnet74', pretrained, 74, 15, kwargs)


@register_model
def maskconnect_resnet110(pretrained: bool = False, **kwargs) -> MaskConnectResNet:
    """K = 20 of up to 53 earlier blocks (Table 1: 73.15%; ResNet: 71.21%)."""
    return _resnet('maskconnect_resnet110', pretrained, 110, 20, kwargs)


@register_model
def test_maskconnect_resnet(pretrained: bool = False, **kwargs) -> MaskConnectResNet:
    """Minimal network for tests: 2 blocks per stage, K = 2."""
    defaults: ClassVar[dict] = dict(num_blocks=2, widths=(8, 16, 24), fan_in=2)
    return _create('test_maskconnect_resnet', pretrained, defaults, kwargs)
