"""The executor: one wiring at one resolution (TopoNet, section 3.1 and Algorithm 1).

Where edge weights depend on the image, the stage also keeps DG-Net's buffer (section 3.4), row by
row: row j of the adjacency matrices ``(B, N, N)`` is what node j reads.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import List, Optional, Tuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..connectivity import Connectivity
from ..wiring import Wiring
from .aggregate import aggregate, is_eager, is_fused
from .lean import has_last, lean_chains, lean_entry, lean_stage, starts_with_relu
from .offset import Offset, merge
from .reuse import let_go
from .trial import agrees_on

__all__ = ['GraphStage', 'graph_stages']

# What a part may take per thread; in sizes from 1 to 32 MiB the best (docs/performance.md).
_CACHE = 16 << 20

torch.fx.wrap('aggregate')  # a leaf for symbolic tracing: it looks at shapes


class GraphStage(nn.Module):
    """x_0 = entry(x);  x_j = node_j(sum_i a_ij x_i);  output = sum_i a_i x_i.

    With ``raw_entry``, node 1 reads the stage input itself, x_1 = node_1(a_01 x): the first block
    of a residual stage, which resizes and projects like the shortcut beside it (here the entry).

    In evaluation, a rule with ``thresholds()`` closes edges per image (DG-Net, Eq. 5): a_ij = 0
    where it is below the threshold of its edge or where x_i was not computed. x_j is not computed
    for an image all of whose edges into j are closed. (The paper also leaves out nodes whose
    out-edges are all closed, but their weights are only known from x_j.) The output keeps its
    strongest edge from a node that was computed, so that no threshold cuts a stage with an edge
    (0, N-1) in two (ours); without that edge, an image for which no node before the output was
    computed gets zeros. What an image gets does not depend on the others in its batch, but for
    rounding, which may close an edge that is at its threshold.

    Args:
        wiring: N nodes without dead ones.
        connectivity: The rule that weighs the edges of ``wiring``.
        entry: Stage input -> x_0; resizes and projects. Not kept where nobody reads x_0.
        nodes: The N - 2 computing nodes in order. Each receives a map of its own, which it may
            overwrite.
        raw_entry: Whether node 1 reads the stage input instead of x_0.
        node_ids: Ids the N nodes had before pruning; by default ``0 .. N - 1``.

    Attributes:
        levels: Level of each node among the resolutions of the graph: here there is one, 0.
        level_sizes: Nodes per level before pruning.
        by_node: Whether activation checkpointing is per node: here of the stage as a whole.
        offsets: What is added to the weighted sum of each computing node: nothing, or constants
            that :meth:`set_offset` was given.
        output_offset: Likewise of the stage output.
        takes_offsets: Whether it can be given any.
        fast: Whether to run in the ways that are faster where only the stage output is wanted;
            False for derivatives of derivatives, which training has only without.

    Raises:
        ValueError: Dead nodes in the wiring, or a number of nodes, edges or ids that does not fit.
    """

    preds: List[List[int]]
    slots: List[List[int]]
    takes_offsets = True
    fast = True

    def __init__(
        self,
        wiring: Wiring,
        connectivity: Connectivity,
        entry: nn.Module,
        nodes: Sequence[nn.Module],
        raw_entry: bool = False,
        node_ids: Optional[Sequence[int]] = None,
    ):
        super().__init__()
        dead = wiring.dead_nodes()
        if dead:
            raise ValueError(f'nodes {list(dead)} of {wiring} are dead; remove them with prune()')
        count = self.computing(nodes)
        if count != wiring.num_nodes - 2:
            raise ValueError(f'{wiring} has {wiring.num_nodes - 2} computing nodes, got {count}')
        if connectivity.wiring != wiring:
            raise ValueError(f'the connectivity was built for a wiring other than {wiring}')
        self.node_ids = list(range(wiring.num_nodes) if node_ids is None else node_ids)
        if len(self.node_ids) != wiring.num_nodes or sorted({0, *self.node_ids}) != self.node_ids:
            raise ValueError(f'{wiring} needs as many node ids, ascending from 0, got {node_ids}')
        if raw_entry and not nodes:
            raise ValueError(f'{wiring} has no computing node that could read the stage input')
        self.wiring = wiring
        self.levels = [0] * wiring.num_nodes
        self.level_sizes = [self.node_ids[-1] + 1]
        self.raw_entry = raw_entry
        self.preds = [list(wiring.preds(node)) for node in range(wiring.num_nodes)]
        self.slots = self.preds
        self.needs_context = connectivity.needs_context
        self.grad_checkpointing = False
        self.by_node = False
        unread = raw_entry and wiring.succs(0) == (1,) and not connectivity.needs_context
        self.entry = nn.Identity() if unread else entry
        self.nodes = nn.ModuleList(nodes)
        self.connectivity = connectivity
        self.clear_offsets()

    def forward(self, x: Tensor) -> Tensor:
        """Stage input ``(B, C_in, H_in, W_in)`` -> stage output ``(B, C, H, W)``."""
        if not torch.jit.is_scripting():
            if self.fast and is_eager(x) and 'run' not in vars(self):
                fast = self.fast_path(x)
                if fast is not None and x.device.type == 'cpu':
                    # convolutions and batch norm on CPU are fastest with channels last
                    if self.stays_as_laid_out():
                        return fast(x)
                    out = fast(x.contiguous(memory_format=torch.channels_last))
                    return out.contiguous() if x.is_contiguous() else out
                if fast is not None:
                    return fast(x)
        return self.maps(x)[-1]

    @torch.jit.unused
    def fast_path(self, x: Tensor) -> Optional[Callable[[Tensor], Tensor]]:
        """How to run if only the stage output is wanted, where that is faster."""
        chains = self.lean(x)
        run = None if chains is None else partial(self.run_lean, chains)
        if not torch.is_grad_enabled():
            let_go()
            if x.device.type == 'cpu' and not is_fused(x) and self.splits(x):
                return partial(self.run_in_parts, run or self.last_map)
        return run

    @torch.jit.unused
    def stays_as_laid_out(self) -> bool:
        """Whether a gradient with channels last would damage memory.

        That of a pointwise convolution with a stride and fewer than 8 input channels does, on CPUs
        without AVX-512 (oneDNN of PyTorch 2.14: its kernel writes behind the gradient).
        """
        return torch.is_grad_enabled() and any(
            isinstance(m, nn.Conv2d)
            and m.kernel_size == (1, 1)
            and m.stride != (1, 1)
            and m.in_channels < 8
            for m in self.modules()
        )

    @torch.jit.unused
    def lean(self, x: Tensor) -> Optional[list]:
        """The layers of the nodes, if the stage can run in one table; see :mod:`.lean`."""
        if type(self) is not GraphStage or self.needs_context or self.recomputes():
            return None
        if torch.is_grad_enabled() and not self.training:
            return None
        half, fused = _autocast_dtype(x), is_fused(x)
        if not x.numel() or ((half or x.device.type != 'cpu') and not fused):
            return None
        exact = x.dtype in (torch.float32, torch.float64, half)
        if not exact and (torch.is_grad_enabled() or not fused):
            return None
        if fused and not agrees_on(x.device, half or x.dtype, has_last(x), bool(half)):
            return None
        if any(isinstance(o, Offset) for o in (*self.offsets, self.output_offset)):
            return None
        if self.raw_entry and self.wiring.succs(0) == (1,):  # x_0 is no map of this stage
            return None
        return lean_chains(self.nodes, self.raw_entry, self.training)

    @torch.jit.unused
    def run_lean(self, chains: list, x: Tensor) -> Tensor:
        """The stage output, with one kept map per node; see :mod:`timm_topo.stages.lean`."""
        weights, x_0 = self.connectivity.pass_weights(), lean_entry(self.entry, x)
        x_0 = x_0.to(_autocast_dtype(x) or x_0.dtype)
        return lean_stage(self.wiring, chains, weights, x, x_0, self.raw_entry)

    @torch.jit.unused
    def splits(self, x: Tensor) -> bool:
        """Whether images are independent and nobody watches how many there are at a time."""
        if len(x) < 2 or type(self) is not GraphStage:
            return False
        return not any(_mixes_or_is_watched(m) for m in self.modules() if m is not self)

    @torch.jit.unused
    def run_in_parts(self, run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """The stage output, of so many images at a time that the maps of all nodes stay in cache.

        Args:
            run: Stage input -> stage output.
            x: Stage input.
        """
        threads = torch.get_num_threads()
        fitting = _CACHE * threads // (self.wiring.num_nodes * self.entry(x[:1]).nbytes)
        images = fitting - fitting % threads or max(fitting, 1)  # as many for every thread
        return torch.cat([run(part) for part in x.split(images)])

    @torch.jit.unused
    def last_map(self, x: Tensor) -> Tensor:
        """The stage output."""
        return self.maps(x)[-1]

    def maps(self, x: Tensor) -> List[Tensor]:
        """Stage input -> the maps of all nodes, the stage output last."""
        if not torch.jit.is_scripting():
            if not self.by_node and self.recomputes():
                return checkpoint(self.run, x, use_reentrant=False)[0]
        return self.run(x)[0]

    @staticmethod
    def computing(nodes: Sequence[nn.Module]) -> int:
        """Number of nodes that the modules ``nodes`` compute: here one each."""
        return len(nodes)

    @torch.jit.unused
    def multiplies(self) -> list:
        """Multiply-adds of edges per value that each of ``nodes`` reads, and per value of the
        stage output last.
        """
        return list(self.wiring.in_degrees[1:])

    @torch.jit.unused
    def recomputes(self) -> bool:
        """Whether the backward pass computes anew what is inside: the stage, or each node."""
        return self.grad_checkpointing and torch.is_grad_enabled() and not torch.jit.is_tracing()

    @torch.jit.unused
    def select(self, edges: Sequence[int]) -> 'GraphStage':
        """A stage with only some edges, and without the nodes that are dead then.

        Modules are shared with this stage; the edge weights are copies.

        Args:
            edges: Indices into ``wiring.edges``.

        Raises:
            ValueError: The edges leave no path from input to output.
        """
        return self._keep(*self.wiring.subgraph(self.wiring.edges[e] for e in edges).prune())

    @torch.jit.unused
    def _keep(self, wiring: Wiring, kept: Sequence[int]) -> 'GraphStage':
        """This stage on those of its nodes and edges that ``wiring`` names anew."""
        index = {edge: e for e, edge in enumerate(self.wiring.edges)}
        rule = self.connectivity.select(wiring, [index[kept[s], kept[t]] for s, t in wiring.edges])
        stage = self._with(wiring, rule, kept)
        stage.grad_checkpointing = self.grad_checkpointing
        for node, old in enumerate(kept[1:], start=1):
            offset = self._offset(old)
            if isinstance(offset, Offset):
                stage.set_offset(node, offset.value.clone())
        return stage.train(self.training)

    @torch.jit.unused
    def _with(self, wiring: Wiring, rule: Connectivity, kept: Sequence[int]) -> 'GraphStage':
        """This stage with another wiring, on those of its nodes that are ``kept``."""
        return GraphStage(
            wiring,
            rule,
            self.entry,
            [self.nodes[node - 1] for node in kept[1:-1]],
            raw_entry=self.raw_entry and kept[1] == 1,
            node_ids=[self.node_ids[node] for node in kept],
        )

    @torch.jit.unused
    def add_offset(self, node: int, value: Tensor) -> None:
        """Add a constant to the weighted sum of ``node`` from now on, with those it has.

        Args:
            node: From 1 on.
            value: ``(C, h, w)``, see :class:`Offset`.
        """
        offset = self._offset(node)
        if isinstance(offset, Offset):
            value = merge(offset.value, value)
        self.set_offset(node, value)

    @torch.jit.unused
    def set_offset(self, node: int, value: Tensor) -> None:
        """Likewise, in place of those it has."""
        if node < self.wiring.num_nodes - 1:
            self.offsets[node - 1] = Offset(value).train(self.training)
        else:
            self.output_offset = Offset(value).train(self.training)

    @torch.jit.unused
    def clear_offsets(self) -> None:
        """Add nothing to weighted sums."""
        count = self.wiring.num_nodes - 2 if self.takes_offsets else 0
        self.offsets = nn.ModuleList(nn.Identity() for _ in range(count)).train(self.training)
        self.output_offset = nn.Identity().train(self.training)

    @torch.jit.unused
    def _offset(self, node: int) -> nn.Module:
        if not self.takes_offsets or node == self.wiring.num_nodes - 1:
            return self.output_offset
        return self.offsets[node - 1]

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        """Make place for the constants that a state has: they are part of no description."""
        place = next(self.parameters(), torch.empty(0))
        names = {f'{prefix}output_offset.value': self.wiring.num_nodes - 1}
        names |= {f'{prefix}offsets.{i}.value': i + 1 for i in range(len(self.offsets))}
        for name in names.keys() & state_dict.keys() if self.takes_offsets else ():
            value = torch.empty_like(state_dict[name], device=place.device)
            self.set_offset(names[name], value)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def run(self, x: Tensor) -> Tuple[List[Tensor], List[Tensor]]:
        """The equation; activation checkpointing of the stage as a whole is around it.

        Returns:
            The maps as :meth:`offer` collects them, followed by the stage output; and the weights
            that nodes ``1 .. N - 1`` read, each as the rule gives them, ``(in_degree,)`` or
            ``(B, in_degree)``.
        """
        thresholds: Optional[Tensor] = None
        skipping = False
        if self.needs_context and not self.training:
            thresholds = self.connectivity.thresholds()
        if not torch.jit.is_scripting():
            if thresholds is not None and is_eager(x):
                skipping = bool(thresholds.any())
                thresholds = thresholds if skipping else None
        x_0 = self.entry(x)
        maps = self.offer(0, x_0, [])
        pooled = self.pool(x_0, [])
        computed = [x_0.new_ones(x_0.shape[:1], dtype=torch.bool)]
        is_open = computed[0]
        rows: List[Tensor] = []
        for i, (node, offset) in enumerate(zip(self.nodes, self.offsets)):
            rows.append(self.weigh(i + 1, pooled))
            if thresholds is not None:
                rows[-1], is_open = self.close(i + 1, rows[-1], thresholds, computed)
                computed.append(is_open.any(1))
            inputs = self.inputs(i + 1, x, maps)
            if skipping and not torch.jit.is_scripting():
                x_j = _run_where(node, offset, inputs, rows[-1], is_open, x_0)
            elif torch.jit.is_scripting():
                x_j = node(offset(aggregate(inputs, rows[-1])))
            else:
                x_j = self.compute(node, offset, inputs, rows[-1])
            maps = self.offer(i + 1, x_j, maps)
            pooled = self.pool(x_j, pooled)
        last = len(self.nodes) + 1
        rows.append(self.weigh(last, pooled))
        if thresholds is not None:
            rows[-1], is_open = self.close(last, rows[-1], thresholds, computed)
        inputs = self.inputs(last, x, maps)
        if skipping and not torch.jit.is_scripting():
            maps.append(_run_where(None, self.output_offset, inputs, rows[-1], is_open, x_0))
        else:
            maps.append(self.output_offset(aggregate(inputs, rows[-1])))
        return maps, rows

    @torch.jit.unused
    def compute(
        self, node: nn.Module, offset: nn.Module, inputs: List[Tensor], weights: Tensor
    ) -> Tensor:
        """The map of one node.

        With activation checkpointing per node, only what it reads is kept for the backward pass.
        """

        def run(weights: Tensor, *inputs: Tensor) -> Tensor:
            if is_fused(inputs[0]) and isinstance(offset, nn.Identity) and starts_with_relu(node):
                x = aggregate(list(inputs), weights, relu=True)
                for layer in node.layers()[1:]:
                    x = layer(x)
                return x
            return node(offset(aggregate(list(inputs), weights)))

        if not self.by_node or not self.recomputes():
            return run(weights, *inputs)
        return checkpoint(run, weights, *inputs, use_reentrant=False)

    def offer(self, node: int, feature: Tensor, maps: List[Tensor]) -> List[Tensor]:
        """Append what ``node`` gives its readers: its map. ``slots`` says who reads which."""
        maps.append(feature)
        return maps

    def inputs(self, node: int, x: Tensor, maps: List[Tensor]) -> List[Tensor]:
        """What ``node`` reads, in the order of its in-edges."""
        if self.raw_entry and node == 1:
            return [x]
        return [maps[slot] for slot in self.slots[node]]

    def pool(self, feature: Tensor, pooled: List[Tensor]) -> List[Tensor]:
        """Append the spatial mean ``(B, C)`` of a map, if the rule asks for it."""
        if self.needs_context:
            pooled.append(feature.mean((2, 3)))
        return pooled

    def weigh(self, node: int, pooled: List[Tensor]) -> Tensor:
        """Weights of the in-edges of ``node``, all open."""
        if self.needs_context:
            context = torch.stack([pooled[source] for source in self.preds[node]], 1)
            return self.connectivity(node, context)
        return self.connectivity(node)

    def close(
        self, node: int, weights: Tensor, thresholds: Tensor, computed: List[Tensor]
    ) -> Tuple[Tensor, Tensor]:
        """Weights ``(B, in_degree)`` with closed edges at 0, and which edges are open.

        Args:
            node: Whose in-edges.
            weights: Their weights, all open.
            thresholds: Those of all edges, ``(E,)``.
            computed: For which images each earlier node was computed, ``(B,)`` booleans.
        """
        span = self.connectivity.spans[node]
        available = torch.stack([computed[source] for source in self.preds[node]], 1)
        is_open = (weights >= thresholds[span[0] : span[1]]) & available
        if node == len(self.nodes) + 1:
            strongest = weights.masked_fill(~available, -1.0).argmax(1, keepdim=True)
            edges = torch.ones_like(weights, dtype=torch.long).cumsum(1) - 1  # 0, 1, 2...
            strongest = (edges == strongest) & available
            is_open = is_open | (strongest & ~is_open.any(1, keepdim=True))
        return torch.where(is_open, weights, torch.zeros_like(weights)), is_open


def _run_where(
    node: Optional[nn.Module],
    offset: nn.Module,
    inputs: List[Tensor],
    weights: Tensor,
    is_open: Tensor,
    x_0: Tensor,
) -> Tensor:
    """A node's map, computed for the images and read from the sources that have open edges.

    Zero for other images. Without a node: the weighted sum, which nothing else holds.
    """
    by_image = is_open.tolist()  # here the host waits for the device, once per node
    at = [image for image, edges in enumerate(by_image) if any(edges)]
    used = [k for k, edges in enumerate(zip(*by_image)) if any(edges)]
    if not at:
        return torch.zeros_like(x_0) if node is None else x_0.new_zeros(()).expand_as(x_0)
    if len(used) < len(inputs):
        inputs, weights = [inputs[k] for k in used], weights[:, used]
    if node is None:
        return offset(aggregate(inputs, weights))
    if len(at) == len(by_image):
        return node(offset(aggregate(inputs, weights)))
    rows = torch.tensor(at, device=x_0.device)
    part = node(offset(aggregate([x[rows] for x in inputs], weights[rows])))
    return torch.zeros_like(x_0, dtype=part.dtype).index_copy(0, rows, part)


def _mixes_or_is_watched(module: nn.Module) -> bool:
    batch_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
    mixes = module.training or (batch_norm and module.running_mean is None)
    return bool(mixes or module._forward_hooks or module._forward_pre_hooks)


def _autocast_dtype(x: Tensor) -> Optional[torch.dtype]:
    kind = x.device.type
    applies = torch.is_autocast_enabled(kind) and x.dtype != torch.float64
    return torch.get_autocast_dtype(kind) if applies else None


def graph_stages(model: nn.Module) -> dict[str, GraphStage]:
    """The graph stages of a model by module name.

    Raises:
        ValueError: There is none.
    """
    stages = {n: module for n, module in model.named_modules() if isinstance(module, GraphStage)}
    if not stages:
        raise ValueError(f'{type(model).__name__} has no graph stage')
    return stages
