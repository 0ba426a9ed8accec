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
        outputs = super().forward(batched_inputs)
        if self.training:
            outputs.update(topo_backbone(self).take_losses())
        return outputs


@META_ARCH_REGISTRY.register()
class TopoRCNN(TopologyLoss, GeneralizedRCNN):
    """Faster and Mask R-CNN."""


@META_ARCH_REGISTRY.register()
class TopoRetinaNet(TopologyLoss, RetinaNet):
    """RetinaNet."""
