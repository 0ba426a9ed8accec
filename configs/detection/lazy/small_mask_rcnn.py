"""The small Faster R-CNN with masks."""

from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec

from .base_mask_rcnn import model as _whole
from .small_faster_rcnn import dataloader, lr_multiplier, model, optimizer, train

for _part in ('mask_in_features', 'mask_pooler', 'mask_head'):
    model.roi_heads[_part] = _whole.roi_heads[_part]
model.roi_heads.mask_head.update(
    input_shape=L(ShapeSpec)(channels=64, width=14, height=14), conv_dims=[64, 64, 64]
)
dataloader.train.mapper.use_instance_mask = True
train.output_dir = 'output/small_mask_rcnn'
