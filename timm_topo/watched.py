"""Whether a module computes what its type says: no hook watches it, no forward was replaced.

A module is its call, not its parameters. Code that reads parameters instead asks here.
"""

from collections.abc import Iterable

from torch import nn
from torch.nn.modules import module as _module

__all__ = ['watched', 'watched_any']

_KINDS = ('_forward', '_forward_pre', '_backward', '_backward_pre')


def watched(module: nn.Module) -> str:
    """How something outside watches or replaces the call of ``module``; '' if nothing does."""
    own = vars(module)
    if own['_forward_hooks'] or own['_forward_pre_hooks']:
        return f'a hook watches a {type(module).__name__}'
    if own['_backward_hooks'] or own['_backward_pre_hooks']:
        return f'a hook watches the gradients of a {type(module).__name__}'
    if 'forward' in own:
        return f'the forward of a {type(module).__name__} was replaced'
    return ''


def watched_any(modules: Iterable[nn.Module]) -> str:
    """The first answer of :func:`watched`, or that hooks watch all modules."""
    if any(getattr(_module, f'_global{kind}_hooks') for kind in _KINDS):
        return 'hooks watch all modules'
    return next(filter(None, map(watched, modules)), '')
