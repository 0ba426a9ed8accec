from .base_faster_rcnn_detectron1 import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.name = 'resnext50_32x4d'
train.output_dir = 'output/faster_rcnn_resnext50_32x4d_fpn_1x'
