"""Parameters, multiply-adds and milliseconds against closed formulas, fvcore and a set clock."""

import copy
import logging

import pytest
import timm
import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn

import timm_topo  # noqa: F401  registers the models
from timm_topo.analysis import cost
from timm_topo.analysis.cost import Flops, count_flops, count_parameters, latency
from timm_topo.analysis.prune import freeze_edge_weights
from timm_topo.generators import residual
from timm_topo.wiring import Wiring

FVCORE_LOG = logging.getLogger('fvcore.nn.jit_analysis')


def tiny(**options) -> nn.Module:
    sizes = dict(num_nodes=(4, 3), widths=(8, 12), strides=(1, 2), stem_width=6, num_classes=5)
    return timm.create_model('test_toponet', **{**sizes, **options})


def by_formula(wirings: list[Wiring], side: int) -> Flops:
    """Multiply-adds of ``tiny`` with these wirings: 7x7 stem with stride 2, then stages."""
    conv, edges, in_chs, side = 6 * 3 * 7 * 7 * (side // 2) ** 2, 0, 6, side // 2
    for wiring, chs, stride in zip(wirings, (8, 12), (1, 2), strict=True):
        side //= stride
        entry = 9 * in_chs + in_chs * chs + in_chs * chs  # depthwise, pointwise, shortcut
        node = 9 * chs + chs * chs
        conv += (entry + node * (wiring.num_nodes - 2)) * side**2
        edges += wiring.num_edges * chs * side**2
        in_chs = chs
    return Flops(conv=conv, linear=12 * 5, edges=edges)


def hooks_of(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


# -- parameters and multiply-adds -----------------------------------------------------------------


@pytest.mark.parametrize('side', [16, 32])
def test_flops_of_a_complete_network_are_those_of_the_formula(side):
    model = tiny()
    expected = by_formula([stage.wiring for stage in model.stages], side)
    assert count_flops(model, (3, side, side)) == expected
    assert (len(model.stages[0].wiring.edges), len(model.stages[1].wiring.edges)) == (6, 3)
    assert expected.total == expected.conv + expected.linear + expected.edges


def test_flops_follow_the_edges_that_exist():
    wirings = [residual(6, 2), Wiring(3, ((0, 1), (1, 2)))]
    model = tiny(num_nodes=None, wiring=wirings)
    assert count_flops(model, (3, 16, 16)) == by_formula(wirings, 16)


def test_an_edge_from_the_stage_input_costs_what_that_map_has():
    edges = 28 * 16 * 32**2  # x_0 is the stage input itself
    edges += 27 * 32 * 16**2 + 16 * 32**2
    edges += 27 * 64 * 8**2 + 32 * 16**2
    assert count_flops(timm.create_model('toporesnet20')).edges == edges


def test_input_size_is_the_models_own_by_default():
    model = tiny()
    assert model.pretrained_cfg['input_size'] == (3, 96, 96)
    assert count_flops(model) == by_formula([stage.wiring for stage in model.stages], 96)


def test_the_default_input_has_the_channels_of_the_model():
    model = tiny(in_chans=1)
    assert count_flops(model) == count_flops(model, (1, 96, 96))


def test_a_network_without_classifier_has_no_linear_multiplications():
    assert count_flops(tiny(num_classes=0), (3, 16, 16)).linear == 0


def test_convolutions_of_another_timm_model_are_what_fvcore_counts():
    model = timm.create_model('resnet18').eval()
    direct = FlopCountAnalysis(model, torch.zeros(1, 3, 64, 64)).unsupported_ops_warnings(False)
    counted = count_flops(model, (3, 64, 64))
    assert counted.conv == direct.by_operator()['conv'] > 0
    assert counted.linear == 512 * 1000
    assert counted.edges == 0


@pytest.mark.parametrize('training', [True, False])
def test_counting_changes_neither_mode_nor_weights_nor_log_level(training):
    model = tiny().train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    level = FVCORE_LOG.level
    FVCORE_LOG.setLevel(17)
    try:
        count_flops(model, (3, 16, 16))
        assert FVCORE_LOG.level == 17
    finally:
        FVCORE_LOG.setLevel(level)
    assert all(m.training is training for m in model.modules())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert hooks_of(model) == 0


def test_a_count_that_fails_restores_mode_and_log_level_and_takes_its_hooks_off():
    model, level = tiny().train(), FVCORE_LOG.level
    with pytest.raises(RuntimeError, match='channels'):
        count_flops(model, (4, 16, 16))
    assert all(m.training for m in model.modules())
    assert FVCORE_LOG.level == level
    assert hooks_of(model) == 0


def test_parameters_include_learned_edge_weights_but_not_frozen_ones():
    model = tiny()
    learned = count_parameters(model)
    assert learned == sum(value.numel() for value in model.parameters())
    assert count_parameters(freeze_edge_weights(model)) == learned - (6 + 3)


# -- latency --------------------------------------------------------------------------------------


def two_models() -> dict[str, nn.Module]:
    return {'wide': tiny(widths=(16, 16)), 'slim': tiny()}


@pytest.mark.parametrize('training', [False, True])
def test_networks_that_return_maps_are_measured(training):
    maps = timm.create_model('test_dagnet', features_only=True)
    assert latency({'maps': maps}, (3, 16, 16), repeats=1, training=training)['maps'].median > 0


def test_latency_is_positive_and_in_order_for_every_label():
    measured = latency(two_models(), (3, 16, 16), repeats=5)
    assert list(measured) == ['wide', 'slim']
    for one in measured.values():
        assert 0 < one.low <= one.median <= one.high
        assert one.ratio > 0
    assert measured['wide'].ratio == 1.0


@pytest.mark.parametrize('repeats', [1, 4])
def test_models_run_in_turn_each_twice_after_a_round_to_warm_up(repeats):
    models, order = two_models(), []
    for label, model in models.items():
        model.register_forward_hook(lambda m, args, out, label=label: order.append(label))
    latency(models, (3, 16, 16), repeats=repeats)
    assert order == ['wide', 'slim'] + ['wide', 'wide', 'slim', 'slim'] * repeats


def test_models_see_the_batch_asked_for_in_evaluation_mode():
    models, seen = {'one': tiny().train()}, []
    models['one'].register_forward_hook(
        lambda m, args, out: seen.append((tuple(args[0].shape), m.training, out.requires_grad))
    )
    latency(models, (3, 16, 24), batch_size=3, repeats=1)
    assert set(seen) == {((3, 3, 16, 24), False, False)}


@pytest.fixture
def clock(monkeypatch):
    """Function that sets the milliseconds of passes that count, a list per round."""

    def set_times(*rounds: list[float]):
        counted = [time for times in rounds for time in times]
        remaining = iter([900] * len(rounds[0]) + [t for time in counted for t in (900, time)])
        monkeypatch.setattr(cost, '_forward_ms', lambda *args: next(remaining))

    return set_times


def test_medians_and_ratios_leave_the_warming_up_out(clock):
    clock([1, 2], [3, 6], [100, 200])
    measured = latency(two_models(), (3, 16, 16), repeats=3)
    assert (measured['wide'].median, measured['slim'].median) == (3, 6)
    assert (measured['wide'].ratio, measured['slim'].ratio) == (1, 2)


def test_ratio_is_the_median_of_ratios_and_not_the_ratio_of_medians(clock):
    clock([1, 5], [2, 4], [8, 8])
    measured = latency(two_models(), (3, 16, 16), repeats=3)
    assert (measured['wide'].median, measured['slim'].median) == (2, 5)
    assert measured['slim'].ratio == 2


def test_low_and_high_are_the_quartiles(clock):
    clock([7], [3], [1], [2], [6], [5], [4])
    measured = latency({'one': tiny()}, (3, 16, 16), repeats=7)['one']
    assert (measured.low, measured.median, measured.high) == (2, 4, 6)


def test_one_round_has_one_time(clock):
    clock([5])
    measured = latency({'one': tiny()}, (3, 16, 16), repeats=1)['one']
    assert (measured.low, measured.median, measured.high, measured.ratio) == (5, 5, 5, 1)


def test_latency_restores_modes_also_after_an_error():
    models = {'train': tiny().train(), 'eval': tiny().eval()}
    latency(models, (3, 16, 16), repeats=1)
    assert [model.training for model in models.values()] == [True, False]
    with pytest.raises(RuntimeError, match='channels'):
        latency(models, (4, 16, 16), repeats=1)
    assert [model.training for model in models.values()] == [True, False]


def test_latency_without_models_or_rounds_is_refused():
    with pytest.raises(ValueError, match='latency needs models and rounds, got 0 and 20'):
        latency({}, (3, 16, 16))
    with pytest.raises(ValueError, match='latency needs models and rounds, got 2 and 0'):
        latency(two_models(), (3, 16, 16), repeats=0)


def test_training_is_timed_on_copies():
    """Forward and backward in training mode; the models keep weights, statistics and mode."""
    models = two_models()
    seen = []

    def note(module, args, output):
        seen.append((module.training, torch.is_grad_enabled()))

    for model in models.values():
        model.register_forward_hook(note)
    before = {label: copy.deepcopy(model.state_dict()) for label, model in models.items()}
    modes = {label: model.training for label, model in models.items()}
    measured = latency(models, (3, 16, 16), batch_size=2, repeats=2, training=True)
    assert set(measured) == set(models)
    assert seen == [(True, True)] * 2 * (1 + 2 * 2)
    for label, model in models.items():
        assert model.training == modes[label]
        assert all(p.grad is None for p in model.parameters())
        torch.testing.assert_close(dict(model.state_dict()), dict(before[label]), rtol=0, atol=0)
