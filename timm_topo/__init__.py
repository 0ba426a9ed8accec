"""CNNs whose connectivity is learned instead of designed, as timm models.

Importing this package registers its models: ``timm.create_model('toponet_adaptive')``.
"""

from . import models  # registers the models
from .checkpoint import load, save
from .models import rewire, unwire
from .stages import adjacency
from .version import __version__
from .wiring import Wiring

__all__ = [
    'Wiring',
    '__version__',
    'adjacency',
    'load',
    'models',
    'rewire',
    'save',
    'unwire',
]
