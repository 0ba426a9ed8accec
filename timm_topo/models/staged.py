"""Networks that are a stem and one graph stage after the other, whatever their nodes are."""

from torch import Tensor, nn

from .base import ClassifierNet
from .layer_groups import blocks_of, layer_groups
from .levels import take_indices

__all__ = ['StagedNet']


class StagedNet(ClassifierNet):
    """Stem, graph stages, final activation, pooling, linear classifier.

    A subclass makes ``stem``; ``stages``, :class:`timm_topo.stages.GraphStage` in a Sequential;
    ``act`` behind the last; ``final``, what else the head has before pooling, or the identity; and
    ``feature_info``, of the stem and of every stage.
    """

    def topology(self) -> dict:
        num_nodes = [stage.wiring.num_nodes for stage in self.stages]
        return {'num_nodes': num_nodes, **super().topology()}

    def group_matcher(self, coarse: bool = False) -> dict:
        """Parameter groups for layer-wise learning rates: stem, then stages or their layers."""
        if coarse:
            return dict(stem=r'^stem', blocks=r'^stages\.(\d+)')
        blocks = []
        for k, stage in enumerate(self.stages):
            inner = range(1, stage.wiring.num_nodes - 1)
            layers = layer_groups(stage.wiring, inner, blocks_of(stage.nodes))
            blocks += [(rf'^stages\.{k}\.nodes\.{i}\.', (k, at)) for i, at in enumerate(layers)]
            blocks.append((rf'^stages\.{k}\.(?!nodes\.)', (k, 0)))
        return dict(stem=r'^stem', blocks=blocks)

    def forward_features(self, x: Tensor) -> Tensor:
        """Image ``(B, in_chans, H, W)`` -> ``(B, num_features, H / stride, W / stride)``."""
        return self.final(self.act(self.stages(self.stem(x))))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = 'NCHW',
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Features and intermediates: index 0 is the stem, index k the output of stage k.

        Args:
            x: ``(B, in_chans, H, W)``.
            indices: Which: all (None), the last n (int), or a list, negative from the end.
            norm: Whether the last stage's intermediate passes the final ReLU.
            stop_early: Whether to stop after the last intermediate that is asked for; the features
                are that one then, activated.
            output_fmt: ``'NCHW'``.
            intermediates_only: Whether to return the intermediates alone.

        Raises:
            ValueError: Another ``output_fmt``, or an index out of range.
        """
        if output_fmt != 'NCHW':
            raise ValueError(f"output_fmt must be 'NCHW', got '{output_fmt}'")
        last = len(self.stages)
        taken = take_indices(1 + last, indices)
        stages = self.stages[: max(taken)] if stop_early else self.stages
        x = self.stem(x)
        intermediates = [x] if 0 in taken else []
        for i, stage in enumerate(stages):
            x = stage(x)
            if i + 1 in taken:
                intermediates.append(self.act(x) if norm and i + 1 == last else x)
        if intermediates_only:
            return intermediates
        x = self.act(x)
        if len(stages) == last:
            x = self.final(x)
        return x, intermediates

    def prune_intermediate_layers(
        self,
        indices: int | list[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Drop the stages after the last index, and the final ReLU and the head if asked.

        What widens the features for the classifier is part of the head.

        Returns:
            The indices taken, from the start.
        """
        taken = take_indices(1 + len(self.stages), indices)
        end = max(taken)
        cut = end < len(self.stages)
        self.stages = self.stages[:end]
        if prune_norm or cut:
            self.act = nn.Identity()
        if prune_head or cut:
            self.final = nn.Identity()
            self.num_features = self.feature_info[end]['num_chs']
            self.reset_classifier(0, '')
        return taken
