"""Training in one table: what is kept, what is used again, and what autograd asks of it."""

import copy
import gc
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

from timm_topo.analysis.memory import saved_memory
from timm_topo.executors.schedule import schedule
from timm_topo.executors.table import Table
from timm_topo.generators import complete, sequential
from timm_topo.nodes import SepConvEntry
from timm_topo.stages import Stage, choose, use

ROOT = Path(__file__).parents[1]


@pytest.fixture
def stage(stage_of) -> Stage:
    stage = stage_of(complete(5)).train()
    assert choose(stage, images()).name == 'recompute'
    return stage


def images(seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=draw)


def gradient(stage: Stage, x: Tensor) -> Tensor:
    return torch.autograd.grad(stage(x).square().sum(), stage.connectivity.alpha)[0]


# -- several passes at once -----------------------------------------------------------------------


def test_two_backward_passes_add_up(stage):
    loss = stage(images()).square().mean()
    loss.backward(retain_graph=True)
    once = [p.grad.clone() for p in stage.parameters()]
    loss.backward()
    for one, parameter in zip(once, stage.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, 2 * one)


def test_graphs_do_not_share_memory(stage):
    """Whichever is differentiated first, and with inference between."""
    expected = [gradient(stage, images(seed)) for seed in range(3)]
    losses = [stage(images(seed)).square().sum() for seed in range(3)]
    with torch.no_grad():
        stage(images())
    for k in (1, 0, 2):
        (got,) = torch.autograd.grad(losses[k], stage.connectivity.alpha)
        torch.testing.assert_close(got, expected[k])


def test_threads_have_memory_of_their_own(stage):
    def run(seed: int) -> list[Tensor]:
        own = copy.deepcopy(stage)
        with torch.no_grad():
            output = copy.deepcopy(stage).eval()(images(seed))
        return [gradient(own, images(seed)), output]

    expected = [run(seed) for seed in range(16)]
    with ThreadPoolExecutor(4) as pool:
        torch.testing.assert_close(list(pool.map(run, range(16))), expected)


# -- memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize('nodes', [6, 12])
def test_autograd_keeps_one_map_per_node(nodes):
    """Beside the entry: N - 1 maps of 16 channels and 16 px, and little else."""

    def network(wiring) -> nn.Module:
        options = dict(num_nodes=None, wiring=[wiring], widths=(16,), strides=(2,))
        return timm.create_model('test_toponet', **options)

    images = torch.randn(2, 3, 64, 64)
    one_map = 4 * 2 * 16 * 16 * 16
    kept = saved_memory(network(complete(nodes)), images)
    with use('reference'):
        plain = saved_memory(network(complete(nodes)), images)
    around = saved_memory(network(sequential(2)), images)  # stem, entry and classifier
    assert (nodes - 1) * one_map <= kept - around + one_map <= (nodes + 1) * one_map
    assert plain > 2.5 * (kept - around)


def test_an_entry_keeps_what_its_norms_read(stage_of):
    """Of ReLU(x) and the depthwise convolution's map nothing, unless somebody watches."""
    stage = stage_of(complete(4), dtype=torch.float32)
    stage.entry = SepConvEntry(8, 4)
    x = torch.randn(2, 8, 32, 32, requires_grad=True)
    kept = saved_memory(stage, x)
    stage.entry.node.act.register_forward_hook(lambda *_: None)
    relu, depthwise = 4 * x.numel(), 4 * x.numel() // 4
    assert relu + depthwise <= saved_memory(stage, x) - kept <= 1.1 * (relu + depthwise)


def allocated() -> int:
    """Bytes of all tensors."""
    gc.collect()
    tensors = [one for one in gc.get_objects() if type(one) in (Tensor, nn.Parameter)]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def test_memory_goes_with_other_shapes_and_with_inference():
    model = timm.create_model('test_toponet')

    def after(size: int, training: bool) -> int:
        with torch.set_grad_enabled(training):
            output = model.train(training)(torch.randn(2, 3, size, size))
        if training:
            output.sum().backward()
        return allocated()

    large, small, again = after(96, True), after(64, True), after(96, True)
    assert small < large == again
    assert after(96, False) < large
    assert after(64, False) == after(96, False)


# -- autograd -------------------------------------------------------------------------------------


def test_weights_that_change_between_the_passes_are_an_error(stage):
    loss = stage(images()).sum()
    with torch.no_grad():
        stage.nodes[0].conv_pw.weight.add_(1)
    with pytest.raises(RuntimeError, match='modified by an inplace operation'):
        loss.backward()


def test_derivatives_of_derivatives_need_the_reference(stage):
    x = images().requires_grad_()
    (grad,) = torch.autograd.grad(stage(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match='once_differentiable'):
        grad.square().sum().backward()
    with use('reference'):
        (grad,) = torch.autograd.grad(stage(x).square().sum(), x, create_graph=True)
    grad.square().sum().backward()
    assert x.grad.isfinite().all()


def test_parameters_in_place_of_a_modules_own(stage):
    leaves = {n: (p.detach() + 1).requires_grad_() for n, p in stage.named_parameters()}

    def gradients() -> tuple[Tensor, ...]:
        output = torch.func.functional_call(stage, leaves, images())
        return torch.autograd.grad(output.square().sum(), list(leaves.values()))

    with use('reference'):
        expected = gradients()
    torch.testing.assert_close(gradients(), expected)


def test_a_backward_pass_under_autocast_is_that_of_the_forward_pass(stage_of):
    stage, x = stage_of(complete(4), dtype=torch.float32), images().float()
    loss = stage(x).square().sum()
    with torch.autocast('cpu', torch.bfloat16):
        (got,) = torch.autograd.grad(loss, stage.connectivity.alpha)
    torch.testing.assert_close(got, gradient(stage, x))


def test_edge_weights_may_be_of_another_type(stage_of, results, assert_same):
    stage, x = stage_of(complete(5), dtype=torch.float32), images().float()
    stage.connectivity.double()
    for training in (True, False):
        with torch.set_grad_enabled(training):
            mine = results(stage.train(training), x)
            assert_same(mine, results(stage, x, 'reference'), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('grad', [True, False])
def test_one_value_per_channel_cannot_be_normalised(grad, stage):
    stage.entry = nn.Identity()  # without a norm of its own
    before = [buffer.clone() for buffer in stage.buffers()]
    with (
        torch.set_grad_enabled(grad),
        pytest.raises(ValueError, match='more than 1 value per channel'),
    ):
        stage(torch.randn(1, 4, 1, 1, dtype=torch.float64))
    for mine, old in zip(stage.buffers(), before, strict=True):
        assert torch.equal(mine, old)


# -- sums -----------------------------------------------------------------------------------------


@pytest.mark.parametrize('node', ['sepconv', 'conv'])
@pytest.mark.parametrize('count', [1, 3, 4])
def test_several_sums_per_product_are_the_equation(
    count, node, stage_of, results, assert_same, monkeypatch
):
    """Of nodes before a group and after it, where there are any."""
    monkeypatch.setattr(Table, 'sums_per_product', count)
    wiring = complete(24)
    for sums in ('sums_earlier', 'sums_later'):
        assert any(getattr(group, sums) for group in schedule(wiring, count, 1)) == (count > 1)
    stage = stage_of(wiring, node=node).train()
    assert_same(results(stage, images()), results(stage, images(), 'reference'))


def test_training_few_channels_damages_no_memory():
    """Where a pointwise convolution with a stride reads fewer than 8 channels, with channels last,
    oneDNN writes behind its gradient on CPUs without AVX-512; the C library notices (timm_topo
    has no such convolution).
    """
    program = (
        'import torch, timm, timm_topo; torch.set_num_threads(1)\n'
        "model = timm.create_model('test_toponet', num_nodes=(4,), widths=(8,), strides=(2,),"
        ' stem_width=4, stem_kernel=3).train()\n'
        'images = torch.randn(16, 3, 16, 16)\n'
        'for layout in (torch.contiguous_format, torch.channels_last) * 30:\n'
        '    model(images.contiguous(memory_format=layout)).sum().backward()'
    )
    env = {**os.environ, 'ONEDNN_MAX_CPU_ISA': 'AVX2', 'PYTHONPATH': str(ROOT)}
    done = subprocess.run([sys.executable, '-c', program], env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, '')
