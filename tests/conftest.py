"""What several test files share: determinism, random models, a naive executor, running tools."""

import os
import runpy
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from torch import nn

ROOT = Path(__file__).parents[1]

if not torch.cuda.is_available():
    os.environ.setdefault('TRITON_INTERPRET', '1')  # before Triton is imported: kernels run on CPU

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

    def naive_stage(stage: nn.Module, x: torch.Tensor) -> torch.Tensor:
        weights = stage.connectivity.edge_weights()
        features = {0: stage.entry(x)}
        for node in range(1, stage.wiring.num_nodes):
            total = 0
            for edge, (source, target) in enumerate(stage.wiring.edges):
                if target == node:
                    raw = stage.raw_entry and target == 1
                    total = total + weights[edge] * (x if raw else features[source])
            last = node == stage.wiring.num_nodes - 1
            features[node] = total if last else stage.nodes[node - 1](total)
        return features[stage.wiring.num_nodes - 1]

    return naive_stage


@pytest.fixture
def tool(monkeypatch, capsys):
    """Function that runs a tool in this process: exit status, standard output and error."""

    def tool(name: str, *args) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, 'argv', [f'tools/{name}.py', *map(str, args)])
        status = 0
        try:
            runpy.run_path(str(ROOT / 'tools' / f'{name}.py'), run_name='__main__')
        except SystemExit as stop:  # as the interpreter does it
            status = stop.code or 0
            if isinstance(status, str):
                print(status, file=sys.stderr)
                status = 1
        out, err = capsys.readouterr()
        return status, out, err

    return tool
