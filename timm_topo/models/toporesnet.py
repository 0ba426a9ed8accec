"""ResNets for CIFAR (He et al., 2016): as they are, and as complete graphs (TopoNet, section 4.1).

A ResNet-D has D - 2 convolutions of 3x3 in three stages. ``resnet_cifar{D}`` is that network, made
of timm's blocks, and ``resnetv2_cifar{D}`` its pre-activation form, which can be re-wired exactly.
In ``toporesnet{D}`` every such convolution is one node of a complete graph with learned edge
weights; parameters and multiply-adds stay those of the ResNet.
"""

from timm.layers import BatchNormAct2d, create_conv2d
from timm.models import (
    ByoBlockCfg,
    ByobNet,
    ByoModelCfg,
    ResNetV2,
    build_model_with_cfg,
    generate_default_cfgs,
    register_model,
)
from torch import nn

from .base import imagenet_cfg
from .toponet import TopoNet, create_toponet

__all__ = ['ResNetCifar', 'ResNetV2Cifar']

_WIDTHS = (16, 32, 64)


class ResNetCifar(ByobNet):
    """timm's ByobNet with a stem that keeps the resolution, 1/1 instead of 1/2.

    Args:
        cfg: Blocks, as for ``timm.models.ByobNet``.
        output_stride: Largest reduction; the network's own is 4, with less its stages dilate.
        **kwargs: As for ``timm.models.ByobNet``.
    """

    def __init__(self, cfg: ByoModelCfg, output_stride: int = 32, **kwargs):
        super().__init__(cfg, output_stride=2 * output_stride, **kwargs)
        self.stem.conv.stride = (1, 1)
        for info in self.feature_info:
            info['reduction'] //= 2


class ResNetV2Cifar(ResNetV2):
    """timm's ResNetV2 of basic blocks with a 3x3 stem that keeps the resolution, 1/1 not 1/4.

    Args:
        in_chans: Channels of the image.
        output_stride: Largest reduction; the network's own is 4, with less its stages dilate.
        zero_init_last: Whether branches start at zero.
        device: Where parameters live.
        dtype: Their type.
        **kwargs: As for ``timm.models.ResNetV2``.
    """

    def __init__(
        self,
        in_chans: int = 3,
        output_stride: int = 32,
        zero_init_last: bool = True,
        device=None,
        dtype=None,
        **kwargs,
    ):
        dd = {'device': device, 'dtype': dtype}
        super().__init__(
            in_chans=in_chans,
            output_stride=4 * output_stride,
            stem_chs=_WIDTHS[0],
            basic=True,
            bottle_ratio=1.0,
            conv_layer=create_conv2d,
            norm_layer=BatchNormAct2d,
            **dd,
            **kwargs,
        )
        self.stem.conv = create_conv2d(in_chans, _WIDTHS[0], 3, **dd)
        self.stem.pool = nn.Identity()
        for level, info in enumerate(self.feature_info):
            info['reduction'] //= 4 if level else 2
        self.init_weights(zero_init_last)


_CFG = imagenet_cfg(
    input_size=(3, 32, 32), pool_size=(8, 8), num_classes=100, crop_pct=1.0,
    mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762),  # CIFAR-100
    first_conv='stem.conv', classifier='head.fc',
)  # fmt: skip
_DEPTHS = (20, 32, 44, 56, 110)

default_cfgs = generate_default_cfgs(
    {
        **{f'resnet_cifar{d}.untrained': _CFG for d in _DEPTHS},
        **{f'resnetv2_cifar{d}.untrained': _CFG for d in _DEPTHS},
        **{f'toporesnet{d}.untrained': _CFG for d in _DEPTHS},
    }
)


def _resnet(depth: int, pretrained: bool, kwargs: dict) -> ResNetCifar:
    blocks = tuple(
        ByoBlockCfg(type='basic', d=(depth - 2) // 6, c=c, s=1 + (i > 0), br=1.0)
        for i, c in enumerate(_WIDTHS)
    )
    cfg = ByoModelCfg(blocks=blocks, stem_chs=_WIDTHS[0], stem_type='3x3', stem_pool='')
    kwargs.setdefault('num_classes', 100)
    return build_model_with_cfg(
        ResNetCifar,
        f'resnet_cifar{depth}',
        pretrained,
        model_cfg=cfg,
        feature_cfg=dict(flatten_sequential=True, out_indices=(0, 1, 2)),
        **kwargs,
    )


def _resnetv2(depth: int, pretrained: bool, kwargs: dict) -> ResNetV2Cifar:
    kwargs.setdefault('num_classes', 100)
    return build_model_with_cfg(
        ResNetV2Cifar,
        f'resnetv2_cifar{depth}',
        pretrained,
        layers=[(depth - 2) // 6] * 3,
        channels=_WIDTHS,
        feature_cfg=dict(feature_cls='getter', out_indices=(0, 1, 2, 3)),
        **kwargs,
    )


def _toporesnet(depth: int, pretrained: bool, kwargs: dict) -> TopoNet:
    defaults = dict(
        node='conv', num_nodes=((depth - 2) // 3 + 2,) * 3, widths=_WIDTHS, strides=(1, 2, 2),
        stem_width=_WIDTHS[0], stem_kernel=3, stem_stride=1, num_classes=100, sparsity='adaptive',
    )  # fmt: skip
    return create_toponet(f'toporesnet{depth}', pretrained, defaults, kwargs)


@register_model
def resnet_cifar20(pretrained: bool = False, **kwargs) -> ResNetCifar:
    """ResNet-20 for 32 px, projection shortcuts (TopoNet, Table 1: 69.01% top-1, CIFAR-100)."""
    return _resnet(20, pretrained, kwargs)


@register_model
def resnet_cifar32(pretrained: bool = False, **kwargs) -> ResNetCifar:
    """ResNet-32 for 32 px (Table 1: 72.07%)."""
    return _resnet(32, pretrained, kwargs)


@register_model
def resnet_cifar44(pretrained: bool = False, **kwargs) -> ResNetCifar:
    """ResNet-44 for 32 px (Table 1: 73.73%)."""
    return _resnet(44, pretrained, kwargs)


@register_model
def resnet_cifar56(pretrained: bool = False, **kwargs) -> ResNetCifar:
    """ResNet-56 for 32 px (Table 1: 75.22%)."""
    return _resnet(56, pretrained, kwargs)


@register_model
def resnet_cifar110(pretrained: bool = False, **kwargs) -> ResNetCifar:
    """ResNet-110 for 32 px (Table 1: 76.31%)."""
    return _resnet(110, pretrained, kwargs)


@register_model
def resnetv2_cifar20(pretrained: bool = False, **kwargs) -> ResNetV2Cifar:
    """Pre-activation ResNet-20 for 32 px; not in the paper."""
    return _resnetv2(20, pretrained, kwargs)


@register_model
def resnetv2_cifar32(pretrained: bool = False, **kwargs) -> ResNetV2Cifar:
    """Pre-activation ResNet-32 for 32 px; not in the paper."""
    return _resnetv2(32, pretrained, kwargs)


@register_model
def resnetv2_cifar44(pretrained: bool = False, **kwargs) -> ResNetV2Cifar:
    """Pre-activation ResNet-44 for 32 px; not in the paper."""
    return _resnetv2(44, pretrained, kwargs)


@register_model
def resnetv2_cifar56(pretrained: bool = False, **kwargs) -> ResNetV2Cifar:
    """Pre-activation ResNet-56 for 32 px; not in the paper."""
    return _resnetv2(56, pretrained, kwargs)


@register_model
def resnetv2_cifar110(pretrained: bool = False, **kwargs) -> ResNetV2Cifar:
    """Pre-activation ResNet-110 for 32 px; not in the paper."""
    return _resnetv2(110, pretrained, kwargs)


@register_model
def toporesnet20(pretrained: bool = False, **kwargs) -> TopoNet:
    """ResNet-20 as complete graphs of 8 nodes (TopoNet, Table 1: 69.91% top-1, CIFAR-100)."""
    return _toporesnet(20, pretrained, kwargs)


@register_model
def toporesnet32(pretrained: bool = False, **kwargs) -> TopoNet:
    """ResNet-32 as complete graphs of 12 nodes (Table 1: 73.34%)."""
    return _toporesnet(32, pretrained, kwargs)


@register_model
def toporesnet44(pretrained: bool = False, **kwargs) -> TopoNet:
    """ResNet-44 as complete graphs of 16 nodes (Table 1: 75.60%)."""
    return _toporesnet(44, pretrained, kwargs)


@register_model
def toporesnet56(pretrained: bool = False, **kwargs) -> TopoNet:
    """ResNet-56 as complete graphs of 20 nodes (Table 1: 76.90%)."""
    return _toporesnet(56, pretrained, kwargs)


@register_model
def toporesnet110(pretrained: bool = False, **kwargs) -> TopoNet:
    """ResNet-110 as complete graphs of 38 nodes (Table 1: 78.54%)."""
    return _toporesnet(110, pretrained, kwargs)
