"""Data sets with boxes: the built-in digits, and COCO-format files by name."""

from .coco import register_coco
from .digits import make_digits

__all__ = ['make_digits', 'register_coco']
