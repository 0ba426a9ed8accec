"""Pre-activation ResNet: blocks of ``timm.models.resnetv2``."""

from timm.models import ResNetV2

from ...nodes.residual import Anatomy, register_block
from .base import Rewired, register_family

__all__ = ['RewiredResNetV2']

_PREACT = dict(shortcut='downsample', identity_is_none=True, norm='norm1')
register_block(
    'resnetv2.PreActBasic', Anatomy(('norm1', 'conv1', 'norm2', 'conv2', 'drop_path'), **_PREACT)
)
register_block(
    'resnetv2.PreActBottleneck',
    Anatomy(('norm1', 'conv1', 'norm2', 'conv2', 'norm3', 'conv3', 'drop_path'), **_PREACT),
)


@register_family
class RewiredResNetV2(Rewired, ResNetV2):
    """Pre-activation ResNet with graph stages."""
