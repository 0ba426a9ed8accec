"""The weighted sum of maps and its gradients, eagerly, as plain operations and as Triton kernel."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from timm_topo.connectivity import build_connectivity
from timm_topo.generators import complete, random, residual, sequential
from timm_topo.stages import GraphStage, aggregate, aggregate_reference

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
SHAPE = (2, 3, 4, 5)
FORMS = {'one for all': (), 'per image': (SHAPE[0],)}
LAYOUTS = [torch.contiguous_format, torch.channels_last]
MULTIPLY = ('mul', 'dot', 'matmul', 'einsum')


def kernel(inputs: list[Tensor], weights: Tensor, relu: bool = False) -> Tensor:
    pytest.importorskip('triton', '3.3', reason='Triton 3.3 or newer is not installed')
    from timm_topo.executors.triton_kernels import kernel_sum

    return kernel_sum(inputs, weights, relu)


SUMS = [aggregate, aggregate_reference, kernel]


def naive_sum(inputs: list[Tensor], weights: Tensor) -> Tensor:
    """One image after another, one input after another."""
    per_image = weights if weights.ndim == 2 else weights.expand(len(inputs[0]), -1)
    return torch.stack(
        [sum(w * x[image] for w, x in zip(row, inputs)) for image, row in enumerate(per_image)]
    )


def draw(in_degree: int, form: str = 'one for all', shape=SHAPE, dtype=torch.float64, seed=0):
    """Inputs and weights that want gradients."""
    generator = torch.Generator().manual_seed(seed)
    inputs = [torch.randn(shape, generator=generator).to(DEVICE, dtype) for _ in range(in_degree)]
    weights = torch.randn(*(shape[:1] if FORMS[form] else ()), in_degree, generator=generator)
    return [x.requires_grad_() for x in inputs], weights.to(DEVICE, dtype).requires_grad_()


def gradients(total: Tensor, inputs: list[Tensor], weights: Tensor) -> list[Tensor]:
    """Of the weights and the inputs, towards numbers that all types hold."""
    toward = torch.arange(total.numel(), device=total.device) % 7 - 3
    return torch.autograd.grad(total, [weights, *inputs], toward.to(total.dtype).view_as(total))


class Count(TorchDispatchMode):
    """Counts operations on whole feature maps that have one of some words in their name."""

    def __init__(self, *words: str):
        super().__init__()
        self.words, self.count = words, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        on_map = any(isinstance(a, Tensor) and a.numel() >= math.prod(SHAPE) for a in args)
        self.count += on_map and any(word in func.name() for word in self.words)
        return func(*args, **(kwargs or {}))


# -- values and gradients -------------------------------------------------------------------------


@pytest.mark.parametrize('function', SUMS)
@settings(max_examples=25)
@given(
    in_degree=st.integers(1, 6), form=st.sampled_from(list(FORMS)), seed=st.integers(0, 99),
    shape=st.sampled_from([SHAPE, (1, 1, 1, 1), (3, 2, 30, 29), (2, 5, 7, 1)]),
    layouts=st.lists(st.sampled_from(['first', 'last', 'other']), min_size=7, max_size=7),
)  # fmt: skip
def test_sums_and_gradients_are_those_of_a_naive_loop(
    function, in_degree, form, seed, shape, layouts
):
    inputs, weights = draw(in_degree, form, shape, seed=seed)
    expected = naive_sum(inputs, weights)
    laid_out = [
        x.contiguous(memory_format=LAYOUTS[1]) if layout == 'last'
        else x.mT.contiguous().mT if layout == 'other' else x
        for x, layout in zip(inputs, layouts)
    ]  # fmt: skip
    result = function(laid_out, weights)
    torch.testing.assert_close(result, expected)
    for layout in LAYOUTS:
        if all(x.is_contiguous(memory_format=layout) for x in laid_out):
            assert result.is_contiguous(memory_format=layout)
    got = gradients(result, inputs, weights)
    torch.testing.assert_close(got, gradients(expected, inputs, weights))


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('function', [aggregate, kernel])
def test_second_derivatives_are_numerically_right(function, form):
    """Of maps in mixed layouts too."""
    inputs, weights = draw(2, form, (2, 1, 2, 3))
    inputs[1] = inputs[1].detach().mT.contiguous().mT.requires_grad_()
    torch.autograd.gradgradcheck(lambda w, *xs: function(xs, w), (weights, *inputs))


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('function', SUMS)
def test_gradients_are_computed_only_where_asked_for(function, form):
    inputs, weights = draw(3, form)
    expected = naive_sum(inputs, weights)
    got = function([inputs[0].detach(), inputs[1], inputs[2].detach()], weights.detach())
    for total, wanted in (
        (got, inputs[1]),
        (function([x.detach() for x in inputs], weights), weights),
    ):
        torch.testing.assert_close(
            torch.autograd.grad(total.sum(), wanted),
            torch.autograd.grad(expected.sum(), wanted, retain_graph=True),
        )


def test_a_backward_pass_multiplies_where_a_gradient_is_wanted():
    inputs, weights = draw(3)
    result = aggregate([inputs[0].detach(), inputs[1], inputs[2].detach()], weights.detach())
    with Count(*MULTIPLY) as backward:
        torch.autograd.grad(result, inputs[1], torch.ones_like(result))
    assert backward.count == 1


@pytest.mark.parametrize('wiring', [sequential(9), residual(9, 3), random(9, 0.5), complete(9)])
def test_work_of_a_stage_is_proportional_to_the_number_of_its_edges(wiring):
    """One product per edge forward; backward one for the map and one for the weight."""
    rule = build_connectivity('alpha', wiring)
    stage = GraphStage(wiring, rule, nn.Identity(), [nn.Tanh() for _ in range(7)])
    with Count(*MULTIPLY) as forward:
        output = stage(torch.randn(SHAPE, requires_grad=True))
    with Count(*MULTIPLY) as backward:
        output.sum().backward()
    assert (forward.count, backward.count) == (wiring.num_edges, 2 * wiring.num_edges)


@pytest.mark.parametrize('function', SUMS)
def test_weights_of_another_width_than_the_maps_get_a_gradient_of_their_own(function):
    inputs, _ = draw(2, dtype=torch.float32)
    weights = torch.tensor([0.5, 2.0], dtype=torch.float64, device=DEVICE, requires_grad=True)
    result = function(inputs, weights)
    assert result.dtype == torch.float32
    result.sum().backward()
    assert weights.grad.dtype == torch.float64
    torch.testing.assert_close(weights.grad.float(), torch.stack([x.sum() for x in inputs]))


# -- half precision -------------------------------------------------------------------------------


@pytest.mark.parametrize('function', SUMS)
@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize(('dtype', 'large'), [(torch.bfloat16, 256.0), (torch.float16, 2048.0)])
def test_half_precision_is_summed_in_float32(dtype, large, form, function):
    """The case is one that a half-precision sum gets wrong: large + 1 = large there."""
    one = torch.ones(SHAPE, dtype=dtype, device=DEVICE)
    inputs = [large * one, *[one] * 8]
    assert torch.equal(sum(inputs), inputs[0]), 'not a case that tells the two apart'
    result = function(inputs, torch.ones(*FORMS[form], 9, device=DEVICE))
    assert result.dtype == dtype
    assert torch.equal(result, (large + 8) * one)


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('function', SUMS)
def test_half_precision_gradients_are_close_and_have_the_dtypes_of_their_inputs(function, form):
    inputs, weights = draw(5, form, dtype=torch.float32)
    half = [x.detach().bfloat16().requires_grad_() for x in inputs]
    got = gradients(function(half, weights), half, weights)
    assert [g.dtype for g in got] == [torch.float32] + [torch.bfloat16] * 5
    expected = gradients(naive_sum(inputs, weights), inputs, weights)
    for mine, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(mine.float(), theirs, rtol=2e-2, atol=0.1)


@pytest.mark.parametrize('function', SUMS)
def test_a_gradient_over_many_pixels_is_summed_in_float32(function):
    x = torch.ones(1, 1, 63, 65, dtype=torch.bfloat16, device=DEVICE)
    weights = torch.ones(1, device=DEVICE, requires_grad=True)
    function([x], weights).sum(dtype=torch.float32).backward()
    assert weights.grad.item() == 63 * 65  # which no bfloat16 number is


# -- memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('function', [aggregate, kernel])
@pytest.mark.parametrize('in_degree', [1, 2])
def test_the_result_is_a_tensor_of_its_own(in_degree, function, form):
    inputs, weights = draw(in_degree, form)
    before = [x.detach().clone() for x in inputs]
    result = function(inputs, torch.ones_like(weights))
    torch.relu_(result)
    result.sum().backward()
    for x, copy in zip(inputs, before):
        assert torch.equal(x, copy)
        torch.testing.assert_close(x.grad, (sum(before) > 0).double())


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('function', [aggregate, kernel])
def test_maps_are_kept_for_learned_weights_only(function, form):
    inputs, weights = draw(4, form)

    def kept(weights: Tensor) -> int:
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
            function(inputs, weights)
        return sum(tensor.shape == SHAPE for tensor in saved)

    assert (kept(weights), kept(weights.detach())) == (4, 0)


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('layout', LAYOUTS)
def test_no_map_is_copied_in_either_layout(layout, form):
    inputs, weights = draw(3, form)
    inputs = [x.detach().contiguous(memory_format=layout).requires_grad_() for x in inputs]
    toward = torch.ones_like(inputs[0])
    with Count('copy', 'clone', 'stack', 'cat') as copies:
        torch.autograd.grad(aggregate(inputs, weights), [weights, *inputs], toward)
    assert copies.count == 0


# -- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('shapes', 'weights', 'message'),
    [
        ([], (0,), 'aggregate needs at least one input'),
        ([SHAPE, (2, 3, 4, 4)], (2,), r'inputs differ in shape: \(2, 3, 4, 5\) and \(2, 3, 4, 4\)'),
        ([SHAPE, (1, 3, 4, 5)], (2,), r'inputs differ in shape: \(2, 3, 4, 5\) and \(1, 3, 4, 5\)'),
        ([SHAPE] * 2, (3,), r'weights must be \(2,\) or \(2, 2\) for 2 inputs .* got \(3,\)'),
        ([SHAPE] * 3, (3, 3), r'weights must be \(3,\) or \(2, 3\) .* got \(3, 3\)'),
        ([SHAPE] * 2, (1, 2), r'weights must be \(2,\) or \(2, 2\) .* got \(1, 2\)'),
        ([SHAPE] * 2, (2, 1, 2), r'weights must be .* got \(2, 1, 2\)'),
        ([SHAPE], (), r'weights must be .* got \(\)'),
    ],
)
def test_maps_and_weights_that_do_not_fit_are_refused(shapes, weights, message):
    with pytest.raises(ValueError, match=message):
        aggregate([torch.zeros(shape) for shape in shapes], torch.ones(weights))
