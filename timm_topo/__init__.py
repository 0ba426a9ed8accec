"""CNNs whose connectivity is learned instead of designed, as timm models.

Importing this package registers its models: ``timm.create_model('toponet_adaptive')``.
"""

from . import executors, models  # register themselves
from .analysis.shrink import shrink
from .checkpoint import load, save
from .deploy import deploy
from .executors import adjacency
from .models import rewire, unwire
from .stages import explain
from .version import __version__
from .wiring import Wiring

__all__ = [
    'Wiring',
    '__version__',
    'adjacency',
    'deploy',
    'executors',
    'explain',
    'load',
    'models',
    'rewire',
    'save',
    'shrink',
    'unwire',
]
