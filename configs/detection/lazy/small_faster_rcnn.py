"""A small Faster R-CNN for a small data set in COCO format, on CPU.

The data set, the number of classes and the backbone come from the command line:

    python -m d2_topo.train_net --config-file configs/detection/lazy/small_faster_rcnn.py \
        dataloader.train.dataset.names.annotations=DIR/train.json \
        dataloader.train.dataset.names.images=DIR/images \
        dataloader.test.dataset.names.annotations=DIR/val.json \
        dataloader.test.dataset.names.images=DIR/images \
        model.roi_heads.num_classes=3 train.init_checkpoint=model_best.pth.tar

Batch norm is trained and nothing is frozen, so that it trains from random weights too.
"""

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L
from fvcore.common.param_scheduler import MultiStepParamScheduler

from d2_topo import zoo
from d2_topo.data import register_coco

from .base_faster_rcnn import dataloader, lr_multiplier, model, train

train.update(max_iter=300, eval_period=0, log_period=20, device='cpu', seed=0)
train.checkpointer.period = 1000
train.ddp.device_ids = None  # on CPU
train.output_dir = 'output/small_faster_rcnn'

model.backbone.bottom_up.update(name='test_toponet', norm='BN', freeze_at=0)
model.backbone.out_channels = 64
model.proposal_generator.head.in_channels = 64
model.proposal_generator.anchor_generator.sizes = [[16], [32], [64], [128], [256]]
model.proposal_generator.update(
    batch_size_per_image=64, pre_nms_topk=(500, 500), post_nms_topk=(200, 100)
)
model.roi_heads.batch_size_per_image = 64
model.roi_heads.box_head.fc_dims = [256, 256]
model.roi_heads.box_head.input_shape.channels = 64
model.roi_heads.box_predictor.input_shape.channels = 256

dataloader.train.total_batch_size = 4
dataloader.train.dataset.names = L(register_coco)(name='train', annotations='???', images='???')
dataloader.test.dataset.names = L(register_coco)(name='val', annotations='???', images='???')
for _loader in (dataloader.train, dataloader.test):
    _loader.num_workers = 0
    _loader.mapper.augmentations = [L(T.ResizeShortestEdge)(short_edge_length=320, max_size=480)]
dataloader.train.mapper.augmentations.append(L(T.RandomFlip)(horizontal=True))

optimizer = zoo('common/optim.py', 'AdamW')
optimizer.update(lr=1e-3, weight_decay=0.05)
lr_multiplier.scheduler = L(MultiStepParamScheduler)(values=[1.0, 0.1], milestones=[8, 10])
lr_multiplier.warmup_length = 0.1
