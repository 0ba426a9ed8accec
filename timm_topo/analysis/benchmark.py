"""The yardstick: our executor beside plain networks, a naive loop and no aggregation at all.

Everything is a ratio within one process: networks run in turn, round by round, so that what else
the machine does hits all alike.
"""

import copy
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from ..generators import complete
from ..stages import CrossStageGraph, GraphStage, graph_stages
from .cost import Latency, latency
from .prune import prune

__all__ = [
    'SUITES',
    'as_floor',
    'as_naive',
    'markdown',
    'peak_memory',
    'saved_memory',
    'suite',
    'write_json',
]

_ROUTED = 'dgnet_resnet50'
_MAIN, _PLAIN = 'toponet_adaptive', 'resnet50'
_SMALL, _SMALL_PLAIN = 'toporesnet20', 'resnet_cifar20'


# -- other executors ------------------------------------------------------------------------------


def as_naive(model: nn.Module) -> nn.Module:
    """A copy whose stages add products up one by one, x'_j = sum_i a_ij * x_i.

    Args:
        model: A model with stages that are :class:`GraphStage` or :class:`CrossStageGraph`.
    """
    return _executed_by(_naive, model)


def as_floor(model: nn.Module) -> nn.Module:
    """A copy whose nodes read their last source alone, unweighed: what nodes cost without edges."""
    return _executed_by(_floor, model)


def _executed_by(run: Callable, model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    for name, stage in graph_stages(model).items():
        if type(stage) not in (GraphStage, CrossStageGraph) or stage.needs_context:
            raise ValueError(f'{name}: only static sums over maps have a naive form')
        stage.forward = partial(run, stage)
    return model


def _naive(stage: GraphStage, x: Tensor) -> Tensor:
    weights = stage.connectivity.pass_weights()

    def read(node: int, maps: list[Tensor]) -> Tensor:
        start, stop = stage.wiring.in_edges[node]
        inputs = stage.inputs(node, x, maps)
        return sum(a * x_i for a, x_i in zip(weights[start:stop], inputs))

    return _run(stage, x, read)


def _floor(stage: GraphStage, x: Tensor) -> Tensor:
    for module in stage.nodes.modules():
        if getattr(module, 'inplace', False):
            module.inplace = False  # what it reads is no sum of its own
    return _run(stage, x, lambda node, maps: stage.inputs(node, x, maps)[-1])


def _run(stage: GraphStage, x: Tensor, read: Callable) -> Tensor:
    maps = stage.offer(0, stage.entry(x), [])
    for number, node in enumerate(stage.nodes, start=1):
        maps = stage.offer(number, node(read(number, maps)), maps)
    return read(stage.wiring.num_nodes - 1, maps)


# -- memory ---------------------------------------------------------------------------------------


def saved_memory(model: nn.Module, images: Tensor) -> int:
    """Bytes that autograd keeps between forward and backward, parameters left out.

    A storage counts once, however many tensors are views of it.
    """
    own = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    kept, alive = {}, []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(storage)  # so that no later tensor takes its address
        return tensor

    model.train()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(images).sum()
    del loss
    return sum(kept.values())


def peak_memory(name: str, executor: str, shape: Sequence[int]) -> int:
    """Growth of the resident memory of a new process at its peak in a training step, in bytes.

    Gradients of parameters are part of it. Linux only.

    Args:
        name: A registered model.
        executor: ``'ours'``, ``'naive'`` or ``'floor'``.
        shape: Of the images, ``(B, C, H, W)``.
    """
    program = (
        'import sys, timm_topo.analysis.benchmark as b; '
        'print(b._peak(sys.argv[1], sys.argv[2], eval(sys.argv[3])))'
    )
    done = subprocess.run(
        [sys.executable, '-c', program, name, executor, repr(tuple(shape))],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return int(done.stdout)


def _peak(name: str, executor: str, shape: Sequence[int]) -> int:
    model = _executor(executor)(timm.create_model(name)).train()
    images = torch.randn(shape)
    model(images[:1]).sum().backward()  # libraries load kernels when they are first used
    model.zero_grad(set_to_none=True)
    Path('/proc/self/clear_refs').write_text('5')  # forget the peak so far (Linux)
    before = _resident('VmRSS')
    model(images).sum().backward()
    return _resident('VmHWM') - before


def _resident(kind: str) -> int:
    """Bytes of this process in memory, now (VmRSS) or at the peak (VmHWM)."""
    lines = Path('/proc/self/status').read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(kind))


def _executor(name: str) -> Callable[[nn.Module], nn.Module]:
    return {'ours': lambda model: model, 'naive': as_naive, 'floor': as_floor}[name]


# -- suites ---------------------------------------------------------------------------------------


def suite(name: str, rounds: int = 10, device: str = 'cpu') -> list[dict]:
    """Run one of :data:`SUITES`.

    Args:
        name: Which.
        rounds: Repetitions of every measurement of time, after two that do not count.
        device: Where networks run.

    Returns:
        Rows with ``suite``, ``of`` (what was measured), ``network``, and numbers.

    Raises:
        ValueError: An unknown suite.
    """
    if name not in SUITES:
        raise ValueError(f'unknown suite {name!r}; known: {", ".join(SUITES)}')
    return [{'suite': name, **row} for row in SUITES[name](rounds, device)]


def _timed(of: str, models: dict, shape: Sequence[int], rounds: int, device: str) -> list[dict]:
    """Rows of forward and of forward and backward; ratios are to the first model."""
    models = {label: model.to(device) for label, model in models.items()}
    batch, *size = shape
    rows = []
    for mode, training in (('forward', False), ('forward and backward', True)):
        times = latency(models, size, batch, rounds, training=training)
        rows += [
            {'of': f'{of}, {mode}', 'network': label, **_numbers(taken)}
            for label, taken in times.items()
        ]
    return rows


def _numbers(taken: Latency) -> dict:
    return {
        'ratio': round(taken.ratio, 3),
        'low': round(taken.ratios[0], 3),
        'high': round(taken.ratios[1], 3),
        'ms': round(taken.median, 2),
    }


def _beside(plain: str, name: str) -> dict[str, nn.Module]:
    model = timm.create_model(name)
    return {
        plain: timm.create_model(plain),
        name: model,
        f'{name}, naive loop': as_naive(model),
        f'{name}, nodes alone': as_floor(model),
    }


def _main(rounds: int, device: str) -> list[dict]:
    """(1) and (2): TopoNet and ResNet-50, our executor, a naive loop and no aggregation."""
    models = _beside(_PLAIN, _MAIN)
    _check_equal(models[_MAIN], models[f'{_MAIN}, naive loop'], (2, 3, 64, 64))
    return _timed('8 images of 224 px', models, (8, 3, 224, 224), rounds, device)


def _cifar(rounds: int, device: str) -> list[dict]:
    """The same at CIFAR size."""
    models = _beside(_SMALL_PLAIN, _SMALL)
    _check_equal(models[_SMALL], models[f'{_SMALL}, naive loop'], (2, 3, 32, 32))
    return _timed('128 images of 32 px', models, (128, 3, 32, 32), rounds, device)


def _routed(rounds: int, device: str) -> list[dict]:
    """(3): weights per image beside weights for all, and beside the plain network."""
    models = {
        _PLAIN: timm.create_model(_PLAIN),
        f'{_ROUTED}, static': timm.create_model(_ROUTED, connectivity='alpha'),
        _ROUTED: timm.create_model(_ROUTED),
    }
    return _timed('8 images of 224 px', models, (8, 3, 224, 224), rounds, device)


def _pruned(rounds: int, device: str) -> list[dict]:
    """(4): what removing edges gains."""
    torch.manual_seed(0)
    model = timm.create_model(_MAIN)
    for stage in graph_stages(model).values():
        nn.init.uniform_(stage.connectivity.alpha)
    models = {f'{_MAIN}, nodes alone': as_floor(model), _MAIN: model}
    for percent in (20, 40, 60, 80):
        models[f'{percent}% of edges removed'] = prune(
            model, fraction=percent / 100, relative=True, probe=torch.randn(1, 3, 64, 64)
        )[0]
    return _timed('8 images of 224 px', models, (8, 3, 224, 224), rounds, device)


def _memory(rounds: int, device: str) -> list[dict]:
    """(5): a training step, by what autograd keeps and by what the process takes."""
    rows = []
    for plain, name, shape in (
        (_PLAIN, _MAIN, (8, 3, 224, 224)), (_SMALL_PLAIN, _SMALL, (128, 3, 32, 32))
    ):  # fmt: skip
        unit = None
        for label, network, executor in (
            (plain, plain, 'ours'), (name, name, 'ours'),
            (f'{name}, naive loop', name, 'naive'), (f'{name}, nodes alone', name, 'floor'),
        ):  # fmt: skip
            model = _executor(executor)(timm.create_model(network))
            saved = saved_memory(model, torch.randn(shape)) / 2**20
            peak = peak_memory(network, executor, shape) / 2**20
            unit = unit or (saved, peak)
            rows.append({
                'of': f'{shape[0]} images of {shape[-1]} px, a training step', 'network': label,
                'saved MiB': round(saved), 'saved ratio': round(saved / unit[0], 3),
                'peak MiB': round(peak), 'peak ratio': round(peak / unit[1], 3),
            })  # fmt: skip
    return rows


def _growth(rounds: int, device: str) -> list[dict]:
    """(6): cost against nodes, batch and resolution."""
    rows = []
    for nodes in (8, 16, 32, 64):
        model = timm.create_model(
            'test_toponet', num_nodes=None, wiring=[complete(nodes)], widths=(64,), strides=(2,)
        )
        models = {'nodes alone': as_floor(model), 'ours': model, 'naive loop': as_naive(model)}
        edges, size = complete(nodes).num_edges, (8, 3, 64, 64)
        rows += _timed(f'{nodes} nodes, {edges} edges', models, size, rounds, device)
    for of, batch, pixels in (('batch', 1, 128), ('batch', 4, 128), ('batch', 16, 128),
                              ('resolution', 4, 64), ('resolution', 4, 224)):  # fmt: skip
        models = {_PLAIN: timm.create_model(_PLAIN), _MAIN: timm.create_model(_MAIN)}
        shape = (batch, 3, pixels, pixels)
        rows += _timed(f'{of}: {batch} x {pixels} px', models, shape, rounds, device)
    return rows


def _start(rounds: int, device: str) -> list[dict]:
    """Import, creation, also without memory on the meta device."""
    rows = []
    base = 'import timm'
    for label, program in (('import timm', base), ('import timm_topo', 'import timm_topo')):
        taken = []
        for _ in range(min(rounds, 5)):
            start = time.perf_counter()
            subprocess.run([sys.executable, '-c', program], check=True)
            taken.append(time.perf_counter() - start)
        ms = round(1000 * sorted(taken)[len(taken) // 2])
        rows.append({'of': 'import', 'network': label, 'ms': ms})
    for place in ('cpu', 'meta'):
        for name in (_PLAIN, _MAIN, _ROUTED, 'dagnet60'):
            taken = []
            for _ in range(min(rounds, 5)):
                start = time.perf_counter()
                with torch.device(place):
                    timm.create_model(name)
                taken.append(time.perf_counter() - start)
            ms = round(1000 * sorted(taken)[len(taken) // 2])
            rows.append({'of': f'creation on {place}', 'network': name, 'ms': ms})
    return rows


def _check_equal(model: nn.Module, other: nn.Module, shape: Sequence[int]) -> None:
    """Values and gradients of two executors of the same network.

    Raises:
        RuntimeError: They differ.
    """
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    results = []
    for one in (copy.deepcopy(model), copy.deepcopy(other)):
        output = one.train()(images)
        output.square().mean().backward()
        results.append([output.detach(), *(p.grad for p in one.parameters())])
    for mine, theirs in zip(*results):
        if not torch.allclose(mine, theirs, rtol=1e-2, atol=1e-3 * theirs.abs().max().item()):
            raise RuntimeError('the naive loop computes something else: the benchmark is void')


#: What can be measured, by name.
SUITES = {
    'main': _main,
    'cifar': _cifar,
    'routed': _routed,
    'pruned': _pruned,
    'memory': _memory,
    'growth': _growth,
    'start': _start,
}


def markdown(rows: Sequence[dict]) -> str:
    """Rows as Markdown tables, one per suite and measurement."""
    parts = []
    groups = {}
    for row in rows:
        groups.setdefault((row['suite'], row['of']), []).append(row)
    for (name, of), some in groups.items():
        columns = [c for c in some[0] if c not in ('suite', 'of')]
        lines = [f'**{name}: {of}**', '', '| ' + ' | '.join(columns) + ' |']
        lines.append('|' + '---|' * len(columns))
        lines += ['| ' + ' | '.join(str(row.get(c, '')) for c in columns) + ' |' for row in some]
        parts.append('\n'.join(lines))
    return '\n\n'.join(parts) + '\n'


def write_json(rows: Sequence[dict], path: str | Path, **about) -> None:
    """Rows and what they were measured on and with."""
    path = Path(path)
    part = path.with_name(f'.{path.name}.part')
    part.write_text(json.dumps({**about, 'rows': list(rows)}, indent=1), encoding='utf-8')
    part.replace(path)
