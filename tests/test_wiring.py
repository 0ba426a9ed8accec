"""Laws of wirings and of their generators, with networkx as an independent reference."""

import dataclasses
import json
from itertools import combinations, pairwise

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from timm_topo.generators import (
    WIRINGS,
    barabasi_albert,
    complete,
    erdos_renyi,
    is_explicit,
    make_wiring,
    random,
    residual,
    sequential,
    watts_strogatz,
)
from timm_topo.wiring import Wiring

SEEDED = {
    'random': dict(p=0.5),
    'erdos_renyi': dict(p=0.3),
    'barabasi_albert': dict(m=3),
    'watts_strogatz': dict(k=4, p=0.75),
}


@st.composite
def wirings(draw, connected: bool = False) -> Wiring:
    """Any wiring of 2 to 8 nodes; ``connected``: with a path from input to output."""
    num_nodes = draw(st.integers(2, 8))
    pairs = list(combinations(range(num_nodes), 2))
    edges = set(draw(st.lists(st.sampled_from(pairs), max_size=20)))
    if connected:
        inner = draw(st.sets(st.integers(0, num_nodes - 1)))
        edges |= set(pairwise(sorted(inner | {0, num_nodes - 1})))
    return Wiring(num_nodes, tuple(draw(st.permutations(sorted(edges)))))


def paths(graph: nx.DiGraph) -> set[tuple[int, ...]]:
    return {tuple(path) for path in nx.all_simple_paths(graph, 0, len(graph) - 1)}


def between_computing_nodes(wiring: Wiring) -> set[tuple[int, int]]:
    """The edges that touch neither input nor output."""
    return {(s, t) for s, t in wiring.edges if s > 0 and t < wiring.num_nodes - 1}


# -- reading the graph ----------------------------------------------------------------------------


@given(wirings())
def test_edges_are_sorted_by_target_then_source(wiring):
    assert list(wiring.edges) == sorted(wiring.edges, key=lambda edge: (edge[1], edge[0]))


@given(wirings(), st.randoms(use_true_random=False))
def test_the_order_in_which_edges_are_given_does_not_matter(wiring, rng):
    shuffled = list(wiring.edges)
    rng.shuffle(shuffled)
    again = Wiring(wiring.num_nodes, shuffled)
    assert again == wiring
    assert hash(again) == hash(wiring)


@given(wirings())
def test_neighbours_and_degrees_are_those_of_networkx(wiring):
    graph = nx.DiGraph(wiring.edges)
    graph.add_nodes_from(range(wiring.num_nodes))
    nodes = range(wiring.num_nodes)
    assert [wiring.preds(n) for n in nodes] == [tuple(sorted(graph.pred[n])) for n in nodes]
    assert [wiring.succs(n) for n in nodes] == [tuple(sorted(graph.succ[n])) for n in nodes]
    assert wiring.in_degrees == tuple(graph.in_degree(n) for n in nodes)
    assert wiring.out_degrees == tuple(graph.out_degree(n) for n in nodes)
    assert wiring.num_edges == graph.number_of_edges()
    assert wiring.density == pytest.approx(nx.density(graph) * 2)  # a DAG has half the pairs


@given(wirings())
def test_in_edges_are_consecutive_slices_of_the_edges(wiring):
    assert wiring.in_edges[0] == (0, 0)
    assert wiring.in_edges[-1][1] == wiring.num_edges
    assert all(before[1] == after[0] for before, after in pairwise(wiring.in_edges))
    for node, (start, stop) in enumerate(wiring.in_edges):
        assert all(target == node for _, target in wiring.edges[start:stop])


def test_search_space_of_the_paper_is_6e209():
    sizes = [complete(n).search_space for n in (14, 20, 26, 14)]
    assert sizes == [2**91, 2**190, 2**325, 2**91]
    assert 6e209 < np.prod(sizes, dtype=object) < 7e209


def test_a_wiring_is_immutable_and_hashable():
    edges = [(0, 1), (1, 2)]
    wiring = Wiring(3, edges)
    edges.append((0, 2))
    assert wiring.edges == ((0, 1), (1, 2))
    with pytest.raises(dataclasses.FrozenInstanceError, match='num_nodes'):
        wiring.num_nodes = 4
    with pytest.raises(dataclasses.FrozenInstanceError, match='edges'):
        wiring.edges = ()
    assert {wiring: 'found'}[sequential(3)] == 'found'


def test_wirings_differ_in_nodes_or_edges():
    assert len({Wiring(3, [(0, 1)]), Wiring(4, [(0, 1)]), Wiring(3, [(0, 2)])}) == 3
    assert complete(3) != complete(3).edges


def test_numpy_integers_become_plain_ones():
    wiring = Wiring(np.int64(3), np.array([[0, 2], [0, 1]]))
    assert wiring == Wiring(3, [(0, 1), (0, 2)])
    assert json.loads(wiring.to_json()) == {'num_nodes': 3, 'edges': [[0, 1], [0, 2]]}


# -- exchange -------------------------------------------------------------------------------------


@given(wirings())
def test_round_trips_change_nothing(tmp_path_factory, wiring):
    folder = tmp_path_factory.getbasetemp()
    text = wiring.to_json(folder / 'wiring.json')
    assert Wiring.from_networkx(wiring.to_networkx()) == wiring
    assert Wiring.from_json(folder / 'wiring.json') == wiring
    assert Wiring.from_json(text) == wiring
    assert Wiring.from_dict(wiring.to_dict()) == wiring
    assert Wiring.from_edges(wiring.edges, wiring.num_nodes) == wiring


@given(wirings())
def test_to_networkx_has_the_same_nodes_and_edges(wiring):
    graph = wiring.to_networkx()
    assert sorted(graph.nodes) == list(range(wiring.num_nodes))
    assert sorted(graph.edges) == sorted(wiring.edges)


@given(wirings(), st.data())
@pytest.mark.parametrize('label', [str, lambda n: n, lambda n: -1.5 * n, lambda n: ('node', n)])
def test_a_digraph_with_any_labels_gives_an_isomorphic_wiring(label, wiring, data):
    names = data.draw(st.permutations([label(n) for n in range(wiring.num_nodes)]))
    graph = nx.DiGraph()
    graph.add_nodes_from(data.draw(st.permutations(names)))
    graph.add_edges_from((names[s], names[t]) for s, t in wiring.edges)
    assert nx.is_isomorphic(Wiring.from_networkx(graph).to_networkx(), graph)


def test_a_digraph_whose_numbers_are_in_order_keeps_them():
    graph = nx.DiGraph([(2, 3), (0, 3)])
    graph.add_node(1)
    assert Wiring.from_networkx(graph) == Wiring(4, [(0, 3), (2, 3)])


def test_from_edges_counts_nodes_up_to_the_largest_id():
    assert Wiring.from_edges([[0, 3], [1, 2]]).num_nodes == 4
    assert Wiring.from_edges([[0, 1]], num_nodes=4).num_nodes == 4


# -- surgery --------------------------------------------------------------------------------------


@given(wirings())
def test_dead_nodes_are_those_on_no_path_from_input_to_output(wiring):
    graph, output = wiring.to_networkx(), wiring.num_nodes - 1
    alive = (nx.descendants(graph, 0) | {0}) & (nx.ancestors(graph, output) | {output})
    assert wiring.dead_nodes() == tuple(sorted(set(graph) - alive))


@given(wirings(connected=True))
def test_prune_keeps_every_path_and_maps_node_ids(wiring):
    pruned, old_id = wiring.prune()
    assert old_id == tuple(n for n in range(wiring.num_nodes) if n not in wiring.dead_nodes())
    assert pruned.num_nodes == len(old_id)
    mapped = {tuple(old_id[node] for node in path) for path in paths(pruned.to_networkx())}
    assert mapped == paths(wiring.to_networkx())
    alive = nx.relabel_nodes(pruned.to_networkx(), dict(enumerate(old_id)))
    assert nx.utils.graphs_equal(alive, nx.DiGraph(wiring.to_networkx().subgraph(old_id)))


@given(wirings(connected=True))
def test_prune_twice_is_prune_once(wiring):
    pruned, _ = wiring.prune()
    assert pruned.dead_nodes() == ()
    assert pruned.prune() == (pruned, tuple(range(pruned.num_nodes)))


@given(wirings(), st.data())
def test_subgraph_has_the_same_nodes_and_only_the_edges_asked_for(wiring, data):
    kept = [edge for edge in wiring.edges if data.draw(st.booleans())]
    smaller = wiring.subgraph(kept)
    assert smaller.num_nodes == wiring.num_nodes
    assert set(smaller.edges) == set(kept)


# -- generators -----------------------------------------------------------------------------------


@pytest.mark.parametrize(('n', 'edges'), [(2, 1), (14, 91), (20, 190), (26, 325)])
def test_complete_has_every_forward_edge(n, edges):
    wiring = complete(n)
    assert wiring.num_edges == edges
    assert set(wiring.edges) == set(combinations(range(n), 2))
    assert wiring.density == 1


@pytest.mark.parametrize('n', [2, 3, 9])
def test_sequential_is_one_path(n):
    assert nx.utils.graphs_equal(sequential(n).to_networkx(), nx.path_graph(n, nx.DiGraph))


@pytest.mark.parametrize(
    ('n', 'interval', 'edges'),
    [
        (14, 2, 34), (14, 3, 23), (14, 4, 19),
        (20, 2, 64), (20, 3, 40), (20, 4, 34),
        (26, 2, 103), (26, 3, 61), (26, 4, 46),
    ],
)  # fmt: skip
def test_residual_has_as_many_edges_as_in_the_paper(n, interval, edges):
    assert residual(n, interval).num_edges == edges


@given(st.integers(2, 30))
def test_residual_with_interval_one_is_complete(n):
    assert residual(n, 1) == complete(n)


@given(st.integers(2, 12), st.integers(1, 12))
def test_residual_unrolls_a_residual_network(n, interval):
    """Nodes that multiply by a number: the graph against ``x += chain(x)``."""
    factor = [None, *range(3, n + 1)]  # of the computing nodes 1 .. n - 2
    wiring = residual(n, interval)
    values = [1]
    for node in range(1, n):
        total = sum(values[source] for source in wiring.preds(node))
        values.append(total if node == n - 1 else factor[node] * total)
    x = 1
    for first in range(1, n - 1, interval):
        branch = x
        for node in range(first, min(first + interval, n - 1)):
            branch = factor[node] * branch
        x = x + branch
    assert values[-1] == x
    assert wiring.dead_nodes() == ()


@pytest.mark.parametrize('name', SEEDED)
def test_random_graphs_follow_their_seed(name):
    made = [WIRINGS[name](14, **SEEDED[name], seed=seed) for seed in range(4)]
    assert made == [WIRINGS[name](14, **SEEDED[name], seed=seed) for seed in range(4)]
    assert len(set(made)) == 4
    assert WIRINGS[name](14, **SEEDED[name]) == made[0]


@given(st.integers(7, 16), st.integers(0, 1000))
@pytest.mark.parametrize('name', SEEDED)
def test_random_graphs_have_no_dead_nodes(name, n, seed):
    assert WIRINGS[name](n, **SEEDED[name], seed=seed).dead_nodes() == ()


@given(st.integers(2, 12), st.integers(0, 1000))
def test_random_is_complete_for_one_and_a_star_for_zero(n, seed):
    assert random(n, 1.0, seed) == complete(n)
    star = {(0, i) for i in range(1, n - 1)} | {(i, n - 1) for i in range(1, n - 1)}
    assert set(random(n, 0.0, seed).edges) == (star or {(0, 1)})
    assert random(n, 0.0, seed).dead_nodes() == ()


def test_random_keeps_the_share_p_of_the_edges():
    densities = [random(26, 0.6, seed).density for seed in range(50)]
    assert np.mean(densities) == pytest.approx(0.6, abs=0.02)


@pytest.mark.parametrize(
    ('wiring', 'graph'),
    [
        (erdos_renyi(14, 0.3, seed=5), nx.gnp_random_graph(12, 0.3, seed=5)),
        (
            watts_strogatz(14, 4, 0.75, seed=5),
            nx.connected_watts_strogatz_graph(12, 4, 0.75, tries=200, seed=5),
        ),
    ],
    ids=['erdos_renyi', 'watts_strogatz'],
)
def test_random_graphs_are_those_of_networkx_shifted_by_the_input(wiring, graph):
    assert between_computing_nodes(wiring) == {
        (1 + min(edge), 1 + max(edge)) for edge in graph.edges
    }


@given(st.integers(0, 1000))
@pytest.mark.parametrize('name', ['erdos_renyi', 'barabasi_albert', 'watts_strogatz'])
def test_input_feeds_computing_nodes_without_source_and_output_takes_those_without_target(
    name, seed
):
    wiring = WIRINGS[name](14, **SEEDED[name], seed=seed)
    inner, computing = between_computing_nodes(wiring), set(range(1, 13))
    assert set(wiring.succs(0)) & computing == computing - {t for _, t in inner}
    assert set(wiring.preds(13)) & computing == computing - {s for s, _ in inner}


@pytest.mark.parametrize('seed', range(3))
def test_barabasi_albert_starts_from_isolated_nodes_that_the_next_one_joins(seed):
    n, m = 20, 5
    wiring = barabasi_albert(n, m, seed=seed)
    inner = between_computing_nodes(wiring)
    assert len(inner) == m * (n - 2 - m)
    assert all(target > m for _, target in inner)
    assert wiring.preds(m + 1) == tuple(range(1, m + 1))


@pytest.mark.parametrize(('k', 'neighbours'), [(2, 2), (4, 4), (5, 4)])
def test_watts_strogatz_rewires_but_keeps_the_number_of_edges(k, neighbours):
    wiring = watts_strogatz(14, k, p=0.75)
    assert len(between_computing_nodes(wiring)) == 12 * neighbours // 2


# -- from a description ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    'spec',
    [
        dict(name='residual', interval=2),
        residual(14, 2),
        residual(14, 2).to_dict(),
    ],
    ids=['dict', 'wiring', 'explicit'],
)
def test_make_wiring_takes_every_kind_of_description(spec):
    assert make_wiring(spec, 14) == residual(14, 2)


def test_make_wiring_does_not_change_the_description():
    spec = dict(name='random', p=0.5, seed=3)
    make_wiring(spec, 8, stage=2)
    assert spec == dict(name='random', p=0.5, seed=3)


@pytest.mark.parametrize('name', WIRINGS)
def test_make_wiring_knows_every_generator(name):
    options = {**SEEDED, 'residual': dict(interval=2)}.get(name, {})
    assert make_wiring({'name': name, **options}, 14) == WIRINGS[name](14, **options)


def test_make_wiring_takes_the_size_of_an_explicit_graph():
    assert make_wiring(complete(5)) == complete(5)
    assert make_wiring(complete(5).to_dict()) == complete(5)


def test_stages_draw_random_graphs_from_different_seeds():
    spec = dict(name='random', p=0.5, seed=7)
    assert make_wiring(spec, 14, stage=2) == random(14, 0.5, seed=9)
    assert make_wiring('complete', 14, stage=2) == complete(14)


def test_only_graphs_are_explicit_not_rules():
    assert is_explicit(complete(3).to_dict())
    assert is_explicit([complete(3), complete(4).to_dict()])
    assert not is_explicit(dict(name='complete'))
    assert not is_explicit([complete(3), 'complete'])
    assert not is_explicit(None)


# -- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('num_nodes', 'edges', 'error', 'message'),
    [
        (1, [], ValueError, 'at least 2 nodes .* got num_nodes=1'),
        (-3, [], ValueError, 'at least 2 nodes .* got num_nodes=-3'),
        (3.0, [], TypeError, r'a node id is an integer, got 3\.0'),
        (True, [], TypeError, 'a node id is an integer, got True'),
        (3, [(0, 1.0)], TypeError, r'a node id is an integer, got 1\.0'),
        (3, [(0, '1')], TypeError, "a node id is an integer, got '1'"),
        (3, [(0, True)], TypeError, 'a node id is an integer, got True'),
        (3, [(0, 3)], ValueError, r'edge \(0, 3\) names a node outside 0\.\.2'),
        (3, [(-1, 2)], ValueError, r'edge \(-1, 2\) names a node outside 0\.\.2'),
        (3, [(0, 1), (1, 0)], ValueError, r'edge \(1, 0\) goes against the node order.*cycle'),
        (3, [(1, 1)], ValueError, r'edge \(1, 1\) goes against the node order'),
        (3, [(0, 1), (1, 2), (0, 1)], ValueError, r'edge \(0, 1\) is given twice'),
    ],
)
def test_bad_nodes_and_edges_are_refused(num_nodes, edges, error, message):
    with pytest.raises(error, match=message):
        Wiring(num_nodes, edges)


@pytest.mark.parametrize(
    ('graph', 'message'),
    [
        (nx.DiGraph([(0, 1), (1, 2), (2, 1)]), r'cycle through nodes \[1, 2\]'),
        (nx.DiGraph([('a', 'a')]), r"cycle through nodes \['a'\]"),
        (nx.Graph([(0, 1)]), r'networkx\.DiGraph, got Graph'),
        (nx.MultiDiGraph([(0, 1), (0, 1)]), r'networkx\.DiGraph, got MultiDiGraph'),
        (nx.DiGraph(), 'at least 2 nodes'),
    ],
    ids=['cycle', 'loop', 'undirected', 'multigraph', 'empty'],
)
def test_graphs_that_are_no_dag_are_refused(graph, message):
    with pytest.raises(ValueError, match=message):
        Wiring.from_networkx(graph)


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('{"num_nodes": 3', 'not a wiring in JSON .*: \'{"num_nodes": 3\''),
        ('wiring.json', "not a wiring in JSON .*: 'wiring.json'"),
        ('[[0, 1]]', "needs the keys 'num_nodes' and 'edges', got list"),
        ('{"edges": [[0, 1]]}', r"needs the keys .* got \['edges'\]"),
        ('{"num_nodes": 2, "edges": [], "name": "x"}', r"got \['edges', 'name', 'num_nodes'\]"),
        ('{"num_nodes": 3, "edges": [[0, 1, 2]]}', r'an edge is a pair .* got \[0, 1, 2\]'),
        ('{"num_nodes": 3, "edges": [0, 1]}', r'an edge is a pair .* got 0'),
        ('{"num_nodes": 3, "edges": [[0, 1.5]]}', r'a node id is an integer, got 1\.5'),
        ('{"num_nodes": 3, "edges": [[2, 1]]}', r'edge \(2, 1\) goes against the node order'),
    ],
)
def test_text_that_is_no_wiring_is_refused(text, message):
    with pytest.raises((ValueError, TypeError), match=message):
        Wiring.from_json(text)


def test_an_empty_edge_list_needs_the_number_of_nodes():
    with pytest.raises(ValueError, match='empty edge list needs an explicit num_nodes'):
        Wiring.from_edges([])


@pytest.mark.parametrize('edges', [[], [(0, 1)], [(1, 2)], [(0, 1), (2, 3)]])
def test_pruning_a_disconnected_wiring_is_refused(edges):
    with pytest.raises(ValueError, match='no path leads from input 0 to output 3'):
        Wiring(4, edges).prune()


def test_a_subgraph_has_no_new_edges():
    with pytest.raises(ValueError, match=r'edge \(0, 2\) is not an edge of Wiring'):
        sequential(3).subgraph([(0, 1), (0, 2)])


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (lambda: random(5, 1.1), r'p must be a probability in \[0, 1\], got 1\.1'),
        (lambda: random(5, -0.1), r'p must be a probability in \[0, 1\], got -0\.1'),
        (lambda: random(5, float('nan')), r'p must be a probability in \[0, 1\], got nan'),
        (lambda: erdos_renyi(5, 1.1), r'p must be a probability in \[0, 1\], got 1\.1'),
        (lambda: erdos_renyi(2, 0.5), 'at least one computing node, got 2 nodes'),
        (lambda: watts_strogatz(8, p=1.1), r'p must be a probability in \[0, 1\], got 1\.1'),
        (lambda: watts_strogatz(8, k=7), r'k must be an integer in 2\.\.6 for 8 nodes .* got 7'),
        (lambda: watts_strogatz(8, k=1), r'k must be an integer in 2\.\.6 for 8 nodes .* got 1'),
        (lambda: barabasi_albert(8, m=6), r'm must be an integer in 1\.\.5 for 8 nodes .* got 6'),
        (lambda: barabasi_albert(8, m=0), r'm must be an integer in 1\.\.5 for 8 nodes .* got 0'),
        (lambda: residual(8, 0), 'interval must be an integer from 1 on, got 0'),
        (lambda: residual(8, 1.5), r'interval must be an integer from 1 on, got 1\.5'),
        (lambda: residual(8, True), 'interval must be an integer from 1 on, got True'),
        (lambda: complete(1), 'at least 2 nodes .* got num_nodes=1'),
    ],
)
def test_generators_refuse_bad_numbers(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ('spec', 'num_nodes', 'error', 'message'),
    [
        (
            'compleet',
            5,
            ValueError,
            "unknown wiring 'compleet'; known: barabasi_albert, complete, ",
        ),
        (dict(name='er'), 5, ValueError, "unknown wiring 'er'; known: .*erdos_renyi"),
        ('complete', None, ValueError, "wiring 'complete' needs num_nodes"),
        (complete(4), 5, ValueError, 'num_nodes=5 contradicts the explicit .*num_nodes=4'),
        (complete(4).to_dict(), 5, ValueError, 'num_nodes=5 contradicts the explicit'),
        (dict(name='random', p=0.5, q=1), 5, TypeError, "unexpected keyword argument 'q'"),
        (dict(name='complete', seed=1), 5, TypeError, "unexpected keyword argument 'seed'"),
        ('residual', 5, TypeError, "missing a required argument: 'interval'"),
        (7, 5, TypeError, 'a wiring is a name, a dict or a Wiring, got int: 7'),
        (None, 5, TypeError, 'a wiring is a name, a dict or a Wiring, got NoneType'),
        (dict(nodes=3), 5, ValueError, r"needs the keys 'num_nodes' and 'edges', got \['nodes'\]"),
    ],
)
def test_descriptions_that_mean_nothing_are_refused(spec, num_nodes, error, message):
    with pytest.raises(error, match=message):
        make_wiring(spec, num_nodes)


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize(
    'make',
    [
        lambda seed: erdos_renyi(9, 0.2, seed),
        lambda seed: barabasi_albert(9, 3, seed),
        lambda seed: watts_strogatz(9, 4, 0.75, seed),
    ],
)
def test_random_graphs_only_feed_sources_and_gather_sinks(make, seed):
    wiring = make(seed)
    graph = wiring.to_networkx()
    computing = graph.subgraph(range(1, 8))
    sources = {node for node in computing if computing.in_degree(node) == 0}
    sinks = {node for node in computing if computing.out_degree(node) == 0}
    assert set(wiring.succs(0)) == sources
    assert set(wiring.preds(8)) == sinks


@pytest.mark.parametrize(
    ('call', 'error', 'message'),
    [
        (lambda: Wiring(3, [(0, 1, 2)]), ValueError, r'an edge is a pair .* got \(0, 1, 2\)'),
        (lambda: Wiring(3, [5]), ValueError, 'an edge is a pair .* got 5'),
        (lambda: Wiring.from_edges([('a', 'b')]), TypeError, "a node id is an integer, got 'a'"),
        (
            lambda: Wiring.from_json('{"num_nodes": 2, "edges": 3}'),
            ValueError,
            "'edges' must be a list of pairs, got 3",
        ),
        (lambda: Wiring(3, [(0, 1)]).preds(-1), ValueError, r'has nodes 0\.\.2, not -1'),
        (lambda: Wiring(3, [(0, 1)]).succs(3), ValueError, r'has nodes 0\.\.2, not 3'),
        (lambda: watts_strogatz(8, k=4.5), ValueError, 'k must be an integer .* got 4.5'),
        (
            lambda: make_wiring(dict(name='random', p=0.5, seed=None), 8),
            TypeError,
            "seed of wiring 'random' must be an integer, got None",
        ),
    ],
)
def test_odd_input_is_named_too(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_labels_that_only_look_like_numbers_are_numbered_anew():
    graph = nx.DiGraph([(0.0, 1.0), (1.0, 2.0)])
    assert Wiring.from_networkx(graph) == sequential(3)
    assert Wiring.from_networkx(nx.DiGraph([('01', '1'), ('1', '2')])) == sequential(3)
