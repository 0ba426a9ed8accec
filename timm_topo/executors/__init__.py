"""How stages are run: one file per strategy, registered by being there.

``reference`` is the equation. The others compute the same in less time or memory, or object.
:func:`timm_topo.stages.choose` asks them in the order of their ranks.
"""

from ..registry import import_all
from .baselines import BASELINES, NaiveSum, NodesAlone, Using, naive_sum, nodes_alone
from .kernels import set_triton_kernels
from .recorder import Recorder, adjacency, evaluation_mode, record_adjacency, record_runs
from .reference import Reference, StepExecutor

__all__ = [
    'BASELINES',
    'NaiveSum',
    'NodesAlone',
    'Recorder',
    'Reference',
    'StepExecutor',
    'Using',
    'adjacency',
    'evaluation_mode',
    'naive_sum',
    'nodes_alone',
    'record_adjacency',
    'record_runs',
    'set_triton_kernels',
]

import_all(__name__, __path__, skip=('triton_kernels',))  # which needs Triton
