"""Things that have a name, and folders in which a new file is a new thing."""

import importlib
import pkgutil
from collections.abc import Container, Iterable
from typing import Any

__all__ = ['Registry', 'import_all']


class Registry(dict):
    """Things of one kind by name.

    Args:
        kind: Noun for them, in messages: ``'wiring'``, ``'node'``...
    """

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind

    def register(self, name: str, thing: Any = None) -> Any:
        """Make ``thing`` known by ``name``; without it, a decorator that does.

        Raises:
            ValueError: The name is taken by another thing.
        """
        if thing is None:
            return lambda decorated: self.register(name, decorated)
        if self.setdefault(name, thing) is not thing:
            raise ValueError(f'{self.kind} {name!r} is already registered by {self[name]}')
        return thing

    def find(self, name: str) -> Any:
        """The thing of that name.

        Raises:
            ValueError: There is none.
        """
        if not isinstance(name, str) or name not in self:
            raise ValueError(f'unknown {self.kind} {name!r}; known: {", ".join(sorted(self))}')
        return self[name]


def import_all(package: str, path: Iterable[str], skip: Container[str] = ()) -> None:
    """Import every module of a package, so that what is in them registers itself.

    Args:
        package: Its ``__name__``.
        path: Its ``__path__``.
        skip: Modules to leave out.
    """
    for module in pkgutil.iter_modules(path):
        if module.name not in skip:
            importlib.import_module(f'{package}.{module.name}')
