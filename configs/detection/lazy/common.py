"""What all detectors here share: data, schedule and optimizer."""

from d2_topo import zoo
from d2_topo.data import training_set

dataloader = zoo('common/data/coco.py', 'dataloader')
dataloader.train.mapper.image_format = 'RGB'  # testing takes over what training has
dataloader.train.dataset.update(_target_=training_set, num_classes='${model.roi_heads.num_classes}')
lr_multiplier = zoo('common/coco_schedule.py', 'lr_multiplier_1x')
optimizer = zoo('common/optim.py', 'SGD')
optimizer.params.base_lr = '${..lr}'
train = zoo('common/train.py', 'train')
# train.init_checkpoint: a checkpoint of timm (.pth.tar, .safetensors), or a saved network
