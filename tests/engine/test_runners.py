"""Our hooks under either runner, in any order of training, validation and test; and each resumes the other's run."""

import shutil

import pytest
import torch
from chaos.toy import end_of, runner
from chaos.victim import differing
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmsb.checkpoints.load import load_checkpoint
from mmsb.checkpoints.store import pointed_at
from mmsb.engine import SafeRunner

RUNNERS = pytest.mark.parametrize('kind', [Runner, SafeRunner], ids=['stock', 'safe'])
EVERYTHING = [dict(type='mmsb.ProgressHook'), dict(type='mmsb.SpeedHook'), dict(type='EMAHook', momentum=0.2)]
NO_TRAINING = dict(train_dataloader=None, train_cfg=None, optim_wrapper=None, param_scheduler=None)
BEST = dict(interval=1, save_best='auto', rule='less')


@RUNNERS
@pytest.mark.parametrize(
    'calls', ['val val', 'test test', 'val train', 'test train val', 'train val test', 'train train'], ids=str.split
)
@pytest.mark.parametrize('loop', ['mmsb.EpochBasedTrainLoop', 'EpochBasedTrainLoop'])
def test_all_hooks_in_any_order_of_calls(tmp_path, kind, calls, loop):
    cycle = dict(train_cfg=dict(type=loop, max_epochs=2), cfg=dict(channels_last=False))
    run = runner(tmp_path, kind, hooks=EVERYTHING, saving=BEST, **cycle)
    for name in calls.split():
        getattr(run, name)()
    saved = sorted(path.name for path in tmp_path.glob('epoch*.pth'))
    assert saved == (['epoch_1.pth', 'epoch_2.pth'] if 'train' in calls else [])
    assert len(list(tmp_path.glob('best*.pth'))) == ('train' in calls)


@RUNNERS
def test_a_runner_without_training_parts(tmp_path, kind):
    hooks = [*EVERYTHING[:1], *EVERYTHING[2:]]  # SpeedHook is for training, and its keys too
    run = runner(tmp_path, kind, hooks=hooks, saving=BEST, **NO_TRAINING)
    metrics = [run.val(), run.val(), run.test()]
    assert metrics[0] == metrics[1] == metrics[2]


class First(Hook):
    def before_train(self, run) -> None:
        self.weights = {name: value.clone() for name, value in run.model.state_dict().items()}


def test_a_validation_before_the_training_loses_nothing(tmp_path):
    hooks = [EVERYTHING[2]]
    runner(tmp_path / 'first', hooks=hooks, saving=dict(interval=1)).train()
    start = dict(load_from=str(tmp_path / 'first/epoch_1.pth'), randomness=dict(seed=8))
    alone = end_of(runner(tmp_path / 'alone', hooks=hooks, resume=True, **start))
    resumed = runner(tmp_path / 'resumed', hooks=hooks, resume=True, **start)
    resumed.val()
    assert differing(end_of(resumed), alone) == []
    first = First()
    loaded = runner(tmp_path / 'loaded', hooks=[first], **start)
    loaded.val()
    loaded.train()
    assert differing(first.weights, load_checkpoint(start['load_from'])['state_dict']) == []


@pytest.mark.parametrize('writer', [Runner, SafeRunner], ids=['stock wrote', 'safe wrote'])
def test_a_checkpoint_of_another_loop_is_resumed_with_a_warning(tmp_path, monkeypatch, writer):
    runner(tmp_path, writer, train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=1), saving=dict(interval=1)).train()
    run, warnings = runner(tmp_path, resume=True), []
    monkeypatch.setattr(run.logger, 'warning', lambda text, *_, **__: warnings.append(text))
    run.train()
    assert [text for text in warnings if text.endswith('the run may differ')]


def test_a_config_that_says_resume_is_tested(tmp_path):
    runner(tmp_path / 'first', saving=dict(interval=1)).train()
    start = dict(load_from=str(tmp_path / 'first/epoch_1.pth'), resume=True)
    assert runner(tmp_path / 'alone', **start, **NO_TRAINING).test() == runner(tmp_path / 'both', **start).test()


@pytest.mark.parametrize('reader', [Runner, SafeRunner], ids=['stock reads', 'safe reads'])
@pytest.mark.parametrize('writer', [Runner, SafeRunner], ids=['stock wrote', 'safe wrote'])
@pytest.mark.parametrize('hook', ['mmsb.CheckpointHook', 'CheckpointHook'])
def test_either_resumes_the_work_dir_of_the_other_by_itself(tmp_path, monkeypatch, writer, reader, hook):
    hooks = dict(default_hooks=dict(checkpoint=dict(type=hook, interval=1)))
    loop = dict(type='EpochBasedTrainLoop', max_epochs=2)
    runner(tmp_path / 'run', writer, train_cfg=loop, **hooks).train()
    (tmp_path / 'elsewhere').mkdir()
    monkeypatch.chdir(tmp_path / 'elsewhere')
    run = runner(tmp_path / 'run', reader, train_cfg={**loop, 'max_epochs': 3}, resume=True, **hooks)
    epochs = []
    run.register_hook(type('Noted', (Hook,), dict(before_train_epoch=lambda self, run: epochs.append(run.epoch)))())
    run.train()
    assert epochs == [2]
    assert load_checkpoint(tmp_path / 'run/epoch_3.pth')['meta']['iter'] == 9


def test_a_copied_work_dir_resumes_from_its_own_files(tmp_path):
    runner(tmp_path / 'run', saving=dict(interval=1)).train()
    assert (tmp_path / 'run/last_checkpoint').read_text() == str(tmp_path / 'run/epoch_3.pth')
    shutil.copytree(tmp_path / 'run', tmp_path / 'copy')
    assert pointed_at(tmp_path / 'copy') == str(tmp_path / 'copy/epoch_3.pth')
    checkpoint = torch.load(tmp_path / 'copy/epoch_3.pth', weights_only=False)
    checkpoint['state_dict']['layers.1.bias'] += 1
    torch.save(checkpoint, tmp_path / 'copy/epoch_3.pth')
    copied = runner(tmp_path / 'copy', resume=True)
    assert torch.equal(end_of(copied)['weights.layers.1.bias'], checkpoint['state_dict']['layers.1.bias'])


@pytest.mark.parametrize(
    ('text', 'found'),
    [
        ('{dir}/epoch_1.pth', '{dir}/epoch_1.pth'),
        ('/gone/epoch_1.pth', '{dir}/epoch_1.pth'),
        ('epoch_1.pth\n', '{dir}/epoch_1.pth'),  # as mmsb 0.1 wrote it
        ('../other/epoch_9.pth', '{dir}/../other/epoch_9.pth'),
        ('/gone/epoch_2.pth', '/gone/epoch_2.pth'),
        ('s3://bucket/epoch_1.pth', 's3://bucket/epoch_1.pth'),
        ('', None),
        (None, None),
    ],
)
def test_what_last_checkpoint_names(tmp_path, text, found):
    folder = tmp_path / 'run'
    (tmp_path / 'other').mkdir()
    folder.mkdir()
    (tmp_path / 'other/epoch_9.pth').touch()
    (folder / 'epoch_1.pth').touch()
    if text is not None:
        (folder / 'last_checkpoint').write_text(text.format(dir=folder))
    assert pointed_at(folder) == (found and found.format(dir=folder))
