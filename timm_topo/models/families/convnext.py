"""ConvNeXt: blocks of ``timm.models.convnext``."""

from timm.models import ConvNeXt
from torch import Tensor, nn

from ...nodes.residual import Anatomy, register_block
from .base import Rewired, register_family

__all__ = ['ConvNeXtBranch', 'RewiredConvNeXt']


class ConvNeXtBranch(nn.Module):
    """The residual branch of ``timm.models.convnext.ConvNeXtBlock``.

    Args:
        block: The block; its modules are shared.
    """

    keeps_input = True  # executors may share what it reads

    def __init__(self, block: nn.Module):
        super().__init__()
        self.channels_first = block.use_conv_mlp
        self.conv_dw, self.norm, self.mlp = block.conv_dw, block.norm, block.mlp
        self.gamma = block.gamma
        self.drop_path = block.drop_path

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_dw(x)
        if self.channels_first:
            x = self.mlp(self.norm(x))
        else:
            x = self.mlp(self.norm(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        if self.gamma is not None:
            x = x * self.gamma.reshape(1, -1, 1, 1)
        return self.drop_path(x)


register_block('convnext.ConvNeXtBlock', Anatomy(ConvNeXtBranch, 'shortcut'))


@register_family
class RewiredConvNeXt(Rewired, ConvNeXt):
    """ConvNeXt with graph stages."""
