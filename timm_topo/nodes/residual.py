"""timm's residual blocks as nodes: the block without its shortcut, which becomes edges.

A residual network is a complete graph seen from another side (TopoNet, section 3.2): where a block
computes ``shortcut(x) + branch(x)``, the branch is a node and the sum over all earlier outputs is
what identity shortcuts, unrolled, have always added up.
"""

from dataclasses import dataclass

from torch import Tensor, nn

__all__ = ['ConvNeXtBranch', 'Residual', 'block_name', 'known_blocks', 'take_apart']


@dataclass(frozen=True)
class Residual:
    """A block taken apart: block(x) = act(shortcut(y) + branch(y)), y = norm(x).

    Attributes:
        branch: The residual branch; the node.
        shortcut: ``nn.Identity`` for an identity shortcut, another module for a projection, None
            for a block without a shortcut.
        norm: What branch and projection share in front (pre-activation), if anything.
        act: The activation behind the sum, if any: the sum is not linear then.
    """

    branch: nn.Module
    shortcut: nn.Module | None
    norm: nn.Module | None = None
    act: nn.Module | None = None


@dataclass(frozen=True)
class _Anatomy:
    """Where timm keeps the parts of a block, by attribute name.

    ``branch`` is in the order in which the block's forward runs it, or a module class.
    """

    branch: tuple[str, ...] | type[nn.Module]
    shortcut: str
    identity_is_none: bool = False
    norm: str | None = None
    act: str | None = None


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


_RESNET = dict(shortcut='downsample', identity_is_none=True)
_PREACT = dict(shortcut='downsample', identity_is_none=True, norm='norm1')
_REGNET = dict(shortcut='downsample', act='act3')
_BYOB = dict(shortcut='shortcut', act='act')
_MOBILE = dict(shortcut='has_skip')

#: By module and class name. A subclass that overrides forward has its own name, so is not here.
_ANATOMY = {
    'resnet.BasicBlock': _Anatomy(
        ('conv1', 'bn1', 'drop_block', 'act1', 'aa', 'conv2', 'bn2', 'se', 'drop_path'),
        act='act2', **_RESNET,
    ),
    'resnet.Bottleneck': _Anatomy(
        ('conv1', 'bn1', 'act1', 'conv2', 'bn2', 'drop_block', 'act2', 'aa', 'conv3', 'bn3', 'se',
         'drop_path'),
        act='act3', **_RESNET,
    ),
    'resnetv2.PreActBasic': _Anatomy(
        ('norm1', 'conv1', 'norm2', 'conv2', 'drop_path'), **_PREACT
    ),
    'resnetv2.PreActBottleneck': _Anatomy(
        ('norm1', 'conv1', 'norm2', 'conv2', 'norm3', 'conv3', 'drop_path'), **_PREACT
    ),
    'regnet.Bottleneck': _Anatomy(('conv1', 'conv2', 'se', 'conv3', 'drop_path'), **_REGNET),
    'byobnet.BasicBlock': _Anatomy(
        ('conv1_kxk', 'attn', 'conv2_kxk', 'attn_last', 'drop_path'), **_BYOB
    ),
    'byobnet.BottleneckBlock': _Anatomy(
        ('conv1_1x1', 'conv2_kxk', 'conv2b_kxk', 'attn', 'conv3_1x1', 'attn_last', 'drop_path'),
        **_BYOB,
    ),
    'byobnet.DarkBlock': _Anatomy(
        ('conv1_1x1', 'attn', 'conv2_kxk', 'attn_last', 'drop_path'), **_BYOB
    ),
    'byobnet.EdgeBlock': _Anatomy(
        ('conv1_kxk', 'attn', 'conv2_1x1', 'attn_last', 'drop_path'), **_BYOB
    ),
    'convnext.ConvNeXtBlock': _Anatomy(ConvNeXtBranch, 'shortcut'),
    '_efficientnet_blocks.ConvBnAct': _Anatomy(('conv', 'bn1', 'aa', 'drop_path'), **_MOBILE),
    '_efficientnet_blocks.DepthwiseSeparableConv': _Anatomy(
        ('conv_s2d', 'bn_s2d', 'conv_dw', 'bn1', 'aa', 'se', 'conv_pw', 'bn2', 'drop_path'),
        **_MOBILE,
    ),
    '_efficientnet_blocks.InvertedResidual': _Anatomy(
        ('conv_s2d', 'bn_s2d', 'conv_pw', 'bn1', 'conv_dw', 'bn2', 'aa', 'se', 'conv_pwl', 'bn3',
         'drop_path'),
        **_MOBILE,
    ),
    '_efficientnet_blocks.EdgeResidual': _Anatomy(
        ('conv_exp', 'bn1', 'aa', 'se', 'conv_pwl', 'bn2', 'drop_path'), **_MOBILE
    ),
    '_efficientnet_blocks.UniversalInvertedResidual': _Anatomy(
        ('dw_start', 'pw_exp', 'dw_mid', 'se', 'pw_proj', 'dw_end', 'layer_scale', 'drop_path'),
        **_MOBILE,
    ),
    '_efficientnet_blocks.MobileAttention': _Anatomy(
        ('norm', 'attn', 'layer_scale', 'drop_path'), **_MOBILE
    ),
}  # fmt: skip


def block_name(block: nn.Module) -> str:
    """``'resnet.BasicBlock'`` for ``timm.models.resnet.BasicBlock``."""
    return f'{type(block).__module__.rpartition(".")[2]}.{type(block).__name__}'


def known_blocks() -> list[str]:
    """Names of the blocks that can be taken apart, sorted."""
    return sorted(name.lstrip('_') for name in _ANATOMY)


def take_apart(block: nn.Module) -> Residual | None:
    """The parts of a residual block of timm; its modules are shared, not copied.

    Args:
        block: Any module.

    Returns:
        None for a module that is no known residual block, or sums more than once.

    Raises:
        NotImplementedError: The installed timm gave the block a part that is not known here.
    """
    anatomy = _ANATOMY.get(block_name(block))
    if anatomy is None or getattr(block, 'conv_cpe_dw', None) is not None:
        return None
    shortcut = getattr(block, anatomy.shortcut)
    if anatomy.shortcut == 'has_skip':
        shortcut = nn.Identity() if shortcut else None
    elif shortcut is None and anatomy.identity_is_none:
        shortcut = nn.Identity()
    norm = None
    if isinstance(anatomy.branch, tuple):
        known = {*anatomy.branch, anatomy.shortcut, anatomy.act}
        _check_children(block, known)
        names = [name for name in anatomy.branch if getattr(block, name, None) is not None]
        if anatomy.norm and not isinstance(shortcut, (nn.Identity, type(None))):
            norm = getattr(block, anatomy.norm)  # the projection reads it too
            names.remove(anatomy.norm)
        branch = nn.Sequential()
        for name in names:
            branch.add_module(name, getattr(block, name))
    else:
        branch = anatomy.branch(block)
        _check_children(block, {anatomy.shortcut, *dict(branch.named_children())})
    act = getattr(block, anatomy.act) if anatomy.act else None
    return Residual(branch, shortcut, norm, None if isinstance(act, nn.Identity) else act)


def _check_children(block: nn.Module, known: set) -> None:
    unknown = {name for name, _ in block.named_children()} - known
    if unknown:
        raise NotImplementedError(
            f'{block_name(block)} of the installed timm has {sorted(unknown)}, which this version '
            'of timm_topo does not know'
        )
