"""How strongly each edge carries. All files of this folder are imported: a rule is one new file."""

from ..registry import import_all
from .base import (
    Connectivity,
    StaticConnectivity,
    all_weights,
    build_connectivity,
    connectivity_name,
    connectivity_spec,
    decay_edge_weights,
    exempt_from_weight_decay,
    list_connectivity,
    register_connectivity,
    scale_edge_rate,
    undecayed_parameters,
)

import_all(__name__, __path__)

__all__ = [
    'Connectivity',
    'StaticConnectivity',
    'all_weights',
    'build_connectivity',
    'connectivity_name',
    'connectivity_spec',
    'decay_edge_weights',
    'exempt_from_weight_decay',
    'list_connectivity',
    'register_connectivity',
    'scale_edge_rate',
    'undecayed_parameters',
]
