"""Packages that only some functions need; setup.py names the extras that bring them."""

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ['needs']


@contextmanager
def needs(install: str) -> Iterator[None]:
    """Imports inside it that fail say what to give to pip.

    >>> with needs('timm-topo[analysis]'):
    ...     import package_of_tomorrow
    Traceback (most recent call last):
    ImportError: No module named 'package_of_tomorrow': pip install timm-topo[analysis]
    """
    try:
        yield
    except ImportError as error:
        raise ImportError(f'{error}: pip install {install}') from None
