"""Masks with K active in-edges per node: what is drawn, what learns, what evaluation takes."""

import copy
import itertools
import logging
import math

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import timm_topo
from timm_topo.analysis.prune import prune
from timm_topo.connectivity import build_connectivity, connectivity_spec, list_connectivity
from timm_topo.connectivity.mask import MaskConnectivity
from timm_topo.generators import complete, random, residual, sequential
from timm_topo.sparsity import sparsity_loss
from timm_topo.stages import aggregate
from timm_topo.wiring import Wiring

#: One node with four sources that read the input.
STAR = Wiring(6, ((0, 1), (0, 2), (0, 3), (0, 4), (1, 5), (2, 5), (3, 5), (4, 5)))


def masks(wiring: Wiring = STAR, **options) -> MaskConnectivity:
    return build_connectivity({'name': 'mask', **options}, wiring)


def set_masks(rule: MaskConnectivity, values) -> MaskConnectivity:
    with torch.no_grad():
        rule.mask.copy_(torch.as_tensor(values, dtype=rule.mask.dtype))
    return rule


def rows(wiring: Wiring, weights: Tensor) -> list[Tensor]:
    return list(weights.split(wiring.in_degrees[1:]))


wirings = st.builds(
    random, num_nodes=st.integers(3, 12), p=st.floats(0, 1), seed=st.integers(0, 9999)
)


def test_the_rule_is_registered_and_undecayed():
    assert 'mask' in list_connectivity()
    model = timm.create_model('test_toponet', connectivity={'name': 'mask', 'fan_in': 2})
    assert {name for name in model.no_weight_decay() if name.endswith('mask')} == {
        f'stages.{stage}.connectivity.mask' for stage in range(4)
    }


# -- K of them, always ----------------------------------------------------------------------------


@given(
    wiring=wirings, fan_in=st.none() | st.integers(1, 12), seed=st.integers(0, 9999),
    training=st.booleans(), kind=st.sampled_from(['learned', 'prev', 'random']),
    zeros=st.booleans(),
)  # fmt: skip
def test_exactly_k_in_edges_of_every_node_are_active(wiring, fan_in, seed, training, kind, zeros):
    torch.manual_seed(seed)
    rule = masks(wiring, fan_in=fan_in, masks=kind, seed=seed).train(training)
    if kind == 'learned':
        values = torch.rand(wiring.num_edges)
        set_masks(rule, values * (values > 0.7) if zeros else values)
    k = fan_in or (1 if kind == 'prev' else wiring.num_edges)
    expected = [min(k, degree) for degree in wiring.in_degrees[1:]]
    for weights in (
        rows(wiring, rule.pass_weights()),
        [rule(node) for node in range(1, wiring.num_nodes)],
        rows(wiring, rule.edge_weights()),
    ):
        assert [int(row.sum()) for row in weights] == expected
        assert all(set(row.tolist()) <= {0.0, 1.0} for row in weights)


@given(wiring=wirings, seed=st.integers(0, 9999))
def test_full_output_exempts_the_last_node_only(wiring, seed):
    weights = rows(wiring, masks(wiring, fan_in=1, full_output=True).pass_weights())
    assert [int(row.sum()) for row in weights[:-1]] == [1] * (wiring.num_nodes - 2)
    assert weights[-1].sum() == wiring.in_degrees[-1]


def test_a_fan_in_per_node():
    rule = masks(complete(5), fan_in=[0, 1, 2, 1, 3])
    assert [int(row.sum()) for row in rows(complete(5), rule.pass_weights())] == [1, 2, 1, 3]


def test_more_than_there_are_means_all_and_is_logged(caplog):
    caplog.set_level(logging.INFO)
    rule = masks(complete(6), fan_in=3)
    assert [int(row.sum()) for row in rows(complete(6), rule.pass_weights())] == [1, 2, 3, 3, 3]
    assert caplog.messages == [
        'fan_in 3: 2 of 5 nodes (1 the first) have fewer in-edges and use all of them'
    ]
    assert [record.levelname for record in caplog.records] == ['INFO']
    caplog.clear()
    masks(complete(6), fan_in=40)  # 4, mistyped
    assert [record.levelname for record in caplog.records] == ['WARNING']
    assert caplog.messages[0].endswith('use all of them: no node has a choice')
    caplog.clear()
    masks(STAR, fan_in=1)
    masks(STAR)
    assert not caplog.messages


# -- draws ----------------------------------------------------------------------------------------


def chances(values: list[float], k: int) -> dict[frozenset, float]:
    """Probability of every set of k, drawn one by one without replacement, by enumeration."""
    found = {}
    for order in itertools.permutations(range(len(values)), k):
        probability, left = 1.0, sum(values)
        for index in order:
            probability *= values[index] / left
            left -= values[index]
        key = frozenset(order)
        found[key] = found.get(key, 0.0) + probability
    return found


@pytest.mark.parametrize('at_once', [False, True])
@pytest.mark.parametrize('k', [1, 2, 3])
def test_sets_are_drawn_as_often_as_one_by_one_without_replacement(k, at_once):
    """Every set within five standard deviations of its exact probability."""
    values, draws = [0.05, 0.2, 0.35, 0.9], 20_000
    # the same node many times, to draw in one call: independent rows
    sources = range(1, 5)
    many = Wiring(
        5 + draws,
        (
            *((0, s) for s in sources),
            *((s, t) for t in range(5, 5 + draws) for s in sources),
        ),
    ) if at_once else STAR  # fmt: skip
    rule = masks(many, fan_in=k)
    set_masks(rule, [1.0] * 4 + values * (many.num_nodes - 5))
    if at_once:
        drawn = rule.pass_weights()[4:].view(draws, 4)
    else:
        draws = 4000
        drawn = torch.stack([rule(5) for _ in range(draws)])
    exact = chances(values, k)
    assert sum(exact.values()) == pytest.approx(1)
    counts = dict.fromkeys(exact, 0)
    for row in drawn.tolist():
        counts[frozenset(i for i, value in enumerate(row) if value)] += 1
    for chosen, probability in exact.items():
        spread = math.sqrt(draws * probability * (1 - probability))
        assert abs(counts[chosen] - draws * probability) < 5 * spread, (chosen, counts[chosen])


def test_a_mask_of_zero_is_drawn_only_where_there_are_too_few_others():
    rule = set_masks(masks(fan_in=2), [1, 1, 1, 1, 0, 0.3, 0, 0.001])
    assert {tuple(rule(5).tolist()) for _ in range(200)} == {(0, 1, 0, 1)}
    rule = set_masks(masks(fan_in=3), [1, 1, 1, 1, 0, 0.3, 0, 0.001])
    drawn = {tuple(rule(5).tolist()) for _ in range(200)}
    assert drawn == {(1, 1, 0, 1), (0, 1, 1, 1)}  # either of the zeros, at random


def test_draws_come_from_torchs_generator_and_differ():
    rule = masks(complete(12), fan_in=3)
    torch.manual_seed(7)
    first, second = rule.pass_weights(), rule.pass_weights()
    torch.manual_seed(7)
    assert torch.equal(rule.pass_weights(), first)
    assert not torch.equal(first, second)


def test_all_start_equal_so_that_every_source_is_as_likely():
    rule = masks(fan_in=1)
    assert (rule.mask == 0.5).all()
    counts = sum(rule(5) for _ in range(4000))
    assert (counts - 1000).abs().max() < 5 * math.sqrt(4000 * 3 / 16)


# -- what learns ----------------------------------------------------------------------------------


@pytest.mark.parametrize('average', [False, True])
def test_the_gradient_of_the_binary_mask_is_that_of_the_real_one_active_or_not(average):
    """Against a binary mask that is a leaf of its own, and the formula <gradient, map>."""
    rule = masks(fan_in=2, average=average)
    maps = [torch.randn(2, 3, 4, 4) for _ in range(4)]
    target = torch.randn(2, 3, 4, 4)
    weights = rule(5)
    (aggregate(maps, weights) * target).sum().backward()
    scale = 0.5 if average else 1.0
    binary = (weights.detach() / scale).requires_grad_()
    (sum(scale * b * y for b, y in zip(binary, maps)) * target).sum().backward()
    assert torch.allclose(rule.mask.grad[4:], binary.grad, atol=1e-5)
    assert torch.allclose(
        rule.mask.grad[4:], scale * torch.stack([(y * target).sum() for y in maps]), atol=1e-5
    )
    assert (rule.mask.grad[4:] != 0).all()
    assert (binary == 0).sum() == 2
    assert (rule.mask.grad[:4] == 0).all()  # nobody asked for those


def test_steps_move_masks_and_the_next_pass_clips_and_normalises_them():
    rule = set_masks(masks(fan_in=2), [1] * 4 + [0.5] * 4)
    optimizer = torch.optim.SGD(rule.parameters(), lr=1.0)
    rule.mask.grad = torch.tensor([0, 0, 0, 0, 0.75, 0.25, -0.25, -0.75])
    optimizer.step()
    assert rule.mask.tolist() == [1] * 4 + [-0.25, 0.25, 0.75, 1.25]
    assert rule.eval()(5).tolist() == [0, 0, 1, 1]
    assert rule.mask.min() == -0.25  # evaluation changes no state
    rule.train()(5)
    assert rule.mask.tolist() == [1] * 4 + [0, 0.125, 0.375, 0.5]


@given(values=st.lists(st.floats(0.01, 2), min_size=8, max_size=8))
def test_masks_of_a_node_sum_to_one_before_every_draw(values):
    """As a loop over nodes does it; a second pass leaves them as they are."""
    rule = set_masks(masks(fan_in=2), values).train()
    rule(5)
    for start, stop in rule.spans[1:]:
        clipped = torch.tensor(values)[start:stop].clamp(0, 1)
        torch.testing.assert_close(rule.mask[start:stop].detach(), clipped / clipped.sum())
    before = rule.mask.detach().clone()
    rule.pass_weights()
    assert torch.equal(rule.mask, before)


def test_a_node_whose_masks_are_all_zero_keeps_them():
    rule = set_masks(masks(fan_in=2), [0.0] * 8).train()
    rule(5)
    assert rule.mask.tolist() == [0.0] * 8


def test_values_beyond_one_count_as_one_before_they_are_clipped():
    rule = set_masks(masks(fan_in=1), [0.5] * 4 + [3, 2, 1.5, 0.2]).eval()
    assert rule(5).tolist() == [0, 0, 1, 0]  # three of 1: the latest


def test_l1_on_masks_reaches_the_active_ones():
    model = timm.create_model('test_toponet', connectivity={'name': 'mask', 'fan_in': 1})
    sparsity_loss(model, 'uniform').backward()
    for stage in model.stages:
        rule = stage.connectivity
        assert torch.equal(rule.mask.grad, rule.edge_weights().detach())


def _process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{folder}/group', rank=rank, world_size=2
    )
    torch.manual_seed(0)
    model = timm.create_model(
        'test_toponet', num_nodes=(6, 6), widths=(8, 8), strides=(2, 2), stem_width=8,
        num_classes=3, norm_layer='layernorm2d', connectivity={'name': 'mask', 'fan_in': 2},
    )  # fmt: skip
    ddp = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    torch.manual_seed(100 + rank)  # as timm seeds its processes
    images = torch.randn(4, 3, 16, 16)
    record = []
    for _ in range(3):
        state = torch.get_rng_state()
        draw = [stage.connectivity.pass_weights().detach() for stage in model.stages]
        torch.set_rng_state(state)
        optimizer.zero_grad()
        ddp(images).logsumexp(-1).sum().backward()
        averaged = model.stages[0].connectivity.mask.grad.clone()
        alone = copy.deepcopy(model)
        alone.zero_grad()
        torch.set_rng_state(state)
        alone(images).logsumexp(-1).sum().backward()
        record.append(
            dict(draw=draw, averaged=averaged, own=alone.stages[0].connectivity.mask.grad)
        )
        optimizer.step()
    masks = [stage.connectivity.mask.detach().clone() for stage in model.stages]
    torch.save(dict(masks=masks, record=record), f'{folder}/{rank}.pt')
    torch.distributed.destroy_process_group()


def test_two_processes_draw_differently_but_have_the_same_masks(tmp_path):
    """A step averages the gradients of both draws."""
    torch.multiprocessing.spawn(_process, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f'{rank}.pt') for rank in (0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first['masks'], second['masks']))
    assert any((mask != 0.5).any() for mask in first['masks'])
    pairs = list(zip(first['record'], second['record']))
    assert any(
        not torch.equal(a, b) for one, two in pairs for a, b in zip(one['draw'], two['draw'])
    )
    for one, two in pairs:
        assert torch.equal(one['averaged'], two['averaged'])
        assert torch.allclose(one['averaged'], (one['own'] + two['own']) / 2, atol=1e-5)


@pytest.mark.parametrize('checkpointing', [False, True])
def test_recomputed_stages_draw_the_same_again(checkpointing):
    gradients = {}
    for recompute in (False, checkpointing):
        torch.manual_seed(0)
        model = timm.create_model('test_toponet', connectivity={'name': 'mask', 'fan_in': 2})
        model.set_grad_checkpointing(recompute)
        for stage in model.stages:
            stage.fast = False  # draws for all nodes at once, which may take other random numbers
        torch.manual_seed(1)
        model(torch.randn(2, 3, 64, 64)).sum().backward()
        gradients[recompute] = {n: p.grad for n, p in model.named_parameters()}
    for name, gradient in gradients[False].items():
        assert torch.allclose(gradient, gradients[checkpointing][name], atol=1e-5), name


# -- evaluation -----------------------------------------------------------------------------------


@given(
    wiring=wirings, fan_in=st.integers(1, 5), seed=st.integers(0, 9999), levels=st.integers(1, 9)
)
def test_evaluation_takes_the_k_largest_the_latest_of_equal_ones(wiring, fan_in, seed, levels):
    torch.manual_seed(seed)
    values = torch.randint(0, levels + 1, (wiring.num_edges,)) / levels  # many ties
    rule = set_masks(masks(wiring, fan_in=fan_in), values).eval()
    for node in range(1, wiring.num_nodes):
        start, stop = wiring.in_edges[node]
        best = sorted(range(start, stop), key=lambda e: (values[e], e), reverse=True)[:fan_in]
        expected = [float(edge in best) for edge in range(start, stop)]
        assert rule(node).tolist() == expected
        assert rule.edge_weights()[start:stop].tolist() == expected
        assert rule.pass_weights()[start:stop].tolist() == expected


def test_evaluation_is_deterministic_and_asks_for_no_random_number():
    model = timm.create_model('test_toponet', connectivity={'name': 'mask', 'fan_in': 2}).eval()
    x, state = torch.randn(2, 3, 64, 64), torch.get_rng_state()
    assert torch.equal(model(x), model(x))
    assert torch.equal(torch.get_rng_state(), state)


def test_half_precision_keeps_k():
    rule = masks(complete(9), fan_in=3).half()
    assert rule.pass_weights().dtype == torch.float16
    assert [int(row.sum()) for row in rows(complete(9), rule.pass_weights())][3:] == [3] * 5


# -- fixed masks ----------------------------------------------------------------------------------


def test_prev_is_a_chain_full_is_every_edge_and_random_repeats():
    wiring = complete(8)
    prev = masks(wiring, masks='prev').pass_weights()
    assert [e for e, w in zip(wiring.edges, prev) if w] == list(sequential(8).edges)
    assert masks(wiring, masks='full').pass_weights().tolist() == [1.0] * 28
    three = masks(wiring, fan_in=3, masks='prev').pass_weights()
    assert all(w == (t - s <= 3) for (s, t), w in zip(wiring.edges, three))
    draws = [masks(wiring, fan_in=2, masks='random', seed=s).pass_weights() for s in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_random_masks_take_every_source_about_as_often():
    wiring = complete(11)
    total = sum(masks(wiring, fan_in=4, masks='random', seed=s).edge_weights() for s in range(300))
    last = total[wiring.in_edges[10][0] :]
    assert last.sum() == 1200
    assert (last - 120).abs().max() < 5 * math.sqrt(300 * 0.4 * 0.6)


def test_fixed_masks_are_the_same_in_training_and_have_no_parameter():
    rule = masks(complete(6), fan_in=2, masks='random')
    assert not list(rule.parameters())
    assert torch.equal(rule.train().pass_weights(), rule.eval().pass_weights())
    assert not rule.train().pass_weights().requires_grad


def test_masks_can_be_given_edge_by_edge():
    given = [1, 1, 1, 1, 0, 1, 1, 0]
    rule = masks(fan_in=2, masks=given)
    assert rule.pass_weights().tolist() == given
    assert masks(fan_in=2, masks=torch.tensor(given)).edge_weights().tolist() == given
    rule.reset_parameters()
    assert rule.edge_weights().tolist() == given


def test_average_divides_by_the_number_of_active_in_edges():
    weights = rows(complete(6), masks(complete(6), fan_in=3, average=True).pass_weights())
    assert [row.sum().item() for row in weights] == pytest.approx([1] * 5)
    assert [row.max().item() for row in weights] == pytest.approx([1, 1 / 2, 1 / 3, 1 / 3, 1 / 3])


# -- surgery and saving ---------------------------------------------------------------------------


@given(seed=st.integers(0, 9999), average=st.booleans(), fan_in=st.integers(1, 4))
def test_removing_what_is_not_read_leaves_the_function(seed, average, fan_in):
    torch.manual_seed(seed)
    model = timm.create_model(
        'test_toponet', num_nodes=(6, 7), widths=(4, 6), strides=(2, 2), stem_width=4,
        num_classes=3, connectivity={'name': 'mask', 'fan_in': fan_in, 'average': average},
    )  # fmt: skip
    for stage in model.stages:
        set_masks(stage.connectivity, torch.rand(stage.wiring.num_edges))
    smaller, report = prune(model, threshold=0)
    assert report.exact
    assert report.difference <= 1e-5 * max(report.scale, 1)
    for before, after in zip(model.stages, smaller.stages):
        active = [e for e, w in zip(before.wiring.edges, before.connectivity.edge_weights()) if w]
        alive = Wiring(before.wiring.num_nodes, tuple(active)).prune()[0]
        assert after.wiring == alive
        assert after.connectivity.fan_ins == list(alive.in_degrees)
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.allclose(smaller.eval()(x), model.eval()(x), atol=1e-5)


@given(seed=st.integers(0, 9999), kind=st.sampled_from(['learned', 'random']), drop=st.floats(0, 1))
def test_taking_any_edges_away_activates_no_other(seed, kind, drop):
    torch.manual_seed(seed)
    wiring = complete(8)
    rule = masks(wiring, fan_in=3, masks=kind, average=True, seed=seed)
    if kind == 'learned':
        set_masks(rule, torch.rand(28))
    kept = [e for e in range(28) if torch.rand(()) > drop]
    smaller = rule.select(Wiring(8, tuple(wiring.edges[e] for e in kept)), kept)
    assert torch.equal(smaller.edge_weights(), rule.edge_weights()[kept])
    again = build_connectivity(connectivity_spec(smaller), smaller.wiring)
    again.load_state_dict(smaller.state_dict())
    assert torch.equal(again.edge_weights(), smaller.edge_weights())
    smaller.train()
    counts = [int((row > 0).sum()) for row in rows(smaller.wiring, smaller.pass_weights())]
    assert counts == smaller.fan_ins[1:]


@pytest.mark.parametrize(
    'rule',
    [
        dict(fan_in=2), dict(fan_in=2, masks='random', seed=3), dict(masks='prev'),
        dict(fan_in=2, average=True, init=0.25), dict(fan_in=1, full_output=True),
    ],
)  # fmt: skip
@pytest.mark.parametrize('pruned', [False, True])
def test_a_saved_network_comes_back(rule, pruned, tmp_path):
    model = timm.create_model('test_toponet', connectivity={'name': 'mask', **rule}).eval()
    for stage in model.stages:
        if stage.connectivity.learned:
            set_masks(stage.connectivity, torch.rand(stage.wiring.num_edges))
    if pruned:
        model, _ = prune(model, threshold=0)
    again = timm_topo.load(timm_topo.save(model, tmp_path / 'saved')).eval()
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(again(x), model(x))
    for a, b in zip(again.stages, model.stages):
        assert a.connectivity.fan_ins == b.connectivity.fan_ins
        assert a.connectivity.learned == b.connectivity.learned


def test_it_starts_from_scratch_after_being_on_the_meta_device():
    with torch.device('meta'):
        rule = masks(complete(6), fan_in=2, average=True)
    rule = rule.to_empty(device='cpu')
    rule.reset_parameters()
    expected = masks(complete(6), fan_in=2, average=True)
    assert torch.equal(rule.edge_weights(), expected.edge_weights())
    torch.manual_seed(0)
    drawn = rule.pass_weights()
    torch.manual_seed(0)
    assert torch.equal(drawn, expected.pass_weights())


def test_weights_for_other_fixed_masks_are_refused():
    one, other = (masks(complete(8), fan_in=2, masks='random', seed=s) for s in (0, 1))
    with pytest.raises(RuntimeError, match='mask: not the fixed masks of this network'):
        one.load_state_dict(other.state_dict())
    one.load_state_dict(masks(complete(8), fan_in=2, masks='random').state_dict())


def test_a_state_has_no_part_in_fan_in_and_average():
    one = masks(complete(8), fan_in=2)
    one.load_state_dict(masks(complete(8), fan_in=4, average=True).state_dict())
    assert [row.sum() for row in rows(complete(8), one.edge_weights())] == [1, 2, 2, 2, 2, 2, 2]


# -- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('options', 'error', 'told'),
    [
        (dict(fan_in=0), ValueError, 'fan_in must be at least 1, got 0'),
        (dict(fan_in=-2), ValueError, 'fan_in must be at least 1, got -2'),
        (dict(fan_in=1.5), TypeError, 'fan_in must be an integer, .* got 1.5'),
        (dict(fan_in=True), TypeError, 'fan_in must be an integer, .* got True'),
        (dict(fan_in=[1, 2]), ValueError, 'needs a fan_in per node, got 2'),
        (dict(fan_in=[0, 1, 1, 1, 1, -1]), ValueError, 'fan_in must be at least 0, got -1'),
        (dict(fan_in=2, masks='full'), ValueError, 'reads all 4 sources of node 5, not 2'),
        (dict(masks='last'), ValueError, "unknown masks 'last'; known: learned, prev"),
        (dict(fan_in=2, masks=[1] * 8), ValueError, 'mask of node 5 must have 2 ones, got 4'),
        (dict(average=[1, 2]), ValueError, 'needs a divisor per node, got 2'),
        (dict(average=[0] * 6), ValueError, 'average must be at least 1, got 0'),
        (dict(fan_in=2, masks=[1] * 5), ValueError, 'needs masks for all edges, got 5'),
        (dict(masks=[1] * 7 + [0.5]), ValueError, 'masks are 0 or 1, got 0.5'),
        (dict(masks=3), TypeError, 'masks must be a name or 0 or 1 for every edge, got 3'),
        (dict(init=0), ValueError, r'init must be in \(0, 1\], got 0'),
        (dict(init=1.5), ValueError, r'init must be in \(0, 1\], got 1.5'),
        (dict(init='a'), ValueError, r"init must be in \(0, 1\], got 'a'"),
        (dict(seed=0.5), ValueError, 'seed must be an integer, got 0.5'),
        (dict(average=1), TypeError, 'average must be True or False, got 1'),
        (dict(full_output='no'), TypeError, "full_output must be True or False, got 'no'"),
    ],
)  # fmt: skip
def test_bad_options(options, error, told):
    with pytest.raises(error, match=told):
        masks(**options)


def test_the_rule_fits_every_wiring_and_any_network():
    for wiring in (complete(2), residual(9, 2), sequential(4)):
        assert masks(wiring, fan_in=2).pass_weights().shape == (wiring.num_edges,)
    model = timm_topo.rewire(
        timm.create_model('resnetv2_cifar20'),
        connectivity={'name': 'mask', 'fan_in': 2},
        exact=False,
    )
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 100)
