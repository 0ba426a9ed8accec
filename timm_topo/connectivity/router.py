"""DG-Net: edge weights that each image predicts for itself (Yuan et al., 2020, section 3.3)."""

import math

import torch
from torch import Tensor, nn

from ..checks import check_flag, check_integer, check_number
from ..wiring import Wiring
from .base import Connectivity, register_connectivity

__all__ = ['GATES', 'RouterConnectivity', 'check_tau', 'set_tau']

GATES = ('soft', 'none')

_LARGEST = 1 - 2**-8  # below 1 in half precision too: 1 would close every edge


@register_connectivity('router')
class RouterConnectivity(Connectivity):
    """a_ij = sigmoid(w_ij . g_i + b_ij), g_i the spatial mean of x_i (Eq. 4), cut at tau (Eq. 5).

    The paper predicts all out-edges of a node at its router, a linear layer of C inputs and one
    output per out-edge. Here a node asks for its in-edges; edge (i, j) has the same w_ij and b_ij
    either way, so both are the same function (appendix 6.2).

    Every node has a threshold tau for its out-edges. Evaluation closes edges below it. How tau
    learns is ours, as the paper names no gradient: training with a soft gate multiplies every
    weight by sigmoid((a_ij - tau_i) / temperature), a soft form of Eq. 5 that is differentiable in
    both. It agrees with Eq. 5 where a_ij is several temperatures away from tau_i. Nearer, training
    weighs edges less than evaluation does (half at tau), which batch norm's statistics reflect:
    :func:`timm_topo.analysis.prune.recalibrate` estimates them for evaluation. From tau = 0 the
    thresholds of edges around 0.5 hardly move: to have edges closed, start at a tau of 0.1 to 0.3,
    or add sparsity. Thresholds act as clamped to [0, 1); momentum may carry ``tau`` beyond.

    Parameters are ``weight`` ``(E, C)``, which optimizers decay, ``bias`` ``(E,)`` and ``tau``
    ``(N - 1,)``, which they do not unless asked.

    Args:
        wiring: The wiring.
        channels: C, channels of the maps.
        router_init: Weight of every edge at first, for all images: b_ij = logit(router_init)
            and w_ij = 0 (the paper is silent). 0.5, the default, is where sigmoid learns fastest;
            near 1, a re-wired network computes about what it did with its shortcuts.
        tau: Initial threshold in [0, 1), below router_init; 0 keeps every edge.
        temperature: Width of the soft threshold of training, > 0.
        gate: ``'soft'``, as above: nothing else in the paper moves its "learnable" tau. Or
            ``'none'``: training has the plain weights of Eq. 3, and tau stays where it is put.
        activated: Whether g_i is the mean of ReLU(x_i). Section 3.3 has convolution, norm and
            activation before the router, "determined by the network", and gives the router what
            the node sends out. By default it sees just that: in no network here does x_i end in
            an activation, as the ReLU behind a residual sum is at the front of the node that sums.

    Raises:
        TypeError: A value is no number.
        ValueError: A value is out of range.
    """

    per_edge = ('weight', 'bias')
    per_source = ('tau',)
    needs_context = True
    decayed = ('weight',)

    def __init__(
        self,
        wiring: Wiring,
        channels: int,
        router_init: float = 0.5,
        tau: float = 0.0,
        temperature: float = 0.05,
        gate: str = 'soft',
        activated: bool = False,
    ):
        super().__init__(wiring)
        self.channels = check_integer('channels', channels)
        self.router_init = check_number('router_init', router_init)
        if not 0 < self.router_init < 1:
            raise ValueError(f'router_init must be in (0, 1), got {router_init}')
        self.initial_tau = check_tau(tau)
        if self.initial_tau and self.initial_tau >= self.router_init:
            raise ValueError(
                f'tau={tau} would close every edge, which weigh {router_init} at first'
            )
        self.temperature = check_number('temperature', temperature)
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f'temperature must be finite and > 0, got {temperature}')
        if gate not in GATES:
            raise ValueError(f'unknown gate {gate!r}; known: {", ".join(GATES)}')
        self.gate = gate
        self.activated = check_flag('activated', activated)
        self.options = {
            'channels': channels, 'router_init': self.router_init, 'tau': self.initial_tau,
            'temperature': self.temperature, 'gate': gate, 'activated': activated,
        }  # fmt: skip
        self.weight = nn.Parameter(torch.empty(self.num_edges, channels))
        self.bias = nn.Parameter(torch.empty(self.num_edges))
        self.tau = nn.Parameter(torch.empty(wiring.num_nodes - 1), requires_grad=gate == 'soft')
        self.reset_parameters()

    def forward(self, node: int, context: Tensor | None = None) -> Tensor:
        start, stop = self.spans[node]
        assert context is not None, 'a router needs the pooled features of the sources'
        _check_context(node, context, stop - start, self.channels)
        logits = (context * self.weight[start:stop]).sum(-1)
        weights = torch.sigmoid(logits + self.bias[start:stop])
        if not self.training or self.gate == 'none':
            return weights
        by_node = _Within.apply(self.tau, 0.0, _LARGEST).unbind(0)
        tau = torch.stack([by_node[source] for source, _ in self.wiring.edges[start:stop]])
        return weights * torch.sigmoid((weights - tau) / self.temperature)

    def thresholds(self) -> Tensor | None:
        """tau of each edge's source, ``(E,)``."""
        by_node = self.tau.clamp(0.0, _LARGEST).unbind(0)
        return torch.stack([by_node[source] for source, _ in self.wiring.edges])

    def edge_weights(self) -> Tensor:
        raise RuntimeError(
            'the weights of a router depend on the image: average '
            'timm_topo.adjacency(model, images) over images, or, for a loss, hand over the '
            'timm_topo.executors.record_adjacency of a batch'
        )

    def reset_parameters(self) -> None:
        """Every edge weighs ``router_init`` for every image, every node has the initial tau."""
        nn.init.zeros_(self.weight)
        nn.init.constant_(self.bias, math.log(self.router_init / (1 - self.router_init)))
        nn.init.constant_(self.tau, self.initial_tau)

    def extra_repr(self) -> str:
        return f'{super().extra_repr()}, channels={self.channels}, tau={self.initial_tau:g}'


def _check_context(node: int, context: Tensor, in_degree: int, channels: int) -> None:
    if not in_degree:
        raise ValueError(f'node {node} has no in-edge to be routed')
    if context.shape[1:] != (in_degree, channels):
        raise ValueError(
            f'node {node} needs a context of (B, {in_degree}, {channels}), got '
            f'{tuple(context.shape)}'
        )


torch.fx.wrap('_check_context')  # a leaf for symbolic tracing: it looks at shapes


class _Within(torch.autograd.Function):
    """Clamp whose gradient still leads back into the range from outside and from its ends."""

    @staticmethod
    def forward(x: Tensor, low: float, high: float) -> Tensor:
        return x.clamp(low, high)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        x, *ctx.range = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (x,) = ctx.saved_tensors
        low, high = ctx.range
        outward = ((x <= low) & (grad > 0)) | ((x >= high) & (grad < 0))
        return grad.masked_fill(outward, 0.0), None, None


def check_tau(tau: float) -> float:
    """``tau``, if it can be a threshold.

    Raises:
        TypeError: It is no number.
        ValueError: It is outside [0, 1).
    """
    if not 0 <= check_number('tau', tau) < 1:
        raise ValueError(f'tau must be in [0, 1), got {tau}')
    return float(tau)


def set_tau(model: nn.Module, tau: float) -> None:
    """Give every node of every router in ``model`` the threshold ``tau``, in place.

    Raises:
        TypeError: ``tau`` is no number.
        ValueError: It is outside [0, 1), or ``model`` has no router.
    """
    tau = check_tau(tau)
    routers = [module for module in model.modules() if isinstance(module, RouterConnectivity)]
    if not routers:
        raise ValueError(f'{type(model).__name__} has no router whose threshold could be set')
    with torch.no_grad():
        for router in routers:
            router.tau.fill_(tau)
