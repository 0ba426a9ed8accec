"""Cascade Mask R-CNN with FPN, with the settings of detectron2's cascade_mask_rcnn_R_50_FPN_1x."""

from d2_topo import with_topo_backbone, zoo

from .common import dataloader, lr_multiplier, optimizer, train

model = with_topo_backbone(zoo('common/models/cascade_rcnn.py', 'model'))
model.backbone.bottom_up.name = 'toponet_adaptive'
model.proposal_generator.post_nms_topk = (2000, 1000)
train.output_dir = 'output/cascade_mask_rcnn_toponet_adaptive_fpn_1x'
