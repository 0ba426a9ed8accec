"""detectron2's detectors with the backbone's topology term among their losses."""

from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.modeling.meta_arch import (
    FCOS,
    GeneralizedRCNN,
    PanopticFPN,
    RetinaNet,
    SemanticSegmentor,
)
from detectron2.modeling.meta_arch.fcos import FCOSHead
from torch import Tensor

from .backbone import topo_backbone

__all__ = [
    'DETECTORS',
    'TopoFCOS',
    'TopoPanopticFPN',
    'TopoRCNN',
    'TopoRetinaNet',
    'TopoSemanticSegmentor',
    'TopologyLoss',
]


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
    """Faster, Mask, Keypoint and Cascade R-CNN."""


@META_ARCH_REGISTRY.register()
class TopoRetinaNet(TopologyLoss, RetinaNet):
    """RetinaNet."""


@META_ARCH_REGISTRY.register()
class TopoPanopticFPN(TopologyLoss, PanopticFPN):
    """Panoptic FPN."""


@META_ARCH_REGISTRY.register()
class TopoSemanticSegmentor(TopologyLoss, SemanticSegmentor):
    """Semantic FPN."""


@META_ARCH_REGISTRY.register()
class TopoFCOS(TopologyLoss, FCOS):
    """FCOS, in yaml too: by the keys of ``MODEL.RETINANET``, as detectron2 has none for it."""

    @configurable
    def __init__(self, **kwargs):
        super().__init__(**kwargs)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        keys, backbone = cfg.MODEL.RETINANET, build_backbone(cfg)
        shapes = [backbone.output_shape()[name] for name in keys.IN_FEATURES]
        head = FCOSHead(
            input_shape=shapes,
            num_classes=keys.NUM_CLASSES,
            conv_dims=[shapes[0].channels] * keys.NUM_CONVS,
            prior_prob=keys.PRIOR_PROB,
            norm=keys.NORM,
        )
        return dict(
            backbone=backbone,
            head=head,
            head_in_features=keys.IN_FEATURES,
            num_classes=keys.NUM_CLASSES,
            focal_loss_alpha=keys.FOCAL_LOSS_ALPHA,
            focal_loss_gamma=keys.FOCAL_LOSS_GAMMA,
            test_score_thresh=keys.SCORE_THRESH_TEST,
            test_topk_candidates=keys.TOPK_CANDIDATES_TEST,
            test_nms_thresh=keys.NMS_THRESH_TEST,
            max_detections_per_image=cfg.TEST.DETECTIONS_PER_IMAGE,
            pixel_mean=cfg.MODEL.PIXEL_MEAN,
            pixel_std=cfg.MODEL.PIXEL_STD,
        )


#: The detector with the topology term, by detectron2's class.
DETECTORS = {
    GeneralizedRCNN: TopoRCNN,
    RetinaNet: TopoRetinaNet,
    PanopticFPN: TopoPanopticFPN,
    SemanticSegmentor: TopoSemanticSegmentor,
    FCOS: TopoFCOS,
}
