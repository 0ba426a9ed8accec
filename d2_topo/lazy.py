"""What LazyConfig files are written with."""

import importlib.resources
from collections.abc import Sequence

from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig
from omegaconf import DictConfig

from .backbone import TopoBackbone
from .meta_arch import DETECTORS

__all__ = ['with_topo_backbone', 'zoo']


def zoo(name: str, keys=None):
    """A LazyConfig that detectron2 ships, such as ``'common/models/mask_rcnn_fpn.py'``.

    As ``model_zoo.get_config``, which does not import where setuptools is 82 or newer.

    Args:
        name: Path below detectron2's ``configs``.
        keys: Name, or names, of what to take from it.

    Raises:
        FileNotFoundError: detectron2 ships no such config.
    """
    path = importlib.resources.files('detectron2') / 'model_zoo' / 'configs' / name
    if not path.is_file():
        raise FileNotFoundError(f'detectron2 ships no config {name!r} (looked for {path})')
    return LazyConfig.load(str(path), keys)


def with_topo_backbone(
    model: DictConfig, name: str = 'toponet_adaptive', out_features: Sequence[str] | None = None,
    **options,
) -> DictConfig:  # fmt: skip
    """A detector with a network of ours or timm's in place of detectron2's, in place.

    It sees images as timm's networks do (RGB, ImageNet's mean and std), and has the topology term
    where ``sparsity_weight`` asks for it.

    Args:
        model: Of a LazyConfig: an FPN with its ``bottom_up``, or ViTDet's simple pyramid.
        name: Of the network, see :class:`TopoBackbone`.
        out_features: Of the network; by default those of the backbone that goes, or ``res4``, the
            only one that a plain ViT has, for the simple pyramid.
        **options: More of :class:`TopoBackbone`, instead of frozen norms, stem and ``res2``.

    Raises:
        ValueError: The detector's backbone has another form.
    """
    parts = [part for part in ('bottom_up', 'net') if part in model.backbone]
    if not parts:
        kind = getattr(model.backbone._target_, '__name__', model.backbone._target_)
        raise ValueError(
            f'the backbone of this detector is a {kind} without a pyramid (bottom_up of an FPN, '
            'net of a SimpleFeaturePyramid), whose heads fit its own channels: take one with FPN'
        )
    [part] = parts
    if part == 'net':
        model.backbone.in_feature = 'res4'
        options = {'freeze_at': 0, 'dynamic_img_size': True, **options}
    model._target_ = DETECTORS.get(model._target_, model._target_)
    model.pixel_mean = [123.675, 116.28, 103.53]  # timm's ImageNet, RGB
    model.pixel_std = [58.395, 57.12, 57.375]
    if 'input_format' in model:  # FCOS has none
        model.input_format = 'RGB'
    model.backbone[part] = L(TopoBackbone)(
        name=name,
        out_features=out_features
        or (['res4'] if part == 'net' else model.backbone[part].out_features),
        pixel_mean='${...pixel_mean}',
        pixel_std='${...pixel_std}',
        input_format='${...input_format}' if 'input_format' in model else 'RGB',
        **{'norm': 'FrozenBN', 'freeze_at': 2, 'sparsity_weight': 0.0, **options},
    )
    return model
