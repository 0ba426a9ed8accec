"""The training task: timm's loss plus the L1 on edge weights; and weight decay, which has none."""

import logging
import math

import pytest
import timm
import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.task.classification import ClassificationTask
from torch import Tensor, nn

import timm_topo  # noqa: F401  registers the models
from timm_topo.analysis.prune import freeze_edge_weights, prune
from timm_topo.checkpoint import build_described
from timm_topo.connectivity import exempt_from_weight_decay
from timm_topo.connectivity.learned import AlphaConnectivity
from timm_topo.stages import graph_stages
from timm_topo.task import TopoDistillationTask, TopoTask

KINDS = {'none': lambda in_degree: 0.0, 'uniform': lambda in_degree: 1.0, 'adaptive': math.log}
LAMBDA = 0.25


def tiny(**options) -> nn.Module:
    """Two stages of 3 and 4 nodes; the loss of an image does not depend on the others."""
    options = dict(sparsity='adaptive', sparsity_weight=LAMBDA) | options
    return timm.create_model(
        'test_toponet',
        num_nodes=(3, 4),
        widths=(8, 12),
        strides=(2, 2),
        stem_width=8,
        stem_kernel=3,
        num_classes=5,
        norm_layer='layernorm2d',
        **options,
    )


def batch(size: int = 8, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return torch.randn(size, 3, 32, 32, dtype=dtype), torch.arange(size) % 5


def naive_edges(model: nn.Module, kind: str):
    """(parameter, index, penalty) of every edge."""
    for stage in model.stages:
        targets = [target for _, target in stage.wiring.edges]
        for edge, target in enumerate(targets):
            yield stage.connectivity.alpha, edge, KINDS[kind](targets.count(target))


def naive_penalty(model: nn.Module, kind: str) -> float:
    return sum(
        penalty * abs(alpha[edge].item()) for alpha, edge, penalty in naive_edges(model, kind)
    )


def naive_penalty_gradient(model: nn.Module, kind: str) -> dict[str, Tensor]:
    """d penalty / d alpha by parameter name, zero for every other parameter."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    gradient = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for alpha, edge, penalty in naive_edges(model, kind):
        gradient[names[id(alpha)]][edge] = penalty * math.copysign(1, alpha[edge].item())
    return gradient


def gradients(task: nn.Module, model: nn.Module, images: Tensor, target: Tensor) -> dict:
    """Gradient of every parameter of ``model`` after one backward pass of ``task``."""
    model.zero_grad()
    task(images, target)['loss'].backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


# -- the loss -------------------------------------------------------------------------------------


def test_a_result_has_loss_output_and_both_parts_detached():
    task = TopoTask(tiny())
    images, target = batch()
    result = task(images, target)
    assert result.keys() == {'loss', 'output', 'task_loss', 'sparsity'}
    assert result['output'].shape == (8, 5)
    assert all(result[name].shape == () for name in ('loss', 'task_loss', 'sparsity'))
    assert result['loss'].requires_grad
    assert not result['task_loss'].requires_grad
    assert not result['sparsity'].requires_grad


@pytest.mark.parametrize('kind', KINDS)
def test_the_loss_is_the_task_loss_plus_lambda_times_the_penalty(kind, randomise):
    model = randomise(tiny(sparsity=kind).double())
    images, target = batch(dtype=torch.float64)
    result = TopoTask(model)(images, target)
    penalty = naive_penalty(model, kind)
    task_loss = F.cross_entropy(model(images), target).item()
    assert result['task_loss'].item() == pytest.approx(task_loss, rel=1e-12)
    assert result['sparsity'].item() == pytest.approx(penalty, rel=1e-6)
    assert result['loss'].item() == pytest.approx(task_loss + LAMBDA * penalty, rel=1e-6)
    assert (penalty > 0) == (kind != 'none')


@pytest.mark.parametrize('kind', KINDS)
def test_gradients_are_those_of_timms_task_plus_lambda_penalty_sign_on_alpha(kind, randomise):
    model = randomise(tiny(sparsity=kind).double())
    images, target = batch(dtype=torch.float64)
    ours = gradients(TopoTask(model), model, images, target)
    timms = gradients(ClassificationTask(model), model, images, target)
    for name, extra in naive_penalty_gradient(model, kind).items():
        torch.testing.assert_close(ours[name], timms[name] + LAMBDA * extra, rtol=1e-6, atol=1e-9)


def test_autocast_rounds_neither_the_penalty_nor_its_gradient(randomise):
    model = randomise(tiny())
    images, target = batch()
    with torch.autocast('cpu', torch.bfloat16):
        result = TopoTask(model)(images, target)
        ours = gradients(TopoTask(model), model, images, target)
        timms = gradients(ClassificationTask(model), model, images, target)
    assert result['output'].dtype == torch.bfloat16
    assert result['loss'].dtype == result['sparsity'].dtype == torch.float32
    assert result['sparsity'].item() == pytest.approx(naive_penalty(model, 'adaptive'), rel=1e-6)
    for name, extra in naive_penalty_gradient(model, 'adaptive').items():
        torch.testing.assert_close(ours[name], timms[name] + LAMBDA * extra, rtol=1e-5, atol=1e-6)


def test_soft_targets_are_trained_on_as_timm_does(randomise):
    model = randomise(tiny())
    images, _ = batch()
    target = torch.rand(8, 5).softmax(1)
    ours = TopoTask(model, criterion_kwargs=dict(soft_targets=True))(images, target)
    timms = ClassificationTask(model, criterion_kwargs=dict(soft_targets=True))(images, target)
    torch.testing.assert_close(ours['task_loss'], timms['loss'])
    expected = timms['loss'].item() + LAMBDA * naive_penalty(model, 'adaptive')
    assert ours['loss'].item() == pytest.approx(expected, rel=1e-5)


def test_a_model_of_timm_trains_as_in_timm():
    model = timm.create_model('test_resnet', num_classes=5).eval()
    images, target = batch()
    result = TopoTask(model)(images, target)
    assert result['loss'].item() == result['task_loss'].item()
    assert result['sparsity'].item() == 0
    ours = gradients(TopoTask(model), model, images, target)
    timms = gradients(ClassificationTask(model), model, images, target)
    torch.testing.assert_close(ours, timms, rtol=0, atol=0)


def test_kind_and_lambda_are_the_models_options():
    task = TopoTask(timm.create_model('test_toponet', sparsity='uniform', sparsity_weight=0.125))
    assert (task.sparsity, task.sparsity_weight) == ('uniform', 0.125)
    task = TopoTask(timm.create_model('test_toponet'))
    assert (task.sparsity, task.sparsity_weight) == ('adaptive', 1e-4)


def test_the_task_says_what_it_adds(caplog):
    with caplog.at_level(logging.INFO, 'timm_topo.task'):
        TopoTask(tiny(), verbose=False)
        assert not caplog.messages
        TopoTask(tiny(), verbose=True)
    assert 'TopoTask: sparsity=adaptive, weight=0.25' in caplog.messages


def test_a_model_of_unknown_sparsity_is_refused():
    model = tiny()
    model.sparsity = 'l2'
    with pytest.raises(ValueError, match="unknown sparsity 'l2'; known: none, uniform, adaptive"):
        TopoTask(model)


# -- accumulation, compilation, processes ---------------------------------------------------------


def test_accumulated_gradients_are_those_of_one_big_batch(randomise):
    model = randomise(tiny().double())
    task = TopoTask(model)
    images, target = batch(dtype=torch.float64)
    whole = gradients(task, model, images, target)
    model.zero_grad()
    for part in range(4):
        rows = slice(2 * part, 2 * part + 2)
        (task(images[rows], target[rows])['loss'] / 4).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, whole[name])


@pytest.fixture
def one_process(tmp_path):
    """A process group of this process alone."""
    init = f'file://{tmp_path / "rendezvous"}'
    dist.init_process_group('gloo', init_method=init, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def routed() -> nn.Module:
    """A network whose edge weights depend on the image."""
    model = tiny(connectivity='router')
    with torch.no_grad():
        for stage in model.stages:
            stage.connectivity.weight.normal_()
    return model


@pytest.mark.parametrize('wrappers', [('compile',), ('ddp',), ('compile', 'ddp')], ids='+'.join)
@pytest.mark.parametrize('kind', ['static', 'routed'])
def test_the_penalty_reaches_a_compiled_or_distributed_model(
    kind, wrappers, randomise, one_process
):
    model = routed() if kind == 'routed' else randomise(tiny())
    images, target = batch()
    plain = TopoTask(model)(images, target)
    expected = gradients(TopoTask(model), model, images, target)
    task = TopoTask(model)
    if 'compile' in wrappers:
        task.compile(backend='aot_eager')
    if 'ddp' in wrappers:
        task.prepare_distributed(device_ids=[torch.device('cpu')])
    assert type(task.get_trainable_module()) is not type(model)
    for _ in range(2):
        result = task(images, target)
        assert result['sparsity'] > 0
        for name in ('loss', 'task_loss', 'sparsity'):
            torch.testing.assert_close(result[name], plain[name])
    torch.testing.assert_close(gradients(task, model, images, target), expected)


# -- weight decay ---------------------------------------------------------------------------------


def one_raw_group(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.5, weight_decay=0.1)


def one_group_by_timm(model: nn.Module) -> torch.optim.Optimizer:
    def everything(model: nn.Module) -> list[dict]:
        return [dict(params=list(model.parameters()), weight_decay=0.1)]

    return create_optimizer_v2(model, 'sgd', lr=0.5, param_group_fn=everything)


def two_groups_by_stage(model: nn.Module) -> torch.optim.Optimizer:
    early = [p for name, p in model.named_parameters() if name.startswith(('stem', 'stages.0'))]
    late = [p for name, p in model.named_parameters() if name.startswith(('stages.1', 'head'))]
    groups = [dict(params=early, lr=0.25), dict(params=late, weight_decay=0.2)]
    return torch.optim.SGD(groups, lr=0.5, weight_decay=0.1)


def a_group_of_its_own(model: nn.Module) -> torch.optim.Optimizer:
    alphas = [p for name, p in model.named_parameters() if name.endswith('alpha')]
    others = [p for name, p in model.named_parameters() if not name.endswith('alpha')]
    groups = [dict(params=alphas, lr=0.25), dict(params=others)]
    return torch.optim.SGD(groups, lr=0.5, weight_decay=0.1)


def options(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, tuple]:
    """(weight decay, learning rate) by parameter name; every parameter must be there once."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    pairs = [
        (names[id(parameter)], (group['weight_decay'], group['lr']))
        for group in optimizer.param_groups
        for parameter in group['params']
    ]
    assert sorted(name for name, _ in pairs) == sorted(names.values())
    return dict(pairs)


GROUPINGS = [one_raw_group, one_group_by_timm, two_groups_by_stage, a_group_of_its_own]


@pytest.mark.parametrize('grouping', GROUPINGS)
def test_edge_weights_leave_weight_decay_and_nothing_else_changes(grouping):
    model = tiny()
    optimizer = grouping(model)
    expected = {
        name: (0.0 if name.endswith('alpha') else decay, lr)
        for name, (decay, lr) in options(optimizer, model).items()
    }
    assert expected != options(optimizer, model), 'this grouping decays edge weights'
    exempt_from_weight_decay(optimizer, model)
    assert options(optimizer, model) == expected
    assert all(group['params'] for group in optimizer.param_groups)


@pytest.mark.parametrize('grouping', GROUPINGS)
def test_a_step_without_gradient_shrinks_kernels_and_no_edge_weight(grouping):
    model = tiny()
    optimizer = grouping(model)
    exempt_from_weight_decay(optimizer, model)
    before = model.stem.conv.weight.detach().clone()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert all((stage.connectivity.alpha == 1).all() for stage in model.stages)
    assert (model.stem.conv.weight.abs() < before.abs()).all()


def test_edge_weights_that_are_exempt_already_stay_where_they_are():
    model = tiny()
    timms = create_optimizer_v2(model, 'sgd', lr=0.5, weight_decay=0.1)
    raw = one_raw_group(model)
    exempt_from_weight_decay(raw, model)
    for optimizer in (timms, raw):
        before = [(group, list(group['params'])) for group in optimizer.param_groups]
        exempt_from_weight_decay(optimizer, model)
        assert len(optimizer.param_groups) == len(before)
        for group, (old, params) in zip(optimizer.param_groups, before):
            assert group is old
            assert [id(p) for p in group['params']] == [id(p) for p in params]


def test_a_rule_may_ask_for_weight_decay(monkeypatch):
    monkeypatch.setattr(AlphaConnectivity, 'decayed', ('alpha',))
    model = tiny()
    optimizer = one_raw_group(model)
    exempt_from_weight_decay(optimizer, model)
    assert {decay for decay, _ in options(optimizer, model).values()} == {0.1}


def test_exempt_edge_weights_follow_the_schedule_of_their_group():
    model = tiny()
    optimizer = two_groups_by_stage(model)
    exempt_from_weight_decay(optimizer, model)
    scheduler, _ = create_scheduler_v2(
        optimizer, 'multistep', num_epochs=2, decay_milestones=[1], decay_rate=0.1
    )
    scheduler.step(1)
    rates = {name: lr for name, (_, lr) in options(optimizer, model).items()}
    assert rates['stages.0.connectivity.alpha'] == pytest.approx(0.025)
    assert rates['stages.1.connectivity.alpha'] == pytest.approx(0.05)


# -- checkpoints ----------------------------------------------------------------------------------


def test_checkpoints_hold_a_description_of_the_network():
    model = tiny(connectivity=['alpha', 'tanh'])
    with torch.no_grad():
        model.stages[1].connectivity.alpha[3] = 0
    model = freeze_edge_weights(prune(model, threshold=0)[0])
    state = TopoTask(model, device=torch.device('cpu'), verbose=False).get_checkpoint_state()
    again = build_described(state['task_state']['network'])
    again.load_state_dict(state['state_dict'])
    x, _ = batch()
    assert torch.equal(again.eval()(x), model.eval()(x))
    assert again.topology() == model.topology()


def test_a_network_without_a_description_is_trained_all_the_same(caplog):
    task = TopoTask(nn.Linear(2, 2), device=torch.device('cpu'), verbose=False)
    assert task.get_checkpoint_state().keys() == {'state_dict'}
    assert 'does not tell of which network it is' in caplog.text


def test_distillation_adds_the_teacher_and_the_sparsity_term():
    """CE + KL of softened logits, as timm's, and lambda times the penalty."""
    kwargs = dict(num_classes=5, num_nodes=(4, 4), widths=(8, 8), strides=(2, 2), stem_width=8)
    student = timm.create_model(
        'test_toponet', sparsity='uniform', sparsity_weight=0.1, **kwargs
    ).eval()
    teacher = timm.create_model('test_toponet', **kwargs)
    task = TopoDistillationTask(student, teacher, temperature=2.0, verbose=False)
    student.eval()
    x, target = torch.randn(4, *student.pretrained_cfg['input_size']), torch.tensor([0, 1, 2, 3])
    result = task(x, target)
    with torch.no_grad():
        mine, theirs = (F.log_softmax(net(x) / 2.0, -1) for net in (student, teacher.eval()))
        distilled = 4.0 * (theirs.exp() * (theirs - mine)).sum(-1).mean()
        expected = F.cross_entropy(student(x), target) + distilled
    assert torch.allclose(result['task_loss'], expected, rtol=1e-5)
    penalty = sum(
        stage.connectivity.edge_weights().abs().sum() for stage in graph_stages(student).values()
    )
    assert torch.allclose(result['sparsity'], penalty.detach())
    assert torch.allclose(result['loss'], expected + 0.1 * penalty, rtol=1e-5)
