"""EfficientNet, MobileNetV2, MNASNet and others: blocks of ``timm.models._efficientnet_blocks``."""

from timm.models import EfficientNet

from ...nodes.residual import Anatomy, register_block
from .base import Rewired, register_family

__all__ = ['RewiredEfficientNet']

_MOBILE = dict(shortcut='has_skip')
register_block(
    '_efficientnet_blocks.ConvBnAct',
    Anatomy(('conv', 'bn1', 'aa', 'drop_path'), **_MOBILE, projects=False),
)
register_block(
    '_efficientnet_blocks.DepthwiseSeparableConv',
    Anatomy(
        ('conv_s2d', 'bn_s2d', 'conv_dw', 'bn1', 'aa', 'se', 'conv_pw', 'bn2', 'drop_path'),
        **_MOBILE,
    ),
)
register_block(
    '_efficientnet_blocks.InvertedResidual',
    Anatomy(
        ('conv_s2d', 'bn_s2d', 'conv_pw', 'bn1', 'conv_dw', 'bn2', 'aa', 'se', 'conv_pwl',
         'bn3', 'drop_path'),
        **_MOBILE,
    ),
)  # fmt: skip
register_block(
    '_efficientnet_blocks.EdgeResidual',
    Anatomy(('conv_exp', 'bn1', 'aa', 'se', 'conv_pwl', 'bn2', 'drop_path'), **_MOBILE),
)
register_block(
    '_efficientnet_blocks.UniversalInvertedResidual',
    Anatomy(
        ('dw_start', 'pw_exp', 'dw_mid', 'se', 'pw_proj', 'dw_end', 'layer_scale', 'drop_path'),
        **_MOBILE,
    ),
)
register_block(
    '_efficientnet_blocks.MobileAttention',
    Anatomy(('norm', 'attn', 'layer_scale', 'drop_path'), **_MOBILE),
)


@register_family
class RewiredEfficientNet(Rewired, EfficientNet):
    """EfficientNet, MobileNetV2, MNASNet... with graph stages."""
