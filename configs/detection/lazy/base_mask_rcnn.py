"""Mask R-CNN with FPN, the 1x schedule of today."""

from d2_topo import with_topo_backbone, zoo

from .common import dataloader, lr_multiplier, optimizer, train

model = with_topo_backbone(zoo('common/models/mask_rcnn_fpn.py', 'model'))
