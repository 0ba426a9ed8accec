"""Import this to let timm's own, unmodified ``train.py`` train our models with their sparsity.

``python train.py --device-modules timm_topo.timm_train --model toponet_adaptive ...``

timm's script imports the modules named there before it builds anything. This one registers the
models and puts :class:`timm_topo.task.TopoTask` where the script looks for its task. Kind and
weight of the sparsity are the model's own: ``--model-kwargs sparsity_weight=5e-5``. timm's
distillation tasks (``--kd-*``) are others and do not add the term.
"""

import sys

import timm.task

import timm_topo  # noqa: F401  registers the models

from .task import TopoTask

timm.task.ClassificationTask = TopoTask
_script = sys.modules['__main__']
if hasattr(_script, 'ClassificationTask'):  # already imported by name
    _script.ClassificationTask = TopoTask
