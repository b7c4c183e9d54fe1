"""Checks of what a user hands in, and what is told of it: what was wrong, the value, and what is valid, in one line."""

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable


def choose(name: str, value, valid: Iterable):
    """Return `value` if it is one of `valid`.

    Raises:
        ValueError: otherwise; names the option, the value and the valid ones.
    """
    valid = list(valid)
    if value not in valid:
        raise ValueError(f'{name} must be one of {valid}, got {value!r}')
    return value


def check_keys(owner: str, keys: Iterable[str], valid: Iterable[str]) -> None:
    """Check that all `keys` are among the `valid` ones.

    Raises:
        ValueError: for the first unknown key; names the nearest valid one, and all of them.
    """
    valid = list(valid)
    for key in keys:
        if key not in valid:
            near = difflib.get_close_matches(str(key), valid, n=1)
            hint = f' (did you mean {near[0]!r}?)' if near else ''
            raise ValueError(f'{owner} has no option {key!r}{hint}; valid: {", ".join(valid)}')


def known_options(init: Callable) -> Callable:
    """Let an `__init__` answer a misspelt keyword as `check_keys` does.

    Python's own message does not list the valid names, and a config with 25 of them needs the list.
    """
    parameters = list(inspect.signature(init).parameters)
    valid = parameters[1:]  # without self

    @functools.wraps(init)
    def checked(self, *args, **kwargs):
        check_keys(type(self).__name__, kwargs, valid)
        init(self, *args, **kwargs)

    return checked


def one_line(error: Exception) -> str:
    """Return the text of an exception in one line, or its type if it has none."""
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error).strip()
    if text.startswith('Caught ') and 'Original Traceback' in text:  # from a worker of a dataloader
        text = text.splitlines()[-1]
    return ' '.join(text.split()) or type(error).__name__


def positive_integer(name: str, value) -> int:
    """Return `value` if it is an integer of at least 1.

    Raises:
        ValueError: otherwise; names the option and the value.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f'{name} must be an integer of at least 1, got {value!r}')
    return value
