"""timm's own training script trains our models with their sparsity, by ``--device-modules``.

The script is not part of timm's wheel. What it does at the places that matter is written down
here: names imported at its top, plug-in modules imported later, and then its calls in its order.
"""

import importlib
import json
import math
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import timm.task
from timm.task.classification import ClassificationTask

from timm_topo.task import TopoTask

ROOT = Path(__file__).parents[1]
LAMBDA = 0.25
SCRIPT = '''
import argparse
import importlib
import json

import torch
from timm.models import create_model
from timm.optim import create_optimizer_v2
from timm.task import ClassificationTask
from timm.utils import ParseKwargs


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--device-modules', default=None, type=str, nargs='+')
    parser.add_argument('--model')
    parser.add_argument('--model-kwargs', nargs='*', default={}, action=ParseKwargs)
    parser.add_argument('--distributed')
    args = parser.parse_args()
    for module in args.device_modules or ():
        importlib.import_module(module)
    torch.manual_seed(0)
    device = torch.device('cpu')
    model = create_model(args.model, in_chans=3, num_classes=5, drop_rate=0.0, **args.model_kwargs)
    loss_fn = torch.nn.CrossEntropyLoss()
    task = ClassificationTask(
        model=model, criterion=loss_fn, device=device, dtype=None, verbose=True
    )
    model = task.get_trainable_module()
    optimizer = create_optimizer_v2(model, opt='momentum', lr=0.1, weight_decay=0.05)
    decayed = {id(p) for g in optimizer.param_groups if g['weight_decay'] for p in g['params']}
    alphas = {n: p for n, p in model.named_parameters() if n.endswith('alpha')}
    if args.distributed:
        torch.distributed.init_process_group(
            'gloo', init_method='file://' + args.distributed, rank=0, world_size=1
        )
        task.prepare_distributed(device_ids=[device], broadcast_buffers=True)
        model = task.get_trainable_module()
    task.train()
    optimizer.zero_grad()
    target = torch.arange(8) % 5
    result = task(torch.randn(8, 3, 32, 32), target)
    loss = result['loss'].item()
    result['loss'] /= 1  # timm divides in place, by the steps of accumulation
    result['loss'].backward()
    optimizer.step()
    print(json.dumps(dict(
        task=type(task).__name__,
        model=type(model).__name__,
        loss=loss,
        cross_entropy=loss_fn(result['output'], target).item(),
        decayed=[name for name, alpha in alphas.items() if id(alpha) in decayed],
        alpha={name: alpha.tolist() for name, alpha in alphas.items()},
        gradient={name: alpha.grad.tolist() for name, alpha in alphas.items()},
    )))
    if args.distributed:
        torch.distributed.destroy_process_group()


if __name__ == '__main__':
    main()
'''  # fmt: skip


MODEL = (
    *('test_toponet', '--model-kwargs', 'num_nodes=(3,4)', 'widths=(4,6)', 'strides=(2,2)'),
    *('stem_width=4', 'stem_kernel=3'),
)
REWIRED = ('rewired', '--model-kwargs', 'base=resnetv2_cifar20', 'sparsity=uniform')


def start(folder: Path, *argv: str, model: tuple[str, ...] = MODEL) -> subprocess.Popen:
    script = folder / 'train.py'
    script.write_text(SCRIPT)
    return subprocess.Popen(
        [sys.executable, str(script), *argv, '--model', *model, f'sparsity_weight={LAMBDA}'],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'},
    )


def finish(process: subprocess.Popen) -> dict:
    stdout, stderr = process.communicate(timeout=100)
    assert process.returncode == 0, stderr
    return json.loads(stdout)


def test_the_script_trains_with_the_penalty_if_it_imports_our_module(tmp_path):
    """One step in a process group, against one without our task and without a group."""
    group = str(tmp_path / 'rendezvous')
    processes = [
        start(tmp_path, '--device-modules', 'timm_topo.timm_train', '--distributed', group),
        start(tmp_path, '--device-modules', 'timm_topo'),
    ]
    ours, timms = (finish(process) for process in processes)
    assert (ours['task'], timms['task']) == ('TopoTask', 'ClassificationTask')
    assert (ours['model'], timms['model']) == ('DistributedDataParallel', 'TopoNet')
    assert ours['decayed'] == []
    # complete graphs of 3 and 4 nodes, every alpha 1: in-degrees 1, 2 and 1, 2, 3
    penalty = {
        'stages.0.connectivity.alpha': [0.0] + [math.log(2)] * 2,
        'stages.1.connectivity.alpha': [0.0] + [math.log(2)] * 2 + [math.log(3)] * 3,
    }
    added = LAMBDA * sum(map(sum, penalty.values()))
    assert timms['loss'] == pytest.approx(timms['cross_entropy'])
    assert ours['cross_entropy'] == pytest.approx(timms['cross_entropy'], rel=1e-5)
    assert ours['loss'] == pytest.approx(timms['loss'] + added, rel=1e-5)
    for name, expected in penalty.items():
        for edge, value in enumerate(expected):
            gradient = timms['gradient'][name][edge] + LAMBDA * value
            assert ours['gradient'][name][edge] == pytest.approx(gradient, abs=1e-5)
            step = ours['alpha'][name][edge] - timms['alpha'][name][edge]
            assert step == pytest.approx(-0.1 * LAMBDA * value, abs=1e-5)


def test_the_script_trains_a_rewired_network_by_name(tmp_path):
    result = finish(start(tmp_path, '--device-modules', 'timm_topo.timm_train', model=REWIRED))
    assert (result['task'], result['model']) == ('TopoTask', 'RewiredResNetV2Cifar')
    assert result['loss'] == pytest.approx(result['cross_entropy'] + LAMBDA * 30, rel=1e-5)
    assert result['decayed'] == []
    assert sum(map(len, result['alpha'].values())) == 30


def import_plug_in(monkeypatch, script: types.ModuleType):
    """Run ``timm_topo.timm_train`` as if ``script`` were running; undone after the test."""
    monkeypatch.setattr(timm.task, 'ClassificationTask', ClassificationTask)
    monkeypatch.setitem(sys.modules, '__main__', script)
    importlib.reload(importlib.import_module('timm_topo.timm_train'))


def test_a_script_that_imports_the_task_later_finds_ours(monkeypatch):
    script = types.ModuleType('script')
    import_plug_in(monkeypatch, script)
    assert timm.task.ClassificationTask is TopoTask
    assert not hasattr(script, 'ClassificationTask'), 'no name is put where there was none'


def test_a_script_that_has_imported_the_task_gets_ours(monkeypatch):
    script = types.ModuleType('script')
    script.ClassificationTask = ClassificationTask
    import_plug_in(monkeypatch, script)
    assert script.ClassificationTask is TopoTask
