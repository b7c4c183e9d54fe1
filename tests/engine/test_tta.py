"""`tools/test.py --tta`: the merged predictions are those of a naive loop over the image and its flip."""

import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
import scenes
import torch
from mmengine.config import Config
from mmseg.structures import SegDataSample
from torchvision.ops import batched_nms

from mmsb.configs import build_model, read_config
from mmsb.datasets.check import DataCheck
from mmsb.engine.tta import flipped, use_tta
from mmsb.infer import Inferencer
from mmsb.infer.inputs import Picture, find, read

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / 'configs/demo'
CONFIGS = {
    'mmpretrain': DEMO / 'sb-resnet11_b64-10e_digits.py',
    'mmdet': DEMO / 'faster-rcnn_sb-r50c16_fpn_b16-8e_digits-scenes.py',
    'mmseg': DEMO / 'fpn_sb-resnet20_b8-200i_digits-scenes.py',
}
IMAGES = 2
SHORT = (f'test_dataloader.dataset.indices={IMAGES}', 'test_dataloader.num_workers=0',
         'test_dataloader.persistent_workers=False')  # fmt: skip


@pytest.fixture(scope='module')
def weights(tmp_path_factory) -> dict[str, Path]:
    folder, paths = tmp_path_factory.mktemp('weights'), {}
    for library, config in CONFIGS.items():
        torch.manual_seed(0)
        paths[library] = folder / f'{library}.pth'
        torch.save(dict(state_dict=build_model(read_config(str(config))).state_dict()), paths[library])
    return paths


def predicted(library: str, weights: Path, folder: Path) -> list[list]:
    """Predict the first images of a folder, and their flips, without test-time augmentation."""
    inferencer = Inferencer(str(CONFIGS[library]), weights, device='cpu')
    pictures = list(read(find([folder])[:IMAGES], inferencer.pipeline, skip=pytest.fail))
    flips = [Picture(one.path, np.ascontiguousarray(one.pixels[:, ::-1])) for one in pictures]
    return [[prediction.sample for prediction in inferencer.predict(views)] for views in (pictures, flips)]


def run_with_tta(library: str, weights: Path, demo_data: Path, tmp_path: Path, run_tool, *options) -> list:
    out = tmp_path / 'out.pkl'
    done = run_tool('test.py', CONFIGS[library], weights, '--tta', '--out', out, '--work-dir', tmp_path / 'run',
                    '--cfg-options', *SHORT, *options, cwd=demo_data)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return pickle.loads(out.read_bytes())


def test_scores_of_a_classifier(weights, demo_data, tmp_path, run_tool):
    found = run_with_tta('mmpretrain', weights['mmpretrain'], demo_data, tmp_path, run_tool)
    views = predicted('mmpretrain', weights['mmpretrain'], demo_data / 'data/demo/digits/val')
    for one, plain, flip in zip(found, *views, strict=True):
        assert not torch.equal(plain.pred_score, flip.pred_score)
        torch.testing.assert_close(one['pred_score'], (plain.pred_score + flip.pred_score) / 2)


def test_boxes_of_a_detector(weights, demo_data, tmp_path, run_tool):
    few = scenes.options('test', IMAGES)
    found = run_with_tta('mmdet', weights['mmdet'], demo_data, tmp_path, run_tool, *few)
    views = predicted('mmdet', weights['mmdet'], demo_data / 'data/demo/digits-scenes/images/val')
    for one, plain, flip in zip(found, *([sample.pred_instances for sample in view] for view in views), strict=True):
        mirrored = flip.bboxes.clone()
        mirrored[:, 0], mirrored[:, 2] = 128 - flip.bboxes[:, 2], 128 - flip.bboxes[:, 0]
        boxes = torch.cat([plain.bboxes, mirrored])
        scores, labels = torch.cat([plain.scores, flip.scores]), torch.cat([plain.labels, flip.labels])
        kept = batched_nms(boxes, scores, labels, 0.5)[:100]
        assert 0 < len(kept) < len(boxes)
        torch.testing.assert_close(one['pred_instances']['scores'], scores[kept])
        torch.testing.assert_close(one['pred_instances']['bboxes'], boxes[kept])


def test_labels_of_a_segmenter_and_its_truth(weights, demo_data, tmp_path, run_tool):
    found = run_with_tta('mmseg', weights['mmseg'], demo_data, tmp_path, run_tool)
    views = predicted('mmseg', weights['mmseg'], demo_data / 'data/demo/digits-scenes/images/val')
    for one, plain, flip in zip(found, *views, strict=True):
        shares = plain.seg_logits.data.softmax(0) + flip.seg_logits.data.softmax(0).flip(-1)
        assert torch.equal(one['pred_sem_seg']['data'][0], shares.argmax(0))


def test_a_segmenter_with_one_output(demo_data, tmp_path, run_tool):
    """The mean of the two sigmoids, compared with the threshold; the pictures have the names of the files."""
    config = tmp_path / 'one.py'
    config.write_text(f"""_base_ = {str(CONFIGS['mmseg'])!r}
model = dict(decode_head=dict(num_classes=2, out_channels=1, loss_decode=dict(use_sigmoid=True)))
test_dataloader = dict(dataset=dict(metainfo=dict(classes=('ground', 'thing'), palette=[[0, 0, 0], [255, 0, 0]])))
""")
    cfg = read_config(str(config))
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    torch.save(model.state_dict(), tmp_path / 'one.pth')
    paths = find([demo_data / 'data/demo/digits-scenes/images/val'])[:IMAGES]
    means = []
    for path in paths:
        pixels = cv2.imread(path)
        scores = []
        for view in (pixels, pixels[:, ::-1]):
            inputs = [torch.from_numpy(np.ascontiguousarray(view)).permute(2, 0, 1)]
            with torch.no_grad():
                batch = model.data_preprocessor(dict(inputs=inputs, data_samples=[SegDataSample()]))
                scores.append(model.encode_decode(batch['inputs'], [dict(img_shape=pixels.shape[:2])])[0, 0].sigmoid())
        means.append((scores[0] + scores[1].flip(-1)) / 2)
    threshold = float(torch.stack(means).median())
    done = run_tool('test.py', config, tmp_path / 'one.pth', '--tta', '--out', tmp_path / 'out.pkl', '--work-dir',
                    tmp_path / 'run', '--show-dir', tmp_path / 'drawn', '--cfg-options',
                    f'model.decode_head.threshold={threshold}', *SHORT, cwd=demo_data)  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = pickle.loads((tmp_path / 'out.pkl').read_bytes())
    for one, mean in zip(found, means, strict=True):
        clear = (mean - threshold).abs() > 1e-5
        assert torch.equal(one['pred_sem_seg']['data'][0][clear].bool(), (mean > threshold)[clear])
    drawn = sorted(str(path.relative_to(tmp_path / 'drawn')) for path in (tmp_path / 'drawn').rglob('*.*'))
    assert drawn == [Path(path).with_suffix('.png').name for path in paths]


def test_annotations_are_those_of_the_image_and_not_of_its_flip():
    pipeline = read_config(str(CONFIGS['mmseg'])).test_dataloader.dataset.pipeline
    *_, views = flipped(pipeline)
    kinds = [[step['type'] for step in steps] for steps in views['transforms']]
    assert kinds == [['RandomFlip'] * 2, ['LoadAnnotations'], ['PackSegInputs']]


def test_views_and_merging_model_of_the_config_come_first():
    cfg = read_config(str(CONFIGS['mmpretrain']))
    network = cfg.model
    cfg.tta_pipeline, cfg.tta_model = [dict(type='LoadImageFromFile'), dict(type='Mine')], dict(type='Other')
    use_tta(cfg)
    assert cfg.test_dataloader.dataset.pipeline == cfg.tta_pipeline
    assert cfg.model == dict(type='Other', module=network)


@pytest.mark.parametrize(
    ('changes', 'said'),
    [
        (dict(default_scope='mmpose'), 'default_scope of the config must be one of'),
        ({'test_dataloader.dataset.pipeline': None}, 'needs test_dataloader.dataset.pipeline'),
        ({'model.roi_head.mask_head': dict(type='FCNMaskHead')}, 'merges boxes only'),
    ],
)
def test_what_cannot_be_merged(changes, said):
    cfg = Config.fromfile(CONFIGS['mmdet'])
    cfg.merge_from_dict(changes)
    with pytest.raises(ValueError, match=said):
        use_tta(cfg)


def test_views_are_not_drawn_by_mmpretrain(weights, demo_data, tmp_path, run_tool):
    done = run_tool('test.py', CONFIGS['mmpretrain'], weights['mmpretrain'], '--tta', '--show-dir', tmp_path / 'drawn',
                    '--work-dir', tmp_path / 'run', cwd=demo_data)  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith('error: --show-dir: MMPretrain draws the label')
    assert list(tmp_path.iterdir()) == []


def test_pictures_need_a_library(tmp_path, run_tool):
    (tmp_path / 'config.py').write_text("model = dict(type='mmpretrain.ImageClassifier')\n")
    done = run_tool('test.py', tmp_path / 'config.py', 'none.pth', '--tta', '--show-dir', 'drawn', cwd=tmp_path)
    assert (done.returncode, done.stderr.splitlines()[-1][:26]) == (1, 'error: --show-dir supports')


def test_a_pipeline_without_packing_says_what_to_add():
    with pytest.raises(ValueError, match='add a tta_pipeline'):
        flipped([dict(type='LoadImageFromFile')])


@pytest.mark.parametrize('library', CONFIGS)
def test_the_data_is_checked_as_without_views(library, demo_data, monkeypatch):
    monkeypatch.chdir(demo_data)
    cfg = read_config(str(CONFIGS[library]))
    key = dict(mmpretrain='head', mmdet='roi_head.bbox_head', mmseg='decode_head')[library]
    changes = {'test_dataloader.dataset.seg_map_suffix': '.bmp'} if library == 'mmseg' else {}  # there is no such file
    cfg.merge_from_dict({f'model.{key}.num_classes': 5, **changes})
    found = []
    for prepare in (lambda cfg: None, use_tta):
        prepare(cfg)
        report = DataCheck(cfg).datasets('test_dataloader').report
        found.append([(one.kind, one.file) for one in report.findings if one.level == 'error'])
    assert found[0] == found[1]
    assert ('number of classes', f'model.{key}.num_classes') in found[0]
    assert ('missing mask' in dict(found[0])) == (library == 'mmseg')


def test_a_dataset_inside_a_wrapper():
    cfg = read_config(str(CONFIGS['mmpretrain']))
    plain = cfg.test_dataloader.dataset
    cfg.test_dataloader.dataset = dict(type='RepeatDataset', times=1, dataset=plain)
    use_tta(cfg)
    assert cfg.test_dataloader.dataset.dataset.pipeline[-1].type == 'TestTimeAug'
