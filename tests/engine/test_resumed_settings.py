"""A resumed run says what its checkpoint overrides in the config; and it follows the config if that is asked for."""

import logging
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.registry import PARAM_SCHEDULERS

from mmsb.checkpoints.plain import make_plain
from mmsb.engine import SafeRunner
from mmsb.engine.resumed_settings import FromConfig, check_resumable

LENGTH = 4  # batches per epoch
COSINE = dict(type='CosineAnnealingLR', T_max=6, end=6)
SCHEDULES = {
    'cosine': [COSINE],
    'warm-up': [
        dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=6),
        dict(type='MultiStepLR', milestones=[2, 4], gamma=0.5),
    ],
    'cosine to a floor in the warm-up': [
        dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=14),
        dict(type='CosineAnnealingLR', T_max=6, eta_min=0.01),
    ],
    'poly by iteration': [dict(type='PolyLR', power=0.9, end=6, convert_to_iter_based=True)],
    'one cycle': [dict(type='OneCycleLR', eta_max=0.2, total_steps=24, by_epoch=False)],
    'restarts': [dict(type='CosineRestartLR', periods=[2, 4], restart_weights=[1, 0.5], eta_min=0)],
    'momentum': [dict(type='CosineAnnealingMomentum', T_max=6), COSINE],
    'constant': [dict(type='ConstantLR', factor=1)],
    'none': None,
}


class Toy(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def forward(self, inputs, mode: str = 'tensor'):
        return dict(loss=self.layer(torch.stack(inputs)).square().mean())


class Note(Hook):
    """Notes the learning rate, momentum and weight decay of every group in every iteration."""

    def __init__(self) -> None:
        self.seen = {}

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        names = ('lr', 'momentum', 'weight_decay')
        groups = runner.optim_wrapper.param_groups
        self.seen[runner.iter] = [[group[name] for name in names] for group in groups]


def run(tmp_path, schedules, *, epochs=6, start=None, by_epoch=True, parts=None, **options):
    """Train a toy; return what was noted, and the warnings about settings."""
    iterations = dict(type='mmsb.IterBasedTrainLoop', max_iters=epochs * LENGTH)
    optimizer = dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=1e-4)
    resume = {key: options.pop(key) for key in [*options] if key == 'resume_param_scheduler'}
    note = Note()
    work_dir = str(tmp_path / f'run{len(list(tmp_path.iterdir()))}')
    loader = dict(
        dataset=torch.utils.data.Subset([dict(inputs=torch.ones(2))], [0] * 2 * LENGTH),
        batch_size=2,
        sampler=dict(type='DefaultSampler', shuffle=True),
        collate_fn=dict(type='pseudo_collate'),
    )
    runner = SafeRunner(
        Toy(),
        work_dir,
        train_dataloader=loader,
        train_cfg=dict(type='mmsb.EpochBasedTrainLoop', max_epochs=epochs) if by_epoch else iterations,
        optim_wrapper=dict(optimizer={**optimizer, **options}, paramwise_cfg=parts),
        param_scheduler=schedules,
        default_hooks=dict(checkpoint=dict(type='mmsb.CheckpointHook', interval=LENGTH // 2, by_epoch=False)),
        custom_hooks=[note],
        load_from=start,
        resume=start is not None,
        randomness=dict(seed=0),
        experiment_name=work_dir,
        cfg=Config(resume),
    )
    warned = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: warned.append(record.getMessage())
    runner.logger.addHandler(handler)
    runner.train()
    return note.seen, [text for text in warned if 'settings' in text], work_dir


def resumed(tmp_path, then, now, *, at=10, before=(), **options):
    """Train with one schedule, and go on with another from an iteration."""
    *_, folder = run(tmp_path, then, **dict(before))
    return run(tmp_path, now, start=f'{folder}/iter_{at}.pth', **options)[:2]


@pytest.mark.parametrize('at', [10, 12])
@pytest.mark.parametrize('name', ['warm-up', 'momentum', 'one cycle', 'none'])
def test_an_unchanged_config_is_no_warning_and_the_same_schedule(name, at, tmp_path):
    parts = dict(bias_lr_mult=2)
    whole, *_ = run(tmp_path, SCHEDULES[name], parts=parts)
    seen, warned = resumed(tmp_path, SCHEDULES[name], SCHEDULES[name], at=at, before=dict(parts=parts), parts=parts)
    assert not warned
    assert seen == {iteration: whole[iteration] for iteration in seen}


@pytest.mark.parametrize(
    ('name', 'by_epoch', 'at'),
    [*((name, True, 10) for name in SCHEDULES), ('cosine', True, 12), ('warm-up', True, 12), ('one cycle', False, 10)],
)
def test_the_config_counts_if_asked_for(name, by_epoch, at, tmp_path):
    """As in a run that had these settings from its start."""
    now = dict(by_epoch=by_epoch, lr=0.3, weight_decay=0.01, parts=dict(bias_lr_mult=2))
    whole, *_ = run(tmp_path, SCHEDULES[name], **now)
    before = dict(by_epoch=by_epoch, parts=dict(bias_lr_mult=2))
    then = [dict(type='ExponentialLR', gamma=0.5)]
    seen, warned = resumed(tmp_path, then, SCHEDULES[name], at=at, before=before, resume_param_scheduler=False, **now)
    assert not warned
    assert len(seen) == 6 * LENGTH - at
    for iteration, values in seen.items():
        assert values == [pytest.approx(one, rel=1e-9) for one in whole[iteration]]


@pytest.mark.parametrize(
    ('then', 'now', 'options', 'said'),
    [
        ([{**COSINE, 'T_max': 3, 'end': 3}], [COSINE], {},
         'param_scheduler.0.T_max=3 (config: 6), param_scheduler.0.end=3 (config: 6)'),
        (SCHEDULES['warm-up'], [SCHEDULES['warm-up'][0], dict(type='MultiStepLR', milestones=[3, 4], gamma=0.5)], {},
         'param_scheduler.1.milestones={2: 1, 4: 1} (config: {3: 1, 4: 1})'),
        ([COSINE], [COSINE], dict(lr=0.2), 'optim_wrapper.optimizer.lr=0.1 (config: 0.2)'),
        ([COSINE], [COSINE], dict(weight_decay=0), 'optim_wrapper.optimizer.weight_decay=0.0001 (config: 0)'),
        (None, None, dict(lr=0.2, momentum=0.8),
         'optim_wrapper.optimizer.lr=0.1 (config: 0.2), optim_wrapper.optimizer.momentum=0.9 (config: 0.8)'),
        ([COSINE], [COSINE], dict(parts=dict(bias_lr_mult=4)),
         'optim_wrapper.optimizer.lr=[0.1, 0.2] (config: [0.1, 0.4])'),
    ],
)  # fmt: skip
def test_what_the_checkpoint_overrides_is_one_warning(then, now, options, said, tmp_path):
    before = dict(parts=dict(bias_lr_mult=2)) if 'parts' in options else {}
    seen, warned = resumed(tmp_path, then, now, before=before, **options)
    whole, *_ = run(tmp_path, then, **before)
    assert len(warned) == 1
    assert f': {said.replace("0.30", "0.3")}; with resume_param_scheduler=False, the config counts' in warned[
        0
    ].replace('0.30000000000000004', '0.3')
    assert seen == {iteration: whole[iteration] for iteration in seen}


def test_more_epochs_of_a_constant_schedule_are_no_warning(tmp_path):
    seen, warned = resumed(tmp_path, SCHEDULES['constant'], SCHEDULES['constant'], epochs=8)
    assert not warned
    assert {one[0][0] for one in seen.values()} == {0.1}
    assert max(seen) == 8 * LENGTH - 1


def test_the_settings_of_a_loss_scaler_are_named_and_put_back():
    wrapper = OptimWrapper(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1))
    wrapper.loss_scaler = torch.amp.GradScaler('cpu', growth_interval=2000)
    runner = SimpleNamespace(optim_wrapper=wrapper, param_schedulers=None, train_loop=None, iter=4, epoch=0)
    config = FromConfig(runner)
    wrapper.loss_scaler.load_state_dict({**wrapper.loss_scaler.state_dict(), 'scale': 8.0})
    assert config.overridden() is None
    wrapper.loss_scaler.load_state_dict({**wrapper.loss_scaler.state_dict(), 'growth_interval': 5})
    assert ' optim_wrapper.loss_scale.growth_interval=5 (config: 2000); ' in config.overridden()
    config.restore()
    assert config.overridden() is None
    assert wrapper.loss_scaler.get_scale() == 8


class Scheduled:
    """What `check_resumable` asks of a runner."""

    def __init__(self, optimizer: type, *schedules: dict, **cfg) -> None:
        weight = torch.nn.Parameter(torch.zeros(1))
        self.optim_wrapper, self.cfg = OptimWrapper(optimizer([weight], lr=0.1)), cfg
        given = dict(optimizer=self.optim_wrapper)
        self.param_schedulers = [PARAM_SCHEDULERS.build(one, default_args=given) for one in schedules]

    def saved(self) -> dict:
        return dict(
            optimizer=self.optim_wrapper.state_dict(),
            param_schedulers=[one.state_dict() for one in self.param_schedulers],
        )


ADAM, SGD = torch.optim.AdamW, torch.optim.SGD
WARM_UP = dict(type='LinearLR')
SORTS = [
    COSINE,
    WARM_UP,
    dict(type='OneCycleLR', eta_max=0.2, total_steps=9),
    dict(type='ReduceOnPlateauLR', monitor='loss'),
    dict(type='MultiStepLR', milestones=[2]),
    dict(type='CosineRestartLR', periods=[2], eta_min=0),
]


@pytest.mark.parametrize('schedule', SORTS, ids=lambda one: one['type'])
def test_a_schedule_is_restored_from_its_own_state_alone(schedule):
    """As MMEngine saves it, and as this package does, without functions."""
    state = Scheduled(SGD, schedule).saved()
    plain = dict(state, message_hub=dict(log_scalars={}, runtime_info={}, resumed_keys={}))
    make_plain(plain)
    for saved in (state, plain):
        for other in SORTS:
            if other is schedule:
                check_resumable(Scheduled(SGD, schedule), saved, 'x.pth')
            else:
                with pytest.raises(ValueError, match=r'^param_scheduler\.0 is not the schedule of checkpoint'):
                    check_resumable(Scheduled(SGD, other), saved, 'x.pth')


def test_another_number_of_schedules_is_refused():
    for ours, theirs in ((2, 1), (1, 2), (1, 0), (0, 1)):
        both = (COSINE, WARM_UP)
        with pytest.raises(ValueError, match=r'^param_scheduler\.[01] is not the schedule of checkpoint') as caught:
            check_resumable(Scheduled(SGD, *both[:ours]), Scheduled(SGD, *both[:theirs]).saved(), 'x.pth')
        assert f'which has {theirs} (config: {ours})' in str(caught.value)
    check_resumable(Scheduled(SGD, *both, resume_param_scheduler=False), Scheduled(SGD, WARM_UP).saved(), 'x.pth')


def test_the_state_of_another_optimizer_is_refused():
    check_resumable(Scheduled(torch.optim.Adam), Scheduled(ADAM).saved(), 'x.pth')
    with pytest.raises(
        ValueError, match=r"^optim_wrapper\.optimizer: checkpoint 'x\.pth' is of another .* without betas"
    ):
        check_resumable(Scheduled(ADAM, resume_param_scheduler=False), Scheduled(SGD).saved(), 'x.pth')
