"""States of hooks, for checkpoints: a hook that counts or compares must go on where it was."""

from mmengine.hooks import EarlyStoppingHook
from mmengine.runner import Runner

_ATTRIBUTES = {EarlyStoppingHook: ('wait_count', 'best_score')}  # of hooks that save nothing themselves
_PLAIN = (bool, int, float, str, type(None))
LIBRARIES = ('mmengine', 'mmpretrain', 'mmdet', 'mmseg', 'mmsb')  # the other hooks of these follow from the position


def remember(runner: Runner) -> dict[str, dict]:
    """Return the numbers and texts that the hooks of others than the libraries hold before the training."""
    foreign = {name: hook for name, hook in _named(runner) if type(hook).__module__.split('.')[0] not in LIBRARIES}
    return {name: {key: value for key, value in vars(hook).items() if isinstance(value, _PLAIN)}
            for name, hook in foreign.items() if not hasattr(hook, 'state_dict')}  # fmt: skip


def collect(runner: Runner, before: dict[str, dict]) -> dict[str, dict]:
    """Return the states of a runner's hooks.

    Args:
        runner: the runner.
        before: what `remember` returned.

    Returns:
        `saved`: by name of the hook, what its `state_dict` returns; `unsaved`: the attributes of other hooks that have
        changed. Restoring those might be wrong: they may stand for something that the hook did to the network.
    """
    saved, unsaved = {}, {}
    now = remember(runner)
    for name, hook in _named(runner):
        if hasattr(hook, 'state_dict'):
            saved[name] = hook.state_dict()
        elif _attributes(hook):
            saved[name] = {key: getattr(hook, key) for key in _attributes(hook)}
        changed = [key for key, value in now.get(name, {}).items() if before.get(name, {}).get(key, value) != value]
        if changed:
            unsaved[name] = changed
    return dict(saved=saved, unsaved=unsaved)


def restore(runner: Runner, states: dict[str, dict]) -> None:
    """Restore what `collect` returned, for the hooks that are still there; warn of what can't be restored."""
    saved = states.get('saved', {})
    for name, hook in _named(runner):
        if name in saved and hasattr(hook, 'load_state_dict'):
            hook.load_state_dict(saved[name])
        elif name in saved:
            for key in _attributes(hook):
                setattr(hook, key, saved[name][key])
    for name, keys in states.get('unsaved', {}).items():
        runner.logger.warning(
            f'{name} begins anew: its {", ".join(keys)} changed in training, and it has no state_dict and '
            'load_state_dict; the run may differ'
        )


def _attributes(hook) -> tuple[str, ...]:
    return next((keys for kind, keys in _ATTRIBUTES.items() if isinstance(hook, kind)), ())


def _named(runner: Runner) -> list[tuple[str, object]]:
    """Name each hook by its class; a second one of the same class gets a number."""
    named = {}
    for hook in runner.hooks:
        name, number = type(hook).__name__, 1
        while name in named:
            number += 1
            name = f'{type(hook).__name__} {number}'
        named[name] = hook
    return list(named.items())
