"""Detectors train, evaluate and resume on detectron2's engines, unmodified."""

import json
import logging
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

pytest.importorskip(
    'detectron2',
    reason='detectron2 is not installed: https://detectron2.readthedocs.io/tutorials/install.html',
)

import detectron2.solver
from detectron2.config import CfgNode, get_cfg, instantiate
from detectron2.engine import DefaultPredictor, DefaultTrainer
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from detectron2.utils.logger import setup_logger

import timm_topo
from d2_topo import add_topo_config, topo_optimizer_params, zoo
from d2_topo.data import make_digits, register_coco
from d2_topo.train_net import script as upstream
from timm_topo.stages import graph_stages

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


FROM_SCRATCH = ['MODEL.TOPO.NORM', 'BN', 'MODEL.BACKBONE.FREEZE_AT', 0]


def yaml_config(*options) -> CfgNode:
    cfg = get_cfg()
    add_topo_config(cfg)
    cfg.merge_from_file(str(YAML))
    cfg.merge_from_list(list(options))
    return cfg


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


def test_train_resume_and_evaluate(tool, digits, weights, tmp_path, monkeypatch):
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

    (tmp_path / 'tools').mkdir()
    (tmp_path / 'tools' / 'train_net.py').write_text('raise SystemExit("not detectron2\'s")')
    monkeypatch.syspath_prepend(tmp_path)
    status, out, err = tool(
        'train_net', '--eval-only', *run, 'MODEL.WEIGHTS', tmp_path / 'model_final.pth',
        'TEST.AUG.ENABLED', True, 'TEST.AUG.MIN_SIZES', (64,),
    )  # fmt: skip
    assert status == 0, err
    for folder in ('inference', 'inference_TTA'):
        assert (tmp_path / folder / 'coco_instances_results.json').is_file()


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
        (['--config-file', 'broken.yaml'], '--config-file broken.yaml: '),
        (['--config-file', 'broken.py'], '--config-file broken.py: '),
        (['--config-file', LAZY, 'train.seed.x=1'], 'train.seed is not a config'),
        (['--config-file', LAZY, 'train.seed=1', '--eval-only'], '--eval-only'),
        (
            ['--num-gpus', 2, '--config-file', YAML, *SMALL],
            '--num-gpus 2 with MODEL.DEVICE cpu: on CPU --num-gpus 0, or a LazyConfig with train.d',
        ),
    ],
)
def test_bad_command_lines(arguments, message, tool, digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.delenv('PYTEST_CURRENT_TEST')
    for suffix in ('py', 'yaml'):
        Path(f'broken.{suffix}').write_text('MODEL: [\n')
    register_coco('eight', *digits)
    status, _, err = tool('train_net', '--num-gpus', 0, *arguments)
    assert status == 1
    assert err.splitlines()[-1].startswith('error: ')
    assert 'Traceback' not in err
    assert message.format(cwd=tmp_path) in err


def test_a_folder_is_no_config(tool, tmp_path):
    status, _, err = tool('train_net', '--config-file', tmp_path)
    assert status == 1
    assert f'error: --config-file {tmp_path}: a folder' in err


def test_masks_need_segmentations(tool, digits, weights, tmp_path):
    run = small(tmp_path, digits, 'MODEL.WEIGHTS', weights, 'MODEL.MASK_ON', True)
    status, _, err = tool('train_net', *run, 'SOLVER.MAX_ITER', 2)
    assert status == 1
    assert 'error: the detector has a head for masks, but its training data has none' in err


@pytest.mark.parametrize('classes', [9, 11])
def test_as_many_categories_as_the_data_has(tool, digits, weights, tmp_path, classes):
    run = small(tmp_path, digits, 'MODEL.WEIGHTS', weights)
    few = ('MODEL.ROI_HEADS.NUM_CLASSES', classes, 'SOLVER.MAX_ITER', 2)
    status, _, err = tool('train_net', *run, *few)
    assert status == 1
    told = 'error: the data set eight has 10 categories (thing_classes: 0, 1, 2...), but the'
    assert f'{told} detector has {classes}' in err
    run = lazy_run(tmp_path, digits, f'model.roi_heads.num_classes={classes}')
    status, _, err = tool('train_net', '--num-gpus', 0, '--config-file', LAZY, *run)
    assert status == 1
    assert f'(thing_classes: 0, 1, 2...), but the detector has {classes}' in err


def test_what_was_not_loaded_is_not_evaluated(tool, digits, weights, tmp_path):
    """Neither the weights of a classifier, nor heads of another size; here by two scripts."""
    run = ['--eval-only', *small(tmp_path, digits)]
    status, _, err = tool('train_net', *run, 'MODEL.WEIGHTS', weights)
    assert status == 1
    told = r'error: (\d+) parameters of the detector were not in its checkpoint, .*: (.*)\.\.\.; to'
    count, names = re.search(told, err).groups()
    assert 'backbone.fpn_lateral2.bias' in names
    cfg = yaml_config(*SMALL)
    model = build_model(cfg)
    assert int(count) == sum(
        not n.startswith('backbone.bottom_up') for n, _ in model.named_parameters()
    )
    torch.save({'model': model.state_dict()}, tmp_path / 'detector.pth')
    other = ('MODEL.WEIGHTS', tmp_path / 'detector.pth', 'MODEL.ROI_HEADS.NUM_CLASSES', 3)
    status, _, err = tool('train_net', *run, *other)
    assert status == 1
    count, names = re.search(told.replace(r'\.\.\.', ''), err).groups()
    heads = ('bbox_pred.bias', 'bbox_pred.weight', 'cls_score.bias', 'cls_score.weight')
    assert names == ', '.join(f'roi_heads.box_predictor.{name}' for name in heads)
    cfg.MODEL.WEIGHTS = ''
    with pytest.raises(ValueError, match=r'were not in its checkpoint'):
        DefaultPredictor(cfg)(np.zeros((64, 64, 3), 'uint8'))


def test_a_step_that_failed_does_not_spoil_the_next():
    cfg = yaml_config(*SMALL, *FROM_SCRATCH, 'MODEL.TOPO.SPARSITY_WEIGHT', 1.0)
    model = build_model(cfg).train()
    image = torch.zeros(3, 64, 64)
    target = Instances((64, 64))
    target.gt_boxes = Boxes(torch.tensor([[4.0, 4.0, 40.0, 40.0]]))
    target.gt_classes = torch.tensor([0])
    with EventStorage():
        with pytest.raises(FloatingPointError, match='contain Inf/NaN'):
            model([{'image': image * math.nan, 'instances': target}])
        assert model([{'image': image, 'instances': target}])['loss_topology'] > 0


def test_several_machines_are_detectron2s_business(tool, monkeypatch):
    """Its options reach its launcher as they are."""
    launched = []
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
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


@pytest.mark.parametrize('option', [('ACCUMULATE', 2), ('EMA_DECAY', 0.9)])
def test_another_trainer_does_not_ignore_them(option):
    name, value = option
    cfg = yaml_config(*SMALL, *FROM_SCRATCH, f'SOLVER.{name}', value)
    with pytest.raises(ValueError, match=r'do not know SOLVER.*: train with python -m d2_topo'):
        build_model(cfg).train().backbone(torch.zeros(2, 3, 64, 64))


@pytest.mark.parametrize('system', ['yaml', 'lazy'])
def test_parts_precision_and_average(system, tool, digits, tmp_path):
    """By both systems; resumed; the averaged weights are a detector's checkpoint."""
    settings = {'ACCUMULATE': 2, 'EMA_DECAY': 0.5, 'AMP.ENABLED': True, 'AMP.PRECISION': 'bfloat16'}

    def command(steps: int, *options) -> list:
        if system == 'lazy':
            given = [f'train.{key.lower()}={value}' for key, value in settings.items()]
            run = [*lazy_run(tmp_path, digits, *given), f'train.max_iter={steps}', *options]
            return ['--num-gpus', 0, '--config-file', LAZY, *run]
        given = [part for key, value in settings.items() for part in (f'SOLVER.{key}', value)]
        scratch = [*FROM_SCRATCH, 'SOLVER.MAX_ITER', steps]
        return small(tmp_path, digits, *given, *scratch, *options)

    def saved(name: str) -> dict:
        return torch.load(tmp_path / f'{name}.pth', weights_only=False)['model']

    name = 'backbone.bottom_up.model.stages.3.nodes.0.conv_pw.weight'
    status, _, err = tool('train_net', *command(1))
    assert status == 0, err
    first = saved('model_ema')[name]
    status, _, err = tool('train_net', '--resume', *command(2))
    assert status == 0, err
    expected = 0.5 * first + 0.5 * saved('model_final')[name]
    torch.testing.assert_close(saved('model_ema')[name], expected)
    assert not torch.allclose(first, expected)
    key = 'train.init_checkpoint=' if system == 'lazy' else 'MODEL.WEIGHTS'
    path = tmp_path / 'model_ema.pth'
    given = [f'{key}{path}'] if system == 'lazy' else [key, path]
    status, _, err = tool('train_net', '--eval-only', *command(2, *given))
    assert status == 0, err


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


def lazy_optimizer(cfg, model):
    """As a LazyConfig with detectron2's own optimizer builds it."""
    optimizer = zoo('common/optim.py', 'SGD')
    optimizer.update(lr=cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY)
    optimizer.params.model = model
    return instantiate(optimizer)


DOORS = {
    'solver': lambda cfg, model: detectron2.solver.build_optimizer(cfg, model),
    'trainer': DefaultTrainer.build_optimizer,
    'plain_train_net': lambda cfg, model: upstream('plain_train_net').build_optimizer(cfg, model),
    'lazy': lazy_optimizer,
}


@pytest.mark.parametrize('edges', [False, True])
@pytest.mark.parametrize('door', DOORS)
def test_edge_weights_decay_only_if_asked(door, edges):
    """Thresholds of routers too; their matrices do; norms do not. Whoever builds the optimizer."""
    cfg = yaml_config(*SMALL, *FROM_SCRATCH, 'MODEL.TOPO.DECAY_EDGES', edges,
                      'SOLVER.WEIGHT_DECAY', 0.3)  # fmt: skip
    cfg.MODEL.TOPO.KWARGS.connectivity = 'router'
    model = build_model(cfg)
    optimizer = DOORS[door](cfg, model)
    names = {id(p): name for name, p in model.named_parameters()}
    decay = {names[id(p)]: group['weight_decay']
             for group in optimizer.param_groups for p in group['params']}  # fmt: skip
    assert decay.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    assert len(optimizer.param_groups) == 2
    assert all(group['lr'] == cfg.SOLVER.BASE_LR for group in optimizer.param_groups)
    for name, value in decay.items():
        rule = 'connectivity' in name and not name.endswith('.weight') and not edges
        assert value == (0.0 if rule or '.bn.' in name else 0.3), name
    assert {name for name in decay if name.endswith(('connectivity.bias', 'connectivity.tau'))}


def test_an_optimizer_for_a_model_without_our_backbone_is_detectron2s():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 3), torch.nn.BatchNorm2d(3))
    groups = topo_optimizer_params(model, base_lr=0.1, weight_decay=0.3, weight_decay_norm=0.0)
    assert [(group['weight_decay'], len(group['params'])) for group in groups] == [
        (0.3, 2),
        (0.0, 2),
    ]


# -- topo on detectors ----------------------------------------------------------------------------


def test_topo_measures_and_prunes_the_backbone_of_a_detector(tool, digits, tmp_path):
    """By the folder of its run; the heads stay, and the pruned detector is trained on."""
    run, cut = tmp_path / 'run', tmp_path / 'pruned'
    scratch = (*FROM_SCRATCH, 'SOLVER.MAX_ITER', 1)
    status, _, err = tool('train_net', *small(run, digits, *scratch))
    assert status == 0, err
    status, out, err = tool('prune', run, '--fraction', 0.1, '-o', cut, '--repeats', 1)
    assert status == 0, err
    status, out, err = tool('compare', run, cut, '--batch-size', 1, '--repeats', 1)
    assert status == 0, err
    edges = re.search(r'^edges +(\d+) +(\d+)$', out, re.MULTILINE).groups()
    assert int(edges[1]) < int(edges[0])
    status, _, err = tool('report', run, '-o', tmp_path / 'page.html', '--repeats', 1)
    assert status == 0, err
    again = ('MODEL.TOPO.NAME', cut, 'MODEL.WEIGHTS', f'{run}/model_final.pth?heads')
    for options in (('--eval-only',), ()):
        status, _, err = tool(
            'train_net', *options, *small(tmp_path / 'fine', digits, *scratch), *again
        )
        assert status == 0, err
    tuned = torch.load(tmp_path / 'fine' / 'model_final.pth')['model']
    network = timm_topo.load(tmp_path / 'fine' / 'model')
    assert sum(stage.wiring.num_edges for stage in graph_stages(network).values()) == int(edges[1])
    name = 'stages.3.nodes.0.conv_pw.weight'
    assert torch.equal(network.state_dict()[name], tuned[f'backbone.bottom_up.model.{name}'])


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
