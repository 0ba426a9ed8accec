"""Norm layers and freezing of a timm network, in place.

detectron2's and torch's own converters take timm's ``BatchNormAct2d`` for a plain batch norm and
drop the activation inside; timm's do not. What timm's frozen norms lack, and detectron2's have, is
that maps in half precision stay so.
"""

import math

from timm.layers import (
    BatchNormAct2d,
    FrozenBatchNormAct2d,
    GroupNormAct,
    convert_sync_batchnorm,
    freeze_batch_norm_2d,
)
from timm.utils import freeze
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

__all__ = ['NORMS', 'convert_norm', 'freeze_parameters', 'frozen_names']


def _group_norm(module: nn.Module) -> nn.Module:
    """``module`` with group norm instead of batch norm: timm has no converter for it.

    32 groups, as everywhere in detectron2, or as many as divide the channels.
    """
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        channels = module.num_features
        options = dict(num_groups=math.gcd(32, channels), eps=module.eps, affine=module.affine)
        if isinstance(module, BatchNormAct2d):
            new = GroupNormAct(channels, apply_act=False, **options)
            new.act, new.drop = module.act, module.drop
        else:
            new = nn.GroupNorm(options.pop('num_groups'), channels, **options)
        if module.affine:
            new.weight, new.bias = module.weight, module.bias
        return new.train(module.training)
    for name, child in module.named_children():
        setattr(module, name, _group_norm(child))
    return module


def _affine(norm: nn.Module, x: Tensor) -> Tensor:
    """Frozen batch norm in the precision of ``x``, not in that of its statistics."""
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    shift = norm.bias - norm.running_mean * scale
    scale, shift = (v.to(x.dtype)[:, None, None] for v in (scale, shift))
    return x * scale + shift


class FrozenNorm(FrozenBatchNorm2d):
    """torchvision's, in the precision of its input."""

    def forward(self, x: Tensor) -> Tensor:
        return _affine(self, x)


class FrozenNormAct(FrozenBatchNormAct2d):
    """timm's, in the precision of its input."""

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(_affine(self, x)))


def _keep_precision(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if type(module) is FrozenBatchNorm2d:
            module.__class__ = FrozenNorm  # its buffers are as they should be
        elif type(module) is FrozenBatchNormAct2d:
            module.__class__ = FrozenNormAct
    return model


#: What ``norm`` of a backbone may be, as in detectron2: how batch norm is converted.
NORMS = {
    'BN': lambda model: model,
    'FrozenBN': lambda model: _keep_precision(freeze_batch_norm_2d(model)),
    'SyncBN': convert_sync_batchnorm,
    'GN': _group_norm,
}


def convert_norm(model: nn.Module, norm: str) -> nn.Module:
    """``model`` with every batch norm replaced; other kinds of norm stay as they are.

    Args:
        model: A network of timm; changed in place.
        norm: One of :data:`NORMS`. ``'GN'`` keeps scale and shift, but not the function.

    Raises:
        ValueError: Unknown norm.
    """
    if norm not in NORMS:
        raise ValueError(f'unknown norm {norm!r}; known: {", ".join(NORMS)}')
    return NORMS[norm](model)


def freeze_parameters(model: nn.Module, parameters: set[str], modules: list[str]) -> None:
    """No gradients for these parameters of ``model``, and fixed statistics in these modules."""
    if modules:
        freeze(model, modules, include_bn_running_stats=True)
        _keep_precision(model)
    for name, parameter in model.named_parameters():
        if name in parameters:
            parameter.requires_grad_(False)


def frozen_names(model: nn.Module) -> set[str]:
    """Names of the tensors of ``model`` that training leaves as they are."""
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    for prefix, module in model.named_modules():
        if isinstance(module, (FrozenBatchNorm2d, FrozenBatchNormAct2d)):
            frozen |= {f'{prefix}.{name}' for name, _ in module.named_buffers()}
    return frozen
