"""ByobNet: blocks of ``timm.models.byobnet``."""

from timm.models import ByobNet

from ...nodes.residual import Anatomy, register_block
from .base import Rewired, register_family

__all__ = ['RewiredByobNet']

_BYOB = dict(shortcut='shortcut', act='act')
register_block(
    'byobnet.BasicBlock',
    Anatomy(('conv1_kxk', 'attn', 'conv2_kxk', 'attn_last', 'drop_path'), **_BYOB),
)
register_block(
    'byobnet.BottleneckBlock',
    Anatomy(
        ('conv1_1x1', 'conv2_kxk', 'conv2b_kxk', 'attn', 'conv3_1x1', 'attn_last', 'drop_path'),
        **_BYOB,
    ),
)
register_block(
    'byobnet.DarkBlock',
    Anatomy(('conv1_1x1', 'attn', 'conv2_kxk', 'attn_last', 'drop_path'), **_BYOB),
)
register_block(
    'byobnet.EdgeBlock',
    Anatomy(('conv1_kxk', 'attn', 'conv2_1x1', 'attn_last', 'drop_path'), **_BYOB),
)


@register_family
class RewiredByobNet(Rewired, ByobNet):
    """ByobNet with graph stages."""
