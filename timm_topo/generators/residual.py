"""The residual network, unrolled (TopoNet, section 3.2)."""

from ..checks import check_integer
from ..wiring import Wiring
from .base import register_wiring

__all__ = ['residual']


@register_wiring('residual')
def residual(num_nodes: int, interval: int) -> Wiring:
    """The unrolled residual network (TopoNet, section 3.2 and Fig. 1).

    The N - 2 computing nodes form chains of ``interval``, the last of which may be short. The
    first node of a chain takes the input and the ends of all earlier chains; the output takes
    the input and the ends of all chains. Interval 1 is the complete graph.

    Raises:
        ValueError: ``interval`` is no positive integer.

    >>> [residual(14, interval).num_edges for interval in (1, 2, 3, 4)]
    [91, 34, 23, 19]
    """
    check_integer('interval', interval)
    edges, output = [], num_nodes - 1
    ends = [0]  # sources of the residual sum: the input, then the end of each chain
    for first in range(1, output, interval):
        last = min(first + interval, output) - 1
        edges += [(end, first) for end in ends]
        edges += [(i, i + 1) for i in range(first, last)]
        ends.append(last)
    edges += [(end, output) for end in ends]
    return Wiring(num_nodes, tuple(edges))
