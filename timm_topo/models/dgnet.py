"""DG-Nets: classical networks as complete graphs whose edge weights each image predicts.

Yuan et al., 2020, Tables 1 and 5: the nodes are timm's own blocks, every node has a router. The
static ablation (Table 6) is the same network with ``connectivity='alpha'``, the plain network is
``base``. Convolutions have the printed MFLOPs, but for RegNetX-1600M (1601, printed 1604) and
RegNetY (600, 601); parameters are within 0.3% of the print, but for RegNetY (6.07 M, printed 6.3).

In the ResNets, ResNeXt and RegNets a ReLU follows every residual sum; in the graph it moves to the
front of the next node, so that these networks are not their plain ones with other shortcuts.
"""

from timm.models import generate_default_cfgs, register_model
from torch import nn

from .base import imagenet_cfg
from .rewired import create_rewired

__all__ = []

_HEADS = {
    'mobilenetv2': dict(first_conv='conv_stem', classifier='classifier'),
    'resnet': dict(first_conv='conv1', classifier='fc'),
    'resnext': dict(first_conv='conv1', classifier='fc'),
    'regnet': dict(first_conv='stem.conv', classifier='head.fc'),
}
_BASES = (
    'mobilenetv2_100', 'resnet18', 'resnet50', 'resnet101', 'resnext50_32x4d', 'regnetx_006',
    'regnetx_016', 'regnety_006',
)  # fmt: skip

default_cfgs = generate_default_cfgs(
    {
        f'dgnet_{base}.untrained': imagenet_cfg(
            **next(head for family, head in _HEADS.items() if base.startswith(family))
        )
        for base in _BASES
    }
)


def _dgnet(base: str, pretrained: bool, kwargs: dict, **defaults) -> nn.Module:
    defaults = dict(base=base, connectivity='router', exact=False, **defaults)
    return create_rewired(f'dgnet_{base}', pretrained, defaults, kwargs)


@register_model
def dgnet_mobilenetv2_100(pretrained: bool = False, **kwargs) -> nn.Module:
    """DG-Net of MobileNetV2-1.0 (Table 1: 73.17% top-1, plain 72.60%)."""
    return _dgnet('mobilenetv2_100', pretrained, kwargs, projection=True)


@register_model
def dgnet_resnet18(pretrained: bool = False, **kwargs) -> nn.Module:
    """DG-Net of ResNet-18 (Table 1: 71.30%, plain 70.30%)."""
    return _dgnet('resnet18', pretrained, kwargs, projected_entry=True)


@register_model
def dgnet_resnet50(pretrained: bool = False, **kwargs) -> nn.Module:
    """DG-Net of ResNet-50 (Table 1: 78.00%, plain 76.70%; Table 6: static 77.00%)."""
    return _dgnet('resnet50', pretrained, kwargs, projected_entry=True)


@register_model
def dgnet_resnet101(pretrained: bool = False, **kwargs) -> nn.Module:
    """DG-Net of ResNet-101 (Table 1: 79.68%, plain 78.29%; Table 6: static 78.64%)."""
    return _dgnet('resnet101', pretrained, kwargs, projected_entry=True)


@register_model
def dgnet_resnext50_32x4d(pretrained: bool = False, **kwargs) -> nn.Module:
    """DG-Net of ResNeXt-50 32x4d (Table 1: 79.18%, plain 77.97%)."""
    return _dgnet('resnext50_32x4d', pretrained, kwargs, projected_entry=True)


@register_model
def dgnet_regnetx_006(pretrained: bool = False, **kwargs) -> nn.Module:
    """DG-Net of RegNetX-600M, DG-Net-A (Table 1: 74.60%, plain 74.03%; Table 5: 75.4%)."""
    return _dgnet('regnetx_006', pretrained, kwargs)


@register_model
def dgnet_regnetx_016(pretrained: bool = False, **kwargs) -> nn.Module:
    """DG-Net of RegNetX-1600M (Table 1: 77.86%, plain 77.26%)."""
    return _dgnet('regnetx_016', pretrained, kwargs)


@register_model
def dgnet_regnety_006(pretrained: bool = False, **kwargs) -> nn.Module:
    """DG-Net of RegNetY-600M, DG-Net-B (Table 5: 76.7%)."""
    return _dgnet('regnety_006', pretrained, kwargs)
