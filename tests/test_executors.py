"""Every executor computes the equation, or says why it does not run a stage."""

import copy
import re
from collections.abc import Callable

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from timm_topo.connectivity import build_connectivity
from timm_topo.connectivity.masked import MaskedEdges
from timm_topo.connectivity.router import set_tau
from timm_topo.executors import NaiveSum, record_adjacency, set_triton_kernels
from timm_topo.executors.kernels import kernels_apply
from timm_topo.generators import complete, random, residual, sequential
from timm_topo.nodes import NODES, BranchBlock, ConvNorm, SepConvEntry, SepConvNode
from timm_topo.stages import (
    BranchGraph,
    CrossStageGraph,
    Executor,
    GraphStage,
    Stage,
    choose,
    executors,
    jumps,
    layered,
    use,
)

EXECUTORS = [name for name in executors() if name != 'reference']
STATIC = ['alpha', 'tanh', 'sigmoid', 'fixed', {'name': 'alpha', 'weigh_sole': False}]
MODES = [(True, True), (False, False), (False, True), (True, False)]  # training, with gradients
LAST = torch.channels_last
pytestmark = pytest.mark.usefixtures('one_image_at_a_time')


@pytest.fixture(params=[False, True], ids=['plain', 'kernels'])
def place(request):
    """A device without and with Triton kernels, which without a GPU are interpreted."""
    if request.param:
        pytest.importorskip('triton', '3.3', reason='Triton 3.3 or newer is not installed')
    set_triton_kernels(request.param)
    yield torch.device('cuda' if request.param and torch.cuda.is_available() else 'cpu')
    set_triton_kernels(None)


def images(batch: int = 3, size: tuple[int, int] = (9, 7), layout=LAST) -> Tensor:
    draw = torch.Generator().manual_seed(batch)
    x = torch.randn(batch, 3, *size, dtype=torch.float64, generator=draw)
    return x.contiguous(memory_format=layout)


# -- kinds of stages ------------------------------------------------------------------------------


def masked(stage_of) -> GraphStage:
    """Masks of 0 and 1, so that all draws are the same."""
    stage = stage_of(complete(6), {'name': 'mask', 'fan_in': 2})
    rule = stage.connectivity
    rule.mask.data = rule.edge_weights().detach().ne(0).double()
    return stage


def routed(stage_of, tau: float) -> GraphStage:
    stage = stage_of(complete(6), 'router')
    stage.connectivity.weight.data *= 4
    set_tau(stage, tau)
    return stage


def with_constants(stage_of) -> GraphStage:
    stage = stage_of(random(7, 0.5, 1))
    stage.add_offset(2, torch.randn(4, 3, 3, dtype=torch.float64))
    stage.add_offset(6, torch.randn(4, 1, 1, dtype=torch.float64))
    return stage


def with_small_scales(stage_of) -> GraphStage:
    stage = stage_of(complete(5))
    with torch.no_grad():
        stage.nodes[0].bn.weight[:3] = torch.tensor([0.0, 1e-12, 1e-3])
        stage.nodes[1].bn.weight.zero_()
    return stage


def partly_frozen(stage_of) -> GraphStage:
    stage = stage_of(complete(5))
    stage.nodes[1].requires_grad_(False)
    stage.connectivity.requires_grad_(False)
    return stage


def without_statistics(stage_of) -> GraphStage:
    stage = stage_of(complete(5))
    for module in stage.nodes.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats = False
    return stage


def checkpointed(stage: Stage) -> Stage:
    stage.grad_checkpointing = True
    return stage


def without_edges(stage_of) -> GraphStage:
    """Edges that count as 0."""
    stage = stage_of(complete(6), 'tanh')
    stage.connectivity = MaskedEdges(stage.connectivity, torch.arange(15) % 4 > 0)
    return stage


def all_at_one(stage_of) -> GraphStage:
    """Sums that begin with the sum before, of nodes that leave it as it is."""
    wiring = complete(6)
    nodes = [nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(True)) for _ in range(4)]
    entry, rule = nn.Conv2d(3, 4, 1), build_connectivity('fixed', wiring)
    return GraphStage(wiring, rule, entry, nodes).double()


def several_resolutions(stage_of) -> CrossStageGraph:
    wiring, levels = complete(6), [0, 0, 0, 1, 1, 1]
    transitions = {pair: ConvNorm(4, 6, 1, 2) for pair in jumps(wiring, levels)}
    nodes = [SepConvNode(width, width) for width in (4, 4, 6, 6)]
    rule, entry = build_connectivity('alpha', wiring), SepConvEntry(3, 4, 2)
    return drawn(CrossStageGraph(wiring, rule, entry, nodes, levels, transitions))


def branches(stage_of) -> BranchGraph:
    wiring = layered([3, 2])
    blocks = [BranchBlock(3, 4, 4, 2), BranchBlock(2, 4, 6, 2, stride=2)]
    rule = build_connectivity('alpha', wiring)
    return drawn(BranchGraph(wiring, rule, ConvNorm(3, 4), blocks))


def drawn(stage: Stage) -> Stage:
    generator = torch.Generator().manual_seed(0)
    for name, tensor in stage.state_dict().items():
        if tensor.is_floating_point():
            tensor.uniform_(0.5 if name.endswith('var') else -1, 1, generator=generator)
    return stage.double()


#: By name, functions of the fixture ``stage_of``. In a table: what needs no other executor.
IN_A_TABLE: dict[str, Callable[..., Stage]] = {
    'complete': lambda of: of(complete(6)),
    'node 1 reads the input': lambda of: of(complete(6), node='conv'),
    'residual': lambda of: of(residual(7, 2)),
    'sparse': lambda of: of(random(9, 0.3, 1)),
    'sequential': lambda of: of(sequential(5)),
    'single node': lambda of: of(complete(3)),
    'no node': lambda of: of(complete(2)),
    'many channels': lambda of: of(complete(4), channels=72),  # products, maps in several rows
    'tanh': lambda of: of(complete(5), 'tanh', 'conv'),
    'sigmoid': lambda of: of(complete(5), 'sigmoid'),
    'fixed': lambda of: of(complete(5), 'fixed', 'conv'),
    'sole edges weigh 1': lambda of: of(residual(6, 3), STATIC[-1]),
    'mask': masked,
    'edges taken as absent': without_edges,
    'small scales': with_small_scales,
    'partly frozen': partly_frozen,
    'norms without statistics': without_statistics,
}
KINDS = {
    **IN_A_TABLE,
    'x_0 unread': lambda of: of(sequential(5), node='conv'),
    'edges at 1': all_at_one,
    'residual nodes': lambda of: of(complete(5), node='conv_residual'),
    'router': lambda of: routed(of, 0.0),
    'router that closes edges': lambda of: routed(of, 0.6),
    'constants': with_constants,
    'checkpointed': lambda of: checkpointed(of(complete(5), node='conv')),
    'several resolutions': several_resolutions,
    'several resolutions, checkpointed': lambda of: checkpointed(several_resolutions(of)),
    'branches': branches,
}


# -- the equation ---------------------------------------------------------------------------------


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('name', [*EXECUTORS, NaiveSum.name])
def test_executors_compute_what_the_reference_does(
    name, kind, place, stage_of, results, assert_same
):
    stage = KINDS[kind](stage_of).to(place)
    executor = executors().get(name, NaiveSum())
    for training, grad in MODES:
        stage.train(training)
        for x in (images(), images(1, layout=torch.contiguous_format)):
            x = x.to(place)
            with torch.set_grad_enabled(grad):
                why = executor.objection(stage, x)
                if why:
                    assert re.fullmatch(r'\w.* .*\w', why)
                    with use(executor), pytest.raises(ValueError, match=re.escape(why)):
                        stage(x)
                else:
                    mine = results(stage, x, executor)
                    assert_same(mine, results(stage, x, 'reference'))
                    assert mine['output'].is_contiguous() == x.is_contiguous()


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('name', EXECUTORS)
def test_errors_in_float32_are_those_of_rounding(name, kind, stage_of, results):
    """Against float64, no larger than three times those of the reference."""
    stage, x, executor = KINDS[kind](stage_of), images(), executors()[name]
    for training, grad in MODES:
        with torch.set_grad_enabled(grad):
            single = copy.deepcopy(stage.train(training)).float()
            if executor.objection(single, x.float()):
                continue
            exact = results(stage, x, 'reference')
            usual = results(single, x.float(), 'reference')
            for key, mine in results(single, x.float(), executor).items():
                assert (mine is None) == (exact[key] is None)
                if mine is not None and mine.is_floating_point():
                    error, common = ((r - exact[key]).norm() for r in (mine, usual[key]))
                    assert error <= 3 * common + 1e-5 * exact[key].norm(), key
                    assert mine.dtype == torch.float32


class Loop(Executor):
    """The equation edge by edge."""

    name = 'loop'

    def __init__(self, naive_stage):
        self.run = naive_stage

    def objection(self, stage: Stage, x: Tensor) -> str:
        return ''


@settings(max_examples=60)
@given(
    nodes=st.integers(2, 7) | st.integers(8, 24), p=st.floats(0, 1), seed=st.integers(0, 99),
    rule=st.sampled_from(STATIC), node=st.sampled_from(sorted(NODES)),
    mode=st.sampled_from(MODES), batch=st.integers(1, 3),
    size=st.tuples(st.integers(5, 9), st.integers(5, 9)),
    layout=st.sampled_from([LAST, torch.contiguous_format]),
)  # fmt: skip
def test_any_wiring_runs_as_its_edges_say(
    nodes, p, seed, rule, node, mode, batch, size, layout,
    stage_of, results, assert_same, naive_stage,
):  # fmt: skip
    training, grad = mode
    stage = stage_of(random(nodes, p, seed), rule, node).train(training)
    x = images(batch, size, layout)
    with torch.set_grad_enabled(grad):
        expected = results(stage, x, Loop(naive_stage))
        for name, executor in executors().items():
            if not executor.objection(stage, x):
                assert_same(results(stage, x, name), expected)


@pytest.mark.parametrize(
    'name', ['test_toponet', 'test_randwire', 'test_dagnet', 'test_maskconnect_resnext']
)
def test_whole_networks_run_as_by_the_reference(name, randomise, results, assert_same):
    """Stage behind stage, in memory that is used again, also for other sizes."""
    model = randomise(timm.create_model(name, num_classes=5)).double()
    with torch.inference_mode():
        model.eval()(images())
    for size in ((32, 32), (24, 40)):
        for training, grad in MODES:
            with torch.set_grad_enabled(grad):
                found = results(model.train(training), images(2, size))
                assert_same(found, results(model, images(2, size), 'reference'))


def test_there_are_nodes_that_only_some_images_skip(stage_of):
    """Of the kinds above."""
    stage = KINDS['router that closes edges'](stage_of).eval()
    with record_adjacency(nn.Sequential(stage)) as buffers:
        stage(images())
    closed = buffers['0'][:, 1:].eq(0).all(2)
    assert (closed.any(0) & ~closed.all(0)).any()


def test_no_executor_objects_to_everything(place, stage_of):
    objecting, x = set(EXECUTORS), images().to(place)
    for kind in KINDS.values():
        for training, grad in MODES:
            stage = kind(stage_of).to(place).train(training)
            with torch.set_grad_enabled(grad):
                objecting = {name for name in objecting if executors()[name].objection(stage, x)}
    assert objecting <= ({'chunked', 'prefix sums'} if kernels_apply(x) else {'kernels'})


@pytest.mark.parametrize('kind', IN_A_TABLE)
def test_static_stages_of_layered_nodes_are_run_in_a_table(kind, stage_of):
    stage, x = IN_A_TABLE[kind](stage_of), images()
    assert choose(stage.train(), x).name == 'recompute'
    with torch.no_grad():
        assert choose(stage, x).name == choose(stage.eval(), x[:1]).name == 'table'
        assert choose(stage, x).label(stage, x) == 'chunked: 1 images at a time by table'
