"""Whether a module computes what its type says: no hook watches it, no forward was replaced.

A module is its call, not its parameters. Code that reads parameters instead asks here.
"""

from collections.abc import Iterable

from torch import nn
from torch.nn.modules import module as _module

__all__ = ['watched', 'watched_any']

_HOOKS = (
    '_forward_hooks', '_forward_pre_hooks', '_backward_hooks', '_backward_pre_hooks',
)  # fmt: skip


def watched(module: nn.Module) -> str:
    """How something outside watches or replaces the call of ``module``; '' if nothing does."""
    kind = type(module).__name__
    if any(getattr(module, hooks) for hooks in _HOOKS):
        return f'a hook watches a {kind}'
    if 'forward' in vars(module):
        return f'the forward of a {kind} was replaced'
    return ''


def watched_any(modules: Iterable[nn.Module]) -> str:
    """The first answer of :func:`watched`, or that hooks watch all modules."""
    if any(getattr(_module, f'_global{hooks}') for hooks in _HOOKS):
        return 'hooks watch all modules'
    return next(filter(None, map(watched, modules)), '')
