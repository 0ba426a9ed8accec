"""How detectron2's optimizers treat a backbone: weight decay and learning rates of its parameters.

detectron2 groups parameters in one function, ``get_default_optimizer_params``, whichever trainer,
script or config asks. It knows no exceptions by module, so :func:`topo_optimizer_params` stands in
its place once this module is imported.
"""

from functools import wraps

from detectron2 import solver
from detectron2.solver import build
from torch import nn

from .backbone import TopoBackbone

__all__ = ['topo_optimizer_params']

_detectron2_params = build.get_default_optimizer_params


@wraps(_detectron2_params)
def topo_optimizer_params(model: nn.Module, *args, **kwargs) -> list[dict]:
    """detectron2's ``get_default_optimizer_params``, without weight decay on edge weights.

    Unless the :class:`TopoBackbone` has ``decay_edges``; with its ``layer_decay``, learning rates
    too depend on the layer. Without such a backbone it is detectron2's function.

    Raises:
        ValueError: A ``layer_decay`` without a ``base_lr``.
    """
    groups = _detectron2_params(model, *args, **kwargs)
    bodies = [module for module in model.modules() if isinstance(module, TopoBackbone)]
    spared = {parameter for body in bodies for parameter in body.undecayed()}
    scales = {p: scale for body in bodies for p, scale in body.rate_scales().items()}
    if scales and not all('lr' in group for group in groups):
        raise ValueError("layer_decay needs base_lr: optimizer.params.base_lr='${..lr}'")
    if not (spared or scales):
        return groups
    found = []
    for group in groups:
        for parameter in group['params']:
            own = {**group, 'params': [parameter]}
            if parameter in spared:
                own['weight_decay'] = 0.0
            if parameter in scales:
                own['lr'] *= scales[parameter]
            found.append(own)
    return build.reduce_param_groups(found)


build.get_default_optimizer_params = solver.get_default_optimizer_params = topo_optimizer_params
