"""For scripts of detectron2 that know nothing of us: ``DETECTRON2_ENV_MODULE=d2_topo.env``.

``import detectron2`` then calls :func:`setup_environment`, so that detectron2's own, unmodified
scripts run our yaml configs.
"""

from detectron2.config.defaults import _C

import d2_topo  # noqa: F401  registers everything

from .config import add_topo_config

__all__ = ['setup_environment']


def setup_environment() -> None:
    """Add our keys to the default config."""
    add_topo_config(_C)
