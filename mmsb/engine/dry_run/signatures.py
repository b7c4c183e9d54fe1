"""What a class or function of a config takes: the names of its options, and values of a wrong kind.

The options of a class are those of its constructor and, where that hands `**kwargs` on, of its base classes'.
"""

import ast
import difflib
import functools
import inspect
import reprlib
import textwrap
import types
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from mmsb.options import known_options

NEAR = 0.75  # similarity of a word with one letter dropped, for words of three letters or more
SURE = 0.85  # the same for words of four letters or more
KINDS = {bool: 'True or False', int: 'an integer', float: 'a number', str: 'a string', dict: 'a dict', list: 'a list'}
TOO_NARROW = ('loss_scale',)  # annotated as a string, and a number in many configs
_SCALARS = (bool, int, float, str)


@dataclass
class Options:
    """What a constructor takes.

    Args:
        parameters: by name.
        closed: whether these are all.
        swallows: whether it takes and ignores all others.
    """

    parameters: dict[str, inspect.Parameter]
    closed: bool
    swallows: bool = False


def near(word: str, valid: Iterable[str], cutoff: float = NEAR) -> str | None:
    """Return the valid word that is most like `word`, if there is one like it."""
    return next(iter(difflib.get_close_matches(str(word), list(valid), n=1, cutoff=cutoff)), None)


def hint(word: str, valid: Iterable[str]) -> str:
    """Return the end of an error that names the valid words like `word`, or nothing."""
    meant = difflib.get_close_matches(str(word), list(valid), n=2, cutoff=NEAR)
    return f'; did you mean {" or ".join(repr(one) for one in meant)}?' if meant else ''


def shown(value) -> str:
    """Return the representation of a value, shortened to fit in an error."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 60
    return short.repr(value.to_dict() if hasattr(value, 'to_dict') else value)


@functools.cache
def options_of(target: Callable) -> Options:
    """Return what a class or function takes by keyword."""
    if not inspect.isclass(target):
        return _options([target], first=0)
    functions = [vars(base)['__init__'] for base in target.__mro__[:-1] if '__init__' in vars(base)]
    return _options(functions, first=1)  # without self


def _options(functions: list[Callable], first: int) -> Options:
    found: dict[str, inspect.Parameter] = {}
    for function in functions:
        try:
            parameters = list(inspect.signature(function).parameters.values())[first:]
        except (TypeError, ValueError):  # implemented in C
            return Options(found, closed=False)
        for one in parameters:
            if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY):
                found.setdefault(one.name, one)
        rest = next((one.name for one in parameters if one.kind == one.VAR_KEYWORD), None)
        if rest is None:
            wrapper = function.__globals__['__name__']  # a library's may rename options
            return Options(found, closed=wrapper in (inspect.unwrap(function).__module__, known_options.__module__))
        passed_on, named, used = _use_of(function, rest)
        found.update({name: inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in named - {*found}})
        if not passed_on:
            return Options(found, closed=False, swallows=not used)
        if used:
            return Options(found, closed=False)
    return Options(found, closed=bool(functions))


def _use_of(function: Callable, rest: str) -> tuple[bool, set[str], bool]:
    """Tell what a constructor does with its `**rest`.

    Returns:
        whether `super().__init__` gets it; the names that are taken out of it; whether it is used in another way.
    """
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))
    except (OSError, TypeError, SyntaxError):
        return False, set(), True
    passed_on, named, explained = False, set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            inner = [one.value for one in node.keywords if one.arg is None and _is(one.value, rest)]
            if inner and ast.unparse(node.func) == 'super().__init__':
                passed_on = True
                explained.update(inner)
            method = node.func
            taken = isinstance(method, ast.Attribute) and _is(method.value, rest) and method.attr in ('pop', 'get')
            if taken and node.args and isinstance(node.args[0], ast.Constant):
                named.add(node.args[0].value)
                explained.add(method.value)
    uses = {node for node in ast.walk(tree) if _is(node, rest) and isinstance(node.ctx, ast.Load)}
    return passed_on, named, bool(uses - explained)


def _is(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def unknown_option(keys: Iterable[str], options: Options) -> tuple[str, str | None] | None:
    """Return the first key that a constructor does not take, or would ignore, and the option that was meant, if any.

    Of a constructor that takes any key, only one that is like an option counts as unknown.
    """
    keys = list(keys)
    free = [name for name in options.parameters if name not in keys]
    for key in keys:
        if key not in options.parameters:
            least = NEAR if options.closed else SURE
            meant = near(key, free, least) or near(key, options.parameters, least)
            if options.closed or meant:
                return key, meant
    return None


def fits(value, kind) -> bool:
    """Tell whether a value is of an annotated kind; what can't be told is taken to fit."""
    if kind is None or kind is type(None):
        return value is None
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, one) for one in typing.get_args(kind))
    kind = origin or kind
    if not inspect.isclass(kind):
        return True
    if kind is bool:
        return isinstance(value, bool)
    if kind in (int, float):
        return isinstance(value, (int, float) if kind is float else int) and not isinstance(value, bool)
    if kind in (list, tuple) or kind.__name__ == 'Sequence':
        return isinstance(value, (list, tuple))
    return isinstance(value, kind)


def kinds_of(kind) -> str:
    """Describe an annotation for an error, 'an integer or None'."""
    arms = typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)
    origins = [typing.get_origin(arm) or arm for arm in arms]
    names = [KINDS.get(origin) for origin in origins] + (['None'] if type(None) in origins else [])
    return ' or '.join(dict.fromkeys(name for name in names if name)) or str(kind)


def wrong_value(value, parameter: inspect.Parameter) -> str | None:
    """Return what a plain value of an option must be, if its annotation or else its default shows that it is wrong.

    Only a text for a number, a number for a text, and None for either can be told: many annotations of the libraries
    are too narrow.
    """
    kind, default = parameter.annotation, parameter.default
    if parameter.name in TOO_NARROW:
        return None
    if isinstance(kind, str) or kind is parameter.empty:
        kind = type(default) if isinstance(default, (int, float)) else None
        if kind is None or kind is bool or not isinstance(value, str):
            return None
        kind = float
    if value is default or not isinstance(value, (*_SCALARS, type(None))):
        return None
    arms = typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)
    if not all(arm in (*_SCALARS, type(None)) for arm in arms):
        return None
    if (int in arms and fits(value, float)) or (bool in arms and value in (None, 0, 1)):
        return None
    return None if fits(value, kind) else kinds_of(kind)
