"""What runs on CPU by default is the equation: values, gradients, statistics of norms."""

import copy
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm_topo.stages.blocks import blocks
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from timm_topo.analysis.memory import saved_memory
from timm_topo.analysis.prune import prune
from timm_topo.connectivity import build_connectivity
from timm_topo.executors import naive_sum
from timm_topo.generators import complete, random, residual, sequential
from timm_topo.nodes import NODES
from timm_topo.stages import GraphStage, graph_stages, lean, reuse, table
from timm_topo.stages import graph_stage as module

ROOT = Path(__file__).parents[1]
RULES = ['alpha', 'tanh', 'fixed', {'name': 'alpha', 'weigh_sole': False}]


def stage_of(wiring, rule='alpha', node: str = 'sepconv', seed: int = 0, dtype=torch.float64):
    """A stage of 4 channels that reads 3, norms and edge weights far from their initial values."""
    draw = torch.Generator().manual_seed(seed)
    parts = NODES[node](3, 4, wiring.num_nodes - 2, 2, 1, norm_layer=nn.BatchNorm2d)
    raw = parts.raw_entry and wiring.num_nodes > 2
    rule = build_connectivity(rule, wiring)
    stage = GraphStage(wiring, rule, parts.entry, parts.nodes, raw_entry=raw)
    with torch.no_grad():
        for name, tensor in (*stage.named_parameters(), *stage.named_buffers()):
            if name.endswith('running_var'):
                tensor.uniform_(0.5, 2, generator=draw)
            elif tensor.is_floating_point() and 'index' not in name:
                tensor.normal_(0, 1, generator=draw)
    return stage.to(dtype)


def step(stage: nn.Module, x: Tensor) -> list[Tensor]:
    """Output, gradients of input and parameters, and buffers after a training step."""
    stage.zero_grad()
    x = x.clone().requires_grad_()
    output = stage(x)
    weights = torch.linspace(-1, 1, output.numel(), dtype=x.dtype).view_as(output)
    (output * weights).sum().backward()
    return [output.detach(), x.grad, *(p.grad for p in stage.parameters()), *stage.buffers()]


def both(stage: GraphStage, x: Tensor) -> None:
    """Compare with the stage run edge by edge."""
    plain = copy.deepcopy(stage)
    plain.fast = False
    assert stage.fast_path(x) is not None
    got, expected = step(stage, x), step(plain, x)
    for mine, theirs in zip(got, expected, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=1e-9)


# -- training -------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(
    nodes=st.integers(3, 7), p=st.floats(0.2, 1), seed=st.integers(0, 99),
    rule=st.sampled_from(RULES), node=st.sampled_from(['sepconv', 'conv']),
    batch=st.integers(1, 3), size=st.tuples(st.integers(5, 9), st.integers(5, 9)),
    last=st.booleans(),
)  # fmt: skip
def test_training_is_the_equation(nodes, p, seed, rule, node, batch, size, last):
    wiring = random(nodes, p, seed).prune()[0]
    stage = stage_of(wiring, rule, node, seed).train()
    x = torch.randn(batch, 3, *size, dtype=torch.float64)
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    if stage.raw_entry and wiring.succs(0) == (1,):
        assert stage.fast_path(x) is None
    else:
        both(stage, x)


@settings(max_examples=15)
@given(
    nodes=st.integers(8, 30), p=st.floats(0.3, 1), seed=st.integers(0, 99),
    rule=st.sampled_from(RULES), node=st.sampled_from(['sepconv', 'conv']), last=st.booleans(),
)  # fmt: skip
def test_many_nodes_train_as_the_equation(nodes, p, seed, rule, node, last):
    """Several of them at once, where there are many edges."""
    wiring = random(nodes, p, seed).prune()[0]
    stage = stage_of(wiring, rule, node, seed).train()
    x = torch.randn(2, 3, 6, 5, dtype=torch.float64)
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    if stage.fast_path(x) is not None:
        both(stage, x)


@pytest.mark.parametrize('node', ['sepconv', 'conv'])
def test_sums_ahead_and_behind_are_the_equation(node, monkeypatch):
    monkeypatch.setattr(table.Table, 'together', 4)
    wiring = complete(24)
    found = blocks(wiring, 4, 1)
    assert any(block.ahead for block in found)
    assert any(block.behind for block in found)
    both(stage_of(wiring, 'alpha', node).train(), torch.randn(2, 3, 6, 5, dtype=torch.float64))


def test_what_a_pass_was_lent_waits_again(monkeypatch):
    """Forward and backward, also of the last nodes."""
    monkeypatch.setattr(table.Table, 'together', 4)
    stage = stage_of(complete(24)).train()
    x = torch.randn(2, 3, 6, 5, dtype=torch.float64)
    step(stage, x)
    (own,) = reuse._FREE
    reuse.give_back(torch.empty(30, own.shape[1], dtype=torch.float64))
    waiting = {flat.data_ptr() for flat in reuse._FREE}
    output = stage(x)
    assert {flat.data_ptr() for flat in reuse._FREE} == waiting - {own.data_ptr()}
    output.sum().backward()
    assert {flat.data_ptr() for flat in reuse._FREE} == waiting
    reuse.let_go()


@pytest.mark.parametrize('gamma', [0.0, 1e-12, 1e-3])
def test_scales_near_zero_divide_nothing(gamma):
    """Batch norm is not undone where its scale would cost digits."""
    stage = stage_of(complete(5)).train()
    with torch.no_grad():
        stage.nodes[1].bn.weight[2] = gamma
        stage.nodes[2].bn.weight.fill_(gamma)
    both(stage, torch.randn(2, 3, 8, 8, dtype=torch.float64))


def test_in_float32_errors_are_those_of_rounding():
    """Against float64, no larger than twice those of the plain way."""
    reference = stage_of(complete(8)).train()
    x = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    errors = []
    for fast in (True, False):
        stage = copy.deepcopy(reference).float()
        stage.fast = fast
        exact = copy.deepcopy(reference)
        exact.fast = False
        errors.append([
            ((a.double() - b).norm() / b.norm().clamp(min=1e-12)).item()
            for a, b in zip(step(stage, x.float()), step(exact, x)) if b is not None
            and b.is_floating_point()
        ])  # fmt: skip
    for fast, plain in zip(*errors):
        assert fast <= 3 * plain + 1e-5


def test_what_does_not_learn_gets_no_gradient():
    stage = stage_of(complete(5)).train()
    stage.nodes[1].requires_grad_(False)
    stage.connectivity.requires_grad_(False)
    both(stage, torch.randn(2, 3, 8, 8, dtype=torch.float64))


def test_two_backward_passes_add_up():
    stage = stage_of(complete(5)).train()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    output = stage(x).square().mean()
    output.backward(retain_graph=True)
    once = [p.grad.clone() for p in stage.parameters() if p.grad is not None]
    output.backward()
    twice = [p.grad for p in stage.parameters() if p.grad is not None]
    for one, two in zip(once, twice, strict=True):
        torch.testing.assert_close(two, 2 * one)


@pytest.mark.parametrize('known', [True, False])
def test_steps_use_the_same_memory(known, monkeypatch):
    """Where PyTorch tells that there is no second backward pass; values are the same anyway."""
    reuse.let_go()
    if not known:
        monkeypatch.setattr(lean, '_keeps_graph', lambda: True)
    stage = stage_of(complete(5)).train()
    places = []
    for seed in range(3):
        x = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.manual_seed(seed))
        both(stage, x)
        places.append([flat.data_ptr() for flat in reuse._FREE])
    assert places == ([places[0]] * 3 if known else [[], [], []])
    assert len(places[0]) == int(known)


def test_two_graphs_at_once_do_not_share_memory():
    reuse.let_go()
    stage = stage_of(complete(5)).train()
    inputs = [torch.randn(2, 3, 8, 8, dtype=torch.float64) for _ in range(2)]
    expected = [
        torch.autograd.grad(stage(x).square().sum(), stage.connectivity.alpha)[0] for x in inputs
    ]
    losses = [stage(x).square().sum() for x in inputs]
    for loss, one in reversed(list(zip(losses, expected))):
        torch.testing.assert_close(torch.autograd.grad(loss, stage.connectivity.alpha)[0], one)


def test_memory_goes_with_other_shapes_and_with_inference():
    reuse.let_go()
    model = timm.create_model('test_toponet').train()
    sizes = {}
    for name, stage in graph_stages(model).items():
        stage.register_forward_hook(lambda _, x, y, name=name: sizes.update({name: y.numel()}))
    for side in (64, 32, 64):
        model(torch.randn(2, 3, side, side)).sum().backward()
        nodes = {name: stage.wiring.num_nodes for name, stage in graph_stages(model).items()}
        expected = {(nodes[name] - 1, size) for name, size in sizes.items()}
        assert {tuple(flat.shape) for flat in reuse._FREE} == expected
    with torch.no_grad():
        model.eval()(torch.randn(2, 3, 64, 64))
    assert reuse._FREE == []


def test_weights_that_change_between_the_passes_are_an_error():
    stage = stage_of(complete(5)).train()
    output = stage(torch.randn(2, 3, 8, 8, dtype=torch.float64)).sum()
    with torch.no_grad():
        stage.nodes[0].conv_pw.weight.add_(1)
    with pytest.raises(RuntimeError, match='modified by an inplace operation'):
        output.backward()


def test_derivatives_of_derivatives_need_the_plain_way():
    stage = stage_of(complete(4)).train()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(stage(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match='once_differentiable'):
        grad.square().sum().backward()
    stage.fast = False
    (grad,) = torch.autograd.grad(stage(x).square().sum(), x, create_graph=True)
    grad.square().sum().backward()
    assert x.grad.isfinite().all()


def hooked(stage: GraphStage) -> None:
    stage.nodes[1].bn.register_forward_hook(lambda *_: None)


def frozen_norm(stage: GraphStage) -> None:
    stage.nodes[1].bn.eval()


def other_norm(stage: GraphStage) -> None:
    stage.nodes[1].bn = nn.GroupNorm(2, 4).double()


def cumulative(stage: GraphStage) -> None:
    stage.nodes[1].bn.momentum = None


def checkpointed(stage: GraphStage) -> None:
    stage.grad_checkpointing = True


def with_constant(stage: GraphStage) -> None:
    stage.add_offset(2, torch.ones(4, 1, 1).double())


def another_activation(stage: GraphStage) -> None:
    stage.nodes[1].act = nn.GELU()


@pytest.mark.parametrize(
    'change',
    [hooked, frozen_norm, other_norm, cumulative, checkpointed, with_constant, another_activation],
)
def test_what_runs_in_another_way_runs_as_it_did(change):
    stage = stage_of(complete(5)).train()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    assert stage.fast_path(x) is not None
    change(stage)
    assert stage.fast_path(x) is None
    plain = copy.deepcopy(stage)
    plain.fast = False
    for mine, theirs in zip(step(stage, x), step(plain, x), strict=True):
        if mine is not None:
            torch.testing.assert_close(mine, theirs)


def test_autocast_and_half_precision_run_as_they_did():
    stage = stage_of(complete(4), dtype=torch.float32).train()
    x = torch.randn(2, 3, 8, 8)
    with torch.autocast('cpu', torch.bfloat16):
        assert stage.fast_path(x) is None
    assert stage.bfloat16().fast_path(x.bfloat16()) is None
    with torch.no_grad():
        assert stage.eval().lean(x.bfloat16()) is None


@pytest.mark.parametrize(
    'name',
    ['test_toponet', 'test_randwire', 'test_dagnet', 'test_maskconnect_resnet', 'toporesnet20'],
)
def test_whole_networks_train_as_without(name):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5).double().train()
    plain = copy.deepcopy(model)
    for stage in graph_stages(plain).values():
        stage.fast = False
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    results = []
    for one in (model, plain):
        torch.manual_seed(1)  # masks are drawn
        results.append(step(one, x))
    for mine, theirs in zip(*results, strict=True):
        if mine is not None:
            torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=1e-9)


# -- memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize('nodes', [6, 12])
def test_autograd_keeps_one_map_per_node(nodes):
    """Beside the entry: N - 1 maps of 16 channels and 16 px, and little else."""
    model = timm.create_model(
        'test_toponet', num_nodes=None, wiring=[complete(nodes)], widths=(16,), strides=(2,)
    )
    images = torch.randn(2, 3, 64, 64)
    one_map = 4 * 2 * 16 * 16 * 16
    kept = saved_memory(model, images)
    model.stages[0].fast = False
    plain = saved_memory(model, images)
    two = timm.create_model(
        'test_toponet', num_nodes=None, wiring=[sequential(2)], widths=(16,), strides=(2,)
    )
    around = saved_memory(two, images)  # stem, entry and classifier
    assert (nodes - 1) * one_map <= kept - around + one_map <= (nodes + 1) * one_map
    assert plain > 2.5 * (kept - around)


def test_an_entry_keeps_what_its_norms_read():
    """Of ReLU(x) and the depthwise convolution's map nothing, unless somebody watches."""
    stage = stage_of(complete(4), dtype=torch.float32).train()
    x = torch.randn(2, 3, 32, 32, requires_grad=True)
    lean_bytes = saved_memory(stage, x)
    calls = []
    stage.entry.node.act.register_forward_hook(lambda *_: calls.append(1))
    relu, depthwise = 4 * x.numel(), 4 * x.numel() // 4
    more = saved_memory(stage, x) - lean_bytes
    assert relu + depthwise <= more <= 1.1 * (relu + depthwise)
    stage(x).sum().backward()
    assert len(calls) == 2


# -- inference ------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(
    nodes=st.integers(3, 7), p=st.floats(0.2, 1), seed=st.integers(0, 99),
    rule=st.sampled_from(RULES), node=st.sampled_from(['sepconv', 'conv']),
    batch=st.integers(1, 3), size=st.tuples(st.integers(5, 9), st.integers(5, 9)),
    last=st.booleans(), training=st.booleans(),
)  # fmt: skip
def test_inference_is_the_equation(nodes, p, seed, rule, node, batch, size, last, training):
    """In training mode too, where statistics of norms are renewed."""
    stage = stage_of(random(nodes, p, seed).prune()[0], rule, node, seed).train(training)
    x = torch.randn(batch, 3, *size, dtype=torch.float64)
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    plain = copy.deepcopy(stage)
    plain.fast = False
    with torch.no_grad():
        torch.testing.assert_close(stage(x), plain(x))
    for mine, theirs in zip(stage.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize('rule', ['alpha', 'router'])
@pytest.mark.parametrize('cache', [1, 1 << 16, 1 << 40])
@pytest.mark.parametrize('last', [False, True])
def test_images_in_parts_are_the_same_images(rule, cache, last, monkeypatch):
    model = timm.create_model('test_toponet', connectivity=rule).double().eval()
    images = torch.randn(5, 3, 32, 32, dtype=torch.float64)
    if last:
        images = images.contiguous(memory_format=torch.channels_last)
    calls = []
    run = 'run_lean' if rule == 'alpha' else 'last_map'  # weights for all lie in one table
    inner = getattr(GraphStage, run)

    def counted(*args):
        calls.append(len(args[-1]))
        return inner(*args)

    with torch.no_grad():
        for stage in graph_stages(model).values():
            stage.fast = False
        expected = model(images)
        monkeypatch.setattr(GraphStage, run, counted)
        for stage in graph_stages(model).values():
            stage.fast = True
        monkeypatch.setattr(module, '_CACHE', cache)
        torch.testing.assert_close(model(images), expected)
    assert sum(calls) == 5 * len(graph_stages(model))
    if cache == 1:
        assert set(calls) == {1}
    elif cache == 1 << 40:
        assert set(calls) == {5}
    else:
        assert len(set(calls)) > 1


@pytest.mark.parametrize(
    ('fitting', 'expected'), [(7, [6, 5]), (3, [3, 3, 3, 2]), (2, [2] * 5 + [1])]
)
def test_parts_have_as_many_images_for_every_thread(fitting, expected, monkeypatch):
    """If so many fit."""
    stage = stage_of(complete(4)).eval()
    x = torch.randn(11, 3, 8, 8, dtype=torch.float64)
    calls, inner = [], GraphStage.run_lean
    monkeypatch.setattr(
        GraphStage, 'run_lean', lambda *args: calls.append(len(args[-1])) or inner(*args)
    )
    monkeypatch.setattr(torch, 'get_num_threads', lambda: 3)
    with torch.no_grad():
        one = stage.wiring.num_nodes * stage.entry(x[:1]).nbytes
        monkeypatch.setattr(module, '_CACHE', one * fitting // 3 + 1)
        stage(x)
    assert calls == expected


def test_inference_uses_the_same_memory_unless_it_is_large(monkeypatch):
    """One place for the tables of all stages, sizes and types, under no_grad and inference_mode."""
    reuse.let_go()
    model = timm.create_model('test_toponet').eval()
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        expected = model(images)
        place = reuse._OWN.flat.data_ptr()
        assert reuse._OWN.flat.nbytes <= reuse._KEPT * torch.get_num_threads()
    with torch.inference_mode():
        torch.testing.assert_close(model(images), expected)
        model(images[..., ::2, ::2])
    assert reuse._OWN.flat.data_ptr() == place
    with torch.no_grad():
        torch.testing.assert_close(model.double()(images.double()), expected.double())
        assert reuse._OWN.flat.dtype == torch.float64
        monkeypatch.setattr(reuse, '_KEPT', 0)
        model(images.double())
    assert not hasattr(reuse._OWN, 'flat')


def test_threads_infer_in_memory_of_their_own():
    model = timm.create_model('test_toponet').eval()
    batches = [torch.randn(2, 3, 64, 64, generator=torch.manual_seed(k)) for k in range(16)]

    def infer(images):
        with torch.no_grad():
            return model(images)

    expected = [infer(images) for images in batches]
    with ThreadPoolExecutor(4) as pool:
        for mine, theirs in zip(pool.map(infer, batches), expected, strict=True):
            torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize('size', [2, 9])
def test_few_positions_of_many_channels_are_a_product(size):
    """As a convolution computes it: where weights are more than the values, and where not."""
    wiring = complete(4)
    parts = NODES['sepconv'](3, 48, 2, 2, 1, norm_layer=nn.BatchNorm2d)
    stage = GraphStage(wiring, build_connectivity('alpha', wiring), parts.entry, parts.nodes)
    stage = stage.double().train()
    x = torch.randn(2, 3, 2 * size, 2 * size, dtype=torch.float64)
    pointwise = stage.nodes[0].conv_pw
    read = torch.randn(2, 48, size, size, dtype=torch.float64)
    read = read.contiguous(memory_format=torch.channels_last)
    assert lean._is_product(read, pointwise, pointwise.weight) == (size == 2)
    both(stage, x)
    plain = copy.deepcopy(stage.eval())
    plain.fast = False
    with torch.no_grad():
        torch.testing.assert_close(stage(x), plain(x))


def test_hooks_see_whole_batches():
    model = timm.create_model('test_toponet').eval()
    seen = []
    model.stages[0].nodes[0].register_forward_hook(lambda _, x, y: seen.append(len(y)))
    with torch.no_grad():
        model(torch.randn(4, 3, 64, 64))
    assert seen == [4]


@pytest.mark.parametrize('wiring', [complete(6), residual(6, 2), sequential(4)])
def test_the_naive_loop_of_the_benchmark_agrees(wiring):
    model = timm.create_model(
        'test_toponet', num_nodes=None, wiring=[wiring], widths=(16,), strides=(2,)
    )
    naive = naive_sum(model)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(naive.eval()(images), model.eval()(images), rtol=1e-4, atol=1e-4)


def test_a_pruned_network_trains_in_the_fast_way():
    model = timm.create_model('test_toponet')
    with torch.no_grad():
        for stage in graph_stages(model).values():
            stage.connectivity.alpha.uniform_(0.1, 1)
    smaller, _ = prune(model, fraction=0.3, relative=True)
    smaller.train()
    x = torch.randn(2, 16, 24, 24)
    assert smaller.stages[0].fast_path(x) is not None


# -- around it -----------------------------------------------------------------------------------


def test_a_default_device_changes_nothing():
    """Nor what is kept for later passes."""
    table._row_numbers.cache_clear()
    stage = stage_of(complete(5)).eval()
    x = torch.randn(2, 3, 10, 10, dtype=torch.float64)
    plain = copy.deepcopy(stage)
    plain.fast = False
    with torch.no_grad():
        expected = plain(x)
        with torch.device('meta'):
            torch.testing.assert_close(stage(x), expected)
        torch.testing.assert_close(stage(x), expected)
    both(stage.train(), x)


def test_what_has_no_values_leaves_nothing_behind():
    stage = stage_of(complete(5)).eval()
    x = torch.randn(2, 3, 12, 12, dtype=torch.float64)
    with torch.no_grad():
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            fake = mode.from_tensor(x)
            assert stage(fake).shape == (2, 4, 6, 6)
        assert stage(fake).shape == (2, 4, 6, 6)
        expected = stage(x)  # from here on memory is kept
        assert type(expected) is Tensor
        traced = make_fx(stage)(x)
        held = [getattr(traced, n.target).numel() for n in traced.graph.nodes if n.op == 'get_attr']
        assert held
        assert max(held) < expected.numel()  # parameters, no map
        torch.testing.assert_close(traced(x), expected)


def test_edge_weights_of_another_type():
    stage = stage_of(complete(5), dtype=torch.float32).eval()
    stage.connectivity.double()
    plain = copy.deepcopy(stage)
    plain.fast = False
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(stage(x), plain(x))
    for mine, theirs in zip(step(stage.train(), x), step(plain.train(), x), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
        assert mine.dtype == theirs.dtype


@pytest.mark.parametrize('grad', [True, False])
def test_norms_that_stop_tracking_keep_their_statistics(grad):
    stage = stage_of(complete(4)).train()
    for norm in stage.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.track_running_stats = False
    before = [buffer.clone() for buffer in stage.buffers()]
    with torch.set_grad_enabled(grad):
        stage(torch.randn(2, 3, 8, 8, dtype=torch.float64))
    for mine, old in zip(stage.buffers(), before, strict=True):
        assert torch.equal(mine, old)


@pytest.mark.parametrize('grad', [True, False])
def test_one_value_per_channel_cannot_be_normalised(grad):
    stage = stage_of(complete(4)).train()
    stage.entry = nn.Identity()  # without a norm of its own
    before = [buffer.clone() for buffer in stage.buffers()]
    with (
        torch.set_grad_enabled(grad),
        pytest.raises(ValueError, match='more than 1 value per channel'),
    ):
        stage(torch.randn(1, 4, 1, 1, dtype=torch.float64))
    for mine, old in zip(stage.buffers(), before, strict=True):
        assert torch.equal(mine, old)


def test_no_images():
    stage = stage_of(complete(4)).eval()
    x = torch.randn(0, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        assert stage(x).shape == (0, 4, 4, 4)
    assert stage.train().fast_path(x) is None


def test_parameters_in_place_of_a_modules_own():
    stage = stage_of(complete(4)).train()
    other = {name: p.detach() + 1 for name, p in stage.named_parameters()}
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    results = []
    for fast in (True, False):
        stage.fast = fast
        leaves = {name: p.clone().requires_grad_() for name, p in other.items()}
        output = torch.func.functional_call(stage, leaves, x)
        results.append(torch.autograd.grad(output.square().sum(), list(leaves.values())))
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_backward_pass_under_autocast_is_that_of_the_forward_pass():
    stage = stage_of(complete(4), dtype=torch.float32).train()
    x = torch.randn(2, 3, 8, 8)
    (expected,) = torch.autograd.grad(stage(x).square().sum(), stage.connectivity.alpha)
    loss = stage(x).square().sum()
    with torch.autocast('cpu', torch.bfloat16):
        (got,) = torch.autograd.grad(loss, stage.connectivity.alpha)
    torch.testing.assert_close(got, expected)


def test_training_few_channels_damages_no_memory():
    """Where a pointwise convolution with a stride reads fewer than 8 channels, with channels last,
    oneDNN writes behind its gradient on CPUs without AVX-512; the C library notices.
    """
    program = (
        'import torch, timm, timm_topo; torch.set_num_threads(1)\n'
        "model = timm.create_model('test_toponet', num_nodes=(4,), widths=(8,), strides=(2,),"
        ' stem_width=4, stem_kernel=3).train()\n'
        'images = torch.randn(16, 3, 16, 16)\n'
        'for _ in range(300): model(images).sum().backward()'
    )
    env = {**os.environ, 'ONEDNN_MAX_CPU_ISA': 'AVX2', 'PYTHONPATH': str(ROOT)}
    done = subprocess.run([sys.executable, '-c', program], env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, '')
