"""Who feeds whom: an immutable directed acyclic graph on ordered nodes (TopoNet, section 3.1)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from operator import index
from pathlib import Path

import networkx as nx

from .files import write_text

__all__ = ['Wiring']


@dataclass(frozen=True)
class Wiring:
    """A DAG on nodes ``0 .. num_nodes - 1``: node 0 distributes, the last node gathers.

    The numbering is the topological order, so every edge ``(source, target)`` has
    ``source < target``. Edges are kept sorted by target, then source: the in-edges of a node are
    one contiguous slice of any per-edge vector.

    A wiring may hold dead nodes (see :meth:`dead_nodes`); :meth:`prune` removes them.

    Args:
        num_nodes: Number of nodes N >= 2, input and output included.
        edges: Pairs ``(source, target)`` in any order.

    Raises:
        TypeError: A node id is not an integer.
        ValueError: N < 2, an edge out of range, against the order (a cycle) or given twice.

    >>> w = Wiring(4, [(2, 3), (0, 1), (0, 2), (1, 3)])
    >>> w.edges
    ((0, 1), (0, 2), (1, 3), (2, 3))
    >>> w.preds(3), w.in_degrees
    ((1, 2), (0, 1, 1, 2))
    """

    num_nodes: int
    edges: tuple[tuple[int, int], ...]

    def __post_init__(self):
        n = _node_id(self.num_nodes)
        if n < 2:
            raise ValueError(
                f'a wiring needs at least 2 nodes (input and output), got num_nodes={n}'
            )
        edges = sorted((_edge(edge) for edge in self.edges), key=lambda e: (e[1], e[0]))
        for source, target in edges:
            if not (0 <= source < n and 0 <= target < n):
                raise ValueError(
                    f'edge ({source}, {target}) names a node outside 0..{n - 1} (num_nodes={n})'
                )
            if source >= target:
                raise ValueError(
                    f'edge ({source}, {target}) goes against the node order and could close a '
                    'cycle: every edge must have source < target'
                )
        for edge, following in pairwise(edges):
            if edge == following:
                raise ValueError(f'edge {edge} is given twice')
        object.__setattr__(self, 'num_nodes', n)
        object.__setattr__(self, 'edges', tuple(edges))

    def __repr__(self) -> str:
        return f'Wiring(num_nodes={self.num_nodes}, num_edges={self.num_edges})'

    # -- reading the graph ----------------------------------------------------------------------

    @property
    def num_edges(self) -> int:
        """How many edges there are."""
        return len(self.edges)

    @cached_property
    def in_edges(self) -> tuple[tuple[int, int], ...]:
        """Per node, the half-open span ``(start, stop)`` of its in-edges in :attr:`edges`."""
        spans, stop = [], 0
        for degree in self.in_degrees:
            spans.append((stop, stop + degree))
            stop += degree
        return tuple(spans)

    @cached_property
    def in_degrees(self) -> tuple[int, ...]:
        """In-degree of every node."""
        return self._count(1)

    @cached_property
    def out_degrees(self) -> tuple[int, ...]:
        """Out-degree of every node."""
        return self._count(0)

    def _count(self, end: int) -> tuple[int, ...]:
        counts = [0] * self.num_nodes
        for edge in self.edges:
            counts[edge[end]] += 1
        return tuple(counts)

    def preds(self, node: int) -> tuple[int, ...]:
        """Sources of the in-edges of ``node``, ascending."""
        self._check_node(node)
        start, stop = self.in_edges[node]
        return tuple(source for source, _ in self.edges[start:stop])

    def succs(self, node: int) -> tuple[int, ...]:
        """Targets of the out-edges of ``node``, ascending."""
        self._check_node(node)
        return tuple(target for source, target in self.edges if source == node)

    def _check_node(self, node: int) -> None:
        if not 0 <= node < self.num_nodes:
            raise ValueError(f'{self} has nodes 0..{self.num_nodes - 1}, not {node}')

    @property
    def search_space(self) -> int:
        """Number of wirings on as many nodes, ``2 ** (N (N - 1) / 2)`` (TopoNet, section 3.2).

        >>> f'{math.prod(Wiring(n, ()).search_space for n in (14, 20, 26, 14)):.1e}'
        '6.6e+209'
        """
        return 2 ** (self.num_nodes * (self.num_nodes - 1) // 2)

    @property
    def density(self) -> float:
        """Share of the complete graph's edges that exist, in [0, 1]."""
        return self.num_edges / math.comb(self.num_nodes, 2)

    # -- surgery --------------------------------------------------------------------------------

    def dead_nodes(self) -> tuple[int, ...]:
        """Nodes on no path from input to output: removing them leaves the paths as they are."""
        from_input, to_output = {0}, {self.num_nodes - 1}
        for source, target in self.edges:  # sorted by target, so sources are settled already
            if source in from_input:
                from_input.add(target)
        for source, target in reversed(self.edges):
            if target in to_output:
                to_output.add(source)
        alive = from_input & to_output
        return tuple(n for n in range(self.num_nodes) if n not in alive)

    def subgraph(self, edges: Iterable[tuple[int, int]]) -> Wiring:
        """The same nodes with only ``edges``, each of which must exist here.

        Raises:
            ValueError: An edge that this wiring does not have.
        """
        kept = tuple(edges)
        missing = sorted(set(kept) - set(self.edges))
        if missing:
            raise ValueError(f'edge {missing[0]} is not an edge of {self}')
        return Wiring(self.num_nodes, kept)

    def prune(self) -> tuple[Wiring, tuple[int, ...]]:
        """Drop dead nodes, and with them their edges.

        Returns:
            The pruned wiring and the map of node ids: entry ``i`` is the old id of new node ``i``.

        Raises:
            ValueError: No path leads from input to output.

        >>> Wiring(4, [(0, 1), (0, 2), (2, 3)]).prune()
        (Wiring(num_nodes=3, num_edges=2), (0, 2, 3))
        """
        dead = set(self.dead_nodes())
        if 0 in dead:
            raise ValueError(f'no path leads from input 0 to output {self.num_nodes - 1} of {self}')
        kept = tuple(n for n in range(self.num_nodes) if n not in dead)
        new_id = {old: new for new, old in enumerate(kept)}
        edges = [(new_id[s], new_id[t]) for s, t in self.edges if not dead & {s, t}]
        return Wiring(len(kept), edges), kept

    # -- exchange -------------------------------------------------------------------------------

    @classmethod
    def from_edges(cls, edges: Iterable[tuple[int, int]], num_nodes: int | None = None) -> Wiring:
        """From an edge list; ``num_nodes`` defaults to the largest node id plus one."""
        edges = [_edge(edge) for edge in edges]
        if num_nodes is None:
            if not edges:
                raise ValueError('an empty edge list needs an explicit num_nodes')
            num_nodes = 1 + max(max(edge) for edge in edges)
        return cls(num_nodes, tuple(edges))

    def to_networkx(self) -> nx.DiGraph:
        """As a ``networkx.DiGraph`` on nodes ``0 .. N - 1``."""
        graph = nx.DiGraph()
        graph.add_nodes_from(range(self.num_nodes))
        graph.add_edges_from(self.edges)
        return graph

    @classmethod
    def from_networkx(cls, graph: nx.DiGraph) -> Wiring:
        """From a directed graph.

        Nodes ``0 .. N - 1`` in topological order are kept as they are; any other labels are
        numbered by ``networkx.topological_sort`` (in insertion order where the graph leaves it
        open).

        Raises:
            ValueError: The graph is undirected, a multigraph, or has a cycle (which is named).
        """
        if not graph.is_directed() or graph.is_multigraph():
            raise ValueError(
                f'a wiring is made from a networkx.DiGraph, got {type(graph).__name__}'
            )
        if not nx.is_directed_acyclic_graph(graph):
            cycle = [source for source, _ in nx.find_cycle(graph)]
            raise ValueError(f'the graph has a cycle through nodes {cycle}; a wiring is acyclic')
        ordered = all(type(node) is int for node in graph) and set(graph) == set(range(len(graph)))
        if ordered and all(source < target for source, target in graph.edges):
            return cls(len(graph), tuple(graph.edges))
        new_id = {node: i for i, node in enumerate(nx.topological_sort(graph))}
        return cls(len(graph), tuple((new_id[s], new_id[t]) for s, t in graph.edges))

    def to_dict(self) -> dict:
        """JSON-ready form, ``{'num_nodes': N, 'edges': [[source, target], ...]}``."""
        return {'num_nodes': self.num_nodes, 'edges': [list(edge) for edge in self.edges]}

    @classmethod
    def from_dict(cls, data: dict) -> Wiring:
        """From :meth:`to_dict`.

        Raises:
            ValueError: Keys other than ``num_nodes`` and ``edges``, or edges that are not pairs.
        """
        if not isinstance(data, dict) or set(data) != {'num_nodes', 'edges'}:
            got = sorted(data) if isinstance(data, dict) else type(data).__name__
            raise ValueError(f"a wiring needs the keys 'num_nodes' and 'edges', got {got}")
        if not isinstance(data['edges'], (list, tuple)):
            raise ValueError(f"'edges' must be a list of pairs, got {data['edges']!r}")
        return cls(data['num_nodes'], tuple(data['edges']))

    def to_json(self, path: str | Path | None = None) -> str:
        """As JSON text, written to ``path`` where one is given."""
        text = json.dumps(self.to_dict())
        if path is not None:
            write_text(path, text)
        return text

    @classmethod
    def from_json(cls, source: str | Path) -> Wiring:
        """From JSON text or from a ``Path``.

        Raises:
            ValueError: Not JSON, or not a wiring.
        """
        text = source.read_text(encoding='utf-8') if isinstance(source, Path) else source
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f'not a wiring in JSON ({error}): {text[:40]!r}') from None
        return cls.from_dict(data)


def _edge(edge: tuple[int, int]) -> tuple[int, int]:
    try:
        source, target = edge
    except (TypeError, ValueError):
        raise ValueError(f'an edge is a pair (source, target), got {edge!r}') from None
    return _node_id(source), _node_id(target)


def _node_id(value: int) -> int:
    """An integer (numpy's too) but no bool, no float, no text."""
    if isinstance(value, bool):
        raise TypeError(f'a node id is an integer, got {value!r}')
    try:
        return index(value)
    except TypeError:
        raise TypeError(f'a node id is an integer, got {value!r}') from None
