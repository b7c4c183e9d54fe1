"""Published weights have a hash in their name and a model card, and start a detector by path and by URL."""

import functools
import hashlib
import http.server
import json
import threading
from pathlib import Path

import pytest
import torch
from mmengine.logging import HistoryBuffer
from safetensors import safe_open

from mmsb.checkpoints.card import TO_FILL
from mmsb.checkpoints.load import load_checkpoint, load_state_dict
from mmsb.checkpoints.publish import publish_weights
from mmsb.configs import build_model, read_config
from mmsb.datasets.test_set import class_names

ROOT = Path(__file__).resolve().parents[2]
DETECTOR = ROOT / 'configs/demo/faster-rcnn_sb-r50c16_fpn_b16-8e_digits-scenes.py'
CLASSES = ('cat', 'dog')
CONFIG = """default_scope = 'mmpretrain'
model = dict(type='ImageClassifier')
train_dataloader = dict(batch_size=2, dataset=dict(data_root='/home/me', type='CustomDataset'))
work_dir = '/home/me/run'
"""


@pytest.fixture(scope='module')
def detector() -> torch.nn.Module:
    torch.manual_seed(0)
    return build_model(read_config(str(DETECTOR)))


@pytest.fixture
def checkpoint(detector, tmp_path) -> Path:
    """Checkpoint of a training, as MMEngine writes it."""
    accuracy = HistoryBuffer([70.0, 81.25], [1, 1])
    meta = dict(
        epoch=3, iter=1200, seed=7, mmengine_version='0.10.7' + 20 * '0b',
        experiment_name='sb-resnet50_b256_20261124_183740',
        dataset_meta=dict(classes=CLASSES), cfg=CONFIG,
    )  # fmt: skip
    hub = dict(log_scalars={'val/accuracy/top1': accuracy, 'train/loss': accuracy}, runtime_info=dict(best_score=90.0))
    path = tmp_path / 'epoch_3.pth'
    torch.save(dict(meta=meta, state_dict=detector.state_dict(), optimizer=dict(state={}), message_hub=hub), path)
    return path


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_weights_alone_are_published_under_their_hash(suffix, checkpoint, detector, tmp_path):
    published = publish_weights(checkpoint, tmp_path / f'net{suffix}')
    content = Path(published.path).read_bytes()
    assert Path(published.path) == tmp_path / f'net-{hashlib.sha256(content).hexdigest()[:8]}{suffix}'
    found, wanted = load_state_dict(published.path), detector.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    if suffix == '.pth':
        whole = load_checkpoint(published.path)
        assert set(whole) == {'meta', 'state_dict'}
        assert whole['meta']['dataset_meta'] == dict(classes=CLASSES)
        assert set(whole['meta']) == {'mmsb_version', 'dataset_meta'}
    else:
        with safe_open(published.path, 'pt') as file:
            assert json.loads(file.metadata()['dataset_meta']) == dict(classes=list(CLASSES))
    assert class_names(read_config(str(DETECTOR)), load_checkpoint(published.path)) == CLASSES


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_the_same_weights_have_the_same_name(suffix, checkpoint, tmp_path):
    first = publish_weights(checkpoint, tmp_path / f'net{suffix}')
    Path(first.card).write_text('edited')
    for _ in range(4):  # safetensors itself writes its metadata in a random order
        again = publish_weights(first.path, first.path)
        assert again.path == first.path
    assert not again.card_is_new
    assert Path(first.card).read_text() == 'edited'


def test_the_card_says_what_the_checkpoint_knows_and_marks_the_rest(checkpoint, tmp_path):
    published = publish_weights(checkpoint, tmp_path / 'net.pth')
    card = Path(published.card).read_text()
    for known in (
        f'# {Path(published.path).stem}',
        hashlib.sha256(Path(published.path).read_bytes()).hexdigest(),
        '3 epochs, 1,200 iterations, seed 7, MMEngine 0.10.7 |',
        '`sb-resnet50_b256`',
        "model = dict(type='ImageClassifier')",
        '| of the last validation before it was saved | value |\n|---|---|\n| accuracy/top1 | 81.25 |',
        'Dataset type of the config: `CustomDataset`.',
        '2 classes: cat, dog.',
    ):
        assert known in card
    assert '/home/me' not in card
    assert 'loss' not in card
    headings = card.split('\n## ')[1:]
    assert [heading.split('\n')[0] for heading in headings] == ['Use', 'Config', 'Metrics', 'Data', 'Licence']
    assert [TO_FILL in heading for heading in headings] == [False, False, True, True, True]


def test_a_file_that_knows_nothing_gives_a_card_to_fill_in(detector, tmp_path):
    torch.save(detector.backbone.state_dict(), tmp_path / 'bare.pth')
    card = Path(publish_weights(tmp_path / 'bare.pth', tmp_path / 'net.pth').card).read_text()
    sections = card.split('\n## ')
    assert all(TO_FILL in section for section in sections if not section.startswith('Use'))


def test_metrics_come_from_the_log_of_the_run(checkpoint, tmp_path):
    log = tmp_path / '20261124_183740/vis_data/scalars.json'
    log.parent.mkdir(parents=True)
    lines = [dict(lr=0.1, loss=2.0, step=3), dict(map=0.125, time=1.0, step=3), dict(map=0.5, step=4)]
    log.write_text('\n'.join(map(json.dumps, lines)) + '\n[1]\n{"half a li}')
    card = Path(publish_weights(checkpoint, tmp_path / 'net.pth').card).read_text()
    metrics = card.split('## Metrics')[1].split('## Data')[0]
    assert metrics.strip().splitlines()[:3] == ['| of the validation | value |', '|---|---|', '| map | 0.125 |']


@pytest.fixture
def site(tmp_path, monkeypatch):
    """Address of a folder, served locally; nothing is cached outside the test's folder."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'home'))
    monkeypatch.setattr(torch.hub, '_hub_dir', None)
    (tmp_path / 'site').mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = functools.partial(Handler, directory=tmp_path / 'site')
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f'http://127.0.0.1:{server.server_address[1]}'
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize('backbone', [True, False])
@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
@pytest.mark.parametrize('how', ['path', 'URL'])
def test_a_detector_starts_from_it(how, suffix, backbone, checkpoint, detector, site, tmp_path):
    published = publish_weights(checkpoint, tmp_path / f'site/net{suffix}', backbone=backbone)
    name = Path(published.path).name
    cfg = read_config(str(DETECTOR))
    where = published.path if how == 'path' else f'{site}/{name}'
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=where)
    torch.manual_seed(1)
    started = build_model(cfg)
    started.init_weights()
    ours, theirs = started.backbone.state_dict(), detector.backbone.state_dict()
    assert any('spatial_bias' in key for key in ours)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert not torch.equal(started.rpn_head.rpn_conv.weight, detector.rpn_head.rpn_conv.weight)


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        (('nothing.pth', 'net.pth'), "checkpoint 'nothing.pth' does not exist"),
        (('ours.pth', 'net.bin'), "the suffix of the output must be one of ['.pth', '.safetensors'], got '.bin'"),
        (('ours.pth', 'nowhere/net.pth'), "the folder of the output 'nowhere/net.pth' does not exist"),
        (('broken.pth', 'net.pth'), "checkpoint 'broken.pth' cannot be read as data"),
        (('ours.pth', 'net.pth', '--backbone'), "checkpoint 'ours.pth' has no weights named backbone.*"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(arguments, said, tmp_path, run_tool):
    torch.save(dict(weight=torch.ones(1)), tmp_path / 'ours.pth')
    (tmp_path / 'broken.pth').write_bytes(b'nonsense')
    before = sorted(tmp_path.rglob('*'))
    done = run_tool('publish.py', *arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert said in done.stderr.splitlines()[-1]
    assert 'Traceback' not in done.stderr
    assert sorted(tmp_path.rglob('*')) == before


def test_the_command_says_what_to_fill_in(checkpoint, tmp_path, run_tool):
    done = run_tool('publish.py', 'epoch_3.pth', 'net.safetensors', '--backbone', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob('net-*.safetensors')
    card = path.with_suffix('.md')
    number = card.read_text().count(TO_FILL)
    assert done.stdout.splitlines() == [path.name, f'{card.name}: fill in the {number} places marked To be filled in:']
    again = run_tool('publish.py', 'epoch_3.pth', 'net.safetensors', '--backbone', cwd=tmp_path)
    assert again.stdout.splitlines()[1] == f'{card.name}: was there, and is kept as it is'
