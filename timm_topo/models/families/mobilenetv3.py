"""MobileNetV3, MobileNetV4 and others, of the blocks of EfficientNet."""

from timm.models import MobileNetV3

from .base import Rewired, register_family

__all__ = ['RewiredMobileNetV3']


@register_family
class RewiredMobileNetV3(Rewired, MobileNetV3):
    """MobileNetV3, MobileNetV4... with graph stages."""
