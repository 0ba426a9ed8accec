"""Detectors train, evaluate and resume on detectron2's engines, unmodified."""

import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

pytest.importorskip(
    'detectron2',
    reason='detectron2 is not installed: https://detectron2.readthedocs.io/tutorials/install.html',
)

from detectron2.utils.logger import setup_logger

import timm_topo
from d2_topo import TopoBackbone, topo_optimizer_params
from d2_topo.data import make_digits, register_coco

ROOT = Path(__file__).parents[1]
PATH = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
YAML = ROOT / 'configs/detection/faster_rcnn_toponet_adaptive_fpn_1x.yaml'
LAZY = ROOT / 'configs/detection/lazy/small_faster_rcnn.py'


@pytest.fixture(autouse=True)
def _logging_of_detectron2_ends_with_the_test():
    """It writes to this test's standard output, which is closed afterwards."""
    yield
    setup_logger.cache_clear()
    for name in ('detectron2', 'fvcore'):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(logging.NOTSET)


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
    """Files of a data set of eight small canvases."""
    return make_digits(tmp_path_factory.mktemp('digits'), 'train', 8, 64)


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    """What timm trained, so to speak."""
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp('weights') / 'model_best.pth.tar'
    torch.save({'epoch': 1, 'state_dict': timm.create_model('test_toponet').state_dict()}, path)
    return path


def small(output, digits, *options) -> list:
    """Options of our train_net for a run of seconds on CPU."""
    return [
        '--config-file', YAML, '--num-gpus', 0, '--coco', 'eight', *digits, *options,
        'OUTPUT_DIR', output, *SMALL,
    ]  # fmt: skip


SMALL = [
    'MODEL.DEVICE', 'cpu', 'MODEL.TOPO.NAME', 'test_toponet', 'MODEL.FPN.OUT_CHANNELS', 8,
    'MODEL.ROI_BOX_HEAD.FC_DIM', 16, 'MODEL.ROI_HEADS.NUM_CLASSES', 10,
    'MODEL.RPN.PRE_NMS_TOPK_TEST', 50, 'MODEL.RPN.POST_NMS_TOPK_TEST', 10,
    'MODEL.RPN.PRE_NMS_TOPK_TRAIN', 50, 'MODEL.RPN.POST_NMS_TOPK_TRAIN', 10,
    'DATALOADER.NUM_WORKERS', 0, 'INPUT.MIN_SIZE_TRAIN', (64,), 'INPUT.MIN_SIZE_TEST', 64,
    'DATASETS.TRAIN', ('eight',), 'DATASETS.TEST', ('eight',), 'SOLVER.IMS_PER_BATCH', 2,
    'SOLVER.STEPS', (),
]  # fmt: skip


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / 'metrics.json').read_text().splitlines()]


def script(*command, cwd: Path, **env) -> str:
    """Output of a script of detectron2's, run as its users do."""
    result = subprocess.run(
        [sys.executable, '-m', *map(str, command)], cwd=cwd, capture_output=True, text=True,
        env={**os.environ, 'PYTHONPATH': PATH, 'OMP_NUM_THREADS': '1', **env},
    )  # fmt: skip
    assert result.returncode == 0, (result.stdout + result.stderr)[-3000:]
    return result.stdout + result.stderr


# -- yaml, our train_net --------------------------------------------------------------------------


def test_train_resume_and_evaluate(tool, digits, weights, tmp_path):
    run = small(tmp_path, digits)
    start = ['MODEL.WEIGHTS', weights, 'MODEL.TOPO.SPARSITY_WEIGHT', 0.1, 'SOLVER.MAX_ITER']
    status, out, err = tool('train_net', *run, *start, 2)
    assert status == 0, err
    assert 'model_best.pth.tar -> backbone test_toponet: loaded 107 tensors, skipped 2' in out
    assert min(row['loss_topology'] for row in rows(tmp_path) if 'loss_cls' in row) > 0
    assert (tmp_path / 'last_checkpoint').read_text() == 'model_final.pth'
    trained = torch.load(tmp_path / 'model_final.pth')['model']
    frozen = torch.load(weights)['state_dict']
    prefix = 'backbone.bottom_up.model.'
    assert torch.equal(trained[f'{prefix}stem.conv.weight'], frozen['stem.conv.weight'])
    last = 'stages.3.nodes.0.conv_pw.weight'
    assert not torch.equal(trained[prefix + last], frozen[last])

    status, out, err = tool('train_net', '--resume', *run, *start, 3)
    assert status == 0, err
    assert 'Starting training from iteration 2' in out
    assert 'loaded 107 tensors' not in out  # but the detector's own checkpoint
    rest = torch.load(tmp_path / 'model_final.pth')
    assert rest['iteration'] == 2  # counted from 0

    status, out, err = tool(
        'train_net', '--eval-only', *run, 'MODEL.WEIGHTS', tmp_path / 'model_final.pth'
    )
    assert status == 0, err
    assert 'Evaluation results for bbox' in out or 'No predictions' in out
    assert (tmp_path / 'inference' / 'coco_instances_results.json').is_file()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--config-file', 'none.yaml'], '--config-file none.yaml: no such file'),
        ([], '--config-file is missing: no such file'),
        (['--coco', 'a', 'none.json', '.'], 'data set a: annotations {cwd}/none.json do not exist'),
        (
            ['--config-file', YAML, *SMALL, 'MODEL.TOPO.NAME', 'resnet5'],
            "unknown backbone 'resnet5'",
        ),
        (['--config-file', YAML, 'MODEL.WEIGHTS', 'none.pth.tar', *SMALL], 'checkpoint none.pth'),
        (
            ['--config-file', YAML, *SMALL],
            'would stay at their initial values',
        ),
        (['--config-file', YAML], 'there is no CUDA device; on CPU: --num-gpus 0 ... MODEL.DEVICE'),
        (['--eval-only', '--config-file', YAML, *SMALL], '--eval-only needs MODEL.WEIGHTS'),
        (['--config-file', YAML, 'MODEL.TOPO.NAM', 'x'], 'Non-existent key: MODEL.TOPO.NAM'),
    ],
)
def test_bad_command_lines(arguments, message, tool, digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.delenv('PYTEST_CURRENT_TEST')
    register_coco('eight', *digits)
    status, _, err = tool('train_net', '--num-gpus', 0, *arguments)
    assert status == 1
    assert 'error: ' in err
    assert message.format(cwd=tmp_path) in err


def test_several_machines_are_detectron2s_business(tool, monkeypatch):
    """Its options reach its launcher as they are."""
    launched = []
    monkeypatch.setattr(
        'detectron2.engine.launch', lambda main, *args, **kwargs: launched.append((args, kwargs))
    )
    status, _, err = tool(
        'train_net', '--num-gpus', 8, '--num-machines', 4, '--machine-rank', 2,
        '--dist-url', 'tcp://10.0.0.1:1234', '--config-file', YAML, 'SEED', 3,
    )  # fmt: skip
    assert status == 0, err
    [((gpus,), options)] = launched
    assert gpus == 8
    assert (options['num_machines'], options['machine_rank']) == (4, 2)
    assert options['dist_url'] == 'tcp://10.0.0.1:1234'
    [args] = options['args']
    assert args.opts == ['SEED', '3']


# -- detectron2's own scripts ---------------------------------------------------------------------


def lazy_run(output, digits, *overrides) -> list:
    annotations, images = digits
    return [
        f'train.output_dir={output}', 'train.max_iter=2', 'train.log_period=1',
        'model.roi_heads.num_classes=10', 'dataloader.train.total_batch_size=2',
        f'dataloader.train.dataset.names.annotations={annotations}',
        f'dataloader.train.dataset.names.images={images}',
        f'dataloader.test.dataset.names.annotations={annotations}',
        f'dataloader.test.dataset.names.images={images}',
        'dataloader.test.mapper.augmentations.0.short_edge_length=64',
        'dataloader.train.mapper.augmentations.0.short_edge_length=64', *overrides,
    ]  # fmt: skip


def test_lazyconfig_train_net_and_its_saved_config(digits, weights, tmp_path):
    """Upstream's script, unmodified: from timm's weights; then again from its own config.yaml."""
    first, second = tmp_path / 'first', tmp_path / 'second'
    out = script(
        'tools.lazyconfig_train_net', '--config-file', LAZY,
        *lazy_run(first, digits, f'train.init_checkpoint={weights}'), cwd=tmp_path,
    )  # fmt: skip
    assert re.search(r'model_best.pth.tar -> backbone test_toponet: loaded \d+ tensors, skip', out)
    assert [row['total_loss'] for row in rows(first) if 'total_loss' in row]
    out = script(
        'tools.lazyconfig_train_net', '--config-file', first / 'config.yaml', '--eval-only',
        f'train.output_dir={second}', f'train.init_checkpoint={first / "model_final.pth"}',
        cwd=tmp_path,
    )  # fmt: skip
    assert f'Loading from {first / "model_final.pth"}' in out
    assert re.search('Evaluation results for bbox|No predictions from the model', out)


def test_two_processes(digits, weights, tmp_path):
    """gloo on CPU, with routers, their L1 and activation checkpointing."""
    out = script(
        'tools.lazyconfig_train_net', '--num-gpus', 2, '--dist-url', 'auto', '--config-file', LAZY,
        *lazy_run(
            tmp_path / 'out', digits, '+model.backbone.bottom_up.connectivity=router',
            '+model.backbone.bottom_up.activation_checkpoint=true',
            'model.backbone.bottom_up.sparsity_weight=0.01',
        ), cwd=tmp_path,
    )  # fmt: skip
    assert 'World size: 2' in out
    assert min(row['loss_topology'] for row in rows(tmp_path / 'out') if 'loss_cls' in row) > 0
    trained = torch.load(tmp_path / 'out' / 'model_final.pth', weights_only=False)['model']
    assert trained['backbone.bottom_up.model.stages.0.connectivity.tau'].abs().sum() > 0


def test_upstreams_train_net_through_its_environment_module(digits, weights, tmp_path):
    """Our yaml, in upstream's unmodified script; edge weights are not decayed there either."""
    annotations, images = digits
    config = tmp_path / 'my_env.py'
    config.write_text(
        'from d2_topo import env\nfrom d2_topo.data import register_coco\n'
        'def setup_environment():\n    env.setup_environment()\n'
        f'    register_coco("eight", {str(annotations)!r}, {str(images)!r})\n'
    )
    options = small(tmp_path / 'out', digits, 'MODEL.WEIGHTS', weights)
    options = options[:4] + options[8:]  # without --coco
    script(
        'tools.train_net', *options, *DECAY, cwd=tmp_path,
        DETECTRON2_ENV_MODULE=str(config), DETECTRON2_DATASETS=str(tmp_path),
    )  # fmt: skip
    check_decay(tmp_path / 'out', weights)


# -- weight decay ---------------------------------------------------------------------------------

#: One step that shrinks what is decayed by a tenth, and hardly follows the gradient.
DECAY = ['SOLVER.MAX_ITER', 1, 'SOLVER.BASE_LR', 1e-6, 'SOLVER.WEIGHT_DECAY', 1e5,
         'SOLVER.WARMUP_ITERS', 0, 'TEST.EVAL_PERIOD', 0]  # fmt: skip


def check_decay(folder: Path, weights: Path, of_edges: float = 1.0) -> None:
    before = torch.load(weights)['state_dict']
    after = torch.load(folder / 'model_final.pth')['model']
    for name, rate in (('connectivity.alpha', of_edges), ('nodes.0.conv_pw.weight', 0.9)):
        name = f'stages.3.{name}'
        found = after[f'backbone.bottom_up.model.{name}']
        torch.testing.assert_close(found, rate * before[name], rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize(('decayed', 'rate'), [(False, 1.0), (True, 0.9)])
def test_our_train_net_decays_edge_weights_if_asked(tool, digits, weights, tmp_path, decayed, rate):
    options = ('MODEL.WEIGHTS', weights, 'MODEL.TOPO.DECAY_EDGES', decayed)
    status, _, err = tool('train_net', *small(tmp_path, digits, *options), *DECAY)
    assert status == 0, err
    check_decay(tmp_path, weights, rate)


@pytest.mark.parametrize('edges', [False, True])
def test_parameters_for_lazyconfig_optimizers(edges):
    """As detectron2's function, but for edge weights unless asked; matrices of routers decay."""
    model = TopoBackbone('test_toponet', norm='BN', connectivity='router')
    groups = topo_optimizer_params(
        model, edges, base_lr=0.1, weight_decay=0.3, weight_decay_norm=0.0
    )
    names = {id(p): name for name, p in model.named_parameters()}
    decay = {names[id(p)]: group['weight_decay'] for group in groups for p in group['params']}
    assert decay.keys() == {name for name, _ in model.named_parameters()}
    assert all(group['lr'] == 0.1 for group in groups)
    for name, value in decay.items():
        rule = 'connectivity' in name and not name.endswith('.weight') and not edges
        assert value == (0.0 if rule or '.bn.' in name else 0.3), name
    assert {name for name in decay if name.endswith(('connectivity.bias', 'connectivity.tau'))}


# -- the demo -------------------------------------------------------------------------------------


def test_the_demo_removes_only_what_is_its_own(tool, tmp_path):
    """Of a run with other options; and nothing else in the folder, whatever it holds."""
    for name in ('classifier', 'random-0', 'thesis'):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'file').write_text('x')
    (tmp_path / 'results.json').write_text('{}')
    arguments = ['--output', tmp_path, '--classifier', tmp_path / 'none.yaml']
    status, _, err = tool('demo_detection', *arguments)
    assert status != 0
    assert 'none.yaml' in err
    assert {p.name for p in tmp_path.iterdir()} == {'thesis', 'results.json', 'options.json'}
    (tmp_path / 'random-0').mkdir()
    tool('demo_detection', *arguments)  # the same options: goes on
    assert (tmp_path / 'random-0').is_dir()
    tool('demo_detection', *arguments, '--iterations', 3)
    assert not (tmp_path / 'random-0').exists()


def test_the_demo_prints_a_table(tool, tmp_path, monkeypatch):
    """Two iterations: nothing is learned, but every step is run."""
    config = tmp_path / 'classifier.yaml'
    config.write_text('model: test_toponet\ndataset: digits\nepochs: 1\nworkers: 0\n')
    monkeypatch.setenv('PYTHONPATH', PATH)
    status, out, err = tool(
        'demo_detection', '--output', tmp_path / 'demo', '--seeds', 5, '--iterations', 2,
        '--classifier', config,
    )  # fmt: skip
    assert status == 0, err
    results = json.loads((tmp_path / 'demo' / 'results.json').read_text())
    assert results.keys() == {'transfer-5', 'random-5'}
    assert 'digit classifier' in out
    assert not (tmp_path / 'demo' / 'options.json').exists()
    log = (tmp_path / 'demo' / 'transfer-5' / 'stdout.txt').read_text()
    assert re.search(r'model -> backbone test_toponet: loaded \d+ tensors, skipped 2', log)
    assert timm_topo.load(tmp_path / 'demo' / 'classifier' / 'model').num_classes == 10
