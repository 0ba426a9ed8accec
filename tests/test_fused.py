"""The Triton kernel is the equation: on a GPU, or in Triton's interpreter on CPU (conftest.py)."""

import copy
import sys

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from timm_topo.executors import set_triton_kernels
from timm_topo.stages import GraphStage, aggregate, graph_stages, lean, trial
from timm_topo.stages.aggregate import aggregate_reference, is_fused, make_table

pytest.importorskip('triton', '3.2', reason='Triton 3.2 or newer is not installed')
DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'


@pytest.fixture(autouse=True)
def fused():
    set_triton_kernels()
    yield
    set_triton_kernels(None)


def gradients(run, inputs: list[Tensor], weights: Tensor) -> list[Tensor]:
    """The output, and gradients of the weights and of every map."""
    leaves = [t.detach().clone().requires_grad_() for t in (weights, *inputs)]
    y = run(leaves[1:], leaves[0])
    toward = torch.arange(y.numel(), device=y.device) % 7 - 3  # exact in any type
    return [y, *torch.autograd.grad((y * toward.to(y.dtype).view_as(y)).sum(), leaves)]


def draw(count, shape, seed, per_image, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    inputs = [torch.randn(shape, generator=generator).to(DEVICE, dtype) for _ in range(count)]
    size = (shape[0], count) if per_image else (count,)
    return inputs, torch.randn(size, generator=generator).to(DEVICE, torch.float64)


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(1, 6), batch=st.integers(1, 3), channels=st.integers(1, 5),
    height=st.sampled_from([1, 7, 16]), width=st.sampled_from([1, 5, 19]), seed=st.integers(0, 99),
    per_image=st.booleans(), relu=st.booleans(), last=st.sampled_from(['no', 'yes', 'some']),
)  # fmt: skip
def test_values_and_gradients(
    count, batch, channels, height, width, seed, per_image, relu, last
):  # fmt: skip
    inputs, weights = draw(count, (batch, channels, height, width), seed, per_image)
    for i, x in enumerate(inputs):
        if last == 'yes' or (last == 'some' and i % 2):
            inputs[i] = x.contiguous(memory_format=torch.channels_last)
    assert is_fused(inputs[0])

    def reference(xs, w):
        y = aggregate_reference(xs, w)
        return y.relu() if relu else y

    got = gradients(lambda xs, w: aggregate(xs, w, relu=relu), inputs, weights)
    expected = gradients(reference, inputs, weights)
    for mine, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


def test_more_than_one_block_of_an_image():
    inputs, weights = draw(3, (2, 4, 30, 29), 0, True)
    got = gradients(lambda xs, w: aggregate(xs, w, relu=True), inputs, weights)
    expected = gradients(lambda xs, w: aggregate_reference(xs, w).relu(), inputs, weights)
    for mine, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
def test_half_precision_is_added_up_in_float32(dtype):
    """Rounded once: as near to float64 as the type allows."""
    inputs, weights = draw(40, (2, 3, 8, 8), 0, False, dtype)
    got = gradients(aggregate, inputs, weights.float())
    exact = gradients(aggregate_reference, [x.double() for x in inputs], weights)
    assert [t.dtype for t in got] == [dtype, torch.float32, *[dtype] * 40]
    eps = torch.finfo(dtype).eps
    for mine, theirs in zip(got, exact, strict=True):
        error = (mine.double() - theirs).abs()
        assert (error <= eps * theirs.abs() + 1e-5 * theirs.abs().max()).all()


def test_only_what_is_asked_for_gets_a_gradient():
    inputs, weights = draw(3, (2, 3, 4, 4), 0, False)
    inputs[1].requires_grad_()
    aggregate(inputs, weights).sum().backward()
    assert inputs[0].grad is None
    assert weights.grad is None
    torch.testing.assert_close(inputs[1].grad, weights[1].expand(2, 3, 4, 4))
    weights.requires_grad_()
    aggregate([x.detach() for x in inputs], weights).sum().backward()
    torch.testing.assert_close(weights.grad, torch.stack([x.detach().sum() for x in inputs]))


@pytest.mark.parametrize('per_image', [False, True])
@pytest.mark.parametrize('relu', [False, True])
def test_derivatives_of_derivatives(per_image, relu):
    inputs, weights = draw(2, (2, 2, 3, 3), 0, per_image)
    leaves = [t.requires_grad_() for t in (weights, *inputs)]
    assert torch.autograd.gradgradcheck(lambda w, *xs: aggregate(list(xs), w, relu=relu), leaves)


# -- tables ---------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    maps=st.lists(st.integers(0, 5), max_size=6, unique=True).map(sorted), seed=st.integers(0, 99),
    shape=st.sampled_from([(2, 3, 4, 5), (1, 4, 30, 29)]), last=st.booleans(), also=st.booleans(),
    relu=st.booleans(),
)  # fmt: skip
def test_a_table_adds_up_the_maps_it_holds(maps, seed, shape, last, also, relu):
    if not maps and not also:
        return
    inputs, weights = draw(8, shape, seed, False)
    *inputs, extra, grad = inputs
    table = make_table(torch.stack([x.reshape(-1) for x in inputs]), torch.Size(shape), last)
    assert type(table).__name__ == 'FusedTable'
    held = [table[k] for k in range(6)]
    weights = weights[: len(maps) + also]
    expected = sum((w * held[k] for w, k in zip(weights, maps)), torch.zeros_like(extra))
    if also:
        expected = expected + weights[-1] * extra
    expected = expected.relu() if relu else expected
    got = table.sum(maps, weights, [table.as_row(extra)] if also else [], relu)
    torch.testing.assert_close(got, expected)
    assert got.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    if maps:
        expected = torch.stack([(held[k] * grad).sum() for k in maps])
        torch.testing.assert_close(table.dots(maps, table.as_row(grad)), expected)
        place = 5 if maps[-1] < 5 else 0
        maps = [k for k in maps if k != place] or [1]
        gated = torch.where(extra > 0, grad, 0)
        expected = torch.stack([(held[k] * gated).sum() for k in maps])
        torch.testing.assert_close(table.gate(place, grad, extra, maps), expected)
        torch.testing.assert_close(table[place], gated)


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('name', ['test_toponet', 'toporesnet20'])
def test_networks_in_tables_are_the_same(name, layout, randomise, monkeypatch):
    """Training, evaluation without gradients, and statistics of norms."""
    model = randomise(timm.create_model(name, num_classes=5, connectivity='alpha'))
    model = model.double().to(DEVICE, memory_format=layout)
    plain = copy.deepcopy(model)
    for stage in graph_stages(plain).values():
        stage.fast = False
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64, device=DEVICE)
    images = images.contiguous(memory_format=layout)
    calls, inner = [], GraphStage.run_lean
    monkeypatch.setattr(GraphStage, 'run_lean', lambda *args: calls.append(1) or inner(*args))
    results = []
    for one in (model, plain):
        set_triton_kernels(one is model)
        output = one.train()(images)
        output.square().sum().backward()
        with torch.no_grad():
            logits = one.eval()(images)
        results.append([output, logits, *(p.grad for p in one.parameters()), *one.buffers()])
    assert len(calls) == 2 * len(graph_stages(model))
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_under_autocast_errors_are_those_of_half_precision(layout, randomise):
    """Against float64, no larger than twice those without tables."""
    model = randomise(timm.create_model('test_toponet', num_classes=5)).to(DEVICE)
    model = model.to(memory_format=layout).train()
    images = torch.randn(4, 3, 32, 32, device=DEVICE).contiguous(memory_format=layout)
    results = []
    for fast, dtype in ((True, torch.bfloat16), (False, torch.bfloat16), (False, None)):
        one = copy.deepcopy(model) if dtype else copy.deepcopy(model).double()
        for stage in graph_stages(one).values():
            stage.fast = fast
        x = images if dtype else images.double()
        with torch.autocast(DEVICE, dtype, enabled=dtype is not None):
            assert one.stages[0].fast_path(one.stem(x)) is not None
            output = one(x)
        output.double().square().sum().backward()
        grads = [p.grad.double() for p in one.parameters()]
        results.append([output.double(), *grads])
        assert all(p.grad.dtype == p.dtype for p in one.parameters())
    for mine, plain, exact in zip(*results, strict=True):
        error, usual = (mine - exact).norm(), (plain - exact).norm()
        assert error <= 2 * usual + 0.02 * exact.norm()


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_inference_in_half_precision(dtype, randomise):
    model = randomise(timm.create_model('test_toponet', num_classes=5)).to(DEVICE, dtype).eval()
    images = torch.randn(4, 3, 32, 32, device=DEVICE, dtype=dtype)
    with torch.no_grad():
        assert model.stages[0].fast_path(model.stem(images)) is not None
        got = model(images)
        for stage in graph_stages(model).values():
            stage.fast = False
        expected = model(images)
    error = (got - expected).float().norm() / expected.float().norm()
    assert got.dtype == dtype
    assert error < 10 * torch.finfo(dtype).eps


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
            layouts = torch.contiguous_format, torch.channels_last
            assert any(
                out.is_contiguous(memory_format=lay) and y.is_contiguous(memory_format=lay)
                for lay in layouts
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


@pytest.mark.skipif(DEVICE == 'cuda', reason='what stands for a GPU runs on CPU')
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    'dtype', [torch.float64, torch.float32, torch.bfloat16, torch.float16]
)  # fmt: skip
def test_batch_norm_is_asked_for_what_gpus_give(dtype, layout, randomise, monkeypatch):
    types = lean._type_of_statistics
    monkeypatch.setattr(lean, '_type_of_statistics', lambda _, dtype: types('cuda', dtype))
    monkeypatch.setattr(lean, 'aten', BatchNormOfGPUs())
    trial.agrees_on.cache_clear()
    model = randomise(timm.create_model('test_toponet', num_classes=5)).to(DEVICE, dtype).eval()
    model = model.to(memory_format=layout)
    before = copy.deepcopy(dict(model.named_buffers()))
    images = torch.randn(4, 3, 32, 32, device=DEVICE, dtype=dtype)
    images = images.contiguous(memory_format=layout)
    with torch.no_grad():
        got = model(images)
        for stage in graph_stages(model).values():
            stage.fast = False
        expected = model(images)
    error = (got - expected).double().norm() / expected.double().norm()
    assert error < 10 * torch.finfo(dtype).eps
    for name, tensor in model.named_buffers():
        assert torch.equal(tensor, before[name]), name
    if dtype in (torch.float32, torch.float64):
        model.train()(images).square().sum().backward()


@pytest.mark.parametrize('last', [False, True])
@pytest.mark.parametrize(
    'dtype', [torch.float64, torch.float32, torch.bfloat16, torch.float16]
)  # fmt: skip
def test_tables_are_tried_before_they_are_used(dtype, last, monkeypatch):
    """Without a random number of the user's; what differs in training or evaluation is refused."""
    before = torch.get_rng_state()
    trial.agrees_on.cache_clear()
    device = torch.device(DEVICE)
    half = dtype in (torch.bfloat16, torch.float16)
    assert trial.agrees_on(device, dtype, last, half)
    assert torch.equal(torch.get_rng_state(), before)
    model = timm.create_model('test_toponet').to(DEVICE).train()
    x = torch.randn(2, 16, 16, 16, device=DEVICE)
    inner = lean._norm_into
    for training in (True, False):

        def wrong(out, y, bn, training=training):
            statistics = inner(out, y, bn)
            if bn.training == training:
                statistics.mul_(2) if training else out.mul_(2)
            return statistics

        monkeypatch.setattr(lean, '_norm_into', wrong)
        trial.agrees_on.cache_clear()
        with pytest.warns(UserWarning, match='run node by node'):
            assert not trial.agrees_on(device, dtype, last, half)
        trial.agrees_on.cache_clear()
        with pytest.warns(UserWarning, match='run node by node'):
            assert model.stages[0].fast_path(x) is None

    def fails(out, y, bn):
        raise RuntimeError('no kernel image')

    monkeypatch.setattr(lean, '_norm_into', fails)
    trial.agrees_on.cache_clear()
    with pytest.warns(UserWarning, match='fail there .no kernel image'):
        assert not trial.agrees_on(device, dtype, last, half)
    trial.agrees_on.cache_clear()


def test_a_trial_depends_on_nothing_of_the_moment(monkeypatch):
    """Not on a default device; and without memory there is no answer."""
    key = torch.device(DEVICE), torch.float32, True, False
    trial.agrees_on.cache_clear()
    with torch.device('meta'):
        assert trial.agrees_on(*key)
    trial.agrees_on.cache_clear()

    def full(*_, **__):
        raise torch.cuda.OutOfMemoryError

    with monkeypatch.context() as patch:
        patch.setattr(trial, '_tried', full)
        with pytest.raises(torch.cuda.OutOfMemoryError):
            trial.agrees_on(*key)
    assert trial.agrees_on(*key)


def test_float64_stays_so_under_autocast(randomise):
    model = randomise(timm.create_model('test_toponet', num_classes=5)).double().to(DEVICE).eval()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64, device=DEVICE)
    with torch.no_grad():
        expected = model(images)
        with torch.autocast(DEVICE, torch.bfloat16):
            torch.testing.assert_close(model(images), expected)


@pytest.mark.parametrize('grad', [True, False])
def test_no_images(grad):
    model = timm.create_model('test_toponet', num_classes=5).to(DEVICE).eval()
    with torch.set_grad_enabled(grad):
        assert model(torch.zeros(0, 3, 32, 32, device=DEVICE)).shape == (0, 5)


def test_tables_are_not_for_autocast_without_the_kernels():
    model = timm.create_model('test_toponet').to(DEVICE).train()
    x = torch.randn(2, 16, 16, 16, device=DEVICE)
    with torch.autocast(DEVICE, torch.bfloat16):
        assert model.stages[0].fast_path(x) is not None
        set_triton_kernels(False)
        assert model.stages[0].fast_path(x) is None


# -- networks -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('name', 'rule'),
    [('test_toponet', 'alpha'), ('test_toponet', 'router'), ('test_dagnet', 'tanh'),
     ('test_randwire', 'sigmoid')],
)  # fmt: skip
@pytest.mark.parametrize('training', [True, False])
def test_networks_are_the_same(name, rule, training, monkeypatch):
    from timm_topo.stages import fused

    torch.manual_seed(0)
    model = (
        timm.create_model(name, num_classes=5, connectivity=rule)
        .double()
        .to(DEVICE)
        .train(training)
    )
    for stage in graph_stages(model).values():
        stage.fast = False
    plain = copy.deepcopy(model)
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64, device=DEVICE)
    calls = []
    inner = fused.fused_sum
    monkeypatch.setattr(fused, 'fused_sum', lambda *args: calls.append(args[2]) or inner(*args))
    results = []
    for one in (model, plain):
        set_triton_kernels(one is model)
        output = one(images)
        output.square().sum().backward()
        results.append([output, *(p.grad for p in one.parameters())])
    for mine, theirs in zip(*results, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            torch.testing.assert_close(mine, theirs)
    nodes = sum(stage.wiring.num_nodes - 1 for stage in graph_stages(model).values())
    assert len(calls) == nodes
    if name == 'test_toponet':  # all nodes start with a ReLU; outputs have none
        assert calls.count(False) == len(graph_stages(model))


def test_a_watched_relu_is_not_folded_in():
    model = timm.create_model('test_toponet').to(DEVICE).train()
    for stage in graph_stages(model).values():
        stage.fast = False
    seen = []
    model.stages[0].nodes[0].act.register_forward_hook(lambda _, x, y: seen.append(y))
    model(torch.randn(2, 3, 64, 64, device=DEVICE))
    assert len(seen) == 1


def test_traces_hold_plain_operations():
    model = timm.create_model('test_toponet').to(DEVICE).eval()
    images = torch.randn(1, 3, 64, 64, device=DEVICE)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.trace(model, images)(images), model(images))
        torch.testing.assert_close(torch.fx.symbolic_trace(model)(images), model(images))


def test_without_triton_it_is_refused(monkeypatch):
    set_triton_kernels(False)
    monkeypatch.setitem(sys.modules, 'triton', None)
    with pytest.raises(ImportError, match=r'needs Triton 3\.2 or newer'):
        set_triton_kernels()
    x = torch.ones(1, 1, 1, 1)
    assert not is_fused(x)
    assert aggregate([x], torch.ones(1)).item() == 1


def test_an_old_triton_is_refused(monkeypatch):
    import triton

    monkeypatch.setattr(triton, '__version__', '3.0.0')
    with pytest.raises(ImportError, match=r'Triton is 3\.0\.0'):
        set_triton_kernels()


def test_where_triton_does_not_run_it_says_so(monkeypatch):
    """By default, on a GPU: sums are plain then."""
    from timm_topo.stages import fused

    module = sys.modules['timm_topo.stages.aggregate']
    module._works_on.cache_clear()
    device = torch.device(DEVICE)
    assert module._works_on(device)
    module._works_on.cache_clear()

    def fails(*_):
        raise RuntimeError('Failed to find C compiler')

    monkeypatch.setattr(fused, 'fused_sum', fails)
    with pytest.warns(UserWarning, match='run without Triton, which is slower: Failed to find C'):
        assert not module._works_on(device)
    assert not module._works_on(device)  # says it once
    module._works_on.cache_clear()
