"""SBResNet in detectors and segmenters: every config, warm start, our own checkpoints, inferencers, AP.

Images are tiny and of different sizes; the networks are the configs' own, or narrow where width says nothing.
"""

import copy
import json
from pathlib import Path

import mmcv
import numpy as np
import pytest
import torch
import torchvision
from mmengine.config import Config, ConfigDict
from mmengine.dataset import Compose, pseudo_collate
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, METRICS, MODELS, DefaultScope, init_default_scope
from mmengine.runner import Runner
from mmengine.structures import InstanceData, PixelData
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.feature_extraction import create_feature_extractor

from mmsb.analysis import zoo
from mmsb.configs import build_model
from mmsb.engine.launcher import common_parser, load_config

CONFIGS = sorted(
    f'{folder}/{path.name}'
    for folder in ('coco', 'ade20k', 'camvid')
    for path in (zoo.CONFIGS / folder).glob('*.py')
    if 'TimmBackbone' not in path.read_text()  # theirs is tests/models/test_timm_backbone.py
)
FIXED_NAMES = [
    *(f'coco/{model}-rcnn_{sb}r50_fpn_1x_coco.py' for model in ('faster', 'cascade') for sb in ('', 'sb-')),
    *(f'ade20k/fpn_{sb}r50_40k_ade20k-512x512.py' for sb in ('', 'sb-')),
]
CLASSIFIER = 'imagenet/sb-resnet50_b256-100e_in1k.py'
DETECTOR = 'coco/faster-rcnn_sb-r50_fpn_1x_coco.py'
SEGMENTER = 'ade20k/fpn_sb-r50_40k_ade20k-512x512.py'
SIZES = {'mmdet': [(96, 128), (128, 80)], 'mmseg': [(64, 96), (96, 80)]}  # height, width of two images of one batch
PADDED = {'mmdet': (128, 128), 'mmseg': (96, 128)}
NEW = ('spatial_bias', 'bias_norm', 'bias_conv')
CHECKPOINT = 'model.backbone.init_cfg.checkpoint'

# Few proposals, and detections without training; the first step's learning rate is near that of the warm-up.
FEW = {
    'model.test_cfg.rpn.max_per_img': 20,
    'model.test_cfg.rcnn.score_thr': 0.0,
    'optim_wrapper.optimizer.lr': 2e-4,
}
# What makes a small network of a config, with a gradient in every block. Nothing changes by weight decay alone.
SMALL = {
    'model.backbone.base_channels': 8,
    'model.backbone.stem_channels': 8,  # MMPretrain's default, 64, does not follow
    'model.backbone.zero_init_residual': False,
    'optim_wrapper.optimizer.weight_decay': 0,
}
NARROW = {
    CLASSIFIER: {**SMALL, 'model.head.in_channels': 256, 'model.head.num_classes': 10},
    DETECTOR: {
        **SMALL,
        'model.neck.in_channels': [32, 64, 128, 256],
        'model.neck.out_channels': 16,
        'model.rpn_head.in_channels': 16,
        'model.rpn_head.feat_channels': 16,
        'model.roi_head.bbox_roi_extractor.out_channels': 16,
        'model.roi_head.bbox_head.in_channels': 16,
        'model.roi_head.bbox_head.fc_out_channels': 32,
        **FEW,
    },
    SEGMENTER: {
        **SMALL,
        'model.neck.in_channels': [32, 64, 128, 256],
        'model.neck.out_channels': 16,
        'model.decode_head.in_channels': [16] * 4,
        'model.decode_head.channels': 16,
        'model.data_preprocessor.size': PADDED['mmseg'],
    },
}
FROM_SCRATCH = {'model.backbone.init_cfg': None}


def load(name: str, options: dict) -> Config:
    """Read a config as tools/train.py does, with `--cfg-options`."""
    pairs = [f'{key}={value}' for key, value in options.items()]
    arguments = [str(zoo.CONFIGS / name), *(['--cfg-options', *pairs] if pairs else [])]
    return load_config(common_parser('').parse_args(arguments), lambda cfg: None)


def start(cfg: Config) -> nn.Module:
    torch.manual_seed(0)
    model = build_model(cfg)
    model.init_weights()
    return model.train()


def narrow(name: str, options: dict | None = None) -> tuple[Config, nn.Module]:
    cfg = load(name, {**NARROW[name], **(options or FROM_SCRATCH)})
    return cfg, start(cfg)


def batch(cfg: Config, images: int = 2) -> dict:
    """Make images of different sizes with what is to be learnt of them."""
    random = np.random.default_rng(0)
    inputs, samples = [], []
    for height, width in SIZES[cfg.default_scope][:images]:
        inputs.append(torch.from_numpy(random.integers(0, 255, (3, height, width), np.uint8)))
        meta = dict(img_shape=(height, width), ori_shape=(height, width), scale_factor=(1.0, 1.0), img_path='none')
        if cfg.default_scope == 'mmseg':
            from mmseg.structures import SegDataSample

            classes = cfg.model.decode_head.num_classes
            labels = torch.from_numpy(random.integers(0, classes, (1, height, width)))
            sample = SegDataSample(gt_sem_seg=PixelData(data=labels), metainfo=meta)
        else:
            from mmdet.structures import DetDataSample
            from mmdet.structures.mask import BitmapMasks

            boxes = torch.tensor([[8.0, 8, 60, 70], [30, 20, 79, 90]])
            masks = np.zeros((2, height, width), np.uint8)
            masks[0, 8:70, 8:60] = masks[1, 20:90, 30:79] = 1
            sample = DetDataSample(metainfo=meta)
            sample.gt_instances = InstanceData(
                bboxes=boxes, labels=torch.tensor([0, 79]), masks=BitmapMasks(masks, height, width)
            )
        samples.append(sample)
    return dict(inputs=inputs, data_samples=samples)


def train_step(cfg: Config, model: nn.Module, images: int = 2) -> set[str]:
    """Train one step and return the names of the backbone's values that it changed."""
    before = {key: value.clone() for key, value in model.backbone.state_dict().items()}
    losses = model.train_step(batch(cfg, images), build_optim_wrapper(model, cfg.optim_wrapper))
    assert all(torch.isfinite(value) for value in losses.values())
    return {key for key, value in model.backbone.state_dict().items() if not torch.equal(value, before[key])}


def predict(cfg: Config, model: nn.Module):
    with torch.no_grad():
        (sample,) = model.eval().test_step(batch(cfg, images=1))
    check_prediction(cfg, sample, SIZES[cfg.default_scope][0])
    return sample


def check_prediction(cfg: Config, sample, size: tuple[int, int]) -> None:
    height, width = size
    if cfg.default_scope == 'mmseg':
        assert sample.pred_sem_seg.data.shape == (1, height, width)
        assert torch.isfinite(sample.seg_logits.data).all()
    else:
        found = sample.pred_instances
        assert len(found) > 0
        assert ((found.bboxes >= -1e-3) & (found.bboxes <= torch.tensor([width, height] * 2) + 1e-3)).all()
        assert not hasattr(found, 'masks') or found.masks.shape == (len(found), height, width)


def is_new(name: str) -> bool:
    return any(part in NEW for part in name.split('.'))


def features(model: nn.Module, cfg: Config, training: bool) -> tuple:
    """Compute what the backbone, in its type, makes of a padded batch."""
    inputs = model.train(training).data_preprocessor(batch(cfg), training=True)['inputs']
    assert inputs.shape[2:] == PADDED[cfg.default_scope]
    inputs = inputs.to(next(model.backbone.parameters()).dtype)
    with torch.no_grad():
        return inputs, model.backbone(inputs)


@pytest.fixture(scope='module')
def torchvisions():
    """torchvision's ResNet-50, with statistics and scales as if it had been trained."""
    torch.manual_seed(0)
    net = torchvision.models.resnet50()
    for norm in [m for m in net.modules() if isinstance(m, _BatchNorm)]:
        nn.init.uniform_(norm.weight, 0.2, 0.8)
        nn.init.uniform_(norm.bias, -0.2, 0.2)
        norm.momentum = 1.0
    with torch.no_grad():
        net(torch.randn(4, 3, 96, 96))
    return net.eval()


@pytest.fixture(scope='module')
def plain(torchvisions, tmp_path_factory) -> dict:
    """Option that starts a config from a file of torchvision's instead of its address."""
    path = tmp_path_factory.mktemp('plain') / 'resnet50.pth'
    torch.save(torchvisions.state_dict(), path)
    return {CHECKPOINT: path}


@pytest.fixture(scope='module')
def classifier(tmp_path_factory) -> Path:
    """Checkpoint of a classifier with spatial bias, trained for a few steps and saved by the runner."""
    from mmpretrain.structures import DataSample

    folder = tmp_path_factory.mktemp('classifier')
    scopes = dict(DefaultScope._instance_dict)
    cfg = load(CLASSIFIER, NARROW[CLASSIFIER])
    model = start(cfg)
    images = torch.randint(0, 255, (12, 3, 64, 64), dtype=torch.uint8)
    data = [dict(inputs=image, data_samples=DataSample().set_gt_label(i % 10)) for i, image in enumerate(images)]
    Runner(
        model=model,
        work_dir=str(folder),
        train_dataloader=torch.utils.data.DataLoader(data, batch_size=4, collate_fn=pseudo_collate),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=cfg.optim_wrapper,
        default_scope='mmpretrain',
        experiment_name='classifier',
        log_level='WARNING',
        cfg=cfg,
    ).train()
    DefaultScope._instance_dict.clear()  # no scope left behind: this comes before the fixture that sees to it
    DefaultScope._instance_dict.update(scopes)
    return folder / 'epoch_1.pth'


@pytest.fixture(scope='module')
def image_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp('image') / 'image.png'
    mmcv.imwrite(np.random.default_rng(0).integers(0, 255, (60, 90, 3), np.uint8), str(path))
    return path


def save(model: nn.Module, path: Path, **dataset_meta) -> str:
    torch.save(dict(meta=dict(dataset_meta=dataset_meta), state_dict=model.state_dict()), path)
    return str(path)


def test_fixed_names_are_there():
    assert set(FIXED_NAMES) <= set(CONFIGS)


@pytest.mark.parametrize('name', CONFIGS)
def test_config_trains_a_step_and_predicts(name, plain):
    size = {'model.data_preprocessor.size': PADDED['mmseg']}
    segments = not name.startswith('coco/')
    cfg = load(name, {**plain, **(size if segments else FEW)})
    model = start(cfg)
    changed = train_step(cfg, model)
    biased = {1, 2, 3} if 'sb-' in name else set()
    assert {i for i in range(1, 5) if f'layer{i}.0.bias_conv.weight' in changed} == biased
    assert any(is_new(key) for key in model.backbone.state_dict()) == bool(biased)
    assert 'layer4.0.conv1.weight' in changed
    frozen = {key for key in changed if key.startswith(('conv1', 'bn1', 'layer1.')) and not is_new(key)}
    assert bool(frozen) == segments, 'detectors freeze the stem and the first stage'
    assert ('conv1.weight' in changed) == name.startswith('ade20k/')
    sample = predict(cfg, model)
    assert segments or hasattr(sample.pred_instances, 'masks') == ('mask-rcnn' in name)


@pytest.mark.parametrize('name', FIXED_NAMES)
def test_recipe_is_the_papers(name):
    cfg = load(name, {})
    gpus, batch_size, rate = (2, 14, 2e-4) if name.startswith('ade20k/') else (2, 8, 0.02)
    assert cfg.train_dataloader.batch_size == batch_size
    assert cfg.auto_scale_lr == dict(enable=False, base_batch_size=gpus * batch_size)
    assert cfg.optim_wrapper.optimizer.lr == rate
    assert cfg.optim_wrapper.optimizer.weight_decay == 1e-4
    assert cfg.model.backbone.init_cfg.checkpoint == 'torchvision://resnet50'
    assert cfg.train_cfg.get('max_epochs', cfg.train_cfg.get('max_iters')) in (12, 40000)


def test_segmentation_base_is_what_its_header_says():
    import mmseg

    upstream = Path(mmseg.__file__).parent / '.mim/configs'
    sem_fpn = Config.fromfile(upstream / 'sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512.py')
    nearest = Config.fromfile(upstream / 'poolformer/fpn_poolformer_s12_8xb4-40k_ade20k-512x512.py')
    ours = load(SEGMENTER, {})
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        assert ours[loader].dataset == sem_fpn[loader].dataset
        assert ours[loader].sampler == sem_fpn[loader].sampler
    assert ours.val_evaluator == ours.test_evaluator == sem_fpn.val_evaluator
    assert ours.model.data_preprocessor == sem_fpn.model.data_preprocessor
    assert ours.model.neck == sem_fpn.model.neck
    assert {**ours.model.decode_head, 'norm_cfg': sem_fpn.norm_cfg} == sem_fpn.model.decode_head
    assert ours.optim_wrapper.optimizer == nearest.optim_wrapper.optimizer
    assert ours.param_scheduler == nearest.param_scheduler
    assert ours.train_cfg == nearest.train_cfg


@pytest.mark.parametrize('name', [DETECTOR, SEGMENTER])
def test_warm_start_is_torchvisions_network(name, plain, torchvisions):
    options = {'model.data_preprocessor.size': PADDED['mmseg']} if name == SEGMENTER else {}
    cfg = load(name, {**plain, **options})
    model = start(cfg)
    model.backbone.double()  # float32 rounds differently from kernel to kernel, and so from processor to processor
    inputs, ours = features(model, cfg, training=name == DETECTOR)  # its batch norms keep the statistics
    theirs = create_feature_extractor(copy.deepcopy(torchvisions).double(), [f'layer{i}' for i in (1, 2, 3, 4)])
    with torch.no_grad():
        torch.testing.assert_close(ours, tuple(theirs(inputs).values()), rtol=1e-9, atol=1e-9)
    if name == DETECTOR:
        learning = {key for key, value in model.backbone.layer1.named_parameters() if value.requires_grad}
        assert learning == {key for key, _ in model.backbone.layer1.named_parameters() if is_new(key)} != set()


@pytest.mark.parametrize('name', [DETECTOR, SEGMENTER])
def test_our_classification_checkpoint_arrives_whole(name, classifier):
    weights = torch.load(classifier, weights_only=False)['state_dict']
    weights = {key.removeprefix('backbone.'): value for key, value in weights.items() if key.startswith('backbone.')}
    assert all(weights[f'layer{i}.0.bias_norm.num_batches_tracked'] == 3 for i in (1, 2, 3))
    cfg, model = narrow(name, {CHECKPOINT: classifier})
    ours = model.backbone.state_dict()
    assert ours.keys() == weights.keys()
    assert [key for key, value in ours.items() if not torch.equal(value, weights[key])] == []
    changed = train_step(cfg, model)
    assert 'layer2.0.spatial_bias.mix.weight' in changed
    if name == DETECTOR:
        assert not any(value.requires_grad for value in model.backbone.layer1.parameters())
        assert not any(key.startswith(('conv1', 'bn1', 'layer1.')) for key in changed)


@pytest.mark.parametrize('name', [DETECTOR, SEGMENTER])
def test_one_image_a_batch(name):
    cfg, model = narrow(name)
    assert 'layer3.5.bias_conv.weight' in train_step(cfg, model, images=1)


@pytest.mark.parametrize('name', [DETECTOR, SEGMENTER])
def test_bfloat16(name):
    cfg, model = narrow(name)
    inputs, wanted = features(model, cfg, training=False)
    with torch.autocast('cpu', torch.bfloat16):
        outs = model.backbone(inputs)
        assert {out.dtype for out in outs} == {torch.bfloat16}
    for out, value in zip(outs, wanted, strict=True):
        assert (out - value).norm() < 0.03 * value.norm()
    sum(out.float().mean() for out in outs).backward()
    assert all(torch.isfinite(value.grad).all() for value in model.backbone.parameters() if value.requires_grad)
    if name == SEGMENTER:  # a detector can't: mmcv's NMS on the CPU has no bfloat16
        with torch.autocast('cpu', torch.bfloat16):
            assert 'layer3.5.bias_conv.weight' in train_step(cfg, model.train())
            predict(cfg, model)


@pytest.mark.parametrize('name', [DETECTOR, SEGMENTER])
@pytest.mark.parametrize('block', ['SE', 'GC', 'NL', 'SK'])
def test_other_blocks_beside_spatial_bias(name, block):
    cfg = load(name, {**NARROW[name], **FROM_SCRATCH})
    if block == 'SK':
        cfg.model.backbone.conv2 = dict(type='mmsb.SK')
    else:
        position = 'after_block' if block == 'NL' else 'after_conv3'
        stages = (False, True, True, True)
        plugin = dict(cfg=dict(type=f'mmsb.{block}'), position=position, stages=stages)
        cfg.model.backbone.plugins = [plugin]
    model = start(cfg)
    learning = {key for key, _ in model.backbone.named_parameters() if '.conv2.block.' in key}
    if block != 'SK':
        learning = {key for key, _ in model.backbone.named_parameters() if f'.{block.lower()}.' in key}
    assert learning
    assert train_step(cfg, model) & learning
    predict(cfg, model)


def test_det_inferencer(image_file, tmp_path):
    from mmdet.apis import DetInferencer

    cfg, model = narrow(DETECTOR)  # at the config's own size: the image becomes 800 x 1200
    cfg.dump(tmp_path / 'config.py')
    classes = [f'class {i}' for i in range(80)]
    weights = save(model, tmp_path / 'weights.pth', classes=classes)
    inferencer = DetInferencer(str(tmp_path / 'config.py'), weights, device='cpu', show_progress=False)
    result = inferencer(str(image_file), out_dir=str(tmp_path / 'out'), return_datasamples=True)
    check_prediction(cfg, result['predictions'][0], (60, 90))
    assert result['predictions'][0].img_shape == (800, 1200)
    assert mmcv.imread(tmp_path / 'out/vis/image.png').shape == (60, 90, 3)


def test_seg_inferencer(image_file, tmp_path):
    from mmseg.apis import MMSegInferencer
    from mmseg.utils import get_classes, get_palette

    weights = save(start(load(SEGMENTER, FROM_SCRATCH)), tmp_path / 'weights.pth')
    inferencer = MMSegInferencer(
        str(zoo.CONFIGS / SEGMENTER),
        weights,
        classes=get_classes('ade20k'),
        palette=get_palette('ade20k'),
        device='cpu',
    )
    result = inferencer(str(image_file), out_dir=str(tmp_path), return_datasamples=True)
    check_prediction(load(SEGMENTER, {}), result, (60, 90))
    assert result.img_shape == (512, 768)
    assert mmcv.imread(tmp_path / 'vis/image.png').shape[2] == 3


def test_classification_inferencer(image_file, tmp_path):
    from mmpretrain import ImageClassificationInferencer

    weights = save(start(load(CLASSIFIER, {})), tmp_path / 'weights.pth', classes=[f'class {i}' for i in range(1000)])
    inferencer = ImageClassificationInferencer(str(zoo.CONFIGS / CLASSIFIER), weights, device='cpu')
    (result,) = inferencer(str(image_file), show_dir=str(tmp_path / 'out'))
    assert result['pred_class'] == f'class {result["pred_label"]}'
    assert result['pred_scores'].shape == (1000,)
    assert result['pred_scores'].sum() == pytest.approx(1, abs=1e-4)
    assert (tmp_path / 'out/image.png').is_file()


def test_test_time_augmentation_of_a_detector(image_file):
    cfg, _ = narrow(DETECTOR)
    meta_keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'flip', 'flip_direction')
    views = [
        [dict(type='Resize', scale=scale, keep_ratio=True) for scale in ((133, 80), (166, 100))],
        [dict(type='RandomFlip', prob=prob) for prob in (0.0, 1.0)],
        [dict(type='PackDetInputs', meta_keys=meta_keys)],
    ]
    pipeline = Compose([dict(type='LoadImageFromFile'), dict(type='TestTimeAug', transforms=views)])
    tta_cfg = ConfigDict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100)
    model = MODELS.build(dict(type='DetTTAModel', module=cfg.model, tta_cfg=tta_cfg)).eval()
    data = pseudo_collate([pipeline(dict(img_path=str(image_file), img_id=0))])
    assert len(data['inputs']) == 4
    with torch.no_grad():
        (sample,) = model.test_step(data)
    check_prediction(cfg, sample, (60, 90))


def test_test_time_augmentation_of_a_segmenter(image_file, tmp_path):
    cfg, _ = narrow(SEGMENTER)
    mmcv.imwrite(np.zeros((60, 90), np.uint8), str(tmp_path / 'mask.png'))
    record = dict(img_path=str(image_file), seg_map_path=str(tmp_path / 'mask.png'))
    data = pseudo_collate([Compose(cfg.tta_pipeline)({**record, 'reduce_zero_label': True, 'seg_fields': []})])
    assert len(data['inputs']) == 12
    model = MODELS.build(dict(**cfg.tta_model, module=cfg.model)).eval()
    with torch.no_grad():
        (sample,) = model.test_step(data)
    assert sample.pred_sem_seg.data.shape[-2:] == (60, 90)


@pytest.fixture
def coco(tmp_path) -> Path:
    """A folder like COCO's: two images, non-square, with two and one objects."""
    from mmdet.datasets import CocoDataset

    sizes, boxes = [(90, 60), (50, 100)], [(0, [10, 10, 30, 40], 1), (0, [45, 5, 40, 50], 90), (1, [20, 30, 25, 60], 1)]
    (tmp_path / 'val2017').mkdir()
    for i, (width, height) in enumerate(sizes):
        image = np.random.default_rng(i).integers(0, 255, (height, width, 3), np.uint8)
        mmcv.imwrite(image, str(tmp_path / f'val2017/{i}.jpg'))
    names = CocoDataset.METAINFO['classes']
    content = dict(
        images=[dict(id=i, file_name=f'{i}.jpg', width=w, height=h) for i, (w, h) in enumerate(sizes)],
        annotations=[
            dict(id=k, image_id=image, bbox=box, area=box[2] * box[3], category_id=category, iscrowd=0)
            for k, (image, box, category) in enumerate(boxes, 1)
        ],
        categories=[dict(id={0: 1, 79: 90}.get(i, 100 + i), name=name) for i, name in enumerate(names)],
    )
    (tmp_path / 'annotations').mkdir()
    (tmp_path / 'annotations/instances_val2017.json').write_text(json.dumps(content))
    return tmp_path


def test_coco_evaluator_of_a_config(coco):
    options = {
        'val_dataloader.dataset.data_root': coco,
        'val_evaluator.ann_file': coco / 'annotations/instances_val2017.json',
    }
    cfg, model = narrow(DETECTOR, {**FROM_SCRATCH, **options})
    init_default_scope('mmdet')
    dataset = DATASETS.build(cfg.val_dataloader.dataset)
    assert len(dataset) == 2

    def evaluate(predict) -> dict:
        metric = METRICS.build(cfg.val_evaluator)
        metric.dataset_meta = dataset.metainfo
        for data in dataset:
            metric.process({}, [sample.to_dict() for sample in predict(data)])
        return metric.evaluate(size=len(dataset))

    def truth(data):
        sample = data['data_samples'].clone()
        boxes = sample.gt_instances.bboxes.tensor.clone()  # loaded after Resize: those of the file
        labels = sample.gt_instances.labels
        sample.pred_instances = InstanceData(bboxes=boxes, labels=labels, scores=torch.ones(len(labels)))
        return [sample]

    def shifted(data):
        (sample,) = truth(data)
        sample.pred_instances.bboxes += 6
        return [sample]

    def found(data):
        with torch.no_grad():
            return model.eval().test_step(pseudo_collate([data]))

    perfect = evaluate(truth)
    assert perfect['coco/bbox_mAP'] == perfect['coco/bbox_mAP_75'] == 1.0
    assert 0 < evaluate(shifted)['coco/bbox_mAP'] < 0.7
    assert 0 <= evaluate(found)['coco/bbox_mAP'] < 0.5
