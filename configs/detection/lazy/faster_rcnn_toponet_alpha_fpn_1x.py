from .base_faster_rcnn_detectron1 import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.name = 'toponet_alpha'
train.output_dir = 'output/faster_rcnn_toponet_alpha_fpn_1x'
