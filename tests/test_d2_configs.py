"""Every detection config: it builds, runs, and holds Detectron's 1x settings in both systems."""

import functools
import importlib.resources
from pathlib import Path

import pytest
import torch

pytest.importorskip(
    'detectron2',
    reason='detectron2 is not installed: https://detectron2.readthedocs.io/tutorials/install.html',
)

from detectron2.config import CfgNode, LazyConfig, get_cfg, instantiate
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN, build_model
from detectron2.solver import build_lr_scheduler
from detectron2.structures import BitMasks, Boxes, Instances, Keypoints
from detectron2.utils.analysis import FlopCountAnalysis
from detectron2.utils.events import EventStorage
from omegaconf import OmegaConf

import d2_topo
from d2_topo import (
    TopoBackbone,
    TopoFCOS,
    TopologyLoss,
    TopoPanopticFPN,
    TopoRCNN,
    TopoRetinaNet,
    add_topo_config,
    with_topo_backbone,
    zoo,
)
from d2_topo.backbone import topo_backbone
from timm_topo import checkpoint

ZOO = Path(importlib.resources.files('detectron2')) / 'model_zoo' / 'configs'
FOLDER = Path(__file__).parents[1] / 'configs' / 'detection'
NAMES = sorted(path.stem for path in FOLDER.glob('*_1x.yaml'))
SMALL = sorted(path.stem for path in (FOLDER / 'lazy').glob('small_*.py'))
MODELS = sorted(zoo_path.stem for zoo_path in ZOO.glob('common/models/*.py'))
FASTER = 'COCO-Detection/faster_rcnn_R_50_FPN_1x'
UPSTREAM = {
    'faster_rcnn': 'Detectron1-Comparisons/faster_rcnn_R_50_FPN_noaug_1x',
    'mask_rcnn': 'COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x',
    'retinanet': 'COCO-Detection/retinanet_R_50_FPN_1x',
    'cascade': 'Misc/cascade_mask_rcnn_R_50_FPN_1x',
    'panoptic': 'COCO-PanopticSegmentation/panoptic_fpn_R_50_1x',
}
TINY = [
    'MODEL.DEVICE', 'cpu', 'MODEL.TOPO.NAME', 'test_toponet', 'MODEL.FPN.OUT_CHANNELS', 8,
    'MODEL.ROI_BOX_HEAD.FC_DIM', 16, 'MODEL.RPN.PRE_NMS_TOPK_TEST', 50,
    'MODEL.RPN.POST_NMS_TOPK_TEST', 10, 'MODEL.RPN.PRE_NMS_TOPK_TRAIN', 50,
    'MODEL.RPN.POST_NMS_TOPK_TRAIN', 10,
]  # fmt: skip
KINDS = {
    'cascade_mask_rcnn': TopoRCNN,
    'faster_rcnn': TopoRCNN,
    'mask_rcnn': TopoRCNN,
    'retinanet': TopoRetinaNet,
    'fcos': TopoFCOS,
    'panoptic': TopoPanopticFPN,
}
FROM_SCRATCH = ['MODEL.TOPO.NORM', 'BN', 'MODEL.BACKBONE.FREEZE_AT', 0]


def yaml(name: str, *options) -> CfgNode:
    cfg = get_cfg()
    add_topo_config(cfg)
    cfg.merge_from_file(str(FOLDER / f'{name}.yaml'))
    cfg.merge_from_list(['MODEL.DEVICE', 'cpu', *options])
    return cfg


def lazy(name: str, *overrides: str):
    cfg = LazyConfig.load(str(FOLDER / 'lazy' / f'{name}.py'))
    return LazyConfig.apply_overrides(cfg, list(overrides))


def first_of(body: TopoBackbone) -> str:
    return body.model.feature_info[0]['module'].replace('act1', 'conv1')


def detect(model, size=(70, 100)):
    with torch.no_grad():
        return model.eval()([{'image': torch.randint(0, 256, (3, *size), dtype=torch.uint8)}])


def batch() -> list[dict]:
    found = []
    for size in ((96, 64), (64, 80)):
        instances = Instances(size)
        instances.gt_boxes = Boxes(torch.tensor([[4.0, 4.0, 40.0, 40.0], [20.0, 10.0, 60.0, 60.0]]))
        instances.gt_classes = torch.tensor([0, 1])
        instances.gt_masks = BitMasks(torch.ones(2, *size, dtype=torch.bool))
        instances.gt_keypoints = Keypoints(torch.tensor([20.0, 30.0, 2.0]).repeat(2, 17, 1))
        image = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
        stuff = torch.randint(0, 54, size)
        found.append({'image': image, 'instances': instances, 'sem_seg': stuff})
    return found


def test_there_are_the_configs_of_the_papers_tables():
    backbones = {
        'toponet_adaptive', 'toponet_uniform', 'toponet_alpha', 'toponet_residual2',
        'dgnet_resnet50', 'dgnet_resnet101', 'dgnet_resnext50_32x4d',
        'resnet50', 'resnet101', 'resnext50_32x4d',
    }  # fmt: skip
    kinds = {'mask_rcnn', 'cascade_mask_rcnn', 'retinanet', 'fcos', 'panoptic'}
    others = {f'{kind}_toponet_adaptive_fpn_1x' for kind in kinds}
    assert set(NAMES) == {f'faster_rcnn_{name}_fpn_1x' for name in backbones} | others
    for glob in ('*_1x', 'small_*'):
        both = {path.stem for path in (FOLDER / 'lazy').glob(f'{glob}.py')}
        assert both == {path.stem for path in FOLDER.glob(f'{glob}.yaml')}


@pytest.mark.parametrize('name', NAMES)
def test_both_systems_build_the_same_detector_and_it_runs(name):
    cfg = yaml(name)
    model = build_model(cfg)
    body = topo_backbone(model)
    kind = next(kind for kind in KINDS if name.startswith(kind))
    assert body.name == cfg.MODEL.TOPO.NAME == name.removeprefix(f'{kind}_').removesuffix('_fpn_1x')
    assert not any(p.requires_grad for p in body.model.get_submodule(first_of(body)).parameters())
    assert body.pixels.same
    assert type(model) is KINDS[kind]
    [found] = detect(model)
    assert found['instances'].image_size == (70, 100)
    masks = hasattr(model, 'roi_heads') and model.roi_heads.mask_on
    assert masks == ('mask_rcnn' in name or kind == 'panoptic')
    other = instantiate(lazy(name).model)
    assert type(other) is type(model)
    shapes = [{k: tuple(v.shape) for k, v in m.state_dict().items()} for m in (model, other)]
    assert shapes[0] == shapes[1]
    assert recipe(model) == recipe(other)
    trained = [{k for k, p in m.named_parameters() if p.requires_grad} for m in (model, other)]
    assert trained[0] == trained[1]
    other.eval().load_state_dict(model.state_dict())
    images = [{'image': torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)}]
    for one, two in zip(
        model.backbone(model.preprocess_image(images).tensor).values(),
        other.backbone(other.preprocess_image(images).tensor).values(),
    ):
        assert torch.equal(one, two)


def recipe(model) -> dict:
    """What no weight's shape tells of a detector."""
    if not hasattr(model, 'roi_heads'):
        names = ('test_score_thresh', 'test_nms_thresh', 'focal_loss_alpha', 'focal_loss_gamma',
                 'head_in_features', 'num_classes', 'max_detections_per_image')  # fmt: skip
        return {name: getattr(model, name) for name in names}
    pooler = model.roi_heads.box_pooler.level_poolers[0]
    predictors = model.roi_heads.box_predictor
    one = not isinstance(predictors, torch.nn.ModuleList)
    return {
        'rpn': model.proposal_generator.smooth_l1_beta,
        'proposals': model.proposal_generator.post_nms_topk,
        'boxes': [each.smooth_l1_beta for each in ([predictors] if one else predictors)],
        'pooler': (pooler.sampling_ratio, pooler.aligned),
        'stuff': model.sem_seg_head.loss_weight if hasattr(model, 'sem_seg_head') else None,
    }


@pytest.mark.parametrize('base', ['Base-Topo-FPN', 'Base-Topo-FPN-detectron1'])
def test_both_systems_have_todays_1x_and_that_of_the_papers(base):
    """As upstream builds its own faster_rcnn_R_50_FPN configs."""
    papers = base.endswith('detectron1')
    upstream = get_cfg()
    known = 'Detectron1-Comparisons/faster_rcnn_R_50_FPN_noaug_1x' if papers else FASTER
    upstream.merge_from_file(str(zoo_file(f'{known}.yaml')))
    upstream.MODEL.DEVICE = 'cpu'
    expected = recipe(build_model(upstream))
    assert expected['boxes'] == [1.0 if papers else 0.0]
    other = lazy('base_faster_rcnn_detectron1' if papers else 'base_faster_rcnn')
    assert recipe(build_model(yaml(base, 'MODEL.TOPO.NAME', 'test_toponet'))) == expected
    assert recipe(instantiate(other.model)) == expected
    [resize, _] = other.dataloader.train.mapper.augmentations
    assert tuple(resize.short_edge_length) == upstream.INPUT.MIN_SIZE_TRAIN
    assert resize.max_size == upstream.INPUT.MAX_SIZE_TRAIN


@pytest.mark.parametrize('name', NAMES)
def test_detectrons_1x_settings_are_the_same_for_every_backbone(name):
    """Upstream's configs of the same detectors, but for the backbone."""
    cfg, other = yaml(name), lazy(name)
    retina = name.startswith(('retinanet', 'fcos'))
    rate = 0.01 if retina else 0.02
    assert cfg.SOLVER.BASE_LR == other.optimizer.lr == rate
    assert cfg.SOLVER.IMS_PER_BATCH == other.dataloader.train.total_batch_size == 16
    assert cfg.SOLVER.MAX_ITER == other.train.max_iter == 90000
    assert cfg.SOLVER.WEIGHT_DECAY == other.optimizer.weight_decay == 1e-4
    assert cfg.SOLVER.MOMENTUM == other.optimizer.momentum == 0.9
    assert cfg.INPUT.FORMAT == other.model.get('input_format', 'RGB') == 'RGB'
    assert other.dataloader.train.mapper.image_format == 'RGB'
    assert other.dataloader.test.mapper.image_format == 'RGB'
    assert other.model.pixel_mean == cfg.MODEL.PIXEL_MEAN
    assert other.model.pixel_std == cfg.MODEL.PIXEL_STD
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = build_lr_scheduler(cfg, optimizer)
    [resize, _] = other.dataloader.train.mapper.augmentations
    assert tuple(resize.short_edge_length) == cfg.INPUT.MIN_SIZE_TRAIN
    lr = instantiate(other.lr_multiplier)
    for step in (0, 500, 1000, 59999, 60001, 79999, 80001, 89999):
        expected = schedule._multiplier(step / 90000)
        assert lr(step / 90000) == pytest.approx(expected, rel=1e-6)
    if name.startswith('fcos'):  # upstream has no yaml for it
        upstream = LazyConfig.load(str(zoo_file('COCO-Detection/fcos_R_50_FPN_1x.py')))
        upstream.model.backbone.bottom_up = other.model.backbone.bottom_up
        assert recipe(build_model(cfg)) == recipe(instantiate(upstream.model))
        return
    upstream = get_cfg()
    [base] = (path for start, path in UPSTREAM.items() if name.startswith(start))
    upstream.merge_from_file(str(zoo_file(f'{base}.yaml')))
    for key, value in flat(upstream):
        ours = dict(flat(cfg))[key]
        known = ('MODEL.WEIGHTS', 'MODEL.BACKBONE.NAME', 'MODEL.META_ARCHITECTURE', 'MODEL.PIXEL',
                 'INPUT.FORMAT', 'OUTPUT_DIR', 'MODEL.RESNETS', 'MODEL.DEVICE')  # fmt: skip
        elsewhere = ('MODEL.RPN', 'MODEL.ROI', 'MODEL.RESNETS') if retina else ()  # is not read
        if not key.startswith((*known, *elsewhere)):
            assert same(ours, value), key


def zoo_file(name: str) -> Path:
    return ZOO / name


def flat(cfg: CfgNode, prefix: str = ''):
    for key, value in cfg.items():
        if isinstance(value, CfgNode):
            yield from flat(value, f'{prefix}{key}.')
        else:
            yield f'{prefix}{key}', value


def same(one, two) -> bool:
    if isinstance(one, (list, tuple)):
        return len(one) == len(two) and all(same(a, b) for a, b in zip(one, two))
    return one == (pytest.approx(two) if isinstance(two, float) else two)


def trains(model) -> dict:
    """Losses of a step that reaches every parameter; afterwards the detector detects."""
    with EventStorage():
        losses = model.train()(batch())
    sum(losses.values()).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    [_, output] = model.eval()(batch())
    assert output.keys() & {'instances', 'sem_seg'}
    return losses


@pytest.mark.parametrize('name', SMALL)
def test_the_small_configs_train_in_both_systems(name):
    options = [] if 'digits' in name else ['MODEL.ROI_HEADS.NUM_CLASSES', 10]
    model = build_model(yaml(name, *options, 'DATASETS.TRAIN', ()))
    other = instantiate(lazy(name, 'model.roi_heads.num_classes=10').model)
    shapes = [{k: tuple(v.shape) for k, v in m.state_dict().items()} for m in (model, other)]
    assert shapes[0] == shapes[1]
    assert recipe(model) == recipe(other)
    assert trains(model).keys() == trains(other).keys()


@pytest.mark.parametrize('name', MODELS)
def test_every_detector_of_detectron2_takes_a_backbone(name):
    """Those in its LazyConfigs; but for one whose heads are the end of a ResNet."""
    cfg = zoo(f'common/models/{name}.py', 'model')
    if name == 'mask_rcnn_c4':
        with pytest.raises(ValueError, match=r'is a ResNet without a pyramid .*: take one w'):
            with_topo_backbone(cfg)
        return
    body = (
        dict(name='test_vit') if 'vit' in name else dict(name='test_toponet', sparsity_weight=1.0)
    )
    with_topo_backbone(cfg, norm='BN', freeze_at=0, **body)
    if 'roi_heads' in cfg:
        cfg.roi_heads.batch_size_per_image = 8
        cfg.proposal_generator.update(pre_nms_topk=(50, 50), post_nms_topk=(20, 5))
    if 'square_pad' in cfg.backbone:
        cfg.backbone.square_pad = 96
    if name == 'retinanet':
        cfg.backbone.top_block.in_channels = 48  # of res5
    losses = trains(instantiate(cfg))
    assert ('loss_topology' in losses) == ('vit' not in name)


@pytest.mark.parametrize(
    'options',
    [
        ['MODEL.META_ARCHITECTURE', 'TopoSemanticSegmentor', 'MODEL.TOPO.SPARSITY_WEIGHT', 1.0],
        ['MODEL.BACKBONE.NAME', 'build_topo_simple_fpn_backbone', 'MODEL.FPN.NORM', 'LN',
         'MODEL.TOPO.NAME', 'test_vit', 'MODEL.TOPO.OUT_FEATURES', ['res4'],
         'MODEL.TOPO.KWARGS', {'dynamic_img_size': True}],
    ],
)  # fmt: skip
def test_more_detectors_by_yaml(options):
    """Semantic FPN, and the simple pyramid of ViTDet on timm's plain ViT."""
    cfg = yaml('Base-Topo-FPN', *TINY, *FROM_SCRATCH, 'DATASETS.TRAIN', ())
    for key, value in zip(options[::2], options[1::2]):
        node, leaf = key.rsplit('.', 1)
        node = functools.reduce(getattr, node.split('.'), cfg)
        node[leaf] = CfgNode(value) if isinstance(value, dict) else value
    losses = trains(build_model(cfg))
    assert ('loss_topology' in losses) == (cfg.MODEL.TOPO.SPARSITY_WEIGHT > 0)


@pytest.mark.parametrize('arch', ['faster_rcnn', 'mask_rcnn', 'retinanet'])
def test_the_topology_term_joins_the_losses(arch):
    """Off by default; then in the dict that detectron2's trainers sum and log."""
    name = next(n for n in NAMES if n.startswith(arch) and 'toponet_adaptive' in n)
    for weight in (0.0, 0.5):
        cfg = yaml(name, *TINY, *FROM_SCRATCH, 'MODEL.TOPO.SPARSITY_WEIGHT', weight)
        model = build_model(cfg).train()
        with EventStorage():
            losses = model(batch())
        assert ('loss_topology' in losses) == (weight > 0)
        if weight:
            expected = 0.5 * topo_backbone(model).model.sparsity_loss()
            torch.testing.assert_close(losses['loss_topology'], expected)
            alpha = model.backbone.bottom_up.model.stages[3].connectivity.alpha
            [gradient] = torch.autograd.grad(losses['loss_topology'], alpha)
            assert gradient.any()
        assert 'instances' in model.eval()(batch())[0]


def test_without_a_detector_that_takes_it_the_term_is_an_error():
    cfg = yaml(NAMES[0], *TINY, 'MODEL.TOPO.SPARSITY_WEIGHT', 1.0,
               'MODEL.META_ARCHITECTURE', 'GeneralizedRCNN')  # fmt: skip
    with pytest.raises(ValueError, match=r'needs MODEL.META_ARCHITECTURE TopoRCNN'):
        build_model(cfg)


def test_a_detector_of_ones_own_takes_the_term():
    """Under any name."""
    if 'Mine' not in META_ARCH_REGISTRY:
        META_ARCH_REGISTRY.register(type('Mine', (TopologyLoss, GeneralizedRCNN), {}))
    cfg = yaml(NAMES[0], *TINY, *FROM_SCRATCH, 'MODEL.TOPO.SPARSITY_WEIGHT', 1.0,
               'MODEL.META_ARCHITECTURE', 'Mine')  # fmt: skip
    with EventStorage():
        assert build_model(cfg).train()(batch())['loss_topology'] > 0


def test_options_of_the_network(tmp_path):
    file = tmp_path / 'my.yaml'
    file.write_text(
        f'_BASE_: {FOLDER / "Base-Topo-FPN.yaml"}\n'
        'MODEL:\n  TOPO:\n    NAME: rewired\n    KWARGS: {base: resnetv2_18, '
        'wiring: [complete, complete, {name: complete}, complete]}\n'
    )
    cfg = get_cfg()
    add_topo_config(cfg)
    cfg.merge_from_file(str(file))
    cfg.MODEL.DEVICE = 'cpu'
    assert topo_backbone(build_model(cfg)).model.base == 'resnetv2_18'
    cfg.MODEL.TOPO.KWARGS.norm = 'BN'
    with pytest.raises(ValueError, match=r"KWARGS has \['norm'\], for which there are keys"):
        build_model(cfg)
    cfg = lazy(NAMES[0], 'model.backbone.bottom_up.name=test_toponet',
               '+model.backbone.bottom_up.num_nodes=[3,4,5,3]')  # fmt: skip
    body = instantiate(cfg.model.backbone.bottom_up).model
    assert [stage.wiring.num_nodes for stage in body.stages] == [3, 4, 5, 3]


def test_a_config_written_with_a_detector_is_migrated(monkeypatch):
    """As if an option had another name in the format that it tells."""
    cfg = yaml(NAMES[0], *TINY)
    cfg.MODEL.TOPO.KWARGS.nodes = [3, 4, 5, 3]
    cfg = CfgNode.load_cfg(cfg.dump())
    assert cfg.MODEL.TOPO.FORMAT == checkpoint.FORMAT

    def step(network: dict) -> dict:
        network['model_args']['num_nodes'] = network['model_args'].pop('nodes')
        return network

    monkeypatch.setattr(checkpoint, 'MIGRATIONS', (*checkpoint.MIGRATIONS, step))
    monkeypatch.setattr(checkpoint, 'FORMAT', checkpoint.FORMAT + 1)
    body = topo_backbone(build_model(cfg)).model
    assert [stage.wiring.num_nodes for stage in body.stages] == [3, 4, 5, 3]


def test_preprocessing_of_the_detector_reaches_the_backbone():
    """detectron2's own default, BGR with Caffe's mean, gives the features of timm's."""
    torch.manual_seed(0)
    name = NAMES[0]
    ours = build_model(yaml(name, *TINY)).eval()
    theirs = build_model(yaml(
        name, *TINY, 'INPUT.FORMAT', 'BGR', 'MODEL.PIXEL_MEAN', [103.53, 116.28, 123.675],
        'MODEL.PIXEL_STD', [1.0, 1.0, 1.0])).eval()  # fmt: skip
    caffe = ('model.pixel_mean=[103.53,116.28,123.675]', 'model.pixel_std=[1,1,1]')
    lazily = instantiate(
        lazy('small_faster_rcnn', 'model.input_format=BGR', *caffe).model.backbone.bottom_up
    ).eval()
    theirs.load_state_dict(ours.state_dict())
    lazily.load_state_dict(ours.backbone.bottom_up.state_dict())
    image = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)
    expected = ours.backbone.bottom_up(ours.preprocess_image([{'image': image}]).tensor)
    bgr = theirs.preprocess_image([{'image': image.flip(0)}]).tensor
    for found in (theirs.backbone.bottom_up(bgr), lazily(bgr)):
        for level, value in found.items():
            torch.testing.assert_close(value, expected[level], rtol=1e-3, atol=1e-4)


def test_small_images_are_padded():
    model = build_model(yaml(NAMES[0], *TINY))
    for size in ((20, 33), (150, 100)):
        assert detect(model, size)[0]['instances'].image_size == size


@pytest.mark.parametrize('seed', range(3))
def test_what_an_image_gets_does_not_depend_on_its_batch(seed):
    """Routers look at the image, not at the others; images of one size, so nothing is padded."""
    torch.manual_seed(seed)
    body = TopoBackbone('dgnet_resnet18').eval()
    for stage in (m for m in body.modules() if hasattr(m, 'tau')):
        torch.nn.init.constant_(stage.tau, 0.5)
    images = torch.randn(3, 3, 64, 64)
    together = body(images)
    for k in range(3):
        alone = body(images[k : k + 1])
        for level, value in alone.items():
            torch.testing.assert_close(together[level][k : k + 1], value, rtol=1e-3, atol=1e-3)


def test_detectron2_counts_the_flops_of_a_detector(caplog):
    model = build_model(yaml(NAMES[0], *TINY)).eval()
    image = torch.zeros(3, 64, 96, dtype=torch.uint8)
    counted = FlopCountAnalysis(model, [{'image': image}]).by_module_and_operator()
    body = counted['model.backbone.bottom_up']['conv']
    convs = []
    for module in model.backbone.bottom_up.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(
                lambda conv, _, y: convs.append(y.numel() * conv.weight[0].numel())
            )
    model([{'image': image}])
    assert body == sum(convs)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['MODEL.TOPO.NAME', 'resnet5'], r"unknown backbone 'resnet5'"),
        (['MODEL.TOPO.OUT_FEATURES', ['res3', 'res4', 'res5']], r'must be among MODEL.TOPO.OUT_F'),
        (['MODEL.TOPO.OUT_FEATURES', ['res2', 'res3'], 'MODEL.FPN.IN_FEATURES', ['res2', 'res3']],
         r'must be among .* with res5 for the coarsest levels'),
        (['MODEL.FPN.IN_FEATURES', ['res2', 'res3', 'res4']], r'with res5 for the coarsest levels'),
        (['MODEL.BACKBONE.FREEZE_AT', 7], r'freeze_at must be one of 0 .* got 7'),
        (['MODEL.TOPO.NORM', 'LN'], r"unknown norm 'LN'"),
        (['MODEL.TOPO.FORMAT', checkpoint.FORMAT + 1], r'MODEL\.TOPO has format .* upgrade'),
        (['INPUT.FORMAT', 'L'], r'does not fit images of 1 channels'),
        (['MODEL.BACKBONE.NAME', 'build_topo_simple_fpn_backbone'], r'one map of stride 16'),
    ],
)  # fmt: skip
def test_bad_values_in_yaml(options, message):
    with pytest.raises(ValueError, match=message):
        build_model(yaml('faster_rcnn_toponet_adaptive_fpn_1x', *TINY, *options))


def test_a_config_without_our_keys():
    cfg = get_cfg()
    cfg.MODEL.DEVICE, cfg.MODEL.BACKBONE.NAME = 'cpu', 'build_topo_backbone'
    with pytest.raises(ValueError, match=r'no MODEL.TOPO: call add_topo_config\(cfg\) first'):
        build_model(cfg)


def test_zoo_needs_no_pkg_resources(monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'pkg_resources', None)
    train = d2_topo.zoo('common/train.py', 'train')
    assert train.max_iter == 90000
    assert OmegaConf.is_config(d2_topo.zoo('common/data/coco.py', 'dataloader'))
    with pytest.raises(FileNotFoundError, match=r"ships no config 'common/none.py'"):
        d2_topo.zoo('common/none.py')
