"""What each node of a network costs, in the unit that a user wants to save."""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..deploy import DeployedStage, deploy
from ..stages import GraphStage, Stage, graph_stages, without_node
from .cost import count_flops, count_parameters

__all__ = [
    'UNITS',
    'Costs',
    'Node',
    'computing_nodes',
    'make_costs',
    'replaced_stages',
    'smaller_stages',
]


class Node(NamedTuple):
    """A computing node.

    Attributes:
        stage: Module name of its stage.
        id: Id of the node before anything was removed (``Stage.node_ids``).
    """

    stage: str
    id: int

    def __str__(self) -> str:
        return f'{self.stage}:{self.id}'


def smaller_stages(model: nn.Module, removed: tuple[Node, ...]) -> dict[str, nn.Module]:
    """Stages of ``model`` without some nodes, by name; of those that lose any.

    Modules are shared with ``model``. Nodes that died with others count as removed.

    Raises:
        ValueError: A stage has no path from input to output then.
    """
    stages = graph_stages(model)
    smaller = {}
    for name, id_ in removed:
        stage = smaller.get(name, stages[name])
        if id_ in stage.node_ids[1:-1]:
            smaller[name] = without_node(stage, stage.node_ids.index(id_))
    return smaller


@contextmanager
def replaced_stages(model: nn.Module, stages: dict[str, nn.Module]) -> Iterator[nn.Module]:
    """Run ``model`` with other stages; the old ones are back afterwards."""
    before = {name: model.get_submodule(name) for name in stages}

    def put(modules: dict[str, nn.Module]) -> None:
        for name, module in modules.items():
            parent, _, leaf = name.rpartition('.')
            setattr(model.get_submodule(parent), leaf, module)

    put(stages)
    try:
        yield model
    finally:
        put(before)


class Costs:
    """Contract: the cost of a network, and of each of its nodes.

    Args:
        model: The network that nodes are removed from; its cost is 1.
        images: Images ``(n, C, H, W)``; passes take the first ``batch_size``.
        batch_size: Images per pass.
        repeats: Rounds of every measurement.
    """

    def __init__(self, model: nn.Module, images: Tensor, batch_size: int, repeats: int):
        self.model, self.images = model, images
        self.batch_size, self.repeats = batch_size, repeats

    def total(self, model: nn.Module) -> float:
        """Cost of a network that lost nodes, relative to the first."""
        raise NotImplementedError

    def nodes(self, model: nn.Module) -> dict[Node, float]:
        """What each computing node costs of a network that lost nodes, relative to the first."""
        raise NotImplementedError


class Counted(Costs):
    """Partial contract: a cost that is counted. Implement ``count``."""

    def __init__(self, *args):
        super().__init__(*args)
        self.unit = self.count(self.model)

    def count(self, model: nn.Module) -> int:
        """The cost of a network."""
        raise NotImplementedError

    def total(self, model: nn.Module) -> float:
        return self.count(model) / self.unit

    def nodes(self, model: nn.Module) -> dict[Node, float]:
        full, costs = self.count(model), {}
        for node in computing_nodes(graph_stages(model)):
            try:
                stages = smaller_stages(model, (node,))
            except ValueError:  # it cannot go
                continue
            with replaced_stages(model, stages):
                costs[node] = (full - self.count(model)) / self.unit
        return costs


class Parameters(Counted):
    """Number of parameters, of those that are shared once."""

    def count(self, model: nn.Module) -> int:
        return count_parameters(model)


class Flops(Counted):
    """Multiply-adds of one image."""

    def count(self, model: nn.Module) -> int:
        return count_flops(model, tuple(self.images.shape[1:])).total


class Time(Costs):
    """Time of a forward pass of the deployed network, on the device and threads in use."""

    def __init__(self, *args):
        super().__init__(*args)
        self.deployed = deploy(self.model, self.images[:2])

    @torch.inference_mode()
    def total(self, model: nn.Module) -> float:
        """By the fastest of several rounds, both in turn: what disturbs a pass only adds."""
        networks = self.deployed, deploy(model, self.images[:2])
        clock, batch = _Clock(self.images.device), _batch(self.images, self.batch_size)
        least = [math.inf, math.inf]
        for _ in tqdm(range(self.repeats), 'time', leave=False, disable=None):
            for place, network in enumerate(networks):
                network(batch)  # what ran before has left its maps in caches
                with clock.span(place):
                    network(batch)
                least[place] = min(least[place], clock.read()[place])
        return least[1] / least[0]

    def nodes(self, model: nn.Module) -> dict[Node, float]:
        """By clocks around nodes and stages; what a stage takes beside its nodes is that of its
        edges, alike for all.
        """
        deployed = deploy(model, self.images[:2])
        shares = _shares(deployed, self.images, self.batch_size, self.repeats)
        now = self.total(model)
        return {node: now * share for node, share in shares.items()}


#: Costs by name of the unit.
UNITS = {'time': Time, 'flops': Flops, 'parameters': Parameters}


def make_costs(
    unit: str, model: nn.Module, images: Tensor, batch_size: int = 1, repeats: int = 20
) -> Costs:
    """Costs in one of :data:`UNITS`; arguments as for :class:`Costs`.

    Raises:
        ValueError: Unknown unit.
    """
    if unit not in UNITS:
        raise ValueError(f'unknown unit {unit!r}; known: {", ".join(UNITS)}')
    return UNITS[unit](model, images, batch_size, repeats)


def computing_nodes(stages: Mapping[str, Stage]) -> list[Node]:
    """The computing nodes of stages by name; branches of blocks are none."""
    return [
        Node(name, id_)
        for name, stage in stages.items()
        if isinstance(stage, GraphStage)
        for id_ in stage.node_ids[1:-1]
    ]


@torch.inference_mode()
def _shares(
    deployed: nn.Module, images: Tensor, batch_size: int, repeats: int
) -> dict[Node, float]:
    """Share of the time of a pass by node, by the fastest of several rounds."""
    stages = {
        name: module
        for name, module in deployed.named_modules()
        if isinstance(module, (DeployedStage, GraphStage))
    }
    clock = _Clock(images.device)
    for name, stage in stages.items():
        clock.watch((name, None), stage)
        for id_, node in zip(stage.node_ids[1:-1], stage.nodes):
            clock.watch((name, id_), node)
    clock.watch(None, deployed)
    batch = _batch(images, batch_size)
    try:
        deployed(batch)
        clock.read()
        rounds = []
        for _ in tqdm(range(repeats), 'time', leave=False, disable=None):
            deployed(batch)
            rounds.append(clock.read())
    finally:
        clock.stop()
    least = {key: min(taken[key] for taken in rounds) for key in rounds[0]}
    shares = {}
    for name, stage in stages.items():
        ids = stage.node_ids
        beside = max(0.0, least[name, None] - sum(least[name, id_] for id_ in ids[1:-1]))
        for node, id_ in enumerate(ids[1:-1], start=1):
            edges = len(stage.wiring.preds(node)) + len(stage.wiring.succs(node)) - 1
            own = least[name, id_] + edges * beside / stage.wiring.num_edges
            shares[Node(name, id_)] = own / least[None]
    return shares


def _batch(images: Tensor, size: int) -> Tensor:
    return images.repeat(-(-size // len(images)), 1, 1, 1)[:size]


class _Clock:
    """Time of spans, such as those inside modules.

    On a GPU between events of its stream; on CPU with one thread that of the thread, so that what
    other processes take does not count; else on the wall.
    """

    def __init__(self, device: torch.device):
        self.on_gpu = device.type == 'cuda'
        alone = torch.get_num_threads() == 1
        self.seconds = time.thread_time if alone else time.perf_counter
        self.starts, self.spans, self.hooks = {}, {}, []

    @contextmanager
    def span(self, key) -> Iterator[None]:
        self.starts[key] = self._now()
        yield
        self.spans.setdefault(key, []).append((self.starts[key], self._now()))

    def watch(self, key, module: nn.Module) -> None:
        def before(*_) -> None:
            self.starts[key] = self._now()

        def after(*_) -> None:
            self.spans.setdefault(key, []).append((self.starts[key], self._now()))

        self.hooks.append(module.register_forward_pre_hook(before))
        self.hooks.append(module.register_forward_hook(after))

    def _now(self):
        if not self.on_gpu:
            return self.seconds()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def read(self) -> dict:
        """Milliseconds by key since the last time."""
        spans, self.spans = self.spans, {}
        if self.on_gpu:
            torch.cuda.synchronize()
            return {key: sum(a.elapsed_time(b) for a, b in own) for key, own in spans.items()}
        return {key: 1000 * sum(b - a for a, b in own) for key, own in spans.items()}

    def stop(self) -> None:
        for hook in self.hooks:
            hook.remove()
