"""One graph over all resolutions (Janik & Nowak, 2020, arXiv:2006.12195).

``dagnet60`` is the paper's: a complete DAG of 60 nodes in three stages whose edges weigh tanh(w)
under an L1 penalty. After training, :func:`timm_topo.analysis.prune.prune` with threshold 0.006
leaves the network its data set needs.
"""

from collections.abc import Sequence
from typing import Callable, List, Optional, Tuple, Union

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from ..connectivity import build_connectivity
from ..generators import is_explicit, make_wiring
from ..nodes import ConvResidualNode
from ..sparsity import check_sparsity, check_sparsity_weight
from ..stages import CrossStageGraph, jumps
from ..wiring import Wiring
from .base import ClassifierNet, imagenet_cfg, norm_class, per_stage
from .levels import take_indices

__all__ = ['DagNet']

#: The paper's rule; with weights on sole in-edges the parameters would not be those printed.
_TANH = {'name': 'tanh', 'weigh_sole': False}


class DagNet(ClassifierNet):
    """One graph from the image to the last feature map, then pooling and classifier (section 3).

    Nodes are spread evenly over the stages, each with half the resolution and twice the channels
    of the one before. All nodes are :class:`timm_topo.nodes.ConvResidualNode`, the first reads the
    image, and so are the transitions to later stages. The last node, unlike that of a TopoNet
    stage, computes as well.

    Features are the maps of the last node of each stage, for lack of a better place: other edges
    pass them by.

    Args:
        num_nodes: Nodes, input and output included: the paper's 60.
        num_stages: Resolutions; divides ``num_nodes``.
        channels: C, channels of the first stage.
        input_stride: Stride of the first node.
        wiring: What :func:`timm_topo.generators.make_wiring` takes.
        connectivity: What :func:`timm_topo.connectivity.build_connectivity` takes, a static rule.
        node_ids: The ids of the nodes that pruning left, 0 and ``num_nodes - 1`` among them; by
            default all.
        sparsity: ``'none'``, ``'uniform'`` or ``'adaptive'``: the L1 that training adds.
        sparsity_weight: Its lambda.
        in_chans: Channels of the image.
        num_classes: Classes; 0 for pooled features.
        global_pool: Pooling, as in ``timm.layers.ClassifierHead``.
        drop_rate: Dropout before the classifier.
        norm_layer: Normalisation, a class or a name that timm knows.
        device: Where parameters live.
        dtype: Their type.

    Raises:
        TypeError: An unknown option, or a description of the wrong type.
        ValueError: Nodes that the stages do not divide, numbers that disagree, or an unknown
            wiring, connectivity, sparsity or normalisation.
    """

    def __init__(
        self,
        num_nodes: int = 60,
        num_stages: int = 3,
        channels: int = 11,
        input_stride: int = 1,
        wiring: Union[str, dict, Wiring, Sequence] = 'complete',
        connectivity: Union[str, dict, type, Sequence] = _TANH,
        node_ids: Optional[Sequence] = None,
        sparsity: str = 'uniform',
        sparsity_weight: float = 1e-3,
        in_chans: int = 3,
        num_classes: int = 10,
        global_pool: str = 'avg',
        drop_rate: float = 0.0,
        norm_layer: Union[str, Callable[..., nn.Module]] = 'batchnorm2d',
        device=None,
        dtype=None,
    ):
        super().__init__()
        sizes = dict(num_nodes=num_nodes, num_stages=num_stages, channels=channels)
        for name, size in {**sizes, 'input_stride': input_stride}.items():
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise ValueError(f'{name} must be an integer from 1 on, got {size!r}')
        if num_nodes % num_stages:
            raise ValueError(f'num_nodes={num_nodes} is not divisible by num_stages={num_stages}')
        (spec,), (rule,) = (
            per_stage('wiring', wiring, 1),
            per_stage('connectivity', connectivity, 1),
        )
        wiring = make_wiring(spec, num_nodes if node_ids is None else None)
        ids = list(range(num_nodes)) if node_ids is None else _only(node_ids)
        if ids[0] != 0 or ids[-1] != num_nodes - 1:
            raise ValueError(f'node_ids must lead from 0 to {num_nodes - 1}, got {ids}')
        dd = {'device': device, 'dtype': dtype}
        node = dict(norm_layer=norm_class(norm_layer), **dd)
        self.sizes = {**sizes, 'input_stride': input_stride}
        self.in_chans = in_chans
        self.sparsity = check_sparsity(sparsity)
        self.sparsity_weight = check_sparsity_weight(sparsity_weight)

        levels = [i // (num_nodes // num_stages) for i in ids]
        widths = [channels * 2**level for level in levels]
        if len(ids) != wiring.num_nodes:
            raise ValueError(f'{wiring} needs as many node_ids, got {ids}')
        self.dag = CrossStageGraph(
            wiring,
            build_connectivity(rule, wiring, **dd),
            ConvResidualNode(in_chans, widths[0], input_stride, **node),
            [ConvResidualNode(width, width, **node) for width in widths[1:-1]],
            levels,
            {
                (source, level): ConvResidualNode(
                    widths[source], channels * 2**level, 2 ** (level - levels[source]), **node
                )
                for source, level in jumps(wiring, levels)
            },
            node_ids=ids,
        )
        self.output = ConvResidualNode(widths[-1], widths[-1], **node)
        self.num_features = widths[-1]
        self.set_head(num_classes, global_pool, drop_rate, **dd)
        self.init_weights()

    @property
    @torch.jit.unused
    def ends(self) -> list[int]:
        """The last node of each stage; pruning may leave a stage none."""
        return sorted({level: node for node, level in enumerate(self.dag.levels)}.values())

    @property
    @torch.jit.unused
    def feature_info(self) -> list[dict]:
        """Channels, stride and module of each feature, as timm keeps them."""
        channels, stride, last = self.sizes['channels'], self.sizes['input_stride'], self.ends[-1]
        modules = {0: 'dag.entry', last: 'output'}
        return [
            dict(
                num_chs=channels * 2 ** self.dag.levels[node],
                reduction=stride * 2 ** self.dag.levels[node],
                module=modules.get(node, f'dag.nodes.{node - 1}'),
            )
            for node in self.ends
        ]

    @torch.jit.ignore
    def topology(self) -> dict:
        return {**self.sizes, **super().topology()}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict:
        """Parameter groups for layer-wise learning rates: nodes, or stages if ``coarse``."""
        place = self.dag.levels if coarse else range(len(self.dag.levels))
        blocks = [(rf'^dag\.nodes\.{i}\.', (place[i + 1],)) for i in range(len(place) - 2)]
        for k, source in enumerate(self.dag.jump_from):
            blocks.append((rf'^dag\.transitions\.{k}\.', (place[source],)))
        blocks += [(r'^dag\.connectivity', (0,)), (r'^output', (place[-1],))]
        return dict(stem=r'^dag\.entry', blocks=blocks)

    def forward_features(self, x: Tensor) -> Tensor:
        """Image ``(B, in_chans, H, W)`` -> the map of the last node."""
        return self.output(self.dag(x))

    @torch.jit.ignore
    def forward_intermediates(
        self,
        x: Tensor,
        indices: Optional[Union[int, List[int]]] = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = 'NCHW',
        intermediates_only: bool = False,
    ) -> Union[List[Tensor], Tuple[Tensor, List[Tensor]]]:
        """Features and intermediates: index k is the last node of the k-th stage.

        Args:
            x: ``(B, in_chans, H, W)``.
            indices: Which: all (None), the last n (int), or a list, negative from the end.
            norm: Without effect: nothing follows the last node.
            stop_early: Without effect: one graph runs as a whole (see
                :meth:`prune_intermediate_layers`).
            output_fmt: ``'NCHW'``.
            intermediates_only: Whether to return the intermediates alone.

        Raises:
            ValueError: Another ``output_fmt``, or an index out of range.
        """
        if output_fmt != 'NCHW':
            raise ValueError(f"output_fmt must be 'NCHW', got '{output_fmt}'")
        taken = take_indices(len(self.ends), indices)
        maps = self.dag.maps(x)
        x = self.output(maps[-1])
        features = [maps[self.dag.own[node]] for node in self.ends[:-1]] + [x]
        intermediates = [feature for k, feature in enumerate(features) if k in taken]
        return intermediates if intermediates_only else (x, intermediates)

    @torch.jit.ignore
    def prune_intermediate_layers(
        self,
        indices: Union[int, List[int]] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> List[int]:
        """Drop what the last feature asked for does not read, and the head if asked.

        Nothing is dropped where another of the features would go with it, or where the feature is
        the first node's.

        Returns:
            The indices taken, from the start.
        """
        taken = take_indices(len(self.ends), indices)
        end = self.ends[max(taken)]
        cut = False
        if 0 < end < self.ends[-1]:
            part = self.dag.until(end)
            ids = [self.dag.node_ids[self.ends[k]] for k in taken]
            cut = set(ids) <= set(part.node_ids)
            if cut:
                self.output, self.dag = self.dag.nodes[end - 1], part
                self.num_features = self.feature_info[-1]['num_chs']
        if prune_head or cut:
            self.reset_classifier(0, '')
        return taken


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


def _dagnet(variant: str, pretrained: bool, defaults: dict, overrides: dict) -> DagNet:
    kwargs = {'num_stages': 3, 'num_classes': 10, **defaults, **overrides}
    explicit = overrides.get('wiring')
    if not {'num_nodes', 'node_ids'} & set(overrides) and is_explicit(explicit):
        kwargs['num_nodes'] = make_wiring(per_stage('wiring', explicit, 1)[0]).num_nodes
    return build_model_with_cfg(
        DagNet,
        variant,
        pretrained,
        feature_cfg=dict(feature_cls='getter', out_indices=tuple(range(kwargs['num_stages']))),
        **kwargs,
    )


@register_model
def dagnet(pretrained: bool = False, **kwargs) -> DagNet:
    """A complete DAG of ``num_nodes`` in ``num_stages`` from ``channels`` on; any wiring."""
    return _dagnet('dagnet', pretrained, dict(num_nodes=60, channels=11), kwargs)


@register_model
def dagnet60(pretrained: bool = False, **kwargs) -> DagNet:
    """The paper's network: 863.3k parameters, as a ResNet-56 has (section 4)."""
    return _dagnet('dagnet60', pretrained, dict(num_nodes=60, channels=11), kwargs)


@register_model
def test_dagnet(pretrained: bool = False, **kwargs) -> DagNet:
    """Minimal network for tests, of 12 nodes as in the paper's Fig. 1b."""
    return _dagnet('test_dagnet', pretrained, dict(num_nodes=12, channels=8), kwargs)
