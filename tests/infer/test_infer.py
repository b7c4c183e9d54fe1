"""Inference predicts what the libraries' own functions do, in formats that others read, and skips what is broken."""

import json
import operator
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.dataset import Compose
from mmseg.structures import SegDataSample
from PIL import Image

from mmsb.configs import build_model, read_config
from mmsb.exported import to_scores
from mmsb.infer import Inferencer, inputs, write_predictions
from mmsb.infer.drawn import Names

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = {
    'classifier': str(ROOT / 'configs/demo/sb-resnet11_b64-10e_digits.py'),
    'detector': str(ROOT / 'configs/demo/faster-rcnn_sb-r50c16_fpn_b16-8e_digits-scenes.py'),
    'segmenter': str(ROOT / 'configs/demo/fpn_sb-resnet20_b8-200i_digits-scenes.py'),
}
SIZES = dict(a=(64, 64), b=(64, 64), c=(48, 64), d=(64, 64))  # height, width
CLASSES = tuple('abcdefghij')


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    """Folder with four images, a video of three frames, a file that is no image, and a text."""
    found = tmp_path_factory.mktemp('pictures')
    random = np.random.default_rng(0)
    for name, size in SIZES.items():
        Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)).save(found / f'{name}.png')
    video = cv2.VideoWriter(str(found / 'clip.avi'), cv2.VideoWriter_fourcc(*'MJPG'), 5, (64, 48))
    for shade in (0, 100, 200):
        video.write(np.full((48, 64, 3), shade, np.uint8))
    video.release()
    (found / 'broken.png').write_bytes((found / 'a.png').read_bytes()[:200])
    (found / 'notes.txt').write_text('none of these')
    return found


@pytest.fixture(scope='module')
def weights(tmp_path_factory) -> dict[str, str]:
    found = tmp_path_factory.mktemp('weights')
    for kind, config in CONFIGS.items():
        torch.manual_seed(0)
        model = build_model(read_config(config))
        meta = dict(dataset_meta=dict(classes=CLASSES)) if kind == 'classifier' else {}
        torch.save(dict(state_dict=model.state_dict(), meta=meta), found / f'{kind}.pth')
    return {kind: str(found / f'{kind}.pth') for kind in CONFIGS}


@pytest.fixture(scope='module')
def inferencers(weights) -> dict[str, Inferencer]:
    return {kind: Inferencer(CONFIGS[kind], weights[kind], device='cpu') for kind in CONFIGS}


def images(folder: Path) -> list[str]:
    return [str(folder / f'{name}.png') for name in SIZES]


def test_folders_patterns_and_files_are_found_once_and_in_order(folder, tmp_path):
    (tmp_path / 'deep/.hidden').mkdir(parents=True)
    for name in ('deep/B.JPG', 'deep/.hidden/c.png', 'z.txt'):
        (tmp_path / name).touch()
    assert inputs.find(tmp_path) == inputs.find(str(tmp_path)) == [str(tmp_path / 'deep/B.JPG')]
    found = inputs.find([folder / 'b.png', f'{folder}/[ab].png', folder / 'notes.txt'])
    assert found == [str(folder / name) for name in ('b.png', 'a.png', 'notes.txt')]
    assert [Path(path).name for path in inputs.find([folder])] == [
        'a.png', 'b.png', 'broken.png', 'c.png', 'clip.avi', 'd.png',
    ]  # fmt: skip


def test_linked_folders_are_followed_once_and_not_in_circles(tmp_path):
    for name in ('store/ant/0.PNG', 'store/bee/1.jfif', 'data/own/2.png', 'data/.hidden/3.png', 'data/own/.4.png'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for link, target in {
        'data/ant': '../store/ant', 'data/bee': '../store/bee', 'data/again': '../store/ant', 'data/own/up': '..',
        'data/own/self': '.', 'data/gone': 'nothing', 'data/5.png': '../store/ant/0.PNG', 'data/6.png': 'nothing.png',
        'linked': 'data',
    }.items():  # fmt: skip
        (tmp_path / link).symlink_to(target)
    for top in ('data', 'linked'):
        wanted = ['5.png', 'again/0.PNG', 'bee/1.jfif', 'own/2.png']
        assert inputs.find(tmp_path / top) == [str(tmp_path / top / name) for name in wanted]
        wanted = ['again/0.PNG', 'ant/0.PNG', 'bee/1.jfif']
        assert inputs.find(f'{tmp_path}/{top}/[ab]*') == [str(tmp_path / top / name) for name in wanted]
        assert inputs.find(f'{tmp_path}/{top}/**/*.PNG') == [str(tmp_path / top / 'again/0.PNG')]


def test_folders_that_all_link_to_each_other(tmp_path, monkeypatch):
    names = [f'{i:02d}' for i in range(12)]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / 'a.png').touch()
        for other in names:
            (tmp_path / name / other).symlink_to(tmp_path / other)
    wanted = [str(tmp_path / name / 'a.png') for name in names]
    assert sorted(map(os.path.realpath, inputs.find(tmp_path))) == wanted
    assert sorted(map(os.path.realpath, inputs.find(f'{tmp_path}/**/a.png'))) == wanted
    monkeypatch.chdir(tmp_path)
    assert sorted(map(os.path.realpath, inputs.find('**/*.png'))) == wanted
    assert inputs.find('0[12]/a.png') == ['01/a.png', '02/a.png']
    assert len(inputs.find('03/**')) == 12


def test_frames_of_a_video_are_numbered(folder):
    frames = list(inputs.read([str(folder / 'clip.avi')], None, skip=pytest.fail))
    assert [frame.frame for frame in frames] == [0, 1, 2]
    assert [round(float(frame.pixels.mean()), -1) for frame in frames] == [0, 100, 200]
    assert inputs.count(inputs.find([folder])) == len(SIZES) + 1 + 3


@pytest.mark.parametrize('batch_size', [1, 3])
def test_a_classifier_gives_the_scores_of_its_network(batch_size, folder, weights, inferencers):
    model = build_model(read_config(CONFIGS['classifier'])).eval()
    model.load_state_dict(torch.load(weights['classifier'])['state_dict'])
    found = list(inferencers['classifier'](images(folder), batch_size=batch_size))
    assert [Path(one.picture.path).stem for one in found] == list(SIZES)
    for one in found:
        pixels = np.asarray(Image.open(one.picture.path))[..., ::-1].copy()  # the config takes BGR
        with torch.no_grad():
            normalised = (torch.from_numpy(pixels).permute(2, 0, 1)[None].float() - 60) / 90
            scores = model.head(model.neck(model.backbone(normalised)))[0].softmax(0)
        assert [best['label'] for best in one.found] == scores.argsort(descending=True)[:5].tolist()
        assert [best['class'] for best in one.found] == [CLASSES[best['label']] for best in one.found]
        np.testing.assert_allclose([best['score'] for best in one.found], scores.sort(descending=True)[0][:5], 1e-4)


def test_boxes_are_those_of_the_library_in_the_format_of_coco(folder, weights, inferencers, tmp_path):
    from mmdet.apis import inference_detector, init_detector
    from pycocotools.coco import COCO

    write_predictions(inferencers['detector'], [folder / 'a.png', folder / 'c.png'], tmp_path)
    coco = COCO(tmp_path / 'predictions.json')
    model = init_detector(CONFIGS['detector'], weights['detector'], device='cpu')
    assert [coco.cats[i + 1]['name'] for i in range(10)] == list('0123456789')
    for number, name in ((1, 'a'), (2, 'c')):
        theirs = inference_detector(model, str(folder / f'{name}.png')).pred_instances
        ours = coco.imgToAnns[number]
        assert len(ours) == len(theirs) > 0
        left, top, width, height = np.array([one['bbox'] for one in ours]).T
        corners = np.stack([left, top, left + width, top + height], 1)
        np.testing.assert_allclose(corners, theirs.bboxes, rtol=1e-4, atol=1e-3)
        assert [one['category_id'] - 1 for one in ours] == theirs.labels.tolist()
        np.testing.assert_allclose([one['score'] for one in ours], theirs.scores, rtol=1e-5)
        assert coco.imgs[number]['height'] == SIZES[name][0]
        assert Image.open(tmp_path / coco.imgs[number]['drawn']).size == SIZES[name][::-1]


def test_masks_of_instances_are_run_length_encoded(folder, tmp_path):
    from pycocotools.mask import decode

    config = tmp_path / 'masks.py'
    config.write_text(f"""_base_ = {CONFIGS['detector']!r}
model = dict(roi_head=dict(
    mask_roi_extractor=dict(
        type='SingleRoIExtractor', roi_layer=dict(type='RoIAlign', output_size=7, sampling_ratio=0),
        out_channels=64, featmap_strides=[4, 8, 16]),
    mask_head=dict(type='FCNMaskHead', num_convs=1, in_channels=64, conv_out_channels=8, num_classes=10),
), test_cfg=dict(rcnn=dict(mask_thr_binary=0.5)))
""")
    torch.manual_seed(0)
    torch.save(build_model(read_config(str(config))).state_dict(), tmp_path / 'masks.pth')
    inferencer = Inferencer(str(config), tmp_path / 'masks.pth', device='cpu')
    (prediction,) = inferencer(folder / 'a.png')
    masks = prediction.sample.pred_instances.masks.numpy()
    assert masks.any()
    assert not masks.all()
    found = write_predictions(inferencer, folder / 'a.png', tmp_path / 'out')['annotations']
    decoded = [decode(one['segmentation']).astype(bool) for one in json.loads(json.dumps(found))]
    np.testing.assert_array_equal(decoded, masks)
    assert [one['area'] for one in found] == masks.sum((1, 2)).tolist()


def test_a_mask_holds_the_labels_of_the_library(folder, weights, inferencers, tmp_path):
    from mmseg.apis import inference_model, init_model

    found = write_predictions(inferencers['segmenter'], images(folder), tmp_path, batch_size=2)
    cfg = read_config(CONFIGS['segmenter'])
    cfg.test_pipeline = cfg.test_dataloader.dataset.pipeline
    model = init_model(cfg, weights['segmenter'], device='cpu')
    for image in found['images']:
        labels = inference_model(model, image['file_name']).pred_sem_seg.data[0].numpy()
        mask = Image.open(tmp_path / image['mask'])
        np.testing.assert_array_equal(np.asarray(mask), labels)
        assert mask.getpalette()[:3] == [50, 170, 60]  # of the config
        names = {0: 'digit', 1: 'distractor', 2: 'background'}
        assert image['pixels'] == {names[label]: int((labels == label).sum()) for label in np.unique(labels)}


def test_pictures_are_named_by_the_place_of_their_files(folder, inferencers, tmp_path):
    for name in ('one/a.png', 'two/a.png', 'two/deep/a.png', 'two/deep/a.bmp'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.open(folder / 'b.png').save(tmp_path / name)
    shutil.copy(folder / 'clip.avi', tmp_path / 'two')
    wanted = [
        'one/a', 'two/a', *(f'two/clip_{i:06d}' for i in range(3)), 'two/deep/a', 'two/deep/a_png',
    ]  # fmt: skip
    out = tmp_path / 'out'
    for kind in ('classifier', 'segmenter'):
        found = write_predictions(inferencers[kind], [tmp_path / 'one', tmp_path / 'one/../two'], out)['images']
        drawn = [image['drawn'] for image in found]
        assert drawn == [f'drawn/{name}.{"jpg" if "clip" in name else "png"}' for name in wanted]
        assert [image.get('frame') for image in found] == [None, None, 0, 1, 2, None, None]
        assert sorted(str(path.relative_to(out)) for path in (out / 'drawn').rglob('*.*')) == sorted(drawn)
    assert [image['mask'] for image in found] == [f'masks/{name}.png' for name in wanted]
    assert sorted(str(path.relative_to(out / 'masks')) for path in (out / 'masks').rglob('*.png')) == sorted(
        f'{name}.png' for name in wanted
    )


def test_names_stay_below_the_folder_of_the_output():
    names = Names(['data/../../x/a.png', 'data/b.png'])
    chosen = [names.choose(path) for path in ('data/../../x/a.png', 'data/b.png', '/elsewhere/c.png', '../../../d.png')]
    assert len(set(chosen)) == 4
    assert not any(name.startswith('/') or '..' in name.split('/') for name in chosen)
    assert (chosen[0], chosen[2]) == ('x/a', 'elsewhere/c')
    assert Names(['a/b/c.png']).choose('a/b/c.png') == 'c'


def test_deployed_networks_predict_the_same(folder, weights, inferencers):
    deployed = Inferencer(CONFIGS['classifier'], weights['classifier'], deploy=True, device='cpu')
    assert not any('bn' in name for name in deployed.model.state_dict())
    assert any('bn' in name for name in inferencers['classifier'].model.state_dict())
    plain = inferencers['classifier'](images(folder))
    for one, other in zip(deployed(images(folder)), plain, strict=True):
        torch.testing.assert_close(one.sample.pred_score, other.sample.pred_score, rtol=1e-4, atol=1e-5)


def test_names_of_classes_that_nothing_names_are_numbers(weights):
    cfg = read_config(CONFIGS['segmenter'])
    cfg.merge_from_dict({'test_dataloader.dataset.metainfo': None})
    assert Inferencer(cfg, weights['segmenter'], device='cpu').classes == ['0', '1', '2']


def test_a_dataset_inside_a_wrapper_prepares_the_images(folder, weights, inferencers):
    cfg = read_config(CONFIGS['classifier'])
    cfg.test_dataloader.dataset = dict(type='RepeatDataset', times=1, dataset=cfg.test_dataloader.dataset)
    (found,) = Inferencer(cfg, weights['classifier'], device='cpu')(folder / 'a.png')
    (wanted,) = inferencers['classifier'](folder / 'a.png')
    assert found.found == wanted.found


def test_a_network_for_a_dataset_of_arrays_gets_rgb(folder, weights, inferencers):
    cfg = read_config(CONFIGS['classifier'])
    cfg.test_dataloader.dataset = dict(type='CIFAR10', pipeline=[dict(type='PackInputs')])
    (found,) = Inferencer(cfg, weights['classifier'], device='cpu')(folder / 'a.png')
    rgb = inputs.Picture('a.png', cv2.imread(str(folder / 'a.png'))[..., ::-1].copy())
    (wanted,) = inferencers['classifier'].predict([rgb])
    torch.testing.assert_close(found.sample.pred_score, wanted.sample.pred_score)


@pytest.mark.parametrize('options', [dict(num_classes=2, out_channels=1), dict(num_classes=1)])
def test_a_segmenter_of_two_classes_with_one_output(options, folder, tmp_path):
    cfg = read_config(CONFIGS['segmenter'])
    cfg.model.decode_head.update(loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=True), **options)
    cfg.test_dataloader.dataset.metainfo = dict(classes=('ground', 'thing'), palette=[[1, 2, 3], [200, 0, 0]])
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    path = str(folder / 'a.png')
    pixels = torch.from_numpy(cv2.imread(path)).permute(2, 0, 1)
    with torch.no_grad():
        batch = model.data_preprocessor(dict(inputs=[pixels], data_samples=[SegDataSample()]))
        scores = model.encode_decode(batch['inputs'], [dict(img_shape=(64, 64))])[0, 0].sigmoid().numpy()
    cfg.model.decode_head.threshold = float(np.median(scores))
    torch.save(model.state_dict(), tmp_path / 'one.pth')
    inferencer = Inferencer(cfg, tmp_path / 'one.pth', device='cpu')
    (image,) = write_predictions(inferencer, path, tmp_path / 'out')['images']
    mask = np.asarray(Image.open(tmp_path / 'out' / image['mask']))
    clear = abs(scores - np.median(scores)) > 1e-5
    np.testing.assert_array_equal(mask[clear], (scores > np.median(scores))[clear])
    assert image['pixels'] == {'ground': int((mask == 0).sum()), 'thing': int((mask == 1).sum())}
    drawn = np.asarray(Image.open(tmp_path / 'out' / image['drawn'])).astype(int)
    red = drawn[..., 0] - drawn[..., 1]
    assert red[mask == 1].mean() > red[mask == 0].mean() + 100


@pytest.mark.parametrize('head', ['MultiLabelLinearClsHead', 'CSRAClsHead'])
def test_a_classifier_of_several_labels_gives_those_that_its_head_predicts(head, folder, tmp_path):
    cfg = read_config(CONFIGS['classifier'])
    cfg.model.head = dict(type=head, num_classes=10, in_channels=cfg.model.head.in_channels, thr=0.5)
    if head == 'CSRAClsHead':
        cfg.model.pop('neck')
        cfg.model.head.update(num_heads=1, lam=0.1)
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    for parameter in model.head.parameters():
        torch.nn.init.normal_(parameter)  # some scores on either side of the threshold
    torch.save(model.state_dict(), tmp_path / 'several.pth')
    inferencer = Inferencer(cfg, tmp_path / 'several.pth', device='cpu')
    numbers = []
    for prediction in inferencer(images(folder)):
        pixels = torch.from_numpy(cv2.imread(prediction.picture.path)).permute(2, 0, 1)[None].float()
        with torch.no_grad():
            scores = model.head(model.extract_feat((pixels - 60) / 90))[0].sigmoid()
        assert {one['label']: one['score'] for one in prediction.found} == pytest.approx(
            {i: score for i, score in enumerate(scores.tolist()) if score >= 0.5}, rel=1e-4
        )
        assert [one['score'] for one in prediction.found] == sorted(one['score'] for one in prediction.found)[::-1]
        assert inferencer.draw(prediction).shape[2] == 3
        numbers.append(len(prediction.found))
    assert max(numbers) > 1
    torch.testing.assert_close(to_scores(model, torch.tensor([[0.0, 1.0]])), torch.tensor([[0.5, 0.7310586]]))


@pytest.mark.parametrize('kind', CONFIGS)
def test_orientation_and_channels_are_those_of_the_test(kind, tmp_path):
    """An image of four channels that EXIF turns, read without either being changed."""
    cfg = read_config(CONFIGS[kind])
    cfg.model.backbone.in_channels = 4
    cfg.model.data_preprocessor.update(mean=None, std=None)
    cfg.model.data_preprocessor.pop('bgr_to_rgb', None)
    cfg.test_dataloader.dataset.pipeline[0].color_type = 'unchanged'
    model = build_model(cfg).eval()
    torch.save(model.state_dict(), tmp_path / 'four.pth')
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 4), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels, 'RGBA').save(tmp_path / 'turned.png', exif=exif)
    seen = []
    inferencer = Inferencer(cfg, tmp_path / 'four.pth', device='cpu')
    inferencer.model.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    (image,) = write_predictions(inferencer, tmp_path / 'turned.png', tmp_path / 'out')['images']
    bgra = torch.from_numpy(pixels[..., [2, 1, 0, 3]].copy()).permute(2, 0, 1)[None].float()
    assert torch.equal(seen[0][..., :64, :96], bgra)
    assert (image['width'], image['height']) == (96, 64)
    width, height = Image.open(tmp_path / 'out' / image['drawn']).size
    assert width / height == 1.5


def test_a_file_of_other_channels_is_named(weights, tmp_path):
    cfg = read_config(CONFIGS['classifier'])
    cfg.test_dataloader.dataset.pipeline[0].color_type = 'unchanged'
    Image.new('RGBA', (64, 64)).save(tmp_path / 'rgba.png')
    with pytest.raises(ValueError, match=r"^the network fails on image '.*rgba\.png': .*4"):
        list(Inferencer(cfg, weights['classifier'], device='cpu')(tmp_path / 'rgba.png'))


@pytest.mark.parametrize('kind', CONFIGS)
def test_a_network_for_grey_images(kind, tmp_path):
    cfg = read_config(CONFIGS[kind])
    cfg.model.backbone.in_channels = 1
    cfg.model.data_preprocessor.update(mean=[60.0], std=[90.0])
    cfg.model.data_preprocessor.pop('bgr_to_rgb', None)  # of colours alone
    pipeline = cfg.test_dataloader.dataset.pipeline
    pipeline[0].color_type = 'grayscale'
    model = build_model(cfg).eval()
    torch.save(model.state_dict(), tmp_path / 'grey.pth')
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)).save(tmp_path / 'grey.png')
    steps = [step for step in pipeline if 'Annotations' not in step.type]
    packed = Compose(steps)(dict(img_path=str(tmp_path / 'grey.png'), img_id=0, seg_fields=[]))
    with torch.no_grad():
        wanted = model.test_step(dict(inputs=[packed['inputs']], data_samples=[packed['data_samples']]))
    found = list(Inferencer(cfg, tmp_path / 'grey.pth', device='cpu')(tmp_path / 'grey.png'))
    fields = dict(classifier='pred_score', detector='pred_instances.scores', segmenter='seg_logits.data')
    found, wanted = (operator.attrgetter(fields[kind])(one) for one in (found[0].sample, wanted[0]))
    torch.testing.assert_close(found, wanted)
    assert found.numel()


def test_what_an_earlier_run_has_drawn_is_no_input(folder, inferencers, tmp_path):
    Image.open(folder / 'a.png').save(tmp_path / 'a.png')
    for files in (tmp_path, tmp_path, f'{tmp_path}/**/*.png'):
        found = write_predictions(inferencers['segmenter'], files, tmp_path / 'out')
        assert [image['file_name'] for image in found['images']] == [str(tmp_path / 'a.png')]
    drawn = tmp_path / 'out/drawn/a.png'
    assert len(write_predictions(inferencers['segmenter'], drawn, tmp_path / 'out')['images']) == 1


def test_the_json_of_an_earlier_run_does_not_outlive_one_that_breaks_off(folder, inferencers, tmp_path):
    write_predictions(inferencers['classifier'], folder / 'a.png', tmp_path)
    with pytest.raises(ValueError, match='is not an image'):  # nothing is written, and so the earlier run is complete
        write_predictions(inferencers['classifier'], folder / 'notes.txt', tmp_path)
    assert (tmp_path / 'predictions.json').exists()

    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_predictions(inferencers['classifier'], images(folder), tmp_path, show=interrupt)
    assert not (tmp_path / 'predictions.json').exists()


def test_the_command_skips_what_is_broken(folder, weights, tmp_path, run_tool):
    done = run_tool('infer.py', CONFIGS['classifier'], weights['classifier'], folder, '--out', tmp_path / 'out',
                    '--batch-size', 4, '--deploy', '--device', 'cpu', cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f'{tmp_path}/out/predictions.json: 7 images, 1 skipped'
    (line,) = [line for line in done.stderr.splitlines() if 'skipped' in line]
    assert line.startswith(f"skipped '{folder}/broken.png', which is damaged")
    found = json.loads((tmp_path / 'out/predictions.json').read_text())
    assert [one['file_name'] for one in found['skipped']] == [str(folder / 'broken.png')]
    assert len(list((tmp_path / 'out/drawn').iterdir())) == 7


BAD_INPUT = {
    'a folder without images': (('empty',), {}, "there is no image or video in the folder 'empty'"),
    'nothing': (('nothing.png',), {}, "input 'nothing.png' does not exist"),
    'a pattern': (('*.jpg',), {}, "no file matches '*.jpg'"),
    'a broken image': (('broken.png',), {}, "error: 'broken.png' is not an image"),
    'a broken video': (('broken.mp4',), {}, "error: 'broken.mp4' is not a video that OpenCV can read"),
    'only broken files': (
        ('broken.mp4', 'broken.png'),
        {},
        "none of the 2 files can be read: 'broken.mp4' is not a video",
    ),
    'a batch size': (('a.png',), {'--batch-size': 0}, '--batch-size must be an integer of at least 1, got 0'),
    'a device': (('a.png',), {'--device': 'tpux'}, "device 'tpux' cannot be used"),
    'an output': (('a.png',), {'--out': 'a.png'}, "the output 'a.png' is a file, and must be a folder"),
}


@pytest.mark.parametrize(('files', 'options', 'said'), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_is_one_line_and_writes_nothing(files, options, said, folder, weights, tmp_path, run_tool):
    (tmp_path / 'empty').mkdir()
    for name in ('broken.png', 'broken.mp4'):
        (tmp_path / name).write_bytes(b'nonsense')
    os.link(folder / 'a.png', tmp_path / 'a.png')
    before = sorted(tmp_path.rglob('*'))
    options = [part for pair in ({'--out': 'out'} | options).items() for part in pair]
    done = run_tool('infer.py', CONFIGS['classifier'], weights['classifier'], *files, *options, cwd=tmp_path)
    assert done.returncode == 1
    assert said in done.stderr.splitlines()[-1]
    assert [line for line in done.stderr.splitlines() if line.startswith(('error', 'skipped', '[mov'))] == (
        [done.stderr.splitlines()[-1]] if len(files) == 1 else done.stderr.splitlines()[-3:]
    )
    assert sorted(tmp_path.rglob('*')) == before


@pytest.mark.parametrize(
    ('checkpoint', 'said'),
    [('segmenter', 'does not fit: the network has no backbone'), ('nothing', 'does not exist')],
)
def test_a_checkpoint_of_another_network_is_refused(checkpoint, said, weights):
    path = weights.get(checkpoint, 'nothing.pth')
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        Inferencer(CONFIGS['classifier'], path, device='cpu')


def test_the_lines_of_the_docs_run(folder, weights, capsys):
    page = (ROOT / 'docs/infer.md').read_text()
    lines = page.split('```{code-block} python\n')[1].split('```')[0]
    assert len(lines.splitlines()) <= 4
    replacements = {"'CONFIG'": repr(CONFIGS['classifier']), "'CHECKPOINT'": repr(weights['classifier'])}
    for name, value in {**replacements, "'photos/'": repr(str(folder / 'a.png'))}.items():
        assert name in lines
        lines = lines.replace(name, value)
    exec(lines, {})
    assert str(folder / 'a.png') in capsys.readouterr().out
