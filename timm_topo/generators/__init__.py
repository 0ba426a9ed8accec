"""Wirings by rule. All files of this folder are imported: a generator is one new file.

Beside the complete graph, the baselines of TopoNet (section 4.2) and the random graphs of RandWire.
"""

from ..registry import import_all
from .barabasi_albert import barabasi_albert
from .base import WIRINGS, check_edges, is_explicit, make_wiring, register_wiring, with_seed
from .complete import complete
from .erdos_renyi import erdos_renyi
from .random import random
from .residual import residual
from .sequential import sequential
from .watts_strogatz import watts_strogatz

__all__ = [
    'WIRINGS',
    'barabasi_albert',
    'check_edges',
    'complete',
    'erdos_renyi',
    'is_explicit',
    'make_wiring',
    'random',
    'register_wiring',
    'residual',
    'sequential',
    'watts_strogatz',
    'with_seed',
]

import_all(__name__, __path__)
