"""Families of timm that can be re-wired. All files of this folder are imported: a new family is one
new file, with its class and, where they are new, the anatomy of its blocks.
"""

from ...registry import import_all
from .base import (
    FAMILIES,
    Rewired,
    is_new,
    register_family,
    replaced,
    reset_input_conv,
    reset_projection,
    rewired_class,
)

import_all(__name__, __path__)

__all__ = [
    'FAMILIES',
    'Rewired',
    'is_new',
    'register_family',
    'replaced',
    'reset_input_conv',
    'reset_projection',
    'rewired_class',
]
