"""What runs instead of the equation differs from it in nothing but time."""

import copy

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jvp, vmap
from torch.utils.flop_counter import FlopCounterMode

from timm_topo.connectivity import StaticConnectivity
from timm_topo.connectivity.learned import AlphaConnectivity
from timm_topo.executors.conv_bn import invertible, norm_into
from timm_topo.generators import complete
from timm_topo.nodes import NODES
from timm_topo.stages import GraphStage, use

SMALL = dict(num_nodes=(5,), widths=(8,), strides=(2,), stem_width=8, num_classes=3)


@pytest.fixture
def model(randomise) -> nn.Module:
    return randomise(timm.create_model('test_toponet', **SMALL)).eval()


# -- rules that override one of two methods --------------------------------------------------------


class DroppedEdges(AlphaConnectivity):
    """Dropout on edges, node by node."""

    def forward(self, node: int, context: Tensor | None = None) -> Tensor:
        return nn.functional.dropout(super().forward(node), 0.5, self.training)


class Doubled(AlphaConnectivity):
    """Other weights by node."""

    def forward(self, node: int, context: Tensor | None = None) -> Tensor:
        return 2 * super().forward(node)


class DoubledAtOnce(AlphaConnectivity):
    """Other weights, all at once."""

    def pass_weights(self) -> Tensor:
        return 2 * super().pass_weights()


class Halved(StaticConnectivity):
    """A rule of its own, of which only ``forward`` is overridden."""

    def __init__(self, wiring):
        super().__init__(wiring)
        self.alpha = nn.Parameter(torch.ones(wiring.num_edges))

    def squash(self, alpha: Tensor) -> Tensor:
        return alpha

    def forward(self, node: int, context: Tensor | None = None) -> Tensor:
        return super().forward(node) / 2


def stage_with(rule: type, seed: int = 0) -> GraphStage:
    torch.manual_seed(seed)
    wiring = complete(5)
    parts = NODES['sepconv'](8, 8, 3, 2, 1, norm_layer=nn.BatchNorm2d)
    return GraphStage(wiring, rule(wiring), parts.entry, parts.nodes)


@pytest.mark.parametrize(('rule', 'factor'), [(Doubled, 2), (DoubledAtOnce, 2), (Halved, 0.5)])
@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('executor', ['reference', None])
def test_a_rule_may_override_forward_or_pass_weights(rule, factor, training, executor):
    """The same stage whose alphas are other numbers is the reference."""
    stage, plain = stage_with(rule).train(training), stage_with(AlphaConnectivity).train(training)
    with torch.no_grad():
        plain.connectivity.alpha.fill_(factor)
    x = torch.randn(2, 8, 8, 8)
    with torch.set_grad_enabled(training):
        if executor is None:
            got = stage(x)
        else:
            with use(executor):
                got = stage(x)
        with use('reference'):
            expected = plain(x)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_dropout_on_edges_drops():
    stage, x = stage_with(DroppedEdges).train(), torch.randn(2, 8, 8, 8)
    first, second = stage(x), stage(x)
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    (first := stage(x)).sum().backward()
    torch.manual_seed(3)
    torch.testing.assert_close(stage(x), first)


def test_a_hook_on_the_rule_is_heard_by_branches_too():
    """BranchGraph reads all weights at once; a hook that doubles them must be heard."""
    torch.manual_seed(0)
    model = timm.create_model('test_maskconnect_resnext', connectivity='alpha').eval()
    images = torch.randn(2, 3, 32, 32)
    plain = copy.deepcopy(model)
    with torch.no_grad():
        plain.dag.connectivity.alpha.mul_(2)
    model.dag.connectivity.register_forward_hook(lambda module, args, output: 2 * output)
    torch.testing.assert_close(model(images), plain(images))


# -- trackers of modules ---------------------------------------------------------------------------


@pytest.mark.parametrize('rule', ['alpha', 'tanh', 'fixed', {'name': 'alpha', 'weigh_sole': False}])
def test_modules_can_be_tracked_without_gradients(rule):
    """torch.utils.module_tracker asserts that an output with requires_grad has a history."""
    model = timm.create_model('test_toponet', connectivity=rule, **SMALL).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.randn(1, 3, 32, 32))
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert counter.get_total_flops() > len(convolutions)
    outputs = []
    rule = model.stages[0].connectivity
    rule.register_forward_hook(lambda module, args, output: outputs.append(output))
    with torch.no_grad():
        model(torch.randn(1, 3, 32, 32))
    assert len(outputs) == 4
    assert not any(output.requires_grad for output in outputs)


# -- transforms of functions, in evaluation --------------------------------------------------------


def test_vmap_is_a_loop_over_images(model):
    images = torch.randn(3, 3, 32, 32)
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    got = vmap(lambda image: functional_call(model, state, (image[None],))[0])(images)
    torch.testing.assert_close(got, model(images))


def test_gradients_per_sample_are_those_of_single_images(model):
    images = torch.randn(3, 3, 32, 32)
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(parameters: dict, image: Tensor) -> Tensor:
        return functional_call(model, parameters, (image[None],)).square().sum()

    got = vmap(grad(loss), (None, 0))(parameters, images)
    for number, image in enumerate(images):
        model.zero_grad()
        model(image[None]).square().sum().backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(got[name][number], parameter.grad, rtol=1e-3, atol=1e-4)


def test_forward_mode_agrees_with_differences(model):
    model = model.double()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    toward = torch.randn_like(images)
    _, got = jvp(model, (images,), (toward,))
    step = 1e-6
    with torch.no_grad():
        expected = (model(images + step * toward) - model(images - step * toward)) / (2 * step)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    with forward_ad.dual_level(), torch.no_grad():
        dual = model(forward_ad.make_dual(images, toward))
        torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, got)


# -- precision -------------------------------------------------------------------------------------


@given(
    gamma=st.floats(-4, 1), beta=st.floats(-3, 2), mean=st.floats(-2, 3), seed=st.integers(0, 99)
)
def test_batch_norm_is_inverted_within_its_bound(gamma, beta, mean, seed):
    """Where ``invertible`` says so, the input read off the output is as near to the float64 one as
    its docstring states; scales from 10^-4 to 10^3.
    """
    draw = torch.Generator().manual_seed(seed)
    bn = nn.BatchNorm2d(3)
    with torch.no_grad():
        bn.weight.copy_(10**gamma * torch.randn(3, generator=draw))
        bn.bias.copy_(10**beta * torch.randn(3, generator=draw))
    y = torch.randn(4, 3, 5, 5, generator=draw) + 10**mean * torch.randn(1, 3, 1, 1, generator=draw)
    x = torch.empty_like(y)
    with torch.no_grad():
        statistics = norm_into(x, y, bn)
        (inverts,) = invertible([[bn.weight, bn.bias]], [statistics], x.dtype)
    if not inverts:
        return
    read_off = (x - bn.bias[:, None, None]) / bn.weight[:, None, None]
    exact = y.double()
    centred = exact - statistics[0].double()[:, None, None]
    exact = centred * statistics[1].double()[:, None, None]
    units = (read_off.double() - exact).abs() / torch.finfo(torch.float32).eps
    assert (units <= 8 + 4 * exact.abs() + 1).all()


@pytest.mark.parametrize('ratio', [1e-3, 0.011, 0.02, 0.1, 1.0])
def test_small_gammas_cost_no_digits(ratio):
    """Gradients are as near to float64's as the reference's are, times ten."""
    torch.manual_seed(0)
    stage = stage_with(AlphaConnectivity).train()
    with torch.no_grad():
        for node in stage.nodes:
            nn.init.constant_(node.bn.bias, 1)
            nn.init.constant_(node.bn.weight, ratio)
    x = torch.randn(4, 8, 12, 12)

    def gradients(stage: nn.Module, x: Tensor) -> list[Tensor]:
        stage = copy.deepcopy(stage)
        output = stage(x)
        toward = torch.linspace(-1, 1, output.numel(), dtype=x.dtype).view_as(output)
        return [
            g.double() for g in torch.autograd.grad((output * toward).sum(), stage.parameters())
        ]

    ours = gradients(stage, x)
    with use('reference'):
        reference, exact = gradients(stage, x), gradients(stage.double(), x.double())
    for mine, theirs, true in zip(ours, reference, exact, strict=True):
        allowed = 10 * max((theirs - true).norm(), 1e-6 * true.norm())
        assert (mine - true).norm() <= allowed
