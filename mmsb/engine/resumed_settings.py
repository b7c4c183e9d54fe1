"""What a config says about the optimizer and its schedules, and the checkpoint of a resumed run overrides.

MMEngine restores both whole: a learning rate, weight decay or schedule that has changed in the config does nothing.
"""

import copy
import inspect
import math
import reprlib
import warnings
from collections.abc import Iterator
from numbers import Number
from types import SimpleNamespace

from mmengine.optim import OptimWrapper, OptimWrapperDict, _ParamScheduler
from mmengine.optim.scheduler import ReduceOnPlateauParamScheduler
from mmengine.runner import IterBasedTrainLoop, Runner

KEY = 'resume_param_scheduler'  # of a config; False: the config counts
_FORMS = ('foreach', 'fused', 'capturable', 'differentiable')  # how an optimizer computes, not what
_SCALER = ('growth_factor', 'backoff_factor', 'growth_interval')
_PROGRESS = ('optimizer', 'last_step', 'verbose')  # arguments of schedules that are no settings
_DERIVED = ('_schedule_phases', 'min_values')  # attributes that stand for several arguments
MANY = 6  # settings that a warning names at most

Settings = dict[str, object]


def settings_of(runner: Runner) -> Settings:
    """List the settings of the optimizers and schedules of a runner, by their keys in a config."""
    found = {}
    for place, wrapper in _wrappers(runner.optim_wrapper):
        optimizer = wrapper.optimizer
        for name in optimizer.defaults.keys() - {*_FORMS}:
            groups = [group.get(f'initial_{name}', group.get(name)) for group in optimizer.param_groups]
            found[f'{place}.optimizer.{name}'] = groups[0] if groups.count(groups[0]) == len(groups) else groups
        found |= {f'{place}.loss_scale.{name}': value for name, value in _scaling(wrapper).items()}
    for place, scheduler in _schedulers(runner.param_schedulers):
        found |= {f'{place}.{name}': value for name, value in _settings_of_schedule(scheduler).items()}
    return {key: _comparable(value) for key, value in found.items()}


def check_resumable(runner: Runner, checkpoint: dict, path: str) -> None:
    """Check that the settings of a checkpoint can be restored into the optimizers and schedules of a config.

    Raises:
        ValueError: the checkpoint is of another optimizer or of other schedules, which MMEngine would mix.
    """
    saved = checkpoint.get('optimizer') or {}
    several = isinstance(runner.optim_wrapper, OptimWrapperDict)
    for place, wrapper in _wrappers(runner.optim_wrapper):
        state = saved.get(place.partition('.')[2], {}) if several else saved
        for group in state.get('param_groups', [])[:1]:
            needed = [name for name, value in wrapper.optimizer.defaults.items() if not isinstance(value, bool | None)]
            missing = [name for name in needed if name not in group]
            if missing:
                raise ValueError(
                    f'{place}.optimizer: checkpoint {path!r} is of another optimizer, without {", ".join(missing)}: '
                    'resume with that one, or start from the weights with load_from and resume=False'
                )
    if runner.cfg.get(KEY, True):
        ours, theirs = dict(_schedulers(runner.param_schedulers)), dict(_schedulers(checkpoint.get('param_schedulers')))
        other = next((place for place in [*ours, *theirs] if not _same_kind(ours.get(place), theirs.get(place))), None)
        if other is not None:
            raise ValueError(
                f'{other} is not the schedule of checkpoint {path!r}, which has {len(theirs)} (config: {len(ours)}): '
                f'resume with its schedules, or set {KEY}=False, and the config counts'
            )


class FromConfig:
    """The optimizers and schedules of a runner as the config has built them, before a checkpoint is resumed.

    Args:
        runner: the runner, whose schedules are at their start.
    """

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._settings = settings_of(runner)
        self._groups = [{**group} for group in _groups(runner)]
        self._scaling = [_scaling(wrapper) for _, wrapper in _wrappers(runner.optim_wrapper)]
        self._schedulers = _copies(runner)

    def overridden(self) -> str | None:
        """Return the warning about settings of the config that the checkpoint has overridden, or None.

        Schedules that would go on alike are none: more epochs move the end of one that is at its last value.
        """
        now = settings_of(self._runner)
        changed = sorted(key for key, value in self._settings.items() if key in now and now[key] != value)
        if all(key.startswith('param_scheduler.') for key in changed) and (not changed or self._goes_on_alike()):
            return None
        shown = [f'{key}={reprlib.repr(now[key])} (config: {reprlib.repr(self._settings[key])})' for key in changed]
        shown = shown[:MANY] + ['...'] * (len(shown) > MANY)
        return (
            f'resuming with settings of the checkpoint that differ from the config: {", ".join(shown)}; '
            f'with {KEY}=False, the config counts'
        )

    def restore(self) -> None:
        """Put the settings of the config back, and take its schedules to where the run is."""
        runner = self._runner
        for group, options in zip(_groups(runner), self._groups, strict=True):
            for name in group.keys() - options.keys():
                del group[name]
            group.update({name: value for name, value in options.items() if name != 'params'})
        for (_, wrapper), options in zip(_wrappers(runner.optim_wrapper), self._scaling, strict=True):
            if options:
                wrapper.loss_scaler.load_state_dict({**wrapper.loss_scaler.state_dict(), **options})
        _to_the_place(runner, [scheduler for _, scheduler in _schedulers(runner.param_schedulers)])

    def _goes_on_alike(self) -> bool:
        """Return whether the schedules of the config give the values of the restored ones, until the run ends."""
        runner, loop = self._runner, self._runner.train_loop
        if any(isinstance(scheduler, ReduceOnPlateauParamScheduler) for scheduler in self._schedulers):
            return False  # it depends on what will be measured
        restored, in_epochs = _copies(runner), not isinstance(loop, IterBasedTrainLoop)
        _to_the_place(runner, self._schedulers)
        for iteration in range(runner.iter + 1, loop.max_iters + 1):
            values = []
            for schedulers in (self._schedulers, restored):
                values.append([scheduler.optimizer.param_groups[0][scheduler.param_name] for scheduler in schedulers])
                _step(schedulers, by_epoch=False)
                if in_epochs and iteration % (loop.max_iters // loop.max_epochs) == 0:
                    _step(schedulers, by_epoch=True)
            if any(not math.isclose(one, other, rel_tol=1e-6) for one, other in zip(*values, strict=True)):
                return False
        return True


def _to_the_place(runner: Runner, schedulers: list[_ParamScheduler]) -> None:
    """Step schedules from their start to where a run is."""
    epochs, loop = 0, runner.train_loop
    for iteration in range(1, runner.iter + 1):
        _step(schedulers, by_epoch=False)
        if epochs < runner.epoch and iteration % (loop.max_iters // loop.max_epochs) == 0:
            _step(schedulers, by_epoch=True)
            epochs += 1
    for _ in range(epochs, runner.epoch):  # epochs had other lengths
        _step(schedulers, by_epoch=True)


def _step(schedulers: list[_ParamScheduler], *, by_epoch: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # about steps to which no step of the optimizer belongs
        for scheduler in schedulers:
            if scheduler.by_epoch == by_epoch:
                scheduler.step()


def _copies(runner: Runner) -> list[_ParamScheduler]:
    """Copy schedules, with the first group of their optimizers alone."""
    copies, optimizers = [], {}
    for _, scheduler in _schedulers(runner.param_schedulers):
        group = {**scheduler.optimizer.param_groups[0], 'params': []}
        optimizer = SimpleNamespace(param_groups=[group], step=None, _global_step=0)
        scheduler = copy.copy(scheduler)
        scheduler.optimizer = optimizers.setdefault(id(scheduler.optimizer), optimizer)
        if hasattr(scheduler, 'base_values'):
            scheduler.base_values = scheduler.base_values[:1]
        copies.append(scheduler)
    return copies


def _wrappers(optim_wrapper: OptimWrapper | OptimWrapperDict) -> Iterator[tuple[str, OptimWrapper]]:
    if isinstance(optim_wrapper, OptimWrapperDict):
        for name, wrapper in optim_wrapper.items():
            yield f'optim_wrapper.{name}', wrapper
    else:
        yield 'optim_wrapper', optim_wrapper


def _scaling(wrapper: OptimWrapper) -> Settings:
    """Return the settings of a loss scaler, if there is one that is in use."""
    state = wrapper.loss_scaler.state_dict() if hasattr(wrapper, 'loss_scaler') else {}
    return {name: state[name] for name in _SCALER if name in state}


def _groups(runner: Runner) -> list[dict]:
    return [group for _, wrapper in _wrappers(runner.optim_wrapper) for group in wrapper.param_groups]


def _schedulers(found: list | dict | None) -> Iterator[tuple[str, _ParamScheduler | dict]]:
    """Yield schedules, or their saved states, with their keys in a config."""
    groups = found if isinstance(found, dict) else {'': found}
    for name, schedulers in groups.items():
        for number, scheduler in enumerate(schedulers or []):
            yield '.'.join(filter(None, ('param_scheduler', name, str(number)))), scheduler


def _settings_of_schedule(scheduler: _ParamScheduler) -> Settings:
    inits = (vars(kind).get('__init__') for kind in type(scheduler).__mro__[:-1])
    named = {name for init in inits if init for name in inspect.signature(init).parameters} - {*_PROGRESS}
    return {name: value for name, value in scheduler.state_dict().items() if name in named or name in _DERIVED}


def _same_kind(scheduler: _ParamScheduler | None, state: dict | None) -> bool:
    """Return whether a saved state is one of this class: it has its attributes, but for options that came later."""
    if scheduler is None or state is None:
        return False
    ours = scheduler.state_dict()
    needed = {
        name for name, value in ours.items() if value is not None and not callable(value)
    }  # functions are not saved
    return needed <= {*state} <= {*ours} and state.get('param_name') == ours.get('param_name')


def _comparable(value):
    if isinstance(value, dict):
        return {key: _comparable(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_comparable(part) for part in value]
    return value if isinstance(value, Number | str | None) else getattr(value, 'tolist', lambda: repr(value))()
