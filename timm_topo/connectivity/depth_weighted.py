"""Sums over all earlier outputs that start with the latest (DenseFormer, 2024)."""

import torch

from ..wiring import Wiring
from .base import register_connectivity
from .learned import AlphaConnectivity

__all__ = ['DepthWeightedConnectivity']


@register_connectivity('depth_weighted')
class DepthWeightedConnectivity(AlphaConnectivity):
    """a_ji = alpha_ji, at first 1 from the latest source of a node and 0 from all others.

    The depth-weighted averages of DenseFormer (Pagliardini et al., 2024, arXiv:2402.02622,
    section 3), for graphs whose nodes are whole blocks: the network starts as its plain form.
    """

    def __init__(self, wiring: Wiring):
        super().__init__(wiring)
        self.options = {}

    def reset_parameters(self) -> None:
        """1 from the latest source of every node, 0 from the others."""
        latest = [stop - 1 for start, stop in self.spans if stop > start]
        with torch.no_grad():
            self.alpha.zero_()
            self.alpha[latest] = 1.0
