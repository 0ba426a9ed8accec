"""Faster R-CNN with FPN, the 1x schedule of today."""

from .base_mask_rcnn import dataloader, lr_multiplier, model, optimizer, train

for _part in ('mask_in_features', 'mask_pooler', 'mask_head'):
    model.roi_heads.pop(_part)
dataloader.train.mapper.use_instance_mask = False
