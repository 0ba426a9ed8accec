"""Batches in parts, bfloat16, averaged weights, rates by layer; against plain PyTorch."""

import pytest
import torch

pytest.importorskip(
    'detectron2',
    reason='detectron2 is not installed: https://detectron2.readthedocs.io/tutorials/install.html',
)

from detectron2.engine import SimpleTrainer, hooks
from torch import nn

from d2_topo import TopoBackbone, topo_optimizer_params
from d2_topo.engine import Settings, Step

BATCHES = torch.arange(1.0, 25.0).view(4, 6, 1) / 10


class Detector(nn.Module):
    """As far as trainers go: images, a list, in; a dict of losses out."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.seen = []

    def forward(self, batch: list) -> dict:
        y = self.layer(torch.stack(batch))
        self.seen.append((len(batch), y.dtype))
        return {'square': y.float().square().mean(), 'mean': y.float().mean()}


def trained(trainer, settings=None, steps=4, start=0, added=()):
    """A detector after so many steps of plain SGD, and its trainer."""
    torch.manual_seed(0)
    model = Detector()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    options = {} if settings is None else {'settings': settings}
    trainer = trainer(model, [list(batch) for batch in BATCHES[start:]], optimizer, **options)
    trainer.register_hooks([hook(model) for hook in added])
    trainer.train(start, steps)
    return model, trainer


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize('parts', [1, 2, 3, 6])
def test_a_batch_in_parts_is_a_batch(parts):
    expected, _ = trained(SimpleTrainer)
    found, _ = trained(Step, Settings(accumulate=parts))
    torch.testing.assert_close(weights(found), weights(expected))
    assert [n for n, _ in found.seen] == [6 // parts] * parts * 4


def test_parts_of_different_sizes_count_by_image():
    expected, _ = trained(SimpleTrainer)
    found, _ = trained(Step, Settings(accumulate=4))  # 2, 2, 1, 1
    torch.testing.assert_close(weights(found), weights(expected))


def test_losses_are_those_of_the_batch():
    _, one = trained(Step, Settings(accumulate=3), steps=1)
    _, other = trained(SimpleTrainer, steps=1)
    for name in ('square', 'mean', 'total_loss'):
        mine, theirs = (t.storage.history(name).latest() for t in (one, other))
        assert mine == pytest.approx(theirs, rel=1e-5)


def test_bfloat16():
    found, _ = trained(Step, Settings(precision='bfloat16'))
    assert {dtype for _, dtype in found.seen} == {torch.bfloat16}
    expected, _ = trained(SimpleTrainer)
    torch.testing.assert_close(weights(found), weights(expected), rtol=0.05, atol=0.02)
    assert not torch.equal(weights(found), weights(expected))


def test_averaged_weights_are_evaluated_and_saved(tmp_path):
    """After each step: 0.6 times what they were plus 0.4 times the weights."""
    seen, evaluated = [], []

    class Watch(hooks.HookBase):
        def __init__(self, model):
            self.model = model
            seen.append(weights(model))

        def after_step(self):
            seen.append(weights(self.model))

    def evaluation(model):
        return hooks.EvalHook(2, lambda: evaluated.append(weights(model)))

    settings = Settings(ema_decay=0.6, folder=tmp_path)
    model, _ = trained(Step, settings, added=(Watch, evaluation))
    expected = [seen[0]]
    for own in seen[1:]:
        expected.append(0.6 * expected[-1] + 0.4 * own)
    torch.testing.assert_close(torch.stack(evaluated), torch.stack([expected[2], expected[4]]))
    assert torch.equal(weights(model), seen[-1])
    saved = torch.load(tmp_path / 'model_ema.pth')['model']
    torch.testing.assert_close(torch.cat([v.flatten() for v in saved.values()]), expected[4])

    half, first = trained(Step, settings, steps=2, added=(Watch,))
    torch.manual_seed(1)
    rest = Step(half, [list(batch) for batch in BATCHES[2:]], first.optimizer, settings)
    rest.register_hooks([])
    rest.load_state_dict(first.state_dict())
    rest.train(2, 4)
    saved = torch.load(tmp_path / 'model_ema.pth')['model']
    torch.testing.assert_close(torch.cat([v.flatten() for v in saved.values()]), expected[4])


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(accumulate=0), r'a batch in 0 parts .* at least 1 needed'),
        (dict(precision='float8'), r"unknown precision 'float8'; known: float16, bfloat16"),
        (dict(ema_decay=1.0), r'must be in \[0, 1\): 1.0'),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(ValueError, match=message):
        Settings(**options)


def test_more_parts_than_images():
    with pytest.raises(ValueError, match=r'a batch of 6 images in a process has no 7 parts'):
        trained(Step, Settings(accumulate=7))


def test_layers_learn_at_their_own_rates():
    """A ResNet-18 has a stem and eight blocks; what is around it has the detector's rate."""
    model = nn.Sequential(TopoBackbone('resnet18', norm='BN', layer_decay=0.5), nn.Linear(2, 2))
    groups = topo_optimizer_params(model, base_lr=0.8, weight_decay_norm=0.0)
    rates = {id(p): group['lr'] for group in groups for p in group['params']}
    for name, p in model.named_parameters():
        parts = name.removeprefix('0.model.').split('.')
        layer = 0 if parts[0] in ('conv1', 'bn1') else 8
        if parts[0].startswith('layer'):
            layer = 2 * int(parts[0][-1]) - 1 + int(parts[1])
        assert rates[id(p)] == pytest.approx(0.8 * 0.5 ** (8 - layer)), name
    with pytest.raises(ValueError, match=r'layer_decay needs base_lr'):
        topo_optimizer_params(model, weight_decay_norm=0.0)
    with pytest.raises(ValueError, match=r'layer_decay must be in \(0, 1\], got 1.5'):
        TopoBackbone('resnet18', layer_decay=1.5)
