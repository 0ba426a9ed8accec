"""ResNet: blocks of ``timm.models.resnet``."""

from timm.models import ResNet

from ...nodes.residual import Anatomy, register_block
from .base import Rewired, register_family

__all__ = ['RewiredResNet']

_RESNET = dict(shortcut='downsample', identity_is_none=True)
register_block(
    'resnet.BasicBlock',
    Anatomy(
        ('conv1', 'bn1', 'drop_block', 'act1', 'aa', 'conv2', 'bn2', 'se', 'drop_path'),
        act='act2',
        **_RESNET,
    ),
)
register_block(
    'resnet.Bottleneck',
    Anatomy(
        ('conv1', 'bn1', 'act1', 'conv2', 'bn2', 'drop_block', 'act2', 'aa', 'conv3', 'bn3',
         'se', 'drop_path'),
        act='act3',
        **_RESNET,
    ),
)  # fmt: skip


@register_family
class RewiredResNet(Rewired, ResNet):
    """ResNet with graph stages."""
