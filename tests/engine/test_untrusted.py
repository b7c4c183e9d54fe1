"""No way of passing a checkpoint to the tools runs code in it, unless they are told to trust it."""

import signal

import pytest
import torch
from chaos.inject import at_iteration, die
from chaos.malicious import checkpoints
from chaos.victim import ROOT, train, weights_of, write_config

from mmsb.checkpoints.load import load_checkpoint

pytestmark = pytest.mark.untrusted
ATTACKS = ('call of os.system', 'call of getattr of a module', 'call of class with setstate', 'TorchScript',
           'old format, pickle 3', 'bare pickle')  # fmt: skip
WAYS = {
    'resume': ('train.py', '--resume', '{file}'),
    'load_from': ('train.py', '--cfg-options', 'load_from={file}'),
    'init_cfg of the backbone': (
        'train.py', '--cfg-options', 'model.backbone.init_cfg.type=Pretrained',
        'model.backbone.init_cfg.checkpoint={file}',
    ),
    'init_cfg of the head': (
        'train.py', '--cfg-options', 'model.head.init_cfg.type=Pretrained', 'model.head.init_cfg.checkpoint={file}',
    ),
    'init_cfg of the head, stock': (
        'train.py', '--stock-hooks', '--cfg-options', 'model.head.init_cfg.type=Pretrained',
        'model.head.init_cfg.checkpoint={file}',
    ),
    'resume, stock': ('train.py', '--stock-hooks', '--resume', '{file}'),
    'test': ('test.py', '{file}'),
}  # fmt: skip


@pytest.mark.parametrize('way', WAYS)
def test_a_malicious_file_is_refused(arena, way):
    config = write_config(arena / 'config.py', by_epoch=False, steps=1)
    canary = arena / 'canary'
    made = checkpoints(str(canary))
    canary.unlink(missing_ok=True)
    tool, *options = WAYS[way]
    for attack in ATTACKS:
        (arena / 'attack.pth').write_bytes(made[attack][1])
        args = [option.format(file=arena / 'attack.pth') for option in options]
        refused = train(arena, config, '--work-dir', 'run', *args, tool=tool)
        assert refused.code == 1, (attack, refused.said())
        last = refused.said().splitlines()[-1]
        assert 'error: ' in last
        assert f'{str(arena / "attack.pth")!r} cannot be read as data' in last
        assert not canary.exists(), attack


DETECTOR = dict(
    backbone=dict(type='mmsb.SBResNetCifar', depth=11, base_channels=1, out_indices=(2,)),
    neck=dict(type='FPN', in_channels=[16], out_channels=8, num_outs=1),
    bbox_head=dict(
        type='RetinaHead', num_classes=10, in_channels=8, feat_channels=8, stacked_convs=1,
        anchor_generator=dict(type='AnchorGenerator', scales=[4], ratios=[1.0], strides=[4]),
    ),
)  # fmt: skip


@pytest.mark.parametrize(
    'way', [('train.py',), ('train.py', '--stock-hooks'), ('test.py', 'sound.pth')], ids=['safe', 'stock', 'test']
)
def test_a_network_that_loads_in_its_constructor_loads_data(arena, way):
    """MMDetection students load their teacher when they are built, before the runner exists."""
    tool, *options = way
    (arena / 'config.py').write_text(f"""
_base_ = '{ROOT}/configs/demo/faster-rcnn_sb-r50c16_fpn_b16-8e_digits-scenes.py'
model = dict(
    _delete_=True,
    type='KnowledgeDistillationSingleStageDetector',
    teacher_config=dict(model=dict(type='RetinaNet', **{DETECTOR})),
    teacher_ckpt={str(arena / 'attack.pth')!r},
    **{DETECTOR},
)
""")
    torch.save({}, arena / 'sound.pth')
    canary = arena / 'canary'
    made = checkpoints(str(canary))
    for attack in ('call of os.system', 'old format, pickle 3', 'bare pickle'):
        canary.unlink(missing_ok=True)
        (arena / 'attack.pth').write_bytes(made[attack][1])
        args = ('config.py', *options, '--work-dir', 'run')
        refused = train(arena, *args, tool=tool)
        assert not canary.exists(), attack
        assert refused.code == 1, (attack, refused.said())
        assert "attack.pth' cannot be read as data" in refused.said().splitlines()[-1]


@pytest.fixture
def checkpoint(arena) -> dict:
    """A valid checkpoint after one of two iterations."""
    config = write_config(arena / 'config.py', by_epoch=False, steps=2, interval=1)
    killed = train(arena, config, '--work-dir', 'run', before=lambda: at_iteration(1, die))
    assert killed.code == -signal.SIGKILL, killed.said()
    return load_checkpoint(arena / 'run/iter_1.pth')


@pytest.mark.parametrize('flags', [(), ('--stock-hooks',)], ids=['safe', 'stock'])
def test_text_in_a_checkpoint_is_not_run(arena, checkpoint, flags):
    for key in ('config', 'cfg'):
        checkpoint['meta'][key] = "open('it_ran', 'w')"
    torch.save(checkpoint, arena / 'text.pth')
    resumed = train(arena, arena / 'config.py', '--work-dir', 'run2', '--resume', 'text.pth', *flags)
    assert resumed.code == 0, resumed.said()
    assert (arena / 'run2/iter_2.pth').exists()
    assert not (arena / 'it_ran').exists()


@pytest.mark.parametrize(
    'way',
    [
        ('train.py', '--resume', 'more.pth'),
        ('train.py', '--cfg-options', 'load_from=more.pth'),
        ('test.py', 'more.pth'),
    ],
    ids=['resume', 'load_from', 'test'],
)
def test_what_is_more_than_data_takes_trust(arena, checkpoint, way):
    checkpoint['harmless'] = {1: signal.SIGTERM}  # an enum: more than data
    torch.save(checkpoint, arena / 'more.pth')
    tool, *args = way
    refused = train(arena, arena / 'config.py', '--work-dir', 'run2', *args, tool=tool)
    assert refused.code == 1
    assert "checkpoint 'more.pth' cannot be read as data" in refused.said().splitlines()[-1]
    trusted = train(arena, arena / 'config.py', '--work-dir', 'run2', '--trust-checkpoint', *args, tool=tool)
    assert trusted.code == 0, trusted.said()


def test_a_sound_checkpoint_starts_any_part(arena, checkpoint):
    torch.save({'fc.weight': torch.full((10, 64), 0.25)}, arena / 'head.pth')
    init = ('model.head.init_cfg.type=Pretrained', 'model.head.init_cfg.checkpoint=head.pth')
    still = 'optim_wrapper.optimizer.lr=0'
    started = train(arena, arena / 'config.py', '--work-dir', 'run2', '--cfg-options', *init, still)
    assert started.code == 0, started.said()
    assert torch.equal(weights_of(arena / 'run2/iter_2.pth')['head.fc.weight'], torch.full((10, 64), 0.25))
