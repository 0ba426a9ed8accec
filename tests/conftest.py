"""What several test files share: determinism, random models, a naive executor, running tools."""

import argparse
import copy
import importlib
import os
import runpy
import shlex
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault('TRITON_INTERPRET', '1')  # before Triton is imported: kernels run on CPU

from hypothesis import settings
from torch import Tensor, nn

from timm_topo.cli import COMMANDS, main
from timm_topo.connectivity import build_connectivity
from timm_topo.executors import chunked
from timm_topo.nodes import NODES
from timm_topo.stages import Executor, GraphStage, use
from timm_topo.training.options import parse_args
from timm_topo.wiring import Wiring

ROOT = Path(__file__).parents[1]

settings.register_profile(
    'deterministic', derandomize=True, deadline=None, max_examples=50, database=None
)
settings.load_profile('deterministic')


@pytest.fixture(autouse=True)
def _seed():
    """The same random numbers for a test, whichever tests ran before it."""
    torch.manual_seed(0)


@pytest.fixture(scope='session')
def randomise():
    """Function that moves norms and edge weights of a model away from their initial values.

    Fresh batch norm is nearly the identity and fresh edge weights are all equal: a sum in the
    wrong order or a norm left out would go unseen.
    """

    @torch.no_grad()
    def randomise(model: nn.Module) -> nn.Module:
        for module in model.modules():
            if hasattr(module, 'running_mean'):
                module.running_mean.normal_(0, 0.5)
                module.running_var.uniform_(0.5, 2)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.5)
        for name, parameter in model.named_parameters():
            if name.endswith('alpha'):
                parameter.uniform_(-1, 1)
        return model

    return randomise


@pytest.fixture(scope='session')
def naive_stage():
    """Function that runs a ``GraphStage`` edge by edge, with products and sums only."""

    def naive_stage(stage: nn.Module, x: Tensor) -> Tensor:
        weights = stage.connectivity.edge_weights()
        features = {0: stage.entry(x)}
        for node in range(1, stage.wiring.num_nodes):
            total = 0
            for edge, (source, target) in enumerate(stage.wiring.edges):
                if target == node:
                    raw = stage.first_reads_input and target == 1
                    total = total + weights[edge] * (x if raw else features[source])
            last = node == stage.wiring.num_nodes - 1
            features[node] = total if last else stage.nodes[node - 1](total)
        return features[stage.wiring.num_nodes - 1]

    return naive_stage


@pytest.fixture(scope='session')
def stage_of():
    """Function that builds a stage from 3 to 4 channels; norms and edge weights are drawn."""

    @torch.no_grad()
    def stage_of(
        wiring: Wiring,
        rule: str | dict = 'alpha',
        node: str = 'sepconv',
        channels: int = 4,
        dtype: torch.dtype = torch.float64,
    ) -> GraphStage:
        parts = NODES[node](3, channels, wiring.num_nodes - 2, stride=2, dilation=1)
        rule = build_connectivity(rule, wiring, channels)
        stage = GraphStage(wiring, rule, parts.entry, parts.nodes, parts.first_reads_input)
        draw = torch.Generator().manual_seed(wiring.num_edges)
        for name, tensor in stage.state_dict().items():
            if name.endswith(('running_var', 'mask')):
                tensor.uniform_(0.5, 1, generator=draw)
            elif tensor.is_floating_point():
                tensor.normal_(generator=draw)
        return stage.to(dtype)

    return stage_of


@pytest.fixture(scope='session')
def results():
    """Function that runs a copy of a stage, and backward where gradients are on: what it computes.

    The output, the gradients of the input and of all parameters, and the buffers, by name.
    """

    def results(
        stage: nn.Module, x: Tensor, executor: str | Executor | None = None
    ) -> dict[str, Tensor | None]:
        grad, stage = torch.is_grad_enabled(), copy.deepcopy(stage)
        before, x = x, x.clone().requires_grad_(grad)
        torch.manual_seed(0)  # masks are drawn
        with use(executor) if executor else nullcontext():
            output = stage(x)
        assert torch.equal(x, before), 'a stage leaves its input as it is'
        found = {'output': output.detach(), **dict(stage.named_buffers())}
        if grad:
            toward = torch.linspace(-1, 1, output.numel(), dtype=output.dtype, device=x.device)
            (output * toward.view_as(output)).sum().backward()
            found['input'] = x.grad
            found |= {f'gradient of {name}': p.grad for name, p in stage.named_parameters()}
        return found

    return results


@pytest.fixture(scope='session')
def assert_same():
    """Function that asserts that two :func:`results` are equal."""

    def assert_same(mine: dict, theirs: dict, rtol: float = 1e-7, atol: float = 1e-9) -> None:
        assert mine.keys() == theirs.keys()
        for name, tensor in mine.items():
            assert (tensor is None) == (theirs[name] is None), name
            if tensor is not None:
                torch.testing.assert_close(
                    tensor, theirs[name], rtol=rtol, atol=atol, msg=lambda m, n=name: f'{n}: {m}'
                )

    return assert_same


@pytest.fixture
def one_image_at_a_time(monkeypatch):
    """Caches so small that batches are split into single images."""
    monkeypatch.setattr(chunked, '_CACHE', 1)


@pytest.fixture
def tool(monkeypatch, capsys):
    """Function that runs a tool, or a command of ``topo``, in this process.

    Returns exit status, standard output and error.
    """

    def tool(name: str, *args) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, 'argv', [f'tools/{name}.py', *map(str, args)])
        status = 0
        try:
            if name in COMMANDS and name != 'train':
                sys.exit(main([name, *map(str, args)]))
            folder = 'd2_topo' if name == 'train_net' else 'tools'
            runpy.run_path(str(ROOT / folder / f'{name}.py'), run_name='__main__')
        except SystemExit as stop:  # as the interpreter does it
            status = stop.code or 0
            if isinstance(status, str):
                print(status, file=sys.stderr)
                status = 1
        out, err = capsys.readouterr()
        return status, out, err

    return tool


@pytest.fixture
def check_example(monkeypatch):
    """Function that runs a line of ``topo``, but for what it does; what its command was told."""

    def check_example(line: str) -> argparse.Namespace:
        _, name, *rest = shlex.split(line.partition(' | ')[0], comments=True)
        module = importlib.import_module(f'timm_topo.cli.{name}')
        seen = []
        monkeypatch.setattr(module, 'run', lambda args: seen.append(args) or {})
        monkeypatch.setattr(module, 'text', lambda result: '')
        assert main([name, *rest]) == 0
        (args,) = seen
        if getattr(args, 'training', None):
            parse_args(args.training)
        return args

    return check_example
