"""Triton kernels compute sums over maps: on a GPU, or in Triton's interpreter on CPU (conftest)."""

import sys
from types import MethodType

import pytest
import torch
from torch import Tensor

from timm_topo.executors import conv_bn, kernels, self_check, set_triton_kernels, table_stage
from timm_topo.executors.kernels import kernels_apply
from timm_topo.executors.self_check import agrees_on
from timm_topo.generators import complete
from timm_topo.stages import aggregate_reference, choose, executors, use

pytest.importorskip('triton', '3.3', reason='Triton 3.3 or newer is not installed')
from timm_topo.executors import triton_kernels
from timm_topo.executors.triton_kernels import kernel_sum

DEVICE = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
HALF = [torch.bfloat16, torch.float16]
LAYOUTS = [torch.contiguous_format, torch.channels_last]


@pytest.fixture(autouse=True)
def switch_on():
    set_triton_kernels()
    agrees_on.cache_clear()
    yield
    set_triton_kernels(None)
    agrees_on.cache_clear()


def draw(count: int, shape, seed: int, dtype=torch.float64) -> tuple[list[Tensor], Tensor]:
    """Maps, and as many weights for all images."""
    generator = torch.Generator().manual_seed(seed)
    inputs = [torch.randn(shape, generator=generator).to(DEVICE, dtype) for _ in range(count)]
    return inputs, torch.randn(count, generator=generator).to(DEVICE, torch.float64)


def reference(inputs: list[Tensor], weights: Tensor, relu: bool) -> Tensor:
    total = aggregate_reference(inputs, weights)
    return total.relu() if relu else total


def gradients(run, inputs: list[Tensor], weights: Tensor, relu: bool) -> list[Tensor]:
    """The output, and gradients of the weights and of every map."""
    leaves = [t.detach().clone().requires_grad_() for t in (weights, *inputs)]
    y = run(leaves[1:], leaves[0], relu)
    toward = torch.arange(y.numel(), device=y.device) % 7 - 3  # exact in any type
    return [y, *torch.autograd.grad((y * toward.to(y.dtype).view_as(y)).sum(), leaves)]


# -- sums over maps -------------------------------------------------------------------------------


@pytest.mark.parametrize('per_image', [False, True])
@pytest.mark.parametrize('shape', [(2, 1, 2, 3), (2, 2, 30, 29)])
def test_a_relu_is_folded_in(shape, per_image):
    """As without, test_aggregate.py tests."""
    inputs, weights = draw(2, shape, 0)
    weights = weights * torch.tensor([[1.0], [-2.0]], device=DEVICE) if per_image else weights
    got = gradients(kernel_sum, inputs, weights, True)
    torch.testing.assert_close(got, gradients(reference, inputs, weights, True))
    if shape == (2, 1, 2, 3):
        leaves = [t.requires_grad_() for t in (weights, *inputs)]
        torch.autograd.gradgradcheck(lambda w, *xs: kernel_sum(xs, w, True), leaves)


@pytest.mark.parametrize('dtype', [torch.float32, *HALF])
def test_half_precision_is_rounded_once(dtype):
    """So gradients are as near to float64 as the type allows."""
    inputs, weights = draw(40, (2, 3, 8, 8), 0, dtype)
    got = gradients(kernel_sum, inputs, weights.float(), False)
    exact = gradients(reference, [x.double() for x in inputs], weights, False)
    assert [t.dtype for t in got] == [dtype, torch.float32, *[dtype] * 40]
    eps = torch.finfo(dtype).eps
    for mine, theirs in zip(got, exact, strict=True):
        error = (mine.double() - theirs).abs()
        assert (error <= eps * theirs.abs() + 1e-5 * theirs.abs().max()).all()


# -- stages ---------------------------------------------------------------------------------------


def images(dtype=torch.float64, layout=torch.channels_last) -> Tensor:
    x = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    return x.to(DEVICE, dtype, memory_format=layout)


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('name', ['recompute', 'kernels'])
def test_under_autocast_errors_are_those_of_half_precision(
    name, layout, stage_of, results, randomise
):
    """Against float64, not much larger than those of the reference."""
    stage = randomise(stage_of(complete(5))).to(DEVICE)
    x = images(torch.float32, layout)
    exact = results(stage, x.double(), 'reference')
    with torch.autocast(DEVICE.type, torch.bfloat16):
        assert executors()[name].objection(stage.float(), x) == ''
        usual, mine = (results(stage, x, executor) for executor in ('reference', name))
    for key, value in mine.items():
        error, common = ((r[key].double() - exact[key]).norm() for r in (mine, usual))
        assert error <= 2 * common + 0.02 * exact[key].double().norm(), key
        assert value.dtype == usual[key].dtype


@pytest.mark.parametrize('dtype', HALF)
def test_inference_in_half_precision(dtype, stage_of, results):
    stage = stage_of(complete(5)).to(DEVICE, dtype).eval()
    with torch.no_grad():
        assert executors()['table'].objection(stage, images(dtype)) == ''
        got, expected = (
            results(stage, images(dtype), name)['output'] for name in ('table', 'reference')
        )
    assert got.dtype == dtype
    error = (got - expected).float().norm() / expected.float().norm()
    assert error < 10 * torch.finfo(dtype).eps


def test_float64_stays_so_under_autocast(stage_of):
    stage = stage_of(complete(4)).to(DEVICE).eval()
    with torch.no_grad():
        expected = stage(images())
        with torch.autocast(DEVICE.type, torch.bfloat16):
            torch.testing.assert_close(stage(images()), expected)


@pytest.mark.parametrize('part', ['node', 'act'])
def test_a_watched_relu_is_not_folded_in(part, stage_of):
    stage = stage_of(complete(4)).to(DEVICE)
    module = stage.nodes[1] if part == 'node' else stage.nodes[1].act
    with use('kernels'):
        before = stage(images())
        module.forward = MethodType(lambda self, x: type(self).forward(self, x) ** 2, module)
        got = stage(images())
    with use('reference'):
        expected = stage(images())
    torch.testing.assert_close(got, expected)
    assert not torch.allclose(got, before)


class BatchNormOfGPUs:
    """PyTorch's operators, but for batch norm's contract on GPUs: in evaluation it writes what it
    used too, and both are of the type that sums are added up in (ATen/native/cuda/Normalization).
    """

    def __getattr__(self, name):
        return getattr(torch.ops.aten, name)

    class native_batch_norm:
        @staticmethod
        def out(
            y, weight, bias, mean, var, training, momentum, eps, *, out, save_mean, save_invstd
        ):
            wide = torch.float64 if y.dtype == torch.float64 else torch.float32
            assert save_mean.dtype == save_invstd.dtype == wide
            assert any(
                out.is_contiguous(memory_format=lay) and y.is_contiguous(memory_format=lay)
                for lay in LAYOUTS
            )
            ours = [torch.empty_like(weight) for _ in range(2)]
            torch.ops.aten.native_batch_norm.out(
                y, weight, bias, mean, var, training, momentum, eps,
                out=out, save_mean=ours[0], save_invstd=ours[1],
            )  # fmt: skip
            if not training:
                ours = mean, (var.to(wide) + eps).rsqrt()
            save_mean.copy_(ours[0])
            save_invstd.copy_(ours[1])


@pytest.mark.skipif(DEVICE.type == 'cuda', reason='what stands for a GPU runs on CPU')
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, *HALF])
def test_batch_norm_is_asked_for_what_gpus_give(dtype, stage_of, results, monkeypatch):
    types = conv_bn.statistics_type
    monkeypatch.setattr(conv_bn, 'statistics_type', lambda _, dtype: types('cuda', dtype))
    monkeypatch.setattr(conv_bn, 'aten', BatchNormOfGPUs())
    stage, x = stage_of(complete(5), dtype=dtype).eval(), images(dtype)
    with torch.no_grad():
        got, expected = (results(stage, x, name) for name in ('table', 'reference'))
    error = (got['output'] - expected['output']).double().norm()
    assert error < 10 * torch.finfo(dtype).eps * expected['output'].double().norm()
    for name, buffer in stage.named_buffers():
        assert torch.equal(got[name], buffer), name
    if dtype in (torch.float32, torch.float64):
        results(stage.train(), x, 'recompute')


# -- the self-check -------------------------------------------------------------------------------


def wrong_in(training: bool):
    def norm_into(out, y, bn):
        statistics = conv_bn.norm_into(out, y, bn)
        if bn.training == training:
            (statistics if training else out).mul_(2)
        return statistics

    return norm_into


def failing(out, y, bn):
    raise RuntimeError('no kernel image')


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, *HALF])
def test_tables_are_tried_before_they_are_used(dtype, monkeypatch, stage_of):
    """Without a random number of the user's; what differs in training or evaluation is refused."""
    before, half = torch.get_rng_state(), dtype in HALF
    with torch.device('meta'):
        assert agrees_on(DEVICE, dtype, True, half)
    assert torch.equal(torch.get_rng_state(), before)
    stage, x = stage_of(complete(4)).to(DEVICE, dtype).eval(), images(dtype)
    for norm_into, told in (
        (wrong_in(True), 'would compute something else'),
        (wrong_in(False), 'would compute something else'),
        (failing, 'fail there .no kernel image'),
    ):
        monkeypatch.setattr(table_stage, 'norm_into', norm_into)
        agrees_on.cache_clear()
        with pytest.warns(UserWarning, match=f'run node by node.*{told}'):
            assert not agrees_on(DEVICE, dtype, True, half)
    agrees_on.cache_clear()
    with torch.no_grad(), pytest.warns(UserWarning, match='run node by node'):
        why = executors()['table'].objection(stage, x)
    assert why == 'tables did not agree with the equation on this device'
    assert choose(stage, x).name == 'kernels'


def test_without_memory_there_is_no_answer(monkeypatch):
    key = DEVICE, torch.float32, True, False

    def full(*_, **__):
        raise torch.cuda.OutOfMemoryError

    with monkeypatch.context() as patch:
        patch.setattr(self_check, '_results', full)
        with pytest.raises(torch.cuda.OutOfMemoryError):
            agrees_on(*key)
    assert agrees_on(*key)


# -- Triton ---------------------------------------------------------------------------------------


def test_without_triton_it_is_refused(monkeypatch):
    set_triton_kernels(False)
    monkeypatch.setitem(sys.modules, 'triton', None)
    with pytest.raises(ImportError, match=r'need Triton 3\.3 or newer'):
        set_triton_kernels()
    assert not kernels_apply(torch.ones(1, 1, 1, 1))


def test_an_old_triton_is_refused(monkeypatch):
    import triton

    monkeypatch.setattr(triton, '__version__', '3.0.0')
    with pytest.raises(ImportError, match=r'Triton is 3\.0\.0'):
        set_triton_kernels()


def test_where_triton_does_not_run_it_says_so(monkeypatch):
    """By default, on a GPU: sums are plain then."""
    kernels._work_on.cache_clear()
    assert kernels._work_on(DEVICE)
    kernels._work_on.cache_clear()

    def fails(*_):
        raise RuntimeError('Failed to find C compiler')

    monkeypatch.setattr(triton_kernels, 'kernel_sum', fails)
    with pytest.warns(UserWarning, match='run without Triton, which is slower: Failed to find C'):
        assert not kernels._work_on(DEVICE)
    assert not kernels._work_on(DEVICE)  # says it once
    kernels._work_on.cache_clear()
