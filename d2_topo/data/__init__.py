"""Data sets with boxes: the built-in digits, COCO-format files by name."""

from .categories import check_categories, training_set
from .coco import register_coco
from .digits import make_digits

__all__ = ['check_categories', 'make_digits', 'register_coco', 'training_set']
