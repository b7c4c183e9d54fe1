"""`runner.save_checkpoint` from a user's hook: from wherever it is called, the run resumes exactly."""

import pytest
import torch
from chaos.inject import at_iteration
from chaos.pair import SAVE_EVERY, Pair, ToyVictim
from chaos.toy import end_of, runner
from chaos.victim import differing
from mmengine.hooks import Hook

from mmsb.checkpoints.load import load_checkpoint
from mmsb.engine import SafeRunner

POINTS = (
    *('before_run', 'before_train', 'before_train_epoch', 'before_train_iter', 'after_train_iter', 'after_train_epoch'),
    *('before_val', 'before_val_epoch', 'before_val_iter', 'after_val_iter', 'after_val_epoch', 'after_val'),
    *('after_train', 'after_run'),
)
EMA = dict(type='EMAHook', momentum=0.2, priority='NORMAL')
PLATEAU = dict(type='ReduceOnPlateauLR', monitor='toy/acc', rule='less', patience=0, factor=0.5)


class Saver(Hook):
    """Saves at the second and last call of a method, as a user's hook does."""

    def __init__(self, point: str, *args, **options) -> None:
        self._args, self._options, self._calls = args, options, 0
        self.files = {}
        setattr(self, point, self._save)

    def _save(self, run, **_) -> None:
        self._calls += 1
        name = 'second.pth' if self._calls == 2 else 'last.pth'
        self.files[name] = f'{run.work_dir}/{name}'
        run.save_checkpoint(run.work_dir, name, *self._args, **self._options)


def schedules(by_epoch: bool) -> list[dict]:
    return [dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=8), *([PLATEAU] if by_epoch else [])]


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """The ends of trainings in which no hook of a user saves."""
    folder = tmp_path_factory.mktemp('whole')
    return {
        by_epoch: end_of(
            runner(folder / f'{by_epoch}', hooks=[EMA], by_epoch=by_epoch, param_scheduler=schedules(by_epoch))
        )
        for by_epoch in (True, False)
    }


@pytest.mark.parametrize('by_epoch', [True, False], ids=['epochs', 'iterations'])
@pytest.mark.parametrize('point', POINTS)
def test_a_run_resumes_exactly_from_wherever_a_hook_saves(tmp_path, whole, point, by_epoch):
    saver = Saver(point)
    options = dict(by_epoch=by_epoch, param_scheduler=schedules(by_epoch))
    assert differing(end_of(runner(tmp_path / 'run', hooks=[saver, EMA], **options)), whole[by_epoch]) == []
    assert saver.files
    for name, path in saver.files.items():
        resumed = runner(tmp_path / name, hooks=[EMA], load_from=path, resume=True, **options)
        assert differing(end_of(resumed), whole[by_epoch]) == [], name


@pytest.mark.parametrize(
    ('arguments', 'options'),
    [
        ((None, True, True, dict(epoch=70, iter=80), True, None), {}),
        ((dict(backend='disk'),), {}),
        ((), dict(by_epoch=False, backend_args=dict(backend='local'))),
        ((), dict(meta=dict(note='mine'), save_optimizer=True)),
    ],
    ids=['by position', 'old backend', 'iterations', 'meta'],
)
@pytest.mark.parametrize('point', ['after_train_iter', 'after_train_epoch'])
def test_a_run_resumes_exactly_however_it_is_saved(tmp_path, whole, point, arguments, options):
    saver, schedule = Saver(point, *arguments, **options), schedules(True)
    runner(tmp_path / 'run', hooks=[saver, EMA], param_scheduler=schedule).train()
    path = saver.files['second.pth']
    resumed = runner(tmp_path / 'resumed', hooks=[EMA], load_from=path, resume=True, param_scheduler=schedule)
    assert differing(end_of(resumed), whole[True]) == []
    meta = load_checkpoint(path)['meta']
    assert (meta['epoch'], meta['iter']) == ((0, 2) if point == 'after_train_iter' else (2, 6))
    assert meta.get('note') == options.get('meta', {}).get('note')


def test_the_averages_of_a_validation_stay_in_place(tmp_path, whole):
    saver = Saver('after_val_iter')
    kept = []

    class Weights(Hook):
        def before_val_iter(self, run, **_) -> None:
            kept.append(run.model.state_dict()['layers.1.weight'].clone())

    runner(tmp_path, hooks=[saver, EMA, dict(type=Weights)], param_scheduler=schedules(True)).train()
    for first in (0, 3, 6):  # batches of one validation
        assert all(torch.equal(weight, kept[first]) for weight in kept[first : first + 3])


def test_averages_that_are_not_evaluated_are_not_swapped_either(tmp_path):
    pytest.importorskip('mmpretrain.engine')
    averaging = dict(type='mmpretrain.EMAHook', momentum=0.2, evaluate_on_ema=False, evaluate_on_origin=True)
    whole, saver = end_of(runner(tmp_path / 'whole', hooks=[averaging])), Saver('after_val_iter')
    assert differing(end_of(runner(tmp_path / 'run', hooks=[saver, averaging])), whole) == []
    resumed = runner(tmp_path / 'resumed', hooks=[averaging], load_from=saver.files['second.pth'], resume=True)
    assert differing(end_of(resumed), whole) == []


def test_the_first_of_two_processes_gathers_the_gradients_and_the_other_none(tmp_path):
    """At the fifth iteration, each holds the gradients of one of four batches; that of its own images."""

    def start(rank: int, environment: dict[str, str]) -> ToyVictim:
        def keep(run) -> None:
            named = run.model.module.named_parameters()
            torch.save({name: one.grad.clone() for name, one in named}, tmp_path / f'own{rank}.pth')

        def before() -> None:
            exact_state = SafeRunner._exact_state

            def counted(self) -> dict:
                state = exact_state(self)
                if self.iter + 1 == SAVE_EVERY:
                    torch.save(state['processes'], tmp_path / f'held{rank}.pth')
                return state

            SafeRunner._exact_state = counted
            at_iteration(SAVE_EVERY - 1, keep, 'after_train_iter')

        return ToyVictim(tmp_path, 4, before=before, environment=environment)

    pair = Pair(start)
    assert pair.wait() == [0, 0], pair.said()
    assert torch.load(tmp_path / 'held1.pth', weights_only=False) is None
    saved = load_checkpoint(tmp_path / 'run' / f'iter_{SAVE_EVERY}.pth')['exact_resume']['processes']
    assert len(saved) == 2
    for rank, process in enumerate(saved):
        own = torch.load(tmp_path / f'own{rank}.pth')
        assert process['gradients'].keys() == own.keys()
        assert all(torch.equal(process['gradients'][name], value) for name, value in own.items())
    assert any(bool((value != saved[1]['gradients'][name]).any()) for name, value in saved[0]['gradients'].items())
