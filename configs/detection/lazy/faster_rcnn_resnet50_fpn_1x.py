from .base_faster_rcnn_detectron1 import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.name = 'resnet50'
train.output_dir = 'output/faster_rcnn_resnet50_fpn_1x'
