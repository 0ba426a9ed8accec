"""Mask R-CNN with FPN, the 1x schedule of today."""

from d2_topo import TopoRCNN, zoo

from .common import dataloader, lr_multiplier, optimizer, train, with_topo_backbone

model = with_topo_backbone(
    zoo('common/models/mask_rcnn_fpn.py', 'model'), ['res2', 'res3', 'res4', 'res5']
)
model._target_ = TopoRCNN
