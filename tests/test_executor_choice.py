"""Which executor runs a stage: the registry, the choice, and what each objects to."""

import copy
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import MethodType

import pytest
import timm
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.modules import module as all_modules
from torch.nn.utils import parametrizations
from torch.utils.flop_counter import FlopCounterMode

from timm_topo.analysis.prune import prune
from timm_topo.connectivity.masked import MaskedEdges
from timm_topo.executors import NodesAlone, chunked
from timm_topo.generators import complete
from timm_topo.stages import (
    Executor,
    GraphStage,
    Stage,
    choose,
    executor,
    executors,
    explain,
    graph_stages,
    node_maps,
    register,
    use,
)


def images(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 8, 8, dtype=torch.float64)


# -- the registry ---------------------------------------------------------------------------------


class Zeros(Executor):
    """Runs everything as zeros, so that one sees where it was chosen."""

    name = 'zeros'
    rank = 1000

    def objection(self, stage: Stage, x: Tensor) -> str:
        return 'an odd batch' if len(x) % 2 else ''

    def run(self, stage: Stage, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


@pytest.fixture
def zeros(monkeypatch):
    monkeypatch.setattr(executor, '_EXECUTORS', executor._EXECUTORS[:])
    return register(Zeros())


def test_an_executor_of_the_highest_rank_runs_what_it_can(zeros, stage_of):
    stage = stage_of(complete(4))
    ranks = [executor.rank for executor in executors().values()]
    assert ranks == sorted(ranks, reverse=True)
    assert list(executors())[:: len(ranks) - 1] == ['zeros', 'reference']
    assert not stage(images()).any()
    assert stage(images(3)).any()
    assert choose(stage, images()) is zeros
    assert choose(stage, images(3)).name == 'recompute'


def test_names_are_taken_once(zeros):
    with pytest.raises(ValueError, match="executor 'zeros' is already registered"):
        register(Zeros())


@pytest.mark.parametrize('rank', [0, -1])
def test_nothing_is_behind_the_reference(rank, zeros):
    last = Zeros()
    last.name, last.rank = 'last', rank
    with pytest.raises(ValueError, match=f"rank of 'last' must be above 0, .* got {rank}"):
        register(last)


def test_an_unknown_name_is_named():
    known = re.escape(', '.join(executors()))
    with pytest.raises(ValueError, match=f"unknown executor 'tables'; known: {known}"):
        use('tables').__enter__()


def test_the_innermost_executor_in_use_runs_all_stages(zeros, stage_of):
    stage = stage_of(complete(4))
    with use('reference') as outer:
        assert outer.name == choose(stage, images()).name == 'reference'
        with use(zeros):
            assert not stage(images()).any()
            with pytest.raises(ValueError, match="'zeros' cannot run this stage: an odd batch"):
                stage(images(3))
        assert choose(stage, images()).name == 'reference'
    assert choose(stage, images()) is zeros


def test_an_executor_is_in_use_in_its_thread(stage_of):
    stage, x = stage_of(complete(4)).train(), images()
    with use('reference'), ThreadPoolExecutor(1) as pool:
        assert pool.submit(choose, stage, x).result().name == 'recompute'


def test_maps_are_those_of_the_executor_in_use_if_it_has_any(stage_of):
    stage, x = stage_of(complete(4)).eval(), images()
    with torch.no_grad():
        expected = stage.run(x)[0]
        torch.testing.assert_close(node_maps(stage, x), expected)
        with use('table'):
            torch.testing.assert_close(node_maps(stage, x), expected)
        with use(NodesAlone()):
            maps = node_maps(stage, x)
    torch.testing.assert_close(maps[:2], [expected[0], stage.nodes[0](expected[0].clone())])
    torch.testing.assert_close(maps[-1], maps[-2])


def test_maps_are_not_asked_of_an_executor_that_objects():
    graph = timm.create_model('test_maskconnect_resnext').dag
    with use(NodesAlone()), pytest.raises(ValueError, match='nodes are not computed one by one'):
        node_maps(graph, torch.randn(1, 3, 16, 16), [0])


# -- explanations ---------------------------------------------------------------------------------


def test_an_explanation_names_stages_executors_and_objections():
    model = timm.create_model('test_toponet').eval()
    x = torch.randn(2, 3, 32, 32)
    found = explain(model.train(), x)
    assert list(found) == list(graph_stages(model))
    one = found['stages.1']
    assert one.executor == 'recompute'
    assert one.objections == {
        name: executor.objection(model.stages[1], x.new_zeros(2, 16, 8, 8))
        for name, executor in executors().items() if name != 'recompute'
    }  # fmt: skip
    assert one.objections['table'] == 'a gradient is wanted'
    assert one.objections['reference'] == ''
    assert str(one).splitlines() == [
        'recompute',
        *(f'  {name}: {why or "of lower rank"}' for name, why in one.objections.items()),
    ]
    with torch.no_grad():
        told = explain(model.eval(), x)['stages.0'].executor
    assert re.fullmatch(r'chunked: \d+ images at a time by table', told)


def test_tensors_without_values_are_explained(stage_of):
    stage = nn.Sequential(stage_of(complete(4)).to('meta'))
    found = explain(stage, images().to('meta'))['0']
    assert found.executor == 'reference'
    assert set(found.objections.values()) == {
        'the input is no plain tensor, or a mode watches operators'
    }


# -- what is not run as it is called --------------------------------------------------------------


def watched(stage: Stage, x: Tensor) -> Tensor:
    with FlopCounterMode(display=False):
        return stage(x)


def fake(stage: Stage, x: Tensor) -> Tensor:
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        return stage(mode.from_tensor(x))


@pytest.mark.filterwarnings('ignore:.*torch.jit')
@pytest.mark.parametrize(
    'run',
    [
        lambda stage, x: torch.jit.trace(stage, x, check_trace=False)(x),
        lambda stage, x: torch.export.export(stage, (x,)).module()(x),
        lambda stage, x: torch.compile(stage, backend='eager', fullgraph=True)(x),
        lambda stage, x: torch.fx.symbolic_trace(stage)(x),
        lambda stage, x: make_fx(stage)(x)(x),
        watched,
        fake,
        lambda stage, x: copy.deepcopy(stage).to('meta')(x.to('meta')),
    ],
    ids=['trace', 'export', 'compile', 'fx', 'make_fx', 'dispatch mode', 'fake', 'meta'],
)
def test_what_is_traced_or_watched_is_run_by_the_reference(run, zeros, stage_of):
    stage, x = stage_of(complete(4)).eval(), images()
    with torch.no_grad():
        got, expected = run(stage, x), stage.run(x)[0][-1]
        assert got.shape == expected.shape
        if type(got) is Tensor and not got.is_meta:
            torch.testing.assert_close(got, expected)
        assert not stage(x).any(), 'zeros run what is called'


@pytest.mark.filterwarnings('ignore:.*torch.jit')
def test_traces_hold_the_reference_whatever_is_in_use(zeros, stage_of):
    stage, x = stage_of(complete(4)).eval(), images()
    with torch.no_grad(), use(zeros):
        torch.testing.assert_close(torch.jit.trace(stage, x)(x), stage.run(x)[0][-1])
        compiled = torch.compile(stage, backend='eager', fullgraph=True)
        torch.testing.assert_close(compiled(x), stage.run(x)[0][-1])


def test_what_has_no_values_leaves_nothing_behind(stage_of, results, assert_same):
    """Nor does a default device."""
    stage, x = stage_of(complete(7)), images()
    expected = results(stage, x, 'reference')
    fake(stage, x)
    with torch.device('meta'):
        output = stage(x)
    assert type(output) is Tensor
    torch.testing.assert_close(output, expected['output'])
    assert_same(results(stage_of(complete(7)), x), expected)


# -- objections -----------------------------------------------------------------------------------


def part(stage: GraphStage, name: str) -> nn.Module:
    """A module that an executor may run by other means than a call; or the stage."""
    entry, node = stage.entry, stage.nodes[1]
    return {
        'entry': entry, 'shortcut': entry.shortcut, 'first conv': entry.node.conv_dw, 'node': node,
        'rule': stage.connectivity, 'act': node.act, 'conv': node.conv_pw, 'norm': node.bn,
        'stage': stage,
    }[name]  # fmt: skip


def hook(module: nn.Module):
    return module.register_forward_hook(lambda module, args, output: 2 * output)


def replace_forward(module: nn.Module) -> None:
    module.forward = MethodType(lambda self, *args: 2 * type(self).forward(self, *args), module)


def hook_inside(stage: GraphStage) -> None:
    hook(stage.connectivity)
    stage.connectivity = MaskedEdges(stage.connectivity, torch.arange(10) % 4 > 0)


def setting(key: str, value) -> Callable:
    """Function that changes an attribute of a module."""
    return lambda module: setattr(module, key, copy.deepcopy(value))


CALLED, READ = ['entry', 'shortcut', 'first conv'], ['rule', 'node', 'act', 'conv', 'norm']
DOUBLE = dict(dtype=torch.float64)
CHANGES = [
    *[(name, change, None) for name in CALLED for change in (hook, replace_forward)],
    *[(name, hook, 'a hook watches a') for name in READ],
    *[(name, replace_forward, 'the forward of a .* was replaced') for name in READ],
    ('norm', lambda m: m.register_forward_pre_hook(lambda _, args: (2 * args[0],)), 'a hook'),
    ('norm', lambda m: m.register_full_backward_hook(lambda _, g, to: (2 * g[0],)), 'gradients'),
    ('norm', lambda m: m.register_full_backward_pre_hook(lambda _, g: (2 * g[0],)), 'gradients'),
    ('stage', hook_inside, None),
    ('node', setting('conv_pw', nn.Conv2d(4, 4, 1, **DOUBLE)), 'a Conv2d with a bias'),
    ('first conv', setting('padding_mode', 'circular'), None),
    ('conv', parametrizations.weight_norm, 'a ParametrizedConv2d in place of a Conv2d'),
    ('node', setting('act', nn.GELU()), 'a GELU in place of a ReLU'),
    ('node', setting('bn', nn.GroupNorm(2, 4, **DOUBLE)), 'a GroupNorm in place of a BatchNorm2d'),
    ('norm', setting('momentum', None), 'a batch norm without parameters, momentum or count'),
    ('norm', setting('num_batches_tracked', None), 'a batch norm without .* count of batches'),
    ('norm', lambda norm: norm.train(not norm.training), 'a norm is in .* mode'),
    ('stage', lambda stage: stage.add_offset(2, torch.ones(4, 1, 1, **DOUBLE)), 'constants are'),
]


@pytest.mark.parametrize(('name', 'change', 'told'), CHANGES)
def test_what_a_table_would_not_see_is_not_run_in_one(
    name, change, told, stage_of, results, assert_same
):
    x = images()
    for training, grad in ((True, False), (False, False), (True, True)):
        stage = stage_of(complete(5)).train(training)
        with torch.set_grad_enabled(grad):
            before = results(stage, x)
            change(part(stage, name))
            expected = results(stage, x, 'reference')
            for executor in executors().values():
                if not executor.objection(stage, x):
                    assert_same(results(stage, x, executor), expected)
            if told:
                one = executors()['recompute' if grad else 'table']
                assert re.search(told, one.objection(stage, x))
    with pytest.raises(AssertionError):  # the change changes something
        assert_same(before, expected)


@pytest.mark.parametrize('kind', ['forward_hook', 'forward_pre_hook'])
def test_hooks_on_all_modules_are_heard(kind, stage_of, results, assert_same):
    stage, x = stage_of(complete(5)), images()
    plain = results(stage, x)

    def quarter(module: nn.Module, args, output=None):
        tensor = args[0] if output is None else output
        return tensor / 4 if isinstance(module, nn.BatchNorm2d) else None

    handle = getattr(all_modules, f'register_module_{kind}')(quarter)
    try:
        found, expected = results(stage, x), results(stage, x, 'reference')
        for name in ('recompute', 'table', 'chunked'):
            with torch.set_grad_enabled(name == 'recompute'):
                told = executors()[name].objection(stage.train(name == 'recompute'), x)
                assert told == 'hooks watch all modules'
    finally:
        handle.remove()
    assert_same(found, expected)
    assert not torch.equal(found['output'], plain['output'])


def test_half_precision_and_no_images_are_not_run_in_a_table(stage_of, results, assert_same):
    """Without Triton kernels."""
    stage, x = stage_of(complete(5), dtype=torch.float32), images().float()
    for name, training in (('table', False), ('recompute', True)):
        stage.train(training)
        with torch.set_grad_enabled(training):
            objection = executors()[name].objection
            assert objection(stage, x) == ''
            assert objection(stage, x[:0]) == 'the batch is empty'
            half = copy.deepcopy(stage).bfloat16(), x.bfloat16()
            assert objection(*half) == 'maps are torch.bfloat16'
            assert_same(results(*half), results(*half, 'reference'))
            with torch.autocast('cpu', torch.bfloat16):
                assert objection(stage, x).endswith('without Triton kernels')
                assert_same(results(stage, x), results(stage, x, 'reference'))
    with torch.no_grad():
        assert stage.eval()(x[:0]).shape == (0, 4, 4, 4)


def test_activation_checkpointing_is_for_the_equation(stage_of):
    stage, x = stage_of(complete(5)), images()
    stage.grad_checkpointing = True
    assert executors()['recompute'].objection(stage, x) == 'activation checkpointing is on'
    assert choose(stage, x).name == 'reference'


def test_pruned_networks_are_run_in_tables(randomise):
    """But for constants."""
    model = randomise(timm.create_model('test_toponet'))
    smaller, _ = prune(model, fraction=0.3, relative=True)
    x = torch.randn(2, 3, 32, 32)
    assert {found.executor for found in explain(smaller.train(), x).values()} == {'recompute'}


def test_hooks_see_whole_batches(one_image_at_a_time, stage_of):
    stage, seen = stage_of(complete(4)).eval(), []
    stage.nodes[0].register_forward_hook(lambda _, x, y: seen.append(len(y)))
    with torch.no_grad():
        stage(images(4))
    assert seen == [4]


@pytest.mark.parametrize(
    ('fitting', 'expected'), [(7, [6, 5]), (3, [3, 3, 3, 2]), (2, [2] * 5 + [1])]
)
def test_parts_have_as_many_images_for_every_thread(fitting, expected, monkeypatch, stage_of):
    """If so many fit."""
    stage, x = stage_of(complete(4)).eval(), images(11)
    monkeypatch.setattr(torch, 'get_num_threads', lambda: 3)
    with torch.no_grad():
        one = stage.wiring.num_nodes * stage.entry(x[:1]).nbytes
        monkeypatch.setattr(chunked, '_CACHE', one * fitting // 3 + 1)
        images_at_once = executors()['chunked'].images(stage, x)
    assert [len(part) for part in x.split(images_at_once)] == expected
