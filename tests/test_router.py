"""DG-Net's router against naive loops: the buffer, both ways to predict, thresholds, skipping."""

import copy
import math

import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import timm_topo
from timm_topo.connectivity import build_connectivity
from timm_topo.connectivity.router import RouterConnectivity, set_tau
from timm_topo.executors import adjacency, record_adjacency
from timm_topo.generators import complete, random
from timm_topo.stages import GraphStage
from timm_topo.wiring import Wiring

CHANNELS = 4


def make_stage(
    wiring: Wiring, first_reads_input: bool = False, tau: float = 0.0, **options
) -> GraphStage:
    """A stage in float64 with routers that tell images apart and nodes that all differ."""
    rule = build_connectivity({'name': 'router', **options}, wiring, CHANNELS)
    first = 3 if first_reads_input else CHANNELS
    widths = [first] + [CHANNELS] * (wiring.num_nodes - 3)
    nodes = [
        nn.Sequential(nn.Conv2d(width, CHANNELS, 3, padding=1), nn.BatchNorm2d(CHANNELS), nn.Tanh())
        for width in widths[: wiring.num_nodes - 2]
    ]
    entry = nn.Conv2d(3, CHANNELS, 3, padding=1)
    stage = GraphStage(wiring, rule, entry, nodes, first_reads_input=first_reads_input).double()
    set_tau(stage, tau)
    with torch.no_grad():
        rule.weight.normal_(0, 4)
        rule.bias.normal_(0, 1)
        for norm in (module for module in stage.modules() if isinstance(module, nn.BatchNorm2d)):
            norm.running_mean.normal_(0, 0.5)
            norm.running_var.uniform_(0.5, 2)
            norm.bias.normal_(0, 0.5)
    return stage


def soft_threshold(rule: RouterConnectivity, weight: Tensor, source: int) -> Tensor:
    return weight / (1 + torch.exp(-(weight - rule.tau[source]) / rule.temperature))


def naive(stage: GraphStage, x: Tensor, by: str) -> tuple[Tensor, Tensor]:
    """DG-Net as the paper writes it, image by image and edge by edge.

    With ``by='source'`` every node, once computed, predicts its whole column of the buffer by one
    linear layer (Eq. 4); with ``by='target'`` every node predicts its row, an edge at a time.

    Returns:
        Output and buffer ``(B, N, N)``. In evaluation, closed edges and skipped nodes as in Eq. 5.
    """
    wiring, rule, last = stage.wiring, stage.connectivity, stage.wiring.num_nodes - 1
    index = {edge: e for e, edge in enumerate(wiring.edges)}
    outputs, buffers = [], []
    for image in x:
        image = image[None]
        buffer = [[image.new_zeros(()) for _ in range(last + 1)] for _ in range(last + 1)]
        features, means = {}, {}

        def predict(source, target, means=means):
            e = index[source, target]
            return torch.sigmoid((rule.weight[e] * means[source]).sum() + rule.bias[e])

        def arrive(node, feature, features=features, means=means, buffer=buffer, predict=predict):
            features[node], means[node] = feature, feature[0].flatten(1).mean(1)
            if by == 'source':
                linear = nn.functional.linear(
                    means[node],
                    torch.stack([rule.weight[index[node, j]] for j in wiring.succs(node)]),
                    torch.stack([rule.bias[index[node, j]] for j in wiring.succs(node)]),
                )
                for target, weight in zip(wiring.succs(node), linear.sigmoid()):
                    buffer[target][node] = weight

        arrive(0, stage.entry(image))
        for node in range(1, last + 1):
            there = [source for source in wiring.preds(node) if source in features]
            if by == 'target':
                for source in there:
                    buffer[node][source] = predict(source, node)
            row = buffer[node]
            if stage.training:
                kept = there
                for source in kept:
                    row[source] = soft_threshold(rule, row[source], source)
            else:
                kept = [source for source in there if row[source] >= rule.tau[source]]
                if node == last and not kept and there:
                    kept = [max(there, key=lambda source, row=row: row[source].item())]
            for source in set(range(last + 1)) - set(kept):
                row[source] = image.new_zeros(())
            if not kept and node < last:
                continue
            total = torch.zeros_like(features[0])
            if kept:
                read = {
                    s: image if stage.first_reads_input and node == 1 else features[s] for s in kept
                }
                total = sum(row[source] * read[source] for source in kept)
            if node < last:
                arrive(node, stage.nodes[node - 1](total))
        outputs.append(total)
        buffers.append(torch.stack([torch.stack(row) for row in buffer]))
    return torch.cat(outputs), torch.stack(buffers)


def eval_norms(stage: GraphStage) -> GraphStage:
    """Norms use their statistics, as a naive loop over single images needs in training too."""
    for module in stage.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return stage


def run(stage: GraphStage, x: Tensor) -> tuple[Tensor, Tensor]:
    model = nn.Sequential(stage)
    with record_adjacency(model) as buffers:
        output = model(x)
    return output, buffers['0']


# -- the buffer -----------------------------------------------------------------------------------


@settings(max_examples=30)
@given(
    n=st.integers(2, 6),
    p=st.floats(0.3, 1),
    seed=st.integers(0, 99),
    tau=st.floats(0, 0.99),
    training=st.booleans(),
    by=st.sampled_from(['source', 'target']),
    raw=st.booleans(),
)
def test_output_and_buffer_are_those_of_naive_loops(n, p, seed, tau, training, by, raw):
    """Values and gradients, predicted by source or by target, soft or with closed edges."""
    torch.manual_seed(seed)
    raw = raw and n > 2
    wiring = complete(n) if raw else random(n, p, seed)
    stage = eval_norms(make_stage(wiring, raw, tau=tau).train(training))
    x = torch.randn(3, 3, 5, 6, dtype=torch.float64, requires_grad=True)
    output, buffer = run(stage, x)
    expected, expected_buffer = naive(stage, x, by)
    torch.testing.assert_close(buffer, expected_buffer)
    torch.testing.assert_close(output, expected)
    wanted, direction = [x, *stage.parameters()], torch.randn_like(output)
    grads = [
        torch.autograd.grad(out, wanted, direction, materialize_grads=True)
        for out in (output, expected)
    ]
    torch.testing.assert_close(*grads)


def test_rows_are_targets_and_columns_are_sources():
    wiring = Wiring(5, [(0, 1), (0, 2), (1, 3), (2, 3), (0, 4), (3, 4)])
    _, buffer = run(make_stage(wiring).eval(), torch.randn(2, 3, 5, 5, dtype=torch.float64))
    assert buffer.shape == (2, 5, 5)
    assert [(i, j) for _, j, i in buffer[:1].nonzero().tolist()] == sorted(
        wiring.edges, key=lambda edge: (edge[1], edge[0])
    )
    assert not torch.equal(buffer[0], buffer[1])


def test_adjacency_is_in_evaluation_mode_and_leaves_the_model_as_it_was():
    model = timm.create_model('toponet_tiny_adaptive', connectivity='router').train()
    model.stem.bn.eval()
    images = torch.randn(3, 3, 32, 32)
    before = copy.deepcopy(model.state_dict())
    buffers = adjacency(model, images)
    assert list(buffers) == ['stages.0', 'stages.1', 'stages.2']
    assert model.training
    assert all('run' not in vars(stage) for stage in model.stages)
    assert not model.stem.bn.training, 'it was frozen before'
    assert model.stages[0].nodes[0].bn.training
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    for stage, matrix in zip(model.stages, buffers.values()):
        n = stage.wiring.num_nodes
        assert matrix.shape == (3, n, n)
        assert torch.equal(matrix[0], torch.full((n, n), 0.5).tril(-1)), 'the initial weights'
    assert timm_topo.adjacency is adjacency


def test_static_rules_have_a_buffer_too():
    model = timm.create_model('toponet_tiny_adaptive')
    with torch.no_grad():
        model.stages[1].connectivity.alpha.normal_()
    matrix = adjacency(model, torch.randn(2, 3, 32, 32))['stages.1']
    wiring = model.stages[1].wiring
    for (source, target), alpha in zip(wiring.edges, model.stages[1].connectivity.alpha):
        assert (matrix[:, target, source] == alpha).all()
    assert matrix.count_nonzero() == 2 * wiring.num_edges


def test_recorders_nest():
    model = timm.create_model('toponet_tiny_adaptive', connectivity='router').train()
    images = torch.randn(2, 3, 32, 32)
    with record_adjacency(model) as outer:
        inner = adjacency(model, images)
        torch.testing.assert_close(outer, inner)
        model.stages[0].connectivity.bias.data.fill_(2.0)
        model(images)
    assert (outer['stages.0'] > inner['stages.0'] + 0.2).sum() == 2 * 28
    assert all('run' not in vars(stage) for stage in model.stages)


def test_values_may_come_after_the_network():
    """Made without values, then given those of a state dict: nothing of a router is left behind."""
    with torch.device('meta'):
        empty = timm.create_model('toponet_tiny_adaptive', connectivity='router')
    source = timm.create_model('toponet_tiny_adaptive', connectivity='router')
    set_tau(source, 0.3)
    empty.load_state_dict(source.state_dict(), assign=True)
    thresholds = torch.cat([stage.connectivity.thresholds() for stage in empty.stages])
    assert torch.equal(thresholds, torch.full((101,), 0.3))
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(empty.eval()(images), source.eval()(images))


def test_a_failing_forward_pass_leaves_nothing_behind():
    model = timm.create_model('toponet_tiny_adaptive', connectivity='router').train()
    with pytest.raises(RuntimeError):
        adjacency(model, torch.randn(2, 4, 32, 32))
    assert model.training
    assert all('run' not in vars(stage) for stage in model.stages)


# -- thresholds -----------------------------------------------------------------------------------


@settings(max_examples=30)
@given(seed=st.integers(0, 99), tau=st.floats(0, 0.99), raw=st.booleans())
def test_edges_below_tau_are_exactly_zero_and_others_untouched(seed, tau, raw):
    torch.manual_seed(seed)
    stage = make_stage(complete(5), raw).eval()
    x = torch.randn(4, 3, 5, 5, dtype=torch.float64)
    set_tau(stage, tau)
    _, closed = run(stage, x)
    rows = closed[:, 1:-1]  # the output keeps one edge whatever it weighs
    assert ((rows == 0) | (rows >= tau)).all()
    assert (closed[:, -1] != 0).any(1).all()
    skipped = (rows == 0).all(2)
    for image, node in skipped.nonzero().tolist():
        assert not closed[image, :, node + 1].any(), 'what is not computed feeds nobody'


def test_tau_zero_keeps_every_edge_and_equals_the_soft_sum():
    stage = make_stage(complete(6)).eval()
    assert stage.connectivity.tau.count_nonzero() == 0
    x = torch.randn(3, 3, 5, 5, dtype=torch.float64)
    output, buffer = run(stage, x)
    assert buffer.count_nonzero() == 3 * 15
    stage.connectivity.thresholds = lambda: None
    assert torch.equal(stage(x), output)


def test_the_output_keeps_its_strongest_edge_from_a_computed_node():
    stage = make_stage(complete(4), tau=0.9).eval()
    rule = stage.connectivity
    with torch.no_grad():
        rule.weight.zero_()
        rule.bias.copy_(torch.tensor([-1.0, -1.0, -1.0, -2.0, 5.0, 0.0]))  # 0-1 0-2 1-2 0-3 1-3 2-3
    _, buffer = run(stage, torch.randn(1, 3, 5, 5, dtype=torch.float64))
    assert buffer.nonzero().tolist() == [[0, 3, 0]], 'node 1 would be open, but is not computed'
    assert buffer[0, 3, 0].item() == pytest.approx(1 / (1 + math.exp(2)))


def test_an_edge_at_its_threshold_stays_open():
    stage = make_stage(complete(3), tau=0.5).eval()
    with torch.no_grad():
        stage.connectivity.weight.zero_()
        stage.connectivity.bias.zero_()
    _, buffer = run(stage, torch.randn(1, 3, 5, 5, dtype=torch.float64))
    assert torch.equal(buffer[0], torch.full((3, 3), 0.5, dtype=torch.float64).tril(-1))


def test_tau_belongs_to_the_source():
    stage = make_stage(complete(4)).eval()
    with torch.no_grad():
        stage.connectivity.tau.copy_(torch.tensor([0.0, 0.999, 0.0]))
    _, buffer = run(stage, torch.randn(8, 3, 5, 5, dtype=torch.float64))
    assert not buffer[:, :, 1].any()
    assert buffer[:, 1:, 0].all()
    assert buffer[:, 3, 2].all()


@pytest.mark.parametrize(('sign', 'rises'), [(1, True), (-1, False)])
def test_tau_moves_where_it_helps(sign, rises):
    """A loss that grows with an edge's weight lifts the threshold at its source, and vice versa."""
    stage = make_stage(complete(3), tau=0.4).train()
    rule = stage.connectivity
    optimizer = torch.optim.SGD([rule.tau], lr=0.1)
    context = torch.randn(4, 2, CHANNELS, dtype=torch.float64)
    before = rule.tau.detach().clone()
    loss = sign * rule(2, context)[:, 0].sum()  # the edge (0, 2)
    loss.backward()
    optimizer.step()
    moved = rule.tau.detach() - before
    assert (moved[0] > 0) == rises
    assert moved[0] != 0
    assert moved[1] == 0


def test_tau_moves_in_training_and_stays_in_its_range():
    """At a usual learning rate, from where edges are near enough to be closed."""
    model = timm.create_model('test_toponet', connectivity={'name': 'router', 'tau': 0.35})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    images, labels = torch.randn(16, 3, 32, 32), torch.arange(16)
    for _ in range(20):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    moved = torch.cat([stage.connectivity.tau - 0.35 for stage in model.stages]).abs()
    assert moved.max() > 0.01
    assert (moved > 1e-4).float().mean() > 0.5
    for stage in model.stages:
        thresholds = stage.connectivity.thresholds()
        assert ((thresholds >= 0) & (thresholds < 1)).all()


@pytest.mark.parametrize('start', [0.0, 1 - 2**-8, -0.5, 1.5])
def test_a_threshold_at_the_end_of_its_range_can_come_back(start):
    stage = make_stage(complete(3)).train()
    rule, inward = stage.connectivity, 1 if start < 0.5 else -1
    context = torch.randn(4, 1, CHANNELS, dtype=torch.float64)
    with torch.no_grad():
        rule.weight.zero_()
        rule.tau.fill_(start)
    (grad,) = torch.autograd.grad(inward * rule(1, context).sum(), [rule.tau])
    assert -grad[0] * inward > 0, 'leads back inside'
    (grad,) = torch.autograd.grad(-inward * rule(1, context).sum(), [rule.tau])
    assert grad[0] == 0, 'leads no further out'


def test_the_soft_threshold_nears_the_hard_one():
    """Training at small temperature weighs edges as evaluation does."""
    stage = make_stage(complete(5), tau=0.5, temperature=1e-4).eval()
    rule = stage.connectivity
    context = torch.randn(64, 4, CHANNELS, dtype=torch.float64)
    raw = rule(4, context)
    hard = torch.where(raw < 0.5, 0.0, raw)
    clear = (raw - 0.5).abs() > 0.01
    assert 0.2 < (hard == 0).double().mean() < 0.8
    torch.testing.assert_close(rule.train()(4, context)[clear], hard[clear])


@pytest.mark.parametrize('tau', [0.0, 0.4])
def test_without_a_gate_training_has_the_plain_weights(tau):
    """Those of Eq. 3, edge by edge; evaluation is that of the same network with a gate."""
    stage = eval_norms(make_stage(complete(5), tau=tau, gate='none').train())
    x = torch.randn(3, 3, 5, 6, dtype=torch.float64)
    _, buffer = run(stage, x)
    rule = stage.connectivity
    features = [stage.entry(x)]
    for node in range(1, 5):
        total = 0
        for e, source in zip(range(*rule.spans[node]), stage.wiring.preds(node)):
            mean = features[source].mean((2, 3))
            weight = torch.sigmoid(mean @ rule.weight[e] + rule.bias[e])
            torch.testing.assert_close(buffer[:, node, source], weight)
            total = total + weight[:, None, None, None] * features[source]
        features.append(stage.nodes[node - 1](total) if node < 4 else total)
    output = stage(x)
    torch.testing.assert_close(output, features[-1])
    output.sum().backward()
    assert {name for name, p in stage.named_parameters() if p.grad is None} == {'connectivity.tau'}
    gated = make_stage(complete(5), tau=tau).eval()
    gated.load_state_dict(stage.state_dict())
    assert torch.equal(stage.eval()(x), gated(x))


# -- skipping -------------------------------------------------------------------------------------


def count_images(stage: GraphStage) -> list[int]:
    """Images that each node computes, over all later calls."""
    counts = [0] * len(stage.nodes)

    def count(i):
        def hook(module, args, output):
            counts[i] += len(args[0])

        return hook

    for i, node in enumerate(stage.nodes):
        node.register_forward_hook(count(i))
    return counts


@settings(max_examples=25)
@given(seed=st.integers(0, 99), tau=st.floats(0.3, 0.95), raw=st.booleans())
def test_only_what_an_image_needs_is_computed_and_batches_do_not_matter(seed, tau, raw):
    torch.manual_seed(seed)
    stage = make_stage(complete(6), raw, tau=tau).eval()
    x = torch.randn(5, 3, 5, 5, dtype=torch.float64)
    counts = count_images(stage)
    output, buffer = run(stage, x)
    needed = (buffer[:, 1:-1] != 0).any(2).sum(0)
    assert counts == needed.tolist()
    alone = [run(stage, image[None]) for image in x]
    torch.testing.assert_close(output, torch.cat([out for out, _ in alone]))
    torch.testing.assert_close(buffer, torch.cat([matrix for _, matrix in alone]))
    order = torch.randperm(5)
    torch.testing.assert_close(stage(x[order]), output[order])


def test_images_that_reach_no_output_are_zero_in_any_batch():
    """Without an edge from input to output there may be nothing to keep."""
    wiring = Wiring(4, [(0, 1), (1, 2), (2, 3)])
    stage = make_stage(wiring, tau=0.5).eval()
    with torch.no_grad():
        stage.connectivity.bias.fill_(0.5)
    after = nn.Sequential(stage, nn.ReLU(inplace=True))
    x = 3 * torch.randn(16, 3, 5, 5, dtype=torch.float64)
    output = after(x)
    torch.testing.assert_close(output, torch.cat([after(image[None]) for image in x]))
    expected, expected_buffer = naive(stage, x, 'target')
    torch.testing.assert_close(output, expected.relu())
    torch.testing.assert_close(run(stage, x)[1], expected_buffer)
    reached = output.flatten(1).any(1)
    assert reached.any()
    assert not reached.all()


def test_a_network_can_skip_every_node():
    stage = make_stage(complete(6), tau=0.999).eval()
    counts = count_images(stage)
    output = stage(torch.randn(3, 3, 5, 5, dtype=torch.float64))
    assert counts == [0, 0, 0, 0]
    assert output.any()


@pytest.mark.parametrize('tau', [0.0, 0.5, 0.8])
@pytest.mark.filterwarnings('ignore:.*torch.jit', 'ignore:Converting a tensor')
def test_traced_and_compiled_networks_close_the_same_edges(tau):
    """They run every node and mask, for want of a decision per image."""
    stage = make_stage(complete(5), first_reads_input=True, tau=tau).eval()
    x = torch.randn(4, 3, 5, 5, dtype=torch.float64)
    with torch.no_grad():
        expected = stage(x)
        batch = torch.export.Dim('batch')
        forms = {
            'traced': torch.jit.trace(stage, x[:2], check_trace=False),
            'compiled': torch.compile(stage, backend='eager', fullgraph=True),
            'exported': torch.export.export(stage, (x[:2],), dynamic_shapes=({0: batch},)).module(),
            'fx': torch.fx.symbolic_trace(stage),
        }
        for name, form in forms.items():
            torch.testing.assert_close(form(x), expected, msg=name)


def test_checkpointing_recomputes_routed_stages():
    stage = make_stage(complete(5), tau=0.4).train()
    x = torch.randn(3, 3, 5, 5, dtype=torch.float64, requires_grad=True)
    wanted = [x, *stage.parameters()]
    stored = torch.autograd.grad(stage(x).square().sum(), wanted)
    stage.grad_checkpointing = True
    torch.testing.assert_close(torch.autograd.grad(stage(x).square().sum(), wanted), stored)


def test_gradients_flow_through_skipped_batches_in_evaluation_mode():
    stage = make_stage(complete(5), tau=0.6).eval()
    x = torch.randn(6, 3, 5, 5, dtype=torch.float64, requires_grad=True)
    (together,) = torch.autograd.grad(stage(x).square().sum(), [x])
    alone = [torch.autograd.grad(stage(i[None]).square().sum(), [x])[0] for i in x]
    torch.testing.assert_close(together, sum(alone))


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_maps_of_part_of_a_batch_keep_the_memory_format(layout):
    stage = make_stage(complete(6), tau=0.8).eval().to(memory_format=layout)
    x = 3 * torch.randn(6, 3, 5, 5, dtype=torch.float64).to(memory_format=layout)
    counts = count_images(stage)
    assert stage(x).is_contiguous(memory_format=layout)
    assert any(0 < count < 6 for count in counts)


def test_half_precision_routes_in_float32():
    stage = make_stage(complete(5), tau=0.4).float().eval()
    x = torch.randn(4, 3, 5, 5)
    with torch.autocast('cpu', torch.bfloat16):
        output, buffer = run(stage, x)
    assert buffer.dtype == torch.float32
    assert output.isfinite().all()
    exact, _ = run(stage, x)
    assert (output.float() - exact).abs().max() < 0.2 * exact.abs().max()


# -- the start ------------------------------------------------------------------------------------


@pytest.mark.parametrize('init', [0.1, 0.5, 0.99])
def test_router_init_is_what_every_edge_weighs_for_every_image(init):
    model = timm.create_model(
        'toponet_tiny_adaptive', connectivity={'name': 'router', 'router_init': init}
    )
    for stage, matrix in zip(model.stages, adjacency(model, torch.randn(2, 3, 32, 32)).values()):
        weights = matrix[matrix != 0]
        assert len(weights) == 2 * stage.wiring.num_edges
        torch.testing.assert_close(weights, torch.full_like(weights, init))


@pytest.mark.filterwarnings('ignore:.*re-wired is another function')
@pytest.mark.parametrize('base', ['resnetv2_cifar20', 'mobilenetv2_050'])
def test_routers_that_start_near_one_keep_the_function_of_a_network(randomise, base):
    """The nearer, the less it differs, in proportion."""
    torch.manual_seed(1)
    plain = randomise(timm.create_model(base)).eval()
    images = torch.randn(2, plain.pretrained_cfg['input_size'][0], 64, 64)
    expected = plain(images)
    off = []
    for distance in (1e-2, 1e-3, 1e-4):
        rule = {'name': 'router', 'router_init': 1 - distance}
        routed = timm_topo.rewire(plain, rule, exact=False)
        off.append(((routed(images) - expected).abs().max() / expected.abs().max()).item())
    assert off[0] < 0.2
    assert off[1] < 0.15 * off[0]
    assert off[2] < 0.15 * off[1]


@pytest.mark.parametrize('training', [True, False])
def test_a_router_may_see_the_map_behind_a_relu(training):
    """What is summed stays as it is."""
    stage = make_stage(complete(4), gate='none', activated=True).train(training)
    assert stage.connectivity.options['activated'] is True
    eval_norms(stage)
    x = torch.randn(3, 3, 5, 6, dtype=torch.float64)
    _, buffer = run(stage, x)
    rule, features = stage.connectivity, [stage.entry(x)]
    for node in range(1, 4):
        total = 0
        for e, source in zip(range(*rule.spans[node]), stage.wiring.preds(node)):
            seen = features[source].clamp(min=0).flatten(2).sum(2) / 30
            weight = torch.sigmoid(seen @ rule.weight[e] + rule.bias[e])
            torch.testing.assert_close(buffer[:, node, source], weight)
            total = total + weight[:, None, None, None] * features[source]
        features.append(stage.nodes[node - 1](total) if node < 3 else total)
    torch.testing.assert_close(stage(x), features[-1])
    plain = make_stage(complete(4), gate='none').train(training)
    plain.load_state_dict(stage.state_dict())
    assert not torch.allclose(eval_norms(plain)(x), stage(x))


# -- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('options', 'error', 'message'),
    [
        (dict(tau=1.0), ValueError, r'tau must be in \[0, 1\), got 1.0'),
        (dict(tau=-0.1), ValueError, r'tau must be in \[0, 1\), got -0.1'),
        (dict(tau=math.nan), ValueError, r'tau must be in \[0, 1\), got nan'),
        (dict(tau='high'), TypeError, "tau must be a number, got 'high'"),
        (dict(tau=True), TypeError, 'tau must be a number, got True'),
        (dict(tau=0.5), ValueError, 'tau=0.5 would close every edge, which weigh 0.5 at first'),
        (dict(channels=5), ValueError, 'channels=5 for maps of 4 channels'),
        (dict(router_init=0), ValueError, r'router_init must be in \(0, 1\), got 0'),
        (dict(router_init=1), ValueError, r'router_init must be in \(0, 1\), got 1'),
        (dict(router_init=None), TypeError, 'router_init must be a number, got None'),
        (dict(temperature=0), ValueError, 'temperature must be finite and > 0, got 0'),
        (dict(temperature=math.inf), ValueError, 'temperature must be finite and > 0, got inf'),
        (dict(channels=0), ValueError, 'channels=0 for maps of 4 channels'),
        (dict(channels=None), ValueError, 'channels=None for maps of 4 channels'),
        (dict(gate='hard'), ValueError, "unknown gate 'hard'; known: soft, none"),
        (dict(activated=1), TypeError, 'activated must be True or False, got 1'),
        (dict(gates=1), TypeError, "RouterConnectivity.*unexpected keyword argument 'gates'"),
    ],
)
def test_bad_options_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        build_connectivity({'name': 'router', **options}, complete(4), CHANNELS)


@pytest.mark.parametrize('channels', [0, 2.5])
def test_channels_are_a_number_of_maps(channels):
    with pytest.raises(ValueError, match=f'channels must be .*, got {channels}'):
        RouterConnectivity(complete(4), channels)


def test_a_router_without_channels_is_refused():
    with pytest.raises(TypeError, match="missing a required argument: 'channels'"):
        build_connectivity('router', complete(4))


def test_a_wiring_without_the_routers_edges_is_refused():
    rule = RouterConnectivity(complete(5), CHANNELS)
    nodes = [nn.Identity(), nn.Identity()]
    with pytest.raises(ValueError, match=r'built for a wiring other than Wiring\(num_nodes=4'):
        GraphStage(complete(4), rule, nn.Identity(), nodes)
    with pytest.raises(ValueError, match='node 0 has no in-edge to be routed'):
        rule(0, torch.zeros(2, 0, CHANNELS))


@pytest.mark.parametrize('shape', [(2, 3, 5), (2, 2, CHANNELS), (3, CHANNELS)])
def test_a_context_that_does_not_fit_is_refused(shape):
    rule = RouterConnectivity(complete(5), CHANNELS)
    with pytest.raises(ValueError, match=r'node 3 needs a context of \(B, 3, 4\), got'):
        rule(3, torch.zeros(shape))


def test_a_width_that_is_not_the_stages_is_refused():
    rule = RouterConnectivity(complete(3), CHANNELS + 1)
    stage = GraphStage(complete(3), rule, nn.Conv2d(3, CHANNELS, 1), [nn.Identity()])
    with pytest.raises(ValueError, match=r'needs a context of \(B, 1, 5\), got \(2, 1, 4\)'):
        stage(torch.randn(2, 3, 5, 5))


def test_maps_of_other_sizes_are_refused():
    nodes = [nn.Conv2d(CHANNELS, CHANNELS, 3)]
    rule = RouterConnectivity(complete(3), CHANNELS)
    stage = GraphStage(complete(3), rule, nn.Conv2d(3, CHANNELS, 1), nodes)
    with pytest.raises(ValueError, match=r'inputs differ in shape: \(2, 4, 6, 6\) and \(2, 4, 4'):
        stage(torch.randn(2, 3, 6, 6))


@pytest.mark.parametrize('tau', [1, -1e-9, math.nan])
def test_set_tau_outside_of_its_range_is_refused(tau):
    stage = make_stage(complete(3))
    with pytest.raises(ValueError, match=r'tau must be in \[0, 1\), got'):
        set_tau(stage, tau)
    assert stage.connectivity.tau.count_nonzero() == 0


def test_set_tau_without_routers_is_refused():
    with pytest.raises(ValueError, match='TopoNet has no router whose threshold could be set'):
        set_tau(timm.create_model('toponet_tiny_adaptive'), 0.5)


def test_adjacency_without_graph_stages_is_refused():
    with pytest.raises(ValueError, match='Linear has no graph stage'):
        adjacency(nn.Linear(2, 2), torch.zeros(1, 2))
