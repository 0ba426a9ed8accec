"""The contract of a connectivity rule: which weights do the in-edges of a node carry?"""

import copy
import inspect
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..registry import Registry
from ..watched import watched_any
from ..wiring import Wiring

#: Rules by name.
RULES = Registry('connectivity')
register_connectivity = RULES.register


class Connectivity(nn.Module):
    """Contract: ``forward(node)`` returns the weights of the in-edges of ``node``.

    A rule subclasses this (or :class:`StaticConnectivity`), is built from a wiring and keyword
    options, and implements ``forward``, ``edge_weights`` and ``reset_parameters``. What it stores
    per edge it names in ``per_edge``; pruning then works without further code. A rule whose
    constructor has an option ``channels`` is given the number of channels of the stage's maps.

    A rule all of whose parameters are frozen stays in evaluation, where the network is set to
    training: like frozen batch norm, it does there what it will do for good.

    Attributes:
        per_edge: Names of the parameters and buffers that have the edge in dimension 0, in the
            order of ``wiring.edges``.
        per_source: Names of those that have the node in dimension 0, for all nodes but the output.
        needs_context: Whether ``forward`` receives the pooled features of the sources.
        activated: Whether these are pooled behind a ReLU.
        decayed: Names of the parameters that are decayed in any case: none, unless named here.
        options: All constructor options, JSON-ready, those by default too: defaults may change,
            saved networks may not. What is learned or loaded is state and does not belong here.
            Set by rules that have options.
    """

    per_edge: tuple[str, ...] = ()
    per_source: tuple[str, ...] = ()
    needs_context: bool = False
    activated: bool = False
    decayed: tuple[str, ...] = ()

    def __init_subclass__(cls, **kwargs) -> None:
        super().__init_subclass__(**kwargs)
        own = vars(cls)
        if 'forward' in own and 'pass_weights' not in own:
            cls.pass_weights = Connectivity.pass_weights
        elif 'pass_weights' in own and 'forward' not in own:
            cls.forward = _forward_of_pass

    def __init__(self, wiring: Wiring):
        super().__init__()
        self.wiring = wiring
        self.num_edges = wiring.num_edges
        self.spans = wiring.in_edges
        self.options = {}

    def forward(self, node: int, context: Tensor | None = None) -> Tensor:
        """Weights of the in-edges of ``node``, in the order of ``wiring.preds(node)``.

        Args:
            node: Node id. The stage asks once per node and forward pass, in ascending order.
            context: Pooled features of the sources, ``(B, in_degree, C)``; None unless the rule
                sets ``needs_context``.

        Returns:
            ``(in_degree,)``, or ``(B, in_degree)`` for weights that depend on the image.
        """
        raise NotImplementedError

    def pass_weights(self) -> Tensor:
        """All weights ``(E,)`` as one forward pass reads them, for stages that run many nodes at
        once; of a rule that draws, one draw. Not for weights that depend on the image.

        A subclass may override ``forward`` alone, ``pass_weights`` alone, or both.
        """
        return torch.cat([self(node) for node in range(1, len(self.spans))])

    def thresholds(self) -> Tensor | None:
        """Weights ``(E,)`` below which evaluation closes edges; None: it closes none.

        For weights that depend on the image only; the stage does the rest (see
        :class:`timm_topo.stages.GraphStage`).
        """
        return None

    def edge_weights(self) -> Tensor:
        """All weights ``(E,)`` as evaluation uses them, for sparsity, pruning and plots.

        Raises:
            RuntimeError: The weights depend on the image (a router has no single answer).
        """
        raise NotImplementedError

    def reset_parameters(self) -> None:
        """Set every parameter and buffer to its initial value."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> 'Connectivity':
        """Training mode, unless all parameters are frozen; or evaluation mode."""
        parameters = list(self.parameters())
        frozen = bool(parameters) and not any(p.requires_grad for p in parameters)
        return super().train(mode and not frozen)

    def select(self, wiring: Wiring, edges: Sequence[int]) -> 'Connectivity':
        """The same rule on a smaller wiring, with the values of the edges that stay.

        Args:
            wiring: The smaller wiring.
            edges: For each of its edges, the index of that edge here.
        """
        if len(edges) != wiring.num_edges:
            raise ValueError(f'{len(edges)} edge indices for {wiring}')
        smaller = copy.deepcopy(self)
        smaller.wiring = wiring
        smaller.num_edges = wiring.num_edges
        smaller.spans = wiring.in_edges
        node = {new: self.wiring.edges[e][0] for (new, _), e in zip(wiring.edges, edges)}
        nodes = [node[source] for source in range(wiring.num_nodes - 1)] if self.per_source else []
        for names, picks in ((self.per_edge, edges), (self.per_source, nodes)):
            picks = torch.as_tensor(picks, dtype=torch.long)
            for name in names:
                value = getattr(self, name)
                picked = value.detach()[picks.to(value.device)].clone()
                if isinstance(value, nn.Parameter):
                    picked = nn.Parameter(picked, requires_grad=value.requires_grad)
                setattr(smaller, name, picked)
        return smaller

    def with_weights(self, wiring: Wiring, weights: Sequence[float]) -> 'Connectivity':
        """The same rule on another wiring, with these weights.

        Args:
            wiring: The wiring.
            weights: ``(E,)`` in the order of its edges.

        Raises:
            ValueError: The rule cannot be told its weights, or does not reach one of them.
        """
        raise ValueError(f'{connectivity_name(self)!r} cannot be told its edge weights')

    def extra_repr(self) -> str:
        return f'num_edges={self.num_edges}'


def _forward_of_pass(self, node: int, context: Tensor | None = None) -> Tensor:
    """``forward`` of a rule that overrides ``pass_weights`` alone; of a rule that draws, a draw
    per node.
    """
    start, stop = self.spans[node]
    return self.pass_weights()[start:stop]


def all_weights(rule: Connectivity) -> Tensor:
    """``rule.pass_weights()``; node by node through the module, where its call is watched."""
    return Connectivity.pass_weights(rule) if watched_any((rule,)) else rule.pass_weights()


def as_output(weights: Tensor) -> Tensor:
    """``weights`` as a module may return them: without gradients, no view of a parameter.

    Such a view claims to need a gradient under ``no_grad``, which confuses trackers of modules. A
    trace is the same in both modes: it is checked in the other one.
    """
    as_is = torch.is_grad_enabled() or torch.jit.is_tracing()
    return weights if as_is else weights.detach()


class StaticConnectivity(Connectivity):
    """Partial contract: weight = squash(alpha), the same for every image. Implement ``squash``.

    A subclass creates ``alpha`` ``(E,)``, a parameter or a buffer.
    """

    alpha: Tensor
    per_edge: tuple[str, ...] = ('alpha',)

    def squash(self, alpha: Tensor) -> Tensor:
        """Elementwise map from what is stored to what multiplies the features."""
        raise NotImplementedError

    def forward(self, node: int, context: Tensor | None = None) -> Tensor:
        start, stop = self.spans[node]
        return as_output(self.squash(self.alpha[start:stop]))

    def pass_weights(self) -> Tensor:
        return as_output(self.squash(self.alpha))

    def edge_weights(self) -> Tensor:
        return self.squash(self.alpha)


def list_connectivity() -> list[str]:
    """Names of the registered rules, sorted."""
    return sorted(RULES)


def build_connectivity(
    spec: str | dict | type[Connectivity],
    wiring: Wiring,
    channels: int | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Connectivity:
    """A rule on a wiring.

    Args:
        spec: A registered name; a dict with ``name`` and the rule's options; or a class.
        wiring: The wiring whose edges get weights.
        channels: Channels of the maps, for rules with an option of that name, which may not
            differ.
        device: Where parameters live.
        dtype: Their type.

    Raises:
        TypeError: ``spec`` is of another type, or an option is unknown to the rule.
        ValueError: Unknown name, or an option ``channels`` other than that of the maps.
    """
    options = {}
    if isinstance(spec, dict):
        options = dict(spec)
        spec = options.pop('name', None)
    if isinstance(spec, str):
        spec = RULES.find(spec)
    if not (isinstance(spec, type) and issubclass(spec, Connectivity)):
        raise TypeError(f'a connectivity is a name, a dict with a name or a class, got {spec!r}')
    signature = inspect.signature(spec)
    given = channels is not None and 'channels' in signature.parameters
    if given and options.setdefault('channels', channels) != channels:
        raise ValueError(f'channels={options["channels"]!r} for maps of {channels} channels')
    try:
        signature.bind(wiring, **options)
    except TypeError as error:
        raise TypeError(f'{spec.__name__}{signature}: {error}') from None
    return spec(wiring, **options).to(device=device, dtype=dtype)


def connectivity_spec(rule: Connectivity) -> dict:
    """The description from which :func:`build_connectivity` builds the same rule again.

    Raises:
        ValueError: The rule's class is not registered, so it has no name to be saved under.
    """
    name = connectivity_name(rule)
    if name not in RULES:
        raise ValueError(f'{name} has no name: decorate it with @register_connectivity')
    return {'name': name, **rule.options}


def connectivity_name(rule: Connectivity) -> str:
    """The name a rule is registered under, else that of its class."""
    names = [name for name, known in RULES.items() if known is type(rule)]
    return names[0] if names else type(rule).__name__


def undecayed_parameters(model: nn.Module) -> set[str]:
    """Names of the parameters of ``model`` that are not decayed unless asked: its edge weights."""
    return {
        f'{prefix}.{name}' if prefix else name
        for prefix, module in model.named_modules()
        if isinstance(module, Connectivity)
        for name, _ in module.named_parameters()
        if name not in module.decayed
    }


def exempt_from_weight_decay(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Move edge weights that ``optimizer`` would decay into groups without decay, in place.

    timm's factories respect ``no_weight_decay()``; this holds for every other way to group
    parameters too. Call it before a scheduler is made.
    """
    _regroup(optimizer, model, undecayed_parameters(model), _decayed_by(0.0))


def decay_edge_weights(
    optimizer: torch.optim.Optimizer, model: nn.Module, weight_decay: float, biases: bool = False
) -> None:
    """Move edge weights that ``optimizer`` would not decay into groups with decay, in place.

    Call it before a scheduler is made.

    Args:
        optimizer: What trains ``model``.
        model: Any network with graph stages.
        weight_decay: Decay of the new groups.
        biases: Whether biases and thresholds of routers are decayed too.
    """
    names = undecayed_parameters(model)
    if not biases:
        names &= {
            f'{prefix}.{name}' if prefix else name
            for prefix, module in model.named_modules()
            if isinstance(module, Connectivity)
            for name in module.per_edge
            if name != 'bias'
        }
    _regroup(optimizer, model, names, _decayed_by(weight_decay))


def scale_edge_rate(optimizer: torch.optim.Optimizer, model: nn.Module, scale: float) -> None:
    """Move all parameters of rules into groups with ``scale`` times their rate, in place.

    By ``lr_scale``, which timm's schedulers follow: call it before a scheduler is made.
    """
    names = {
        f'{prefix}.{name}' if prefix else name
        for prefix, module in model.named_modules()
        if isinstance(module, Connectivity)
        for name, _ in module.named_parameters()
    }
    _regroup(
        optimizer, model, names, lambda group: {'lr_scale': scale * group.get('lr_scale', 1.0)}
    )


def _decayed_by(weight_decay: float) -> Callable[[dict], dict]:
    return lambda group: {'weight_decay': weight_decay} if 'weight_decay' in group else {}


def _regroup(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    names: set[str],
    changes: Callable[[dict], dict],
) -> None:
    """Move parameters into groups that differ from the present ones by ``changes``."""
    moved = {id(p) for name, p in model.named_parameters() if name in names}
    for group in list(optimizer.param_groups):
        caught = [p for p in group['params'] if id(p) in moved]
        new = changes(group)
        if not caught or new.items() <= {name: group.get(name) for name in new}.items():
            continue
        group['params'] = [p for p in group['params'] if id(p) not in moved]
        optimizer.add_param_group({**group, 'params': caught, **new})
        if not group['params']:
            optimizer.param_groups.remove(group)
