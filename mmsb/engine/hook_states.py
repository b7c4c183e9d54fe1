"""States of hooks, for checkpoints: a hook that counts or compares must go on where it was."""

from mmengine.hooks import EarlyStoppingHook
from mmengine.runner import Runner

_ATTRIBUTES = {EarlyStoppingHook: ('wait_count', 'best_score')}  # of hooks that save nothing themselves


def collect(runner: Runner) -> dict[str, dict]:
    """Return the states of a runner's hooks that have one, by name."""
    states = {name: _state(hook) for name, hook in _named(runner)}
    return {name: state for name, state in states.items() if state is not None}


def restore(runner: Runner, states: dict[str, dict]) -> None:
    """Restore what `collect` returned, for the hooks that are still there."""
    states = states.get('saved', states)  # as checkpoints of earlier versions have them
    for name, hook in _named(runner):
        if name in states and hasattr(hook, 'load_state_dict'):
            hook.load_state_dict(states[name])
        elif name in states:
            for key in _attributes(hook):
                setattr(hook, key, states[name][key])


def _state(hook) -> dict | None:
    if hasattr(hook, 'state_dict'):
        return hook.state_dict()
    return {key: getattr(hook, key) for key in _attributes(hook)} or None


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
