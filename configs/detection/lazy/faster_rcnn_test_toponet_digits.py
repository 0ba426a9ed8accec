"""A tiny Faster R-CNN on the built-in digits, for CPU: 'make demo-detection' runs it.

Batch norm is trained and nothing is frozen, so that it trains from random weights too.
"""

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L
from fvcore.common.param_scheduler import MultiStepParamScheduler

from d2_topo import topo_optimizer_params, zoo

from .base_faster_rcnn import dataloader, lr_multiplier, model, train

train.update(max_iter=120, eval_period=0, log_period=10, device='cpu', seed=0)
train.checkpointer.period = 1000
train.ddp.device_ids = None  # on CPU
train.output_dir = 'output/faster_rcnn_test_toponet_digits'

model.backbone.out_channels = 64
model.backbone.bottom_up.update(name='test_toponet', norm='BN', freeze_at=0)
model.proposal_generator.head.in_channels = 64
model.proposal_generator.anchor_generator.sizes = [[16], [32], [64], [128], [256]]
model.proposal_generator.update(
    batch_size_per_image=64, pre_nms_topk=(200, 200), post_nms_topk=(100, 50)
)
model.roi_heads.update(num_classes=10, batch_size_per_image=64)
model.roi_heads.box_head.update(fc_dims=[256, 256])
model.roi_heads.box_head.input_shape.channels = 64
model.roi_heads.box_predictor.input_shape.channels = 256
model.roi_heads.box_predictor.test_topk_per_image = 20

for _loader, _name in (
    (dataloader.train, 'topo_digits_train'),
    (dataloader.test, 'topo_digits_val'),
):
    _loader.dataset.names = _name
    _loader.num_workers = 0
    _loader.mapper.augmentations = [L(T.ResizeShortestEdge)(short_edge_length=128, max_size=128)]
dataloader.train.total_batch_size = 4

optimizer = zoo('common/optim.py', 'AdamW')
optimizer.params._target_ = topo_optimizer_params
optimizer.update(lr=1e-3, weight_decay=0.05)
lr_multiplier.scheduler = L(MultiStepParamScheduler)(values=[1.0, 0.1], milestones=[96, 120])
lr_multiplier.warmup_length = 15 / 120
