"""MaskConnect (Ahmed & Torresani, 2018) on ResNeXts: a branch reads K branches of the block before.

After training, :func:`timm_topo.analysis.prune.prune` with threshold 0 removes what nobody reads,
exactly.
"""

import re
from collections.abc import Sequence
from typing import ClassVar

from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from ..checks import check_flag
from ..connectivity import build_connectivity
from ..generators import check_edges, make_wiring
from ..nodes import BranchBlock, ConvNorm
from ..stages import BranchGraph, layered, node_maps
from ..wiring import Wiring
from .base import ClassifierNet, create_network, imagenet_cfg, per_stage
from .levels import take_indices
from .masking import (
    BY_RULE,
    CIFAR_CFG,
    Rule,
    check_sizes,
    fan_in_left,
    kept_ids,
    masking_rule,
)

__all__ = ['MaskConnectResNeXt']


class MaskConnectResNeXt(ClassifierNet):
    """A ResNeXt each of whose branches reads K branches of the block before (Fig. 1b).

    The stem feeds every branch of the first block, and the output is the sum over all branches of
    the last (see :class:`timm_topo.nodes.BranchBlock` for the equation). Features are, per stage,
    the mean of what the branches of the next block read, with the last stage's output: for
    ``masks='full'`` those of the ResNeXt.

    Args:
        depths: Blocks per stage.
        cardinality: C, branches per block.
        base_width: w, channels inside a branch in the first stage; twice as many in each next.
        widths: Channels of the maps between blocks, per stage.
        stem_width: Channels of the stem.
        imagenet_stem: Whether the stem is a 7x7 convolution and pooling, 1/4, instead of 3x3, 1/1.
        branch_norm: Whether each branch has a norm of its own behind its last convolution, as the
            printed 0.86 M of {29,8,8} need; otherwise one norm follows the sum, as in ResNeXt.
        fan_in: K; None: all.
        masks: ``'learned'``, or fixed: ``'full'``, ``'random'``.
        mask_seed: Of ``'random'``.
        average: Whether shortcuts are averaged over the selected branches, not summed.
        wiring: An explicit graph with edges from one block to the next; by default all of those.
        connectivity: Instead of the options of masks, what
            :func:`timm_topo.connectivity.build_connectivity` takes, a static rule.
        node_ids: The ids of the nodes that pruning left; by default all.
        **common: Options of every network, see :class:`timm_topo.models.base.NetworkOptions`.

    Raises:
        TypeError: An unknown option, or a description of the wrong type.
        ValueError: As for :class:`timm_topo.models.MaskConnectResNet`; ``masks='prev'``.
    """

    defaults: ClassVar[dict] = dict(num_classes=100)

    def __init__(
        self,
        depths: Sequence[int] = (3, 3, 3),
        cardinality: int = 8,
        base_width: int = 8,
        widths: Sequence[int] = (64, 128, 256),
        stem_width: int = 64,
        imagenet_stem: bool = False,
        branch_norm: bool = True,
        fan_in: int | None = None,
        masks: str = 'learned',
        mask_seed: int = 0,
        average: bool = True,
        wiring: dict | Wiring | Sequence | None = None,
        connectivity: Rule = None,
        node_ids: Sequence | None = None,
        **common,
    ):
        common = self.common_options(common)
        super().__init__(common)
        layer = common.layer
        counts = dict(cardinality=cardinality, base_width=base_width, stem_width=stem_width)
        check_sizes(**counts, depths=depths, widths=widths)
        flags = dict(
            average=average,
            branch_norm=branch_norm,
            imagenet_stem=imagenet_stem,
        )
        for name, flag in flags.items():
            check_flag(name, flag)
        if len(depths) != len(widths):
            raise ValueError(f'{len(depths)} stages of blocks but {len(widths)} widths')
        if masks == 'prev':
            raise ValueError("masks='prev' is for blocks in a row, branches have none before them")
        block_levels = [level for level, depth in enumerate(depths) for _ in range(depth)]
        check_edges(len(block_levels) * cardinality**2)
        sizes = [cardinality] * len(block_levels)
        ids = kept_ids(node_ids, 2 + sum(sizes))
        sizes = [sum((i - 1) // cardinality == k for i in ids[1:-1]) for k in range(len(sizes))]
        (wiring,) = per_stage('wiring', layered(sizes) if wiring is None else wiring, 1)
        wiring = make_wiring(wiring, len(ids))
        masking = dict(
            fan_in=fan_in,
            masks=masks,
            seed=mask_seed,
            full_output=True,
        )
        rule = build_connectivity(
            masking_rule(connectivity, masking, 'full_output'), wiring, **common.placement
        )
        self.sizes = dict(
            counts, depths=list(depths), widths=list(widths), imagenet_stem=imagenet_stem,
            branch_norm=branch_norm, average=average,
        )  # fmt: skip

        stem = [
            ConvNorm(common.in_chans, stem_width, *((7, 2) if imagenet_stem else (3, 1)), **layer),
            nn.ReLU(inplace=True),
        ]
        if imagenet_stem:
            stem.append(nn.MaxPool2d(3, stride=2, padding=1))
        blocks, in_chs = [], stem_width
        for k, (level, branches) in enumerate(zip(block_levels, sizes)):
            begins = k > 0 and block_levels[k - 1] < level
            blocks.append(
                BranchBlock(
                    branches,
                    in_chs,
                    widths[level],
                    base_width * 2**level,
                    2 if begins else 1,
                    branch_norm=branch_norm,
                    average=average,
                    **layer,
                )
            )
            in_chs = widths[level]
        self.dag = BranchGraph(
            wiring,
            rule,
            nn.Sequential(*stem),
            blocks,
            block_levels,
            node_ids=ids,
            level_sizes=[
                depth * cardinality + (level == 0) + (level + 1 == len(depths))
                for level, depth in enumerate(depths)
            ],
        )
        stride = 4 if imagenet_stem else 1
        self.feature_info = [
            dict(
                num_chs=width,
                reduction=stride * 2**level,
                module=f'dag.nodes.{sum(depths[: level + 1]) - 1}',
            )
            for level, width in enumerate(widths)
        ]
        self.feature_info[-1]['module'] = 'dag'  # before, no module returns the feature itself
        self.finish(common, widths[-1])

    def topology(self) -> dict:
        return {**self.sizes, **BY_RULE, **super().topology()}

    def group_matcher(self, coarse: bool = False) -> dict:
        """Parameter groups for layer-wise learning rates: blocks, or stages if ``coarse``."""
        place = self.dag.block_levels if coarse else range(len(self.dag.block_levels))
        blocks = [(rf'^dag\.nodes\.{k}\.', (at,)) for k, at in enumerate(place)]
        return dict(stem=r'^dag\.entry', blocks=[*blocks, (r'^dag\.connectivity', (0,))])

    def forward_features(self, x: Tensor) -> Tensor:
        """Image ``(B, in_chans, H, W)`` -> ``(B, num_features, H / stride, W / stride)``."""
        return self.dag(x)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = 'NCHW',
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Features and intermediates: index k is stage k.

        Args:
            x: ``(B, in_chans, H, W)``.
            indices: Which: all (None), the last n (int), or a list, negative from the end.
            norm: Without effect: nothing follows the last sum.
            stop_early: Whether to stop after the last intermediate that is asked for.
            output_fmt: ``'NCHW'``.
            intermediates_only: Whether to return the intermediates alone.

        Raises:
            ValueError: Another ``output_fmt``, or an index out of range.
        """
        if output_fmt != 'NCHW':
            raise ValueError(f"output_fmt must be 'NCHW', got '{output_fmt}'")
        taken = sorted(take_indices(len(self.feature_info), indices))
        last = self.dag.block_levels[-1]
        if not taken:
            return [] if intermediates_only else (self.dag(x), [])
        if intermediates_only or stop_early:
            maps = node_maps(self.dag, x, taken)
            return maps if intermediates_only else (maps[-1], maps)
        maps = node_maps(self.dag, x, sorted({*taken, last}))
        return maps[-1], maps[: len(taken)]

    def prune_intermediate_layers(
        self,
        indices: int | list[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Drop the stages after the last index, and the head with them or if asked.

        Returns:
            The indices taken, from the start.
        """
        taken = take_indices(len(self.feature_info), indices)
        end = max(taken)
        if end + 1 < len(self.feature_info):
            self.dag.cut(end)
            self.num_features = self.feature_info[end]['num_chs']
            prune_head = True
        if prune_head:
            self.reset_classifier(0, '')
        return taken


def checkpoint_filter_fn(state_dict: dict, model: MaskConnectResNeXt) -> dict:
    """Accept weights of timm's ResNeXt of the same size, whose function ``masks='full'`` has."""
    if 'layer1.0.conv1.weight' not in state_dict:
        return state_dict
    starts = [model.dag.block_levels.index(level) for level in range(len(model.feature_info))]
    stages = {int(name[5]) for name in state_dict if re.match(r'layer\d\.', name)}
    if len(stages) != len(starts):
        raise ValueError(
            f'the weights are of a ResNeXt of {len(stages)} stages, the network has {len(starts)}'
        )

    def renamed(name: str) -> str:
        name = re.sub(r'^conv1\.', 'dag.entry.0.conv.', name)
        name = re.sub(r'^bn1\.', 'dag.entry.0.bn.', name)
        name = re.sub(r'^fc\.', 'head.fc.', name)
        name = name.replace('downsample.0', 'downsample.conv').replace(
            'downsample.1', 'downsample.bn'
        )
        return re.sub(
            r'^layer(\d+)\.(\d+)\.',
            lambda match: f'dag.nodes.{starts[int(match[1]) - 1] + int(match[2])}.',
            name,
        )

    state = {renamed(name): value for name, value in state_dict.items()}
    for name, value in state.items():
        if name.endswith('.conv3.weight'):  # one convolution over all branches -> one per branch
            branches = value.unflatten(1, (model.sizes['cardinality'], -1))
            state[name] = branches.transpose(0, 1).flatten(0, 1)
    own = model.state_dict()
    return state | {name: own[name] for name in own if name.startswith('dag.connectivity.')}


_CFG = imagenet_cfg(first_conv='dag.entry.0.conv', classifier='head.fc')

default_cfgs = generate_default_cfgs(
    {
        **{f'maskconnect_resnext29_8x{width}d.untrained': CIFAR_CFG for width in (8, 64)},
        'maskconnect_resnext50_32x4d.untrained': _CFG,
        'maskconnect_resnext101_32x4d.untrained': _CFG,
        'maskconnect_resnext101_64x4d.untrained': _CFG,
        'test_maskconnect_resnext.untrained': CIFAR_CFG,
    }
)


def _create(variant: str, pretrained: bool, defaults: dict, overrides: dict) -> MaskConnectResNeXt:
    if overrides.get('feature_cls', 'getter') != 'getter':
        raise ValueError(
            f"features of {variant} come from feature_cls='getter', not "
            f'{overrides["feature_cls"]!r}: no module returns what lies between two blocks'
        )
    return create_network(
        MaskConnectResNeXt,
        variant,
        pretrained,
        defaults,
        {**overrides, **fan_in_left(overrides)},
        levels=_levels,
        pretrained_filter_fn=checkpoint_filter_fn,
    )


def _levels(options: dict) -> int:
    """Stages; one, where the constructor will refuse."""
    widths = options['widths']
    return len(widths) if isinstance(widths, (list, tuple)) else 1


def _imagenet(depths: tuple[int, ...], cardinality: int) -> dict:
    """{50,4,32} and so on, with the half of the branches that Table 3 has."""
    return dict(
        depths=depths, cardinality=cardinality, base_width=4, widths=(256, 512, 1024, 2048),
        num_classes=1000,        imagenet_stem=True, branch_norm=False, fan_in=cardinality // 2,
    )  # fmt: skip


@register_model
def maskconnect_resnext29_8x8d(pretrained: bool = False, **kwargs) -> MaskConnectResNeXt:
    """{29,8,8}, K = 4 (Table 2: 75.89% top-1, CIFAR-100; K = 1 73.91%, full 73.52%)."""
    return _create('maskconnect_resnext29_8x8d', pretrained, dict(fan_in=4), kwargs)


@register_model
def maskconnect_resnext29_8x64d(pretrained: bool = False, **kwargs) -> MaskConnectResNeXt:
    """{29,64,8}, K = 4 (Table 2: 84.05%; K = 1 82.31%, full 82.23%)."""
    defaults: ClassVar[dict] = dict(base_width=64, widths=(256, 512, 1024), fan_in=4)
    return _create('maskconnect_resnext29_8x64d', pretrained, defaults, kwargs)


@register_model
def maskconnect_resnext50_32x4d(pretrained: bool = False, **kwargs) -> MaskConnectResNeXt:
    """{50,4,32}, K = 16 (Table 3: 79.1% top-1, ImageNet; full 77.8%)."""
    defaults = _imagenet((3, 4, 6, 3), 32)
    return _create('maskconnect_resnext50_32x4d', pretrained, defaults, kwargs)


@register_model
def maskconnect_resnext101_32x4d(pretrained: bool = False, **kwargs) -> MaskConnectResNeXt:
    """{101,4,32}, K = 16 (Table 3: 79.5%; full 78.8%)."""
    defaults = _imagenet((3, 4, 23, 3), 32)
    return _create('maskconnect_resnext101_32x4d', pretrained, defaults, kwargs)


@register_model
def maskconnect_resnext101_64x4d(pretrained: bool = False, **kwargs) -> MaskConnectResNeXt:
    """{101,4,64}, K = 32 (Table 3: 79.8%; full 79.6%)."""
    defaults = _imagenet((3, 4, 23, 3), 64)
    return _create('maskconnect_resnext101_64x4d', pretrained, defaults, kwargs)


@register_model
def test_maskconnect_resnext(pretrained: bool = False, **kwargs) -> MaskConnectResNeXt:
    """Minimal network for tests: 2 blocks of 4 branches per stage, K = 2."""
    defaults: ClassVar[dict] = dict(
        depths=(2, 2, 2), cardinality=4, base_width=4, widths=(16, 24, 32), stem_width=8, fan_in=2
    )  # fmt: skip
    return _create('test_maskconnect_resnext', pretrained, defaults, kwargs)
