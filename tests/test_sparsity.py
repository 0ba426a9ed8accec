"""L1 on edge weights against loops over edges (TopoNet, Eqs. 6 to 8)."""

import math

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from timm_topo.connectivity import build_connectivity
from timm_topo.generators import complete, random, sequential
from timm_topo.sparsity import SPARSITY, check_sparsity, edge_penalty, sparsity_loss
from timm_topo.stages import GraphStage

PENALTY = {
    'none': lambda in_degree: 0.0,
    'uniform': lambda in_degree: 1.0,
    'adaptive': math.log,
}


def make_model(*wirings, rule='alpha', dtype=torch.float64) -> nn.Sequential:
    """Stages with edge weights of both signs."""
    stages = [
        GraphStage(
            wiring,
            build_connectivity(rule, wiring, dtype=dtype),
            nn.Identity(),
            [nn.Identity() for _ in range(wiring.num_nodes - 2)],
        )
        for wiring in wirings
    ]
    with torch.no_grad():
        for stage in stages:
            stage.connectivity.alpha.uniform_(-2, 2)
    return nn.Sequential(*stages)


def naive_loss(model: nn.Sequential, kind: str) -> float:
    total = 0.0
    for stage in model:
        weights = stage.connectivity.edge_weights().tolist()
        for weight, (_, target) in zip(weights, stage.wiring.edges):
            in_degree = sum(t == target for _, t in stage.wiring.edges)
            total += PENALTY[kind](in_degree) * abs(weight)
    return total


@given(st.integers(2, 8), st.floats(0, 1), st.integers(0, 99), st.sampled_from(['alpha', 'tanh']))
@pytest.mark.parametrize('kind', PENALTY)
def test_the_loss_is_a_sum_over_the_edges_of_all_stages(kind, n, p, seed, rule):
    model = make_model(random(n, p, seed), complete(4), rule=rule)
    assert sparsity_loss(model, kind).item() == pytest.approx(naive_loss(model, kind), rel=1e-6)


def test_every_kind_is_tested_here():
    assert SPARSITY.keys() == PENALTY.keys()


def test_adaptive_penalises_by_the_logarithm_of_the_in_degree():
    expected = [0.0] + [math.log(2)] * 2 + [math.log(3)] * 3
    torch.testing.assert_close(edge_penalty(complete(4), 'adaptive'), torch.tensor(expected))


def test_a_sole_in_edge_is_free_under_adaptive_only():
    model = make_model(sequential(5))
    assert sparsity_loss(model, 'adaptive').item() == 0
    assert sparsity_loss(model, 'uniform').item() > 0


@pytest.mark.parametrize('kind', PENALTY)
def test_gradients_are_the_sign_of_the_weight_times_the_penalty(kind):
    wiring = complete(5)
    model = make_model(wiring)
    alpha = model[0].connectivity.alpha
    (sparsity_loss(model, kind) + 0 * alpha.sum()).backward()
    torch.testing.assert_close(
        alpha.grad, alpha.detach().sign() * edge_penalty(wiring, kind).double()
    )


def test_the_penalty_is_on_the_weight_not_on_what_is_stored():
    model = make_model(complete(4), rule='tanh')
    alpha = model[0].connectivity.alpha
    torch.testing.assert_close(sparsity_loss(model, 'uniform'), alpha.tanh().abs().sum())
    sparsity_loss(model, 'uniform').backward()
    torch.testing.assert_close(alpha.grad, alpha.sign() * (1 - alpha.tanh() ** 2))


def test_no_sparsity_is_zero_in_the_dtype_of_the_model():
    loss = sparsity_loss(make_model(complete(4)), 'none')
    assert loss.shape == ()
    assert loss.item() == 0
    assert loss.dtype == torch.float64


def test_the_models_own_kind_is_the_default(randomise):
    model = randomise(timm.create_model('test_toponet', sparsity='uniform'))
    torch.testing.assert_close(sparsity_loss(model), sparsity_loss(model, 'uniform'))
    torch.testing.assert_close(model.sparsity_loss(), sparsity_loss(model, 'uniform'))
    assert not torch.allclose(sparsity_loss(model), sparsity_loss(model, 'adaptive'))


def test_the_penalty_follows_the_dtype_and_device_of_the_weights():
    """It is kept between calls: what was kept for one dtype must not serve another."""
    model = make_model(complete(5), dtype=torch.float32)
    for dtype, rel in ((torch.bfloat16, 1e-2), (torch.float32, 1e-6), (torch.float64, 1e-12)):
        loss = sparsity_loss(model.to(dtype), 'adaptive')
        assert loss.dtype == dtype
        assert loss.item() == pytest.approx(naive_loss(model, 'adaptive'), rel=rel)
    loss.backward()
    assert sparsity_loss(model.to('meta'), 'adaptive').is_meta


def test_unknown_sparsity_is_refused():
    message = "unknown sparsity 'l2'; known: none, uniform, adaptive"
    for call in (
        lambda: check_sparsity('l2'),
        lambda: edge_penalty(complete(3), 'l2'),
        lambda: sparsity_loss(make_model(complete(3)), 'l2'),
        lambda: timm.create_model('test_toponet', sparsity='l2'),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_the_penalty_serves_training_after_evaluation():
    model = make_model(complete(6))
    with torch.inference_mode():
        sparsity_loss(model, 'adaptive')
    sparsity_loss(model, 'adaptive').backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize('kind', PENALTY)
def test_a_model_without_graph_stages_cannot_be_made_sparse(kind):
    with pytest.raises(ValueError, match='Linear has no graph stage'):
        sparsity_loss(nn.Linear(2, 2), kind)
