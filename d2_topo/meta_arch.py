"""detectron2's detectors with the backbone's topology term among their losses."""

from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.meta_arch import GeneralizedRCNN, RetinaNet
from torch import Tensor

from .backbone import topo_backbone

__all__ = ['TopoRCNN', 'TopoRetinaNet', 'TopologyLoss']


class TopologyLoss:
    """Mixin for a detector that returns a dict of losses in training.

    Adds ``loss_topology`` (TopoNet, Eq. 6) where its :class:`TopoBackbone` has a
    ``sparsity_weight``; trainers of detectron2 sum, scale and log it like the others.
    """

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        if self.training:
            self._check_annotations(batched_inputs)
        try:
            outputs = super().forward(batched_inputs)
        finally:
            losses = topo_backbone(self).take_losses()  # a step that failed leaves none behind
        return {**outputs, **losses} if self.training else outputs

    def _check_annotations(self, batched_inputs: list[dict]) -> None:
        heads = getattr(self, 'roi_heads', None)
        for flag, field in (('mask_on', 'gt_masks'), ('keypoint_on', 'gt_keypoints')):
            given = [x['instances'] for x in batched_inputs if len(x.get('instances', ()))]
            if getattr(heads, flag, False) and not all(x.has(field) for x in given):
                kind = flag.removesuffix('_on')
                raise ValueError(
                    f'the detector has a head for {kind}s, but its training data has none: leave '
                    f'the head out (MODEL.{flag.upper()}, roi_heads.{kind}_head in a LazyConfig) '
                    'or give annotations with them'
                )


@META_ARCH_REGISTRY.register()
class TopoRCNN(TopologyLoss, GeneralizedRCNN):
    """Faster and Mask R-CNN."""


@META_ARCH_REGISTRY.register()
class TopoRetinaNet(TopologyLoss, RetinaNet):
    """RetinaNet."""
