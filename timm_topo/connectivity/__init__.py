"""How strongly each edge carries. All files of this folder are imported: a rule is one new file."""

import importlib
import pkgutil

from .base import (
    Connectivity,
    StaticConnectivity,
    all_weights,
    build_connectivity,
    connectivity_name,
    connectivity_spec,
    exempt_from_weight_decay,
    list_connectivity,
    register_connectivity,
    undecayed_parameters,
)

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f'{__name__}.{_module.name}')

__all__ = [
    'Connectivity',
    'StaticConnectivity',
    'all_weights',
    'build_connectivity',
    'connectivity_name',
    'connectivity_spec',
    'exempt_from_weight_decay',
    'list_connectivity',
    'register_connectivity',
    'undecayed_parameters',
]
