"""Random graphs of TopoNet (section 4.2)."""

from random import Random

from ..checks import check_probability
from ..wiring import Wiring
from .attach import attached
from .base import register_wiring

__all__ = ['random']


@register_wiring('random')
def random(num_nodes: int, p: float, seed: int = 0) -> Wiring:
    """Each pair is linked with probability ``p`` (TopoNet, Table 3), then nothing is left dead.

    Computing nodes without a source are fed by the input, those without a target feed the output.

    Raises:
        ValueError: ``p`` outside [0, 1].
    """
    check_probability('p', p)
    rng = Random(seed)
    edges = {(i, j) for j in range(num_nodes) for i in range(j) if rng.random() < p}
    return attached(num_nodes, edges)
