"""Networks that are one graph over several resolutions, whatever their nodes are."""

from torch import Tensor

from ..stages import node_maps, until_node
from .base import ClassifierNet
from .layer_groups import blocks_of, layer_groups
from .levels import take_indices

__all__ = ['CrossStageNet']


class CrossStageNet(ClassifierNet):
    """One graph from the image to the last feature map, then pooling and classifier.

    Features are the maps of the last node of each stage, for lack of a better place: other edges
    pass them by. Pruning may leave a stage without nodes, and so without a feature.

    A subclass makes ``dag``, a :class:`timm_topo.stages.CrossStageGraph`; ``output``, the module
    behind its last weighted sum; and ``widths`` and ``strides``, channels and reduction per stage.
    """

    @property
    def ends(self) -> list[int]:
        """The last node of each stage; pruning may leave a stage none."""
        return sorted({level: node for node, level in enumerate(self.dag.levels)}.values())

    @property
    def feature_info(self) -> list[dict]:
        """Channels, stride and module of each feature, as timm keeps them."""
        modules = {0: 'dag.entry', self.ends[-1]: 'output'}
        return [
            dict(
                num_chs=self.widths[self.dag.levels[node]],
                reduction=self.strides[self.dag.levels[node]],
                module=modules.get(node, f'dag.nodes.{node - 1}'),
            )
            for node in self.ends
        ]

    def group_matcher(self, coarse: bool = False) -> dict:
        """Parameter groups for layer-wise learning rates: layers, or stages if ``coarse``."""
        place = self.dag.levels
        if not coarse:
            most = blocks_of([*self.dag.nodes, self.output])
            place = [0, *layer_groups(self.dag.wiring, range(1, len(place)), most)]
        blocks = [(rf'^dag\.nodes\.{i}\.', (place[i + 1],)) for i in range(len(place) - 2)]
        for k, (source, _) in enumerate(self.dag.jumps):
            blocks.append((rf'^dag\.transitions\.{k}\.', (place[source],)))
        blocks += [(r'^dag\.connectivity', (0,)), (r'^output', (place[-1],))]
        return dict(stem=r'^dag\.entry', blocks=blocks)

    def forward_features(self, x: Tensor) -> Tensor:
        """Image ``(B, in_chans, H, W)`` -> ``(B, num_features, H / stride, W / stride)``."""
        return self.output(self.dag(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = 'NCHW',
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Features and intermediates: index k is the k-th stage that has nodes, its last node.

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
        maps = node_maps(self.dag, x)
        x = self.output(maps[-1])
        places = self.dag.places
        features = [maps[places[node, self.dag.levels[node]]] for node in self.ends[:-1]] + [x]
        intermediates = [feature for k, feature in enumerate(features) if k in taken]
        return intermediates if intermediates_only else (x, intermediates)

    def prune_intermediate_layers(
        self,
        indices: int | list[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Drop what the last feature asked for does not read, and the head with it or if asked.

        Nothing is dropped where another of the features would go with it, or where the feature is
        the first node's.

        Returns:
            The indices taken, from the start.
        """
        taken = take_indices(len(self.ends), indices)
        end = self.ends[max(taken)]
        cut = False
        if 0 < end < self.ends[-1]:
            part = until_node(self.dag, end)
            ids = [self.dag.node_ids[self.ends[k]] for k in taken]
            cut = set(ids) <= set(part.node_ids)
            if cut:
                self.output, self.dag = self.dag.nodes[end - 1], part
                self.num_features = self.widths[self.dag.levels[-1]]
        if prune_head or cut:
            self.reset_classifier(0, '')
        return taken
