"""RegNet: blocks of ``timm.models.regnet``."""

from timm.models import RegNet

from ...nodes.residual import IN_ORDER, Anatomy, register_block
from .base import Rewired, register_family

__all__ = ['RewiredRegNet']

_REGNET = dict(shortcut='downsample', act='act3')
IN_ORDER.add('regnet.RegStage')
register_block(
    'regnet.Bottleneck', Anatomy(('conv1', 'conv2', 'se', 'conv3', 'drop_path'), **_REGNET)
)


@register_family
class RewiredRegNet(Rewired, RegNet):
    """RegNet with graph stages."""
