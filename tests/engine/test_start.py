"""A run goes on from its own most advanced checkpoint, whatever the names and times of files say."""

import os
import shutil
import signal

import pytest
import torch
from chaos.inject import at_iteration, die
from chaos.ranks import Team
from chaos.victim import Victim, differing, train, weights_of, write_config

from mmsb.checkpoints import store
from mmsb.checkpoints.load import load_checkpoint
from mmsb.checkpoints.store import list_checkpoints, why_invalid


@pytest.fixture
def config(arena):
    """A training of 18 iterations with a checkpoint after every fourth one."""
    return write_config(arena / 'config.py', by_epoch=False, steps=18, interval=4, save_best=False)


@pytest.fixture
def killed(arena, config):
    """The same in the folder `run`, killed after 13 iterations: it has the checkpoints 4, 8 and 12."""
    victim = train(arena, config, '--work-dir', 'run', '--seed', 3, before=lambda: at_iteration(13, die))
    assert victim.code == -signal.SIGKILL, victim.said()
    return arena / 'run'


def _run_of(path) -> str:
    return load_checkpoint(path)['meta']['run_id']


def test_times_and_names_of_files_do_not_decide(arena, config, killed):
    (killed / 'iter_4.pth').touch()
    shutil.copy(killed / 'iter_4.pth', killed / 'iter_16.pth')
    resumed = train(arena, config, '--work-dir', 'run', '--resume')
    assert resumed.code == 0, resumed.said()
    assert "resuming from 'run/iter_12.pth'" in resumed.said()
    assert 'resumed epoch: 0, iter: 12' in resumed.said()
    assert len({_run_of(killed / f'iter_{number}.pth') for number in (12, 16, 18)}) == 1


def test_a_copied_work_dir_goes_on_by_itself(arena, config, killed):
    shutil.copytree(killed, arena / 'copy')
    for path in sorted((arena / 'copy').glob('*.pth')):
        path.touch()  # iter_8.pth is the last one
    (arena / 'copy/iter_12.pth').unlink()
    before = {path.name: path.read_bytes() for path in killed.glob('*.pth')}
    resumed = train(arena, config, '--work-dir', 'copy', '--resume')
    assert resumed.code == 0, resumed.said()
    assert "resuming from 'copy/iter_8.pth'" in resumed.said()
    assert {path.name: path.read_bytes() for path in killed.glob('*.pth')} == before
    assert (arena / 'copy/last_checkpoint').read_text() == str(arena / 'copy/iter_18.pth')


def test_a_new_run_in_a_used_folder_sets_the_old_one_aside(arena, config, killed):
    old = {path.name: path.read_bytes() for path in killed.glob('iter*')}
    fresh = train(arena, config, '--work-dir', 'run', '--seed', 5, before=lambda: at_iteration(2, die))
    assert {path.name: path.read_bytes() for path in killed.glob('set_aside/*')} == old
    assert fresh.said().count('set aside: run/set_aside/iter_') == 3
    anew = train(arena, config, '--work-dir', 'run', '--seed', 5, '--resume', before=lambda: at_iteration(6, die))
    assert 'resumed epoch' not in anew.said()
    ended = train(arena, config, '--work-dir', 'run', '--seed', 5, '--resume')
    assert ended.code == 0, ended.said()
    assert 'resumed epoch: 0, iter: 4' in ended.said()
    whole = train(arena, config, '--work-dir', 'whole', '--seed', 5)
    assert whole.code == 0, whole.said()
    assert differing(weights_of(arena / 'whole/iter_18.pth'), weights_of(killed / 'iter_18.pth')) == []


def test_checkpoints_of_another_run_are_not_taken_unasked(arena, config, killed):
    train(arena, config, '--work-dir', 'other', '--seed', 5, before=lambda: at_iteration(2, die))
    for path in killed.glob('iter*'):
        shutil.copy(path, arena / 'other')
    refused = train(arena, config, '--work-dir', 'other', '--resume')
    assert refused.code == 1
    last = refused.said().splitlines()[-1]
    assert "error: the checkpoints in 'other' are not from the run that last used this folder: " in last
    assert '--resume other/iter_12.pth' in last
    asked = train(arena, config, '--work-dir', 'other', '--resume', 'other/iter_12.pth')
    assert asked.code == 0, asked.said()
    assert _run_of(arena / 'other/iter_18.pth') == _run_of(killed / 'iter_12.pth')


def test_going_back_loses_no_newer_checkpoint(arena, config, killed):
    newest = (killed / 'iter_12.pth').read_bytes()
    back = train(arena, config, '--work-dir', 'run', '--resume', 'run/iter_4.pth', before=lambda: at_iteration(9, die))
    assert 'resumed epoch: 0, iter: 4' in back.said()
    assert (killed / 'set_aside/iter_12.pth').read_bytes() == newest
    assert why_invalid(killed / 'set_aside/iter_12.pth') is None
    resumed = train(arena, config, '--work-dir', 'run', '--resume')
    assert 'resumed epoch: 0, iter: 8' in resumed.said()
    assert (killed / 'set_aside/iter_12.pth').exists()


def test_a_checkpoint_that_the_config_names_stays_where_it_is(arena, config, killed):
    tuned = train(arena, config, '--work-dir', 'run', '--cfg-options', 'load_from=run/iter_12.pth')
    assert tuned.code == 0, tuned.said()
    assert 'Load checkpoint from run/iter_12.pth' in tuned.said()
    assert {path.name for path in killed.glob('set_aside/*.pth')} == {'iter_4.pth', 'iter_8.pth'}


def test_a_longer_run_is_the_same_run(arena, config, killed):
    longer = train(arena, config, '--work-dir', 'run', '--resume', '--cfg-options', 'train_cfg.max_iters=20')
    assert longer.code == 0, longer.said()
    assert _run_of(killed / 'iter_20.pth') == _run_of(killed / 'iter_12.pth')


def test_checkpoints_named_by_a_template_are_found(arena, config):
    named = ('--cfg-options', 'default_hooks.checkpoint.filename_tmpl=at_{}.pt')
    train(arena, config, '--work-dir', 'run', *named, before=lambda: at_iteration(9, die))
    resumed = train(arena, config, '--work-dir', 'run', '--resume', *named)
    assert resumed.code == 0, resumed.said()
    assert 'resumed epoch: 0, iter: 8' in resumed.said()
    assert len(list(arena.glob('run/at_*.pt'))) == 3  # max_keep_ckpts


def test_a_link_to_nowhere_is_named(arena, config, killed):
    (killed / 'iter_16.pth').symlink_to('/nowhere/iter_16.pth')
    resumed = train(arena, config, '--work-dir', 'run', '--resume')
    assert "skipped 'run/iter_16.pth' does not exist" in resumed.said()
    assert 'resumed epoch: 0, iter: 12' in resumed.said()
    shutil.rmtree(killed)
    killed.mkdir()
    (killed / 'iter_16.pth').symlink_to('/nowhere/iter_16.pth')
    none = train(arena, config, '--work-dir', 'run', '--resume')
    assert none.code == 1
    assert 'error: none of the 1 checkpoints' in none.said().splitlines()[-1]


def test_weights_alone_can_not_be_resumed(arena, config):
    torch.save(dict(state_dict=dict(weight=torch.zeros(1))), arena / 'weights.pth')
    refused = train(arena, config, '--work-dir', 'run', '--resume', 'weights.pth')
    assert refused.code == 1
    assert 'can only be loaded, not resumed from: it has no iteration and epoch' in refused.said().splitlines()[-1]
    assert not (arena / 'run').exists()


def test_each_process_reads_the_checkpoint_once(arena, config, killed):
    def count(rank: int) -> None:
        load, hash_of = torch.load, store.sha256_of

        def counted(file, *args, mmap=False, **kwargs):
            _note(f'{"looked at" if mmap else "loaded"} {os.path.basename(file)}')
            return load(file, *args, mmap=mmap, **kwargs)

        def hashed(path) -> str:
            _note(f'hashed {os.path.basename(path)}')
            return hash_of(path)

        def _note(what: str) -> None:
            with open(arena / f'read by {rank}', 'a') as file:
                file.write(f'{what}\n')

        torch.load, store.sha256_of = counted, hashed

    resumed = Team(arena, config, '--work-dir', 'run', '--resume', before=count)
    assert resumed.wait(120) == 0, resumed.said()
    first, second = ((arena / f'read by {rank}').read_text().splitlines() for rank in range(2))
    assert [what for what in first if not what.startswith('looked')] == ['hashed iter_12.pth', 'loaded iter_12.pth']
    assert second == ['loaded iter_12.pth']


def test_no_warm_start_is_needed_to_resume(arena):
    base = write_config(arena / 'base.py', by_epoch=False, steps=4, interval=2, save_best=False)
    train(arena, base, '--work-dir', 'plain', '--cfg-options', 'model.backbone.spatial_bias=None')
    (arena / 'config.py').write_text("""
_base_ = 'base.py'
model = dict(backbone=dict(frozen_stages=1, init_cfg=dict(type='Pretrained', checkpoint='plain/iter_4.pth',
                                                          prefix='backbone.')))
""")
    whole = train(arena, 'config.py', '--work-dir', 'whole')
    assert whole.code == 0, whole.said()
    train(arena, 'config.py', '--work-dir', 'run', before=lambda: at_iteration(3, die))
    (arena / 'plain/iter_4.pth').unlink()
    resumed = train(arena, 'config.py', '--work-dir', 'run', '--resume')
    assert resumed.code == 0, resumed.said()
    assert differing(weights_of(arena / 'whole/iter_4.pth'), weights_of(arena / 'run/iter_4.pth')) == []


@pytest.mark.parametrize('moment', ['before_run', 'before_train'])
def test_a_signal_before_the_first_iteration_has_its_own_code(arena, config, moment):
    stopped = train(
        arena, config, '--work-dir', 'run',
        before=lambda: at_iteration(0, lambda _: os.kill(os.getpid(), signal.SIGTERM), moment),
    )  # fmt: skip
    assert stopped.code == 75, stopped.said()
    assert stopped.said().splitlines()[-1].startswith('stopped by SIGTERM')
    assert train(arena, config, '--work-dir', 'run', '--resume').code == 0


def test_options_win_over_what_the_launcher_adds(arena, config):
    stock = ('train_cfg.type=IterBasedTrainLoop', 'default_hooks.checkpoint.type=CheckpointHook', 'custom_hooks=[]')
    done = Victim(arena, config, '--work-dir', 'run', '--cfg-options', *stock, 'train_cfg.max_iters=2')
    assert done.wait() == 0, done.said()
    dumped = (arena / 'run/config.py').read_text()
    assert "type='IterBasedTrainLoop'" in dumped
    assert "type='CheckpointHook'" in dumped
    assert 'custom_hooks = []' in dumped


def test_types_that_are_classes_are_replaced_too(arena, config):
    (arena / 'classes.py').write_text("""
_base_ = 'config.py'
import mmengine.hooks, mmengine.runner
train_cfg = dict(type=mmengine.runner.IterBasedTrainLoop, max_iters=2)
default_hooks = dict(checkpoint=dict(type=mmengine.hooks.CheckpointHook))
""")
    done = train(arena, 'classes.py', '--work-dir', 'run')
    assert done.code == 0, done.said()
    dumped = (arena / 'run/classes.py').read_text()
    assert 'mmsb.IterBasedTrainLoop' in dumped
    assert 'mmsb.CheckpointHook' in dumped
    assert [one.iteration for one in list_checkpoints([arena / 'run'])[0]] == [2]


def test_early_stopping_goes_on_counting(arena):
    write_config(arena / 'base.py', steps=5, interval=3, save_best=False)
    (arena / 'config.py').write_text("""
_base_ = 'base.py'
custom_hooks = [dict(type='EarlyStoppingHook', monitor='accuracy/top1', patience=2, min_delta=200.0)]
""")
    whole = train(arena, 'config.py', '--work-dir', 'whole')
    assert whole.code == 0, whole.said()
    assert sorted(path.name for path in arena.glob('whole/iter*.pth')) == ['iter_12.pth', 'iter_15.pth', 'iter_18.pth']
    train(arena, 'config.py', '--work-dir', 'run', before=lambda: at_iteration(16, die))
    resumed = train(arena, 'config.py', '--work-dir', 'run', '--resume')
    assert resumed.code == 0, resumed.said()
    assert sorted(path.name for path in arena.glob('run/iter*.pth')) == ['iter_12.pth', 'iter_15.pth', 'iter_18.pth']


def test_a_hook_that_begins_anew_is_named(arena):
    write_config(arena / 'base.py', by_epoch=False, steps=6, interval=2, save_best=False)
    (arena / 'counting.py').write_text("""
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class CountingHook(Hook):
    def __init__(self, saves):
        self.count = 0
        if saves:
            self.state_dict = lambda: dict(count=self.count)
            self.load_state_dict = lambda state: setattr(self, 'count', state['count'])
    def after_train_iter(self, runner, **kwargs):
        self.count += 1
    def after_run(self, runner):
        runner.logger.info(f'counted {self.count}')
""")
    (arena / 'config.py').write_text("""
_base_ = 'base.py'
custom_imports = dict(imports=['counting'])
custom_hooks = [dict(type='CountingHook', saves=False), dict(type='CountingHook', saves=True)]
""")
    path = dict(environment=dict(PYTHONPATH=str(arena)))

    def before(act=lambda: None):
        def prepare() -> None:
            import sys

            sys.path.insert(0, str(arena))
            act()

        return prepare

    train(arena, 'config.py', '--work-dir', 'run', before=before(lambda: at_iteration(5, die)), **path)
    resumed = train(arena, 'config.py', '--work-dir', 'run', '--resume', before=before(), **path)
    assert resumed.code == 0, resumed.said()
    assert [line.split()[-1] for line in resumed.said().splitlines() if ' counted ' in line] == ['2', '6']
