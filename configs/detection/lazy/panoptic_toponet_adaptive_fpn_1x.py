"""Panoptic FPN, with the settings of detectron2's panoptic_fpn_R_50_1x."""

from d2_topo import with_topo_backbone, zoo

from .common import dataloader, lr_multiplier, optimizer, train

model = with_topo_backbone(zoo('common/models/panoptic_fpn.py', 'model'))
model.backbone.bottom_up.name = 'toponet_adaptive'
_data = zoo('common/data/coco_panoptic_separated.py', 'dataloader')
dataloader.train.dataset.update(
    names=_data.train.dataset.names,
    filter_empty=_data.train.dataset.filter_empty,
    num_stuff='${model.sem_seg_head.num_classes}',
)
dataloader.test.dataset.names = _data.test.dataset.names
dataloader.evaluator = _data.evaluator
train.output_dir = 'output/panoptic_toponet_adaptive_fpn_1x'
