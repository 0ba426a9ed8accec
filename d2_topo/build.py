"""Backbones by yaml configs."""

from collections.abc import Sequence
from functools import partial

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, META_ARCH_REGISTRY, SimpleFeaturePyramid
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from detectron2.modeling.meta_arch import (
    FCOS,
    GeneralizedRCNN,
    PanopticFPN,
    RetinaNet,
    SemanticSegmentor,
)

from timm_topo.checkpoint import migrate

from .backbone import TopoBackbone
from .data import check_categories
from .engine import Settings
from .meta_arch import DETECTORS, TopologyLoss

__all__ = [
    'build_fcos_topo_fpn_backbone',
    'build_retinanet_topo_fpn_backbone',
    'build_topo_backbone',
    'build_topo_fpn_backbone',
    'build_topo_simple_fpn_backbone',
]


@BACKBONE_REGISTRY.register()
def build_topo_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TopoBackbone:
    """The backbone of ``MODEL.TOPO`` (``add_topo_config``), without FPN.

    Raises:
        ValueError: See :class:`TopoBackbone`; or a ``SPARSITY_WEIGHT`` with a meta architecture
            that would not take the loss.
    """
    if not hasattr(cfg.MODEL, 'TOPO'):
        raise ValueError('the config has no MODEL.TOPO: call add_topo_config(cfg) first')
    topo = cfg.MODEL.TOPO
    detector = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)
    if topo.SPARSITY_WEIGHT and not issubclass(detector, TopologyLoss):
        raise ValueError(
            f'MODEL.TOPO.SPARSITY_WEIGHT={topo.SPARSITY_WEIGHT:g} needs MODEL.META_ARCHITECTURE '
            f'{", ".join(kind.__name__ for kind in DETECTORS.values())} or another TopologyLoss, '
            f'got {cfg.MODEL.META_ARCHITECTURE}'
        )
    options = dict(
        norm=topo.NORM,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        pretrained=topo.PRETRAINED,
        activation_checkpoint=topo.ACTIVATION_CHECKPOINT,
        decay_edges=topo.DECAY_EDGES,
        layer_decay=topo.LAYER_DECAY,
        sparsity_weight=topo.SPARSITY_WEIGHT,
        sparsity=topo.SPARSITY or None,
        pixel_mean=cfg.MODEL.PIXEL_MEAN,
        pixel_std=cfg.MODEL.PIXEL_STD,
        input_format=cfg.INPUT.FORMAT,
    )
    twice = sorted(options.keys() & topo.KWARGS.keys())
    if twice:
        raise ValueError(f'MODEL.TOPO.KWARGS has {twice}, for which there are keys of their own')
    network = {'architecture': topo.NAME, 'model_args': dict(topo.KWARGS)}
    network = migrate(network, topo.FORMAT, 'MODEL.TOPO')
    body = TopoBackbone(
        network['architecture'], topo.OUT_FEATURES, **options, **network['model_args']
    )
    body.register_forward_pre_hook(
        partial(_check_training, cfg.DATASETS.TRAIN, _categories(cfg), Settings.of(cfg))
    )
    return body


def _categories(cfg: CfgNode) -> dict[str, int]:
    """How many categories a detector has, as :func:`check_categories` calls them."""
    detector, found = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE), {}
    if issubclass(detector, GeneralizedRCNN):
        found['num_classes'] = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    if issubclass(detector, (RetinaNet, FCOS)):
        found['num_classes'] = cfg.MODEL.RETINANET.NUM_CLASSES
    if issubclass(detector, (PanopticFPN, SemanticSegmentor)):
        found['num_stuff'] = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    return found


def _check_training(
    names: Sequence[str], categories: dict[str, int], settings: Settings, body: TopoBackbone, _
) -> None:
    """Before every step: by then the data sets were loaded, by whichever script and trainer."""
    if not body.training:
        return
    check_categories(names, **categories)
    if settings.extra and body.settings != settings:
        raise ValueError(
            f"detectron2's trainers do not know SOLVER.ACCUMULATE, EMA_DECAY and AMP.PRECISION "
            f'({settings}): train with python -m d2_topo.train_net'
        )


@BACKBONE_REGISTRY.register()
def build_topo_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """The backbone of ``MODEL.TOPO`` with an FPN; p6 by subsampling, for RPN."""
    needed = cfg.MODEL.FPN.IN_FEATURES  # p6 is made of p5
    return _fpn(cfg, input_shape, needed, lambda shapes, channels: LastLevelMaxPool())


@BACKBONE_REGISTRY.register()
def build_retinanet_topo_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """The backbone of ``MODEL.TOPO`` with an FPN; p6 and p7 by convolutions on ``res5``."""
    needed = cfg.MODEL.TOPO.OUT_FEATURES
    return _fpn(
        cfg, input_shape, needed,
        lambda shapes, channels: LastLevelP6P7(shapes['res5'].channels, channels),
    )  # fmt: skip


@BACKBONE_REGISTRY.register()
def build_fcos_topo_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """The backbone of ``MODEL.TOPO`` with an FPN; p6 and p7 by convolutions on p5."""
    needed = cfg.MODEL.FPN.IN_FEATURES
    return _fpn(
        cfg, input_shape, needed, lambda shapes, channels: LastLevelP6P7(channels, channels, 'p5')
    )


@BACKBONE_REGISTRY.register()
def build_topo_simple_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> SimpleFeaturePyramid:
    """A plain ViT of timm as ``MODEL.TOPO`` with ViTDet's simple pyramid, p2 to p6."""
    net = build_topo_backbone(cfg, input_shape)
    if [shape.stride for shape in net.output_shape().values()] != [16]:
        raise ValueError(
            f'the simple pyramid is made of one map of stride 16, MODEL.TOPO.OUT_FEATURES [res4]; '
            f'got {list(net.output_shape())} of {net.name}'
        )
    return SimpleFeaturePyramid(
        net,
        'res4',
        cfg.MODEL.FPN.OUT_CHANNELS,
        scale_factors=(4.0, 2.0, 1.0, 0.5),
        top_block=LastLevelMaxPool(),
        norm=cfg.MODEL.FPN.NORM,
    )


def _fpn(cfg: CfgNode, input_shape: ShapeSpec, coarsest_of: Sequence[str], top_block) -> FPN:
    bottom_up = build_topo_backbone(cfg, input_shape)
    shapes = bottom_up.output_shape()
    unknown = [name for name in cfg.MODEL.FPN.IN_FEATURES if name not in shapes]
    if unknown or 'res5' not in coarsest_of:
        raise ValueError(
            f'MODEL.FPN.IN_FEATURES {cfg.MODEL.FPN.IN_FEATURES} must be among '
            f'MODEL.TOPO.OUT_FEATURES {list(shapes)}, with res5 for the coarsest levels'
        )
    return FPN(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=top_block(shapes, cfg.MODEL.FPN.OUT_CHANNELS),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
