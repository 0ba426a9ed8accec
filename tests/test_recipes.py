"""Recipes of the papers: what ``configs/classification`` trains with, against what they print."""

import dataclasses
import math
from pathlib import Path

import pytest
import timm
import torch
from timm.data import resolve_input_data_config
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from torch import nn

from timm_topo.training.build import build_optimizer
from timm_topo.training.options import TrainingOptions, parse_args

FOLDER = Path(__file__).parents[1] / 'configs' / 'classification'
OPTIONS = {path.stem: parse_args(['-c', str(path)]) for path in sorted(FOLDER.glob('*.yaml'))}
IMAGENET = [name for name, args in OPTIONS.items() if args.dataset == '']
PER_UPDATE = [name for name in IMAGENET if OPTIONS[name].warmup_epochs]


def rates(args: TrainingOptions, updates_per_epoch: int) -> list[float]:
    """The learning rate of every update, as training sets it."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=args.lr)
    scheduler, epochs = create_scheduler_v2(
        optimizer,
        **scheduler_kwargs(args, decreasing_metric=False),
        updates_per_epoch=updates_per_epoch,
    )
    found = []
    for update in range(epochs * updates_per_epoch):
        found.append(optimizer.param_groups[0]['lr'])
        scheduler.step_update(update + 1)
        if (update + 1) % updates_per_epoch == 0:
            scheduler.step((update + 1) // updates_per_epoch)
    return found


def test_imagenet_configs_are_those_that_say_so():
    assert [name for name in OPTIONS if '_in1k_' in name] == IMAGENET
    assert len(IMAGENET) >= 6


@pytest.mark.parametrize('name', IMAGENET)
def test_all_rows_of_a_table_are_evaluated_on_the_same_crop(name):
    """Of 256 pixels the middle 224, for networks of timm too, whose own crops differ."""
    for model in (OPTIONS[name].model, 'resnet50', 'regnetx_016'):
        network = timm.create_model(model, device='meta')
        data = resolve_input_data_config(network, vars(OPTIONS[name]))
        assert (data['crop_pct'], data['input_size']) == (0.875, (3, 224, 224)), model


@pytest.mark.parametrize('name', PER_UPDATE)
def test_warm_up_rises_with_every_update(name):
    args = OPTIONS[name]
    found = rates(args, 4)
    rising = 4 * args.warmup_epochs
    step = (args.lr - args.warmup_lr) / rising
    assert found[:rising] == pytest.approx([args.warmup_lr + i * step for i in range(rising)])
    assert found[rising] == pytest.approx(args.lr, rel=0.01)
    assert found[-1] < 1e-3 * args.lr


def test_resnets_of_dgnet_warm_up_from_a_tenth_as_goyal_et_al():
    found = rates(OPTIONS['dgnet_resnet50_in1k_100ep'], 2)
    assert found[:10] == pytest.approx([0.1 + 0.03 * i for i in range(10)])
    assert max(found) == pytest.approx(0.4, rel=0.01)


def test_janik_and_nowak_train_as_the_code_that_they_refer_to():
    """One group of plain SGD that decays everything; a tenth in the 80th and the 90th epoch."""
    args = OPTIONS['dagnet60_cifar10_100ep']
    model = timm.create_model(args.model, device='meta')
    optimizer = build_optimizer(args, model)
    assert type(optimizer) is torch.optim.SGD
    for group in optimizer.param_groups:
        found = [group[name] for name in ('momentum', 'dampening', 'nesterov', 'weight_decay')]
        assert found == [0.9, 0, False, 1e-4]
    trained = [id(p) for group in optimizer.param_groups for p in group['params']]
    assert sorted(trained) == sorted(map(id, model.parameters()))
    assert rates(args, 1) == pytest.approx([0.1] * 79 + [0.01] * 10 + [0.001] * 11)
    assert (args.aug, args.crop_padding, args.hflip, args.smoothing) == (True, 4, 0.5, 0.0)


@pytest.mark.parametrize(
    ('name', 'expected'),
    [
        ('maskconnect_resnext50_32x4d_in1k_90ep', [0.1] * 30 + [0.01] * 30 + [0.001] * 30),
        ('maskconnect_resnet38_cifar100_164ep', [0.1] * 82 + [0.01] * 41 + [0.001] * 41),
        (
            'randwire_ws_small_in1k_100ep',
            [0.05 * (1 + math.cos(math.pi * epoch / 100)) for epoch in range(100)],
        ),
    ],
)
def test_rates_of_every_epoch(name, expected):
    assert rates(OPTIONS[name], 1) == pytest.approx(expected)


def test_table_5_of_dgnet_is_longer_than_table_1_and_else_the_same():
    short, long = (OPTIONS[f'dgnet_regnetx_006_in1k_{epochs}ep'] for epochs in (100, 250))
    assert (short.epochs, long.epochs) == (100, 250)
    assert dataclasses.replace(short, epochs=250) == long
