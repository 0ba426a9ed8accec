"""Accuracy and image batches."""

import numpy as np
import timm
import torch
from timm.data import resolve_data_config

import timm_topo  # noqa: F401  registers the models
from timm_topo.data import ArrayDataset
from timm_topo.training.evaluate import accuracy, image_batches


def sorted_by_class(classes: int = 4, each: int = 30) -> ArrayDataset:
    """Grey images of one level per class, in the order of the classes, as folders are read."""
    labels = np.repeat(np.arange(classes), each)
    images = np.broadcast_to((labels * 60).astype(np.uint8)[:, None, None], (len(labels), 32, 32))
    return ArrayDataset(images.copy(), labels, [str(c) for c in range(classes)])


def test_image_batches_are_drawn_from_all_classes():
    model = timm.create_model('toponet_tiny_adaptive', num_classes=4)
    batches = image_batches(model, sorted_by_class(), count=2, batch_size=20)
    assert [batch.shape for batch in batches] == [(20, 3, 32, 32)] * 2
    for batch in batches:
        assert len(batch[:, 0, 0, 0].unique()) == 4


def test_image_batches_are_preprocessed_as_in_evaluation_and_always_the_same():
    model = timm.create_model('toponet_tiny_adaptive', num_classes=4)
    (batch,), (again,) = (image_batches(model, sorted_by_class(), 1, 120) for _ in range(2))
    assert torch.equal(batch, again)
    config = resolve_data_config({}, model=model)
    levels = (torch.arange(4) * 60 / 255 - config['mean'][0]) / config['std'][0]
    torch.testing.assert_close(batch[:, 0, 0, 0].unique(), levels, rtol=1e-4, atol=1e-4)


def test_of_images_in_order_no_more_are_read_than_asked_for():
    class InOrder(torch.utils.data.IterableDataset):
        transform, read = None, 0

        def __iter__(self):
            for image, label in sorted_by_class():
                self.read += 1
                yield self.transform(image), label

    model = timm.create_model('toponet_tiny_adaptive', num_classes=4)
    data = InOrder()
    assert [len(batch) for batch in image_batches(model, data, 3, 2)] == [2, 2, 2]
    assert data.read < 12


def test_accuracy_counts_every_image_once():
    class Level(torch.nn.Module):
        """Right for classes 0 to 2, wrong for 3."""

        def __init__(self, cfg):
            super().__init__()
            self.pretrained_cfg, self.weight = cfg, torch.nn.Parameter(torch.zeros(1))

        def forward(self, x):
            level = x.mean((1, 2, 3))
            order = level.unique().tolist()
            guess = [min(2, round((v - LOWEST) / STEP)) for v in level.tolist()]
            assert len(order) <= 4
            return torch.nn.functional.one_hot(torch.tensor(guess), 4).float()

    cfg = timm.create_model('toponet_tiny_adaptive').pretrained_cfg
    config = resolve_data_config({}, pretrained_cfg=cfg)
    mean, std = (np.array(config[key]) for key in ('mean', 'std'))
    LOWEST, STEP = (-mean / std).mean(), (60 / 255 / std).mean()
    assert accuracy(Level(cfg), sorted_by_class(), batch_size=7) == 75.0
