"""timm's residual blocks as nodes: the block without its shortcut, which becomes edges.

A residual network is a complete graph seen from another side (TopoNet, section 3.2): where a block
computes ``shortcut(x) + branch(x)``, the branch is a node and the sum over all earlier outputs is
what identity shortcuts, unrolled, have always added up.
"""

from dataclasses import dataclass

from torch import nn

from ..registry import Registry

__all__ = [
    'BLOCKS', 'IN_ORDER', 'Anatomy', 'Residual', 'block_name', 'known_blocks', 'register_block',
    'take_apart',
]  # fmt: skip


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
class Anatomy:
    """Where timm keeps the parts of a block, by attribute name.

    Attributes:
        branch: The residual branch, in the order in which the block's forward runs it; or the
            class of a module that is made of the block.
        shortcut: The projection; a flag, ``'has_skip'``, of blocks that have identities alone; or
            None for blocks whose shortcut is always an identity.
        identity_is_none: Whether a shortcut that is None is an identity.
        norm: What branch and projection share in front.
        act: The activation behind the sum.
        projects: Whether a block without a shortcut may be given a projection.
    """

    branch: tuple[str, ...] | type[nn.Module]
    shortcut: str | None
    identity_is_none: bool = False
    norm: str | None = None
    act: str | None = None
    projects: bool = True


#: Anatomies by module and class name, ``'resnet.BasicBlock'``. A subclass that overrides forward
#: has its own name, so is not here.
BLOCKS = Registry('block')
register_block = BLOCKS.register
#: Modules, named likewise, that run their children in order, beside ``nn.Sequential``.
IN_ORDER: set[str] = set()


def block_name(block: nn.Module) -> str:
    """``'resnet.BasicBlock'`` for ``timm.models.resnet.BasicBlock``."""
    return f'{type(block).__module__.rpartition(".")[2]}.{type(block).__name__}'


def known_blocks() -> list[str]:
    """Names of the blocks that can be taken apart, sorted."""
    return sorted(name.lstrip('_') for name in BLOCKS)


def take_apart(block: nn.Module) -> Residual | None:
    """The parts of a residual block of timm; its modules are shared, not copied.

    Args:
        block: Any module.

    Returns:
        None for a module that is no known residual block, or sums more than once.

    Raises:
        NotImplementedError: The installed timm gave the block a part that is not known here.
    """
    anatomy = BLOCKS.get(block_name(block))
    if anatomy is None or getattr(block, 'conv_cpe_dw', None) is not None:
        return None
    shortcut = getattr(block, anatomy.shortcut) if anatomy.shortcut else nn.Identity()
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
