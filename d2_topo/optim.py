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

    Unless the :class:`TopoBackbone` has ``decay_edges``; without one it is detectron2's function.
    """
    groups = _detectron2_params(model, *args, **kwargs)
    bodies = [module for module in model.modules() if isinstance(module, TopoBackbone)]
    spared = {id(parameter) for body in bodies for parameter in body.undecayed()}
    if not spared:
        return groups
    found = []
    for group in groups:
        options = {key: value for key, value in group.items() if key != 'params'}
        for parameter in group['params']:
            decay = {'weight_decay': 0.0} if id(parameter) in spared else {}
            found.append({'params': [parameter], **options, **decay})
    return build.reduce_param_groups(found)


build.get_default_optimizer_params = solver.get_default_optimizer_params = topo_optimizer_params
