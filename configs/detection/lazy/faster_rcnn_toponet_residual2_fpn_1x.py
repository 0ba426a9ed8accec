from .base_faster_rcnn_detectron1 import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.name = 'toponet_residual2'
train.output_dir = 'output/faster_rcnn_toponet_residual2_fpn_1x'
