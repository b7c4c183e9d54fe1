"""Validates user input; every error is one line that names the problem, the value and the valid ones."""

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable


class UnknownOptionError(ValueError, TypeError):
    """An option that does not exist: a wrong value in a config, and for Python and timm a wrong call."""


def choose(name: str, value, valid: Iterable):
    """Return `value` if it is one of `valid`.

    Raises:
        ValueError: it is not; the message names the option, the value and the valid ones.
    """
    valid = list(valid)
    if value not in valid:
        raise ValueError(f'{name} must be one of {valid}, got {value!r}')
    return value


def check_keys(owner: str, keys: Iterable[str], valid: Iterable[str]) -> None:
    """Check that all `keys` are valid.

    Raises:
        UnknownOptionError: a key is unknown; the message suggests the closest valid one and lists them all.
    """
    valid = list(valid)
    for key in keys:
        if key not in valid:
            near = difflib.get_close_matches(str(key), valid, n=1)
            hint = f' (did you mean {near[0]!r}?)' if near else ''
            raise UnknownOptionError(f'{owner} has no option {key!r}{hint}; valid: {", ".join(valid)}')


def known_options(init: Callable) -> Callable:
    """Make an `__init__` report an unknown keyword as `check_keys` does.

    Python's own message does not list the valid names, which a class with 25 options needs.
    """
    parameters = list(inspect.signature(init).parameters)
    valid = parameters[1:]  # without self

    @functools.wraps(init)
    def checked(self, *args, **kwargs):
        check_keys(type(self).__name__, kwargs, valid)
        init(self, *args, **kwargs)

    return checked


def one_line(error: Exception) -> str:
    """Return the message of an exception as one line, or the name of its type if the message is empty."""
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error).strip()
    if text.startswith('Caught ') and 'Original Traceback' in text:  # raised in a dataloader worker
        text = text.splitlines()[-1]
    return ' '.join(text.split()) or type(error).__name__


def positive_integer(name: str, value) -> int:
    """Return `value` if it is an integer of at least 1.

    Raises:
        ValueError: it is not; the message names the option and the value.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f'{name} must be an integer of at least 1, got {value!r}')
    return value
