"""Wirings by rule: the baselines of TopoNet (section 4.2) and the random graphs of RandWire."""

from __future__ import annotations

import inspect
import random as _random
from collections.abc import Callable

import networkx as nx

from .wiring import Wiring

__all__ = [
    'WIRINGS',
    'barabasi_albert',
    'check_edges',
    'complete',
    'erdos_renyi',
    'is_explicit',
    'make_wiring',
    'random',
    'residual',
    'sequential',
    'watts_strogatz',
]


_MOST_EDGES = 2**20  # of 1448 nodes, complete


def complete(num_nodes: int) -> Wiring:
    """Every node feeds every later node: N (N - 1) / 2 edges, TopoNet's search space.

    >>> complete(14).num_edges
    91
    """
    return Wiring(num_nodes, tuple((i, j) for j in range(num_nodes) for i in range(j)))


def sequential(num_nodes: int) -> Wiring:
    """A chain: every node feeds the next one only.

    >>> sequential(3).edges
    ((0, 1), (1, 2))
    """
    return Wiring(num_nodes, tuple((i, i + 1) for i in range(num_nodes - 1)))


def residual(num_nodes: int, interval: int) -> Wiring:
    """The unrolled residual network (TopoNet, section 3.2 and Fig. 1).

    The N - 2 computing nodes form chains of ``interval``, the last of which may be short. The
    first node of a chain takes the input and the ends of all earlier chains; the output takes
    the input and the ends of all chains. Interval 1 is the complete graph.

    Raises:
        ValueError: ``interval`` is not a positive integer.

    >>> [residual(14, interval).num_edges for interval in (1, 2, 3, 4)]
    [91, 34, 23, 19]
    """
    if isinstance(interval, bool) or not isinstance(interval, int) or interval < 1:
        raise ValueError(f'interval must be a positive integer, got {interval!r}')
    edges, output = [], num_nodes - 1
    ends = [0]  # sources of the residual sum: the input, then the end of each chain
    for first in range(1, output, interval):
        last = min(first + interval, output) - 1
        edges += [(end, first) for end in ends]
        edges += [(i, i + 1) for i in range(first, last)]
        ends.append(last)
    edges += [(end, output) for end in ends]
    return Wiring(num_nodes, tuple(edges))


def random(num_nodes: int, p: float, seed: int = 0) -> Wiring:
    """Each pair is linked with probability ``p`` (TopoNet, Table 3), then nothing is left dead.

    Computing nodes without a source are fed by the input, those without a target feed the output.

    Raises:
        ValueError: ``p`` outside [0, 1].
    """
    _check_probability(p)
    rng = _random.Random(seed)
    edges = {(i, j) for j in range(num_nodes) for i in range(j) if rng.random() < p}
    return _attach(num_nodes, edges)


def erdos_renyi(num_nodes: int, p: float = 0.2, seed: int = 0) -> Wiring:
    """ER(p) on the N - 2 computing nodes (``networkx.gnp_random_graph``).

    Raises:
        ValueError: ``p`` outside [0, 1], or no computing node.
    """
    _check_probability(p)
    return _orient(num_nodes, nx.gnp_random_graph(_computing(num_nodes), p, seed=seed))


def barabasi_albert(num_nodes: int, m: int = 5, seed: int = 0) -> Wiring:
    """BA(m) on the N - 2 computing nodes (``networkx.barabasi_albert_graph``).

    RandWire starts from ``m`` isolated nodes, all of which the next node joins. networkx >= 2.6
    starts from a star centred on node 0 instead, which orients differently, so the original
    start is passed explicitly.

    Raises:
        ValueError: Not 1 <= m < N - 2.
    """
    n = _computing(num_nodes)
    if not isinstance(m, int) or not 1 <= m < n:
        raise ValueError(
            f'm must be an integer in 1..{n - 1} for {num_nodes} nodes ({n} computing), got {m}'
        )
    start = nx.Graph((i, m) for i in range(m))
    return _orient(num_nodes, nx.barabasi_albert_graph(n, m, seed=seed, initial_graph=start))


def watts_strogatz(num_nodes: int, k: int = 4, p: float = 0.75, seed: int = 0) -> Wiring:
    """WS(k, p) on the N - 2 computing nodes (``networkx.connected_watts_strogatz_graph``).

    Raises:
        ValueError: ``p`` outside [0, 1], or not 2 <= k <= N - 2.
    """
    _check_probability(p)
    n = _computing(num_nodes)
    if not isinstance(k, int) or not 2 <= k <= n:
        raise ValueError(
            f'k must be an integer in 2..{n} for {num_nodes} nodes ({n} computing), got {k}'
        )
    graph = nx.connected_watts_strogatz_graph(n, k, p, tries=200, seed=seed)
    return _orient(num_nodes, graph)


def _check_probability(p: float) -> None:
    if not 0 <= p <= 1:
        raise ValueError(f'p must be a probability in [0, 1], got {p}')


def check_edges(count: int) -> None:
    """Refuse a graph by rule that could have more edges than anybody trains.

    Raises:
        ValueError: So many.
    """
    if count > _MOST_EDGES:
        raise ValueError(f'up to {count:,} edges by rule, more than {_MOST_EDGES:,}')


def _computing(num_nodes: int) -> int:
    if num_nodes < 3:
        raise ValueError(f'a random graph needs at least one computing node, got {num_nodes} nodes')
    return num_nodes - 2


def _orient(num_nodes: int, graph: nx.Graph) -> Wiring:
    """Undirected graph on computing nodes -> DAG from low to high index, shifted by the input."""
    return _attach(num_nodes, {(1 + min(edge), 1 + max(edge)) for edge in graph.edges})


def _attach(num_nodes: int, edges: set[tuple[int, int]]) -> Wiring:
    """Feed sourceless computing nodes from the input, let targetless ones feed the output."""
    output = num_nodes - 1
    computing = set(range(1, output))
    if not computing:
        return Wiring(num_nodes, ((0, output),))
    edges = edges | {(0, j) for j in computing - {target for _, target in edges}}
    edges = edges | {(i, output) for i in computing - {source for source, _ in edges}}
    return Wiring(num_nodes, tuple(edges))


#: Generators by name; each takes the number of nodes first.
WIRINGS: dict[str, Callable[..., Wiring]] = {
    generator.__name__: generator
    for generator in (
        complete,
        sequential,
        residual,
        random,
        erdos_renyi,
        barabasi_albert,
        watts_strogatz,
    )
}


def is_explicit(spec) -> bool:
    """Whether a wiring description, or each of a sequence of them, is a graph and not a rule.

    >>> is_explicit(complete(3)), is_explicit('complete'), is_explicit([complete(3)] * 4)
    (True, False, True)
    """
    if isinstance(spec, (list, tuple)):
        return all(is_explicit(one) for one in spec)
    return isinstance(spec, Wiring) or (isinstance(spec, dict) and 'name' not in spec)


def make_wiring(spec: str | dict | Wiring, num_nodes: int | None = None, stage: int = 0) -> Wiring:
    """A wiring from whatever describes one.

    Args:
        spec: A :class:`Wiring`; a generator's name (``'complete'``); a dict with the name and the
            generator's options (``{'name': 'random', 'p': 0.8, 'seed': 1}``); or an explicit graph
            (``{'num_nodes': 3, 'edges': [[0, 1], [1, 2]]}``).
        num_nodes: Number of nodes. Needed by a generator; an explicit graph must agree with it.
        stage: Added to the seed of a random generator, so that stages differ.

    Raises:
        TypeError: ``spec`` is of another type, or a generator's option is unknown or missing.
        ValueError: Unknown generator, or ``num_nodes`` missing or contradicted.

    >>> make_wiring({'name': 'residual', 'interval': 2}, num_nodes=14).num_edges
    34
    """
    if isinstance(spec, dict) and 'name' not in spec:
        spec = Wiring.from_dict(spec)
    if isinstance(spec, Wiring):
        if num_nodes not in (None, spec.num_nodes):
            raise ValueError(f'num_nodes={num_nodes} contradicts the explicit {spec}')
        return spec
    if isinstance(spec, str):
        spec = {'name': spec}
    if not isinstance(spec, dict):
        raise TypeError(
            f'a wiring is a name, a dict or a Wiring, got {type(spec).__name__}: {spec!r}'
        )
    options = dict(spec)
    name = options.pop('name')
    if name not in WIRINGS:
        raise ValueError(f'unknown wiring {name!r}; known: {", ".join(WIRINGS)}')
    if num_nodes is None:
        raise ValueError(f'wiring {name!r} needs num_nodes')
    check_edges(num_nodes * (num_nodes - 1) // 2)
    signature = inspect.signature(WIRINGS[name])
    if 'seed' in signature.parameters:
        seed = options.get('seed', 0)
        if not isinstance(seed, int):
            raise TypeError(f'seed of wiring {name!r} must be an integer, got {seed!r}')
        options['seed'] = seed + stage
    try:
        signature.bind(num_nodes, **options)
    except TypeError as error:
        raise TypeError(f'wiring {name!r}{signature}: {error}') from None
    return WIRINGS[name](num_nodes, **options)
