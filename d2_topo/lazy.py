"""Helpers for LazyConfig files."""

import importlib.resources

from detectron2.config import LazyConfig

__all__ = ['zoo']


def zoo(name: str, keys=None):
    """A LazyConfig that detectron2 ships, such as ``'common/models/mask_rcnn_fpn.py'``.

    As ``model_zoo.get_config``, which does not import where setuptools is 82 or newer.

    Args:
        name: Path below detectron2's ``configs``.
        keys: Name, or names, of what to take from it.

    Raises:
        FileNotFoundError: detectron2 ships no such config.
    """
    path = importlib.resources.files('detectron2') / 'model_zoo' / 'configs' / name
    if not path.is_file():
        raise FileNotFoundError(f'detectron2 ships no config {name!r} (looked for {path})')
    return LazyConfig.load(str(path), keys)
