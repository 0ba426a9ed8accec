"""How stages are run: one file per strategy, registered by being there.

``reference`` is the equation. The others compute the same in less time or memory, or object.
:func:`timm_topo.stages.choose` asks them in the order of their ranks.
"""

import importlib
import pkgutil

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

for _module in pkgutil.iter_modules(__path__):
    if _module.name != 'triton_kernels':  # needs Triton, is imported where it is used
        importlib.import_module(f'{__name__}.{_module.name}')
