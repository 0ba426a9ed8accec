"""For scripts of detectron2 that know nothing of us: ``DETECTRON2_ENV_MODULE=d2_topo.env``.

``import detectron2`` then calls :func:`setup_environment`, so that detectron2's own, unmodified
``tools/train_net.py`` runs our yaml configs, and trains as our ``tools/train_net.py`` does.
"""

import detectron2.engine.defaults as engine
from detectron2.config.defaults import _C

import d2_topo  # noqa: F401  registers everything
from timm_topo.connectivity import exempt_from_weight_decay

from .config import add_topo_config

__all__ = ['setup_environment']


def setup_environment() -> None:
    """Add our keys to the default config; edge weights are decayed where these say so alone."""
    add_topo_config(_C)
    build = engine.build_optimizer

    def build_optimizer(cfg, model):
        optimizer = build(cfg, model)
        if not cfg.MODEL.TOPO.DECAY_EDGES:
            exempt_from_weight_decay(optimizer, model)
        return optimizer

    engine.build_optimizer = build_optimizer
