"""Generators of wirings: a name, a number of nodes, options -> a graph."""

import inspect

from ..registry import Registry
from ..wiring import Wiring

__all__ = ['WIRINGS', 'check_edges', 'is_explicit', 'make_wiring', 'register_wiring', 'with_seed']

#: Generators by name: ``generator(num_nodes, **options) -> Wiring``. An option ``seed`` makes the
#: stages of a network differ.
WIRINGS = Registry('wiring')
register_wiring = WIRINGS.register

_MOST_EDGES = 2**20  # of 1448 nodes, complete


def is_explicit(spec) -> bool:
    """Whether a wiring description, or each of a sequence of them, is a graph and not a rule.

    >>> from timm_topo.generators import complete
    >>> is_explicit(complete(3)), is_explicit('complete'), is_explicit([complete(3)] * 4)
    (True, False, True)
    """
    if isinstance(spec, (list, tuple)):
        return all(is_explicit(one) for one in spec)
    return isinstance(spec, Wiring) or (isinstance(spec, dict) and 'name' not in spec)


def check_edges(count: int) -> None:
    """Refuse a graph by rule that could have more edges than anybody trains.

    Raises:
        ValueError: So many.
    """
    if count > _MOST_EDGES:
        raise ValueError(f'up to {count:,} edges by rule, more than {_MOST_EDGES:,}')


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
    generator = WIRINGS.find(name)
    if num_nodes is None:
        raise ValueError(f'wiring {name!r} needs num_nodes')
    check_edges(num_nodes * (num_nodes - 1) // 2)
    signature = inspect.signature(generator)
    if 'seed' in signature.parameters:
        seed = options.get('seed', 0)
        if not isinstance(seed, int):
            raise TypeError(f'seed of wiring {name!r} must be an integer, got {seed!r}')
        options['seed'] = seed + stage
    try:
        signature.bind(num_nodes, **options)
    except TypeError as error:
        raise TypeError(f'wiring {name!r}{signature}: {error}') from None
    return generator(num_nodes, **options)


def with_seed(spec, seed: int):
    """A wiring description, or one per stage, with ``seed`` where a generator draws by one.

    >>> with_seed(['complete', {'name': 'random', 'p': 0.6}], 7)
    ['complete', {'name': 'random', 'p': 0.6, 'seed': 7}]
    """
    if isinstance(spec, (list, tuple)):
        return [with_seed(one, seed) for one in spec]
    options = {'name': spec} if isinstance(spec, str) else spec
    if not isinstance(options, dict) or 'name' not in options:
        return spec
    drawn = 'seed' in inspect.signature(WIRINGS.find(options['name'])).parameters
    return {**options, 'seed': seed} if drawn else spec
