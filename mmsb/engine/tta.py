"""Test-time augmentation: the network predicts several views of each image, and its library merges the predictions."""

import copy

from mmengine.config import Config, ConfigDict

from mmsb.datasets.test_set import dataset_with_pipeline
from mmsb.options import choose

MODELS = {  # that merge the predictions, for a config that has none
    'mmpretrain': dict(type='mmpretrain.AverageClsScoreTTA'),
    'mmdet': dict(type='DetTTAModel', tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100)),
    'mmseg': dict(type='mmseg.SegTTAModel'),
}
_FLIP = ('flip', 'flip_direction')  # what the merging models need to know of a view


def use_tta(cfg: Config) -> None:
    """Change a complete config in place, so that a test predicts and merges several views of each image.

    They are those of the config's `tta_pipeline` and `tta_model`, as in upstream's configs; by default, the image and
    its horizontal flip.

    Raises:
        ValueError: the library can't do it with this network, or the config has no pipeline to derive the views from.
    """
    library = choose('with --tta, default_scope of the config', cfg.get('default_scope'), MODELS)
    if library == 'mmdet' and ('mask_head' in cfg.model or 'mask_head' in (cfg.model.get('roi_head') or {})):
        raise ValueError('--tta: MMDetection merges boxes only, and this network predicts masks')
    dataset = dataset_with_pipeline(cfg)
    if not dataset.get('pipeline'):
        raise ValueError('--tta needs test_dataloader.dataset.pipeline, and this config has its pipeline elsewhere')
    dataset.pipeline = copy.deepcopy(cfg.get('tta_pipeline') or flipped(dataset.pipeline))
    model = ConfigDict(copy.deepcopy(cfg.get('tta_model') or MODELS[library]))
    if library == 'mmseg' and model.type in ('SegTTAModel', 'mmseg.SegTTAModel'):
        import mmsb.engine.seg_tta  # noqa: F401 - registers the type; it imports mmseg

        model.type = 'mmsb.SegTTAModel'
    model.module = cfg.model
    cfg.model = model


def flipped(pipeline: list[dict]) -> list[dict]:
    """Derive a pipeline that gives each image and its horizontal flip from one that gives the image.

    Annotations are loaded after the flip, so that they stay those of the image.

    Raises:
        ValueError: the pipeline does not end with the transform that packs a sample.
    """
    *steps, pack = copy.deepcopy(list(pipeline))
    if 'Pack' not in str(pack.get('type')):
        raise ValueError(
            f'--tta needs a pipeline that ends with Pack...Inputs, got {pack.get("type")}: add a tta_pipeline'
        )
    if 'meta_keys' in pack:
        pack['meta_keys'] = tuple(dict.fromkeys((*pack['meta_keys'], *_FLIP)))
    truth = [step for step in steps if 'Annotation' in str(step.get('type'))]
    images = [step for step in steps if step not in truth]
    views = [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)]
    return [*images, dict(type='TestTimeAug', transforms=[views, *([step] for step in truth), [pack]])]
