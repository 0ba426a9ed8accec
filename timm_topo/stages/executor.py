"""How a stage is run: the contract of an executor, the registry and the choice.

A stage says what it computes (:meth:`timm_topo.stages.Stage.run`, the equation); an executor says
how. Executors of :mod:`timm_topo.executors` register here; this file imports none of them.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from .aggregate import is_transformed

if TYPE_CHECKING:
    from .stage import Stage

__all__ = [
    'EquationExecutor',
    'Executor',
    'Explanation',
    'best',
    'choose',
    'executors',
    'explain',
    'in_use',
    'is_eager',
    'node_maps',
    'register',
    'use',
]


class Executor:
    """Contract: runs some stages on some inputs, with the values and gradients of the equation.

    An executor reads a stage and writes nothing to it, batch norm's statistics apart.

    Attributes:
        name: What :func:`use` and :func:`explain` call it.
        rank: Of several executors without an objection, the one of the highest rank runs. The
            reference has rank 0.
    """

    name: str
    rank: int = 0

    def objection(self, stage: 'Stage', x: Tensor) -> str:
        """Why this executor cannot run ``stage`` on the stage input ``x``; '' if it can."""
        raise NotImplementedError

    def run(self, stage: 'Stage', x: Tensor) -> Tensor:
        """Stage input ``(B, C_in, H_in, W_in)`` -> stage output ``(B, C, H, W)``."""
        raise NotImplementedError

    def label(self, stage: 'Stage', x: Tensor) -> str:
        """What :func:`explain` prints: the name, and what it depends on."""
        return self.name


class EquationExecutor(Executor):
    """Partial contract: an executor that computes the map of every node. Implement ``record``."""

    def record(self, stage: 'Stage', x: Tensor, *args) -> tuple[list[Tensor], list[Tensor]]:
        """Maps and in-edge weights, as ``stage.run(x, *args)`` returns them."""
        raise NotImplementedError

    def run(self, stage: 'Stage', x: Tensor) -> Tensor:
        return self.record(stage, x)[0][-1]


_EXECUTORS: list[Executor] = []  # by rank, the reference last
_IN_USE: ContextVar[Executor | None] = ContextVar('executor', default=None)
# In compiled networks, of all threads: PyTorch 2.6 compiles no ContextVar.
_IN_USE_COMPILED: list[Executor | None] = [None]


def register(executor: Executor) -> Executor:
    """Make an executor known to :func:`choose`.

    Raises:
        ValueError: The name is taken, or the rank is not above that of the reference.
    """
    if executor.name in [known.name for known in _EXECUTORS]:
        raise ValueError(f'executor {executor.name!r} is already registered')
    if _EXECUTORS and executor.rank <= 0:
        raise ValueError(
            f'the rank of {executor.name!r} must be above 0, that of the reference, got '
            f'{executor.rank}'
        )
    _EXECUTORS.append(executor)
    _EXECUTORS.sort(key=lambda known: -known.rank)
    return executor


def executors() -> dict[str, Executor]:
    """The registered executors by name, in the order in which they are asked."""
    return {executor.name: executor for executor in _EXECUTORS}


def choose(stage: 'Stage', x: Tensor) -> Executor:
    """The executor that runs ``stage`` on the stage input ``x``: the one in use, or the best.

    What is traced or exported is run by the reference; what is compiled too, but for recorders and
    other executors of the equation in use.

    Raises:
        ValueError: The executor in use objects.
    """
    if torch.jit.is_tracing():
        return _EXECUTORS[-1]
    if torch.compiler.is_compiling():  # which an executor of the equation takes
        executor = _IN_USE_COMPILED[0]
        return executor if isinstance(executor, EquationExecutor) else _EXECUTORS[-1]
    executor = _IN_USE.get()
    return best(stage, x) if executor is None else _without_objection(executor, stage, x)


def _without_objection(executor: Executor, stage: 'Stage', x: Tensor) -> Executor:
    objection = executor.objection(stage, x)
    if objection:
        raise ValueError(f'executor {executor.name!r} cannot run this stage: {objection}')
    return executor


def best(
    stage: 'Stage', x: Tensor, kind: type[Executor] = Executor, below: float = math.inf
) -> Executor:
    """The registered executor of the highest rank without an objection.

    The reference, where operators on ``x`` do not run when they are called.

    Args:
        stage: A stage.
        x: Stage input.
        kind: Only executors of this type are asked.
        below: Only executors of a lower rank are asked.
    """
    if is_eager(x):
        for executor in _EXECUTORS[:-1]:
            asked = executor.rank < below and isinstance(executor, kind)
            if asked and not executor.objection(stage, x):
                return executor
    return _EXECUTORS[-1]


def in_use() -> Executor | None:
    """The executor of the innermost :func:`use` in this thread."""
    return _IN_USE.get()


@contextmanager
def use(executor: Executor | str) -> Iterator[Executor]:
    """Run all stages by one executor, in this thread.

    The backward pass may run outside, but for activation checkpointing outside of stages, which
    runs them anew. Inner contexts win over outer ones.

    Args:
        executor: An executor, or the name of a registered one.

    Raises:
        ValueError: An unknown name. Inside, a stage that the executor cannot run.
    """
    if isinstance(executor, str):
        if executor not in executors():
            raise ValueError(f'unknown executor {executor!r}; known: {", ".join(executors())}')
        executor = executors()[executor]
    token, compiled = _IN_USE.set(executor), _IN_USE_COMPILED[0]
    _IN_USE_COMPILED[0] = executor
    try:
        yield executor
    finally:
        _IN_USE.reset(token)
        _IN_USE_COMPILED[0] = compiled


def node_maps(stage: 'Stage', x: Tensor, *args) -> list[Tensor]:
    """The maps that ``stage.run(x, *args)`` returns, of all nodes as a rule, the output last.

    Computed by the executor in use if it computes them, else by the reference.

    Raises:
        ValueError: The executor in use objects.
    """
    if torch.compiler.is_compiling():
        executor = _IN_USE_COMPILED[0]
    else:
        executor = None if torch.jit.is_tracing() else _IN_USE.get()
    if not isinstance(executor, EquationExecutor):
        executor = _EXECUTORS[-1]
    return _without_objection(executor, stage, x).record(stage, x, *args)[0]


@dataclass(frozen=True)
class Explanation:
    """How a stage was run.

    Attributes:
        executor: The executor that ran it.
        objections: By name of each other executor, why it did not: its objection, or '' where one
            of higher rank was chosen.
    """

    executor: str
    objections: dict[str, str]

    def __str__(self) -> str:
        others = [f'  {name}: {why or "of lower rank"}' for name, why in self.objections.items()]
        return '\n'.join([self.executor, *others])


def explain(model: nn.Module, *inputs) -> dict[str, Explanation]:
    """Run ``model`` once, in its present mode, and tell how every stage was run.

    Args:
        model: A model with graph stages.
        inputs: Its inputs, images ``(B, C, H, W)`` as a rule.

    Returns:
        An explanation by name of each stage that ran.

    >>> import timm, timm_topo
    >>> model = timm.create_model('test_toponet').eval()
    >>> with torch.no_grad():
    ...     told = timm_topo.explain(model, torch.randn(1, 3, 32, 32))
    >>> told['stages.0'].executor
    'table'
    >>> told['stages.0'].objections['recompute']
    'no gradient is wanted'
    """
    explaining = _Explaining()
    with use(explaining):
        model(*inputs)
    names = {module: name for name, module in model.named_modules()}
    return {names[stage]: found for stage, found in explaining.found.items()}


class _Explaining(Executor):
    name = 'explaining'

    def __init__(self):
        self.found: dict[Stage, Explanation] = {}

    def objection(self, stage: 'Stage', x: Tensor) -> str:
        return ''

    def run(self, stage: 'Stage', x: Tensor) -> Tensor:
        chosen, why = best(stage, x), ''
        if not is_eager(x):
            why = 'the input is no plain tensor, or a mode watches operators'
        objections = {
            one.name: why or one.objection(stage, x) for one in _EXECUTORS if one is not chosen
        }
        self.found[stage] = Explanation(chosen.label(stage, x), objections)
        return chosen.run(stage, x)


def is_eager(x: Tensor) -> bool:
    """Whether operators on ``x`` run when they are called, on memory.

    Not so in what is traced, compiled or exported, nor where something stands between: tensors
    without values, modes that watch operators, transforms of functions (vmap, jvp, grad),
    forward-mode derivatives.
    """
    if is_transformed() or _get_current_dispatch_mode():
        return False
    return type(x) in (Tensor, nn.Parameter) and not x.is_meta
