from .base_faster_rcnn_detectron1 import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.name = 'toponet_uniform'
train.output_dir = 'output/faster_rcnn_toponet_uniform_fpn_1x'
