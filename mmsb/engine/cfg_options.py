"""`--cfg-options KEY=VALUE ...`: values arrive as they are typed.

The syntax is that of MMEngine's `DictAction`, which deletes spaces and quotes and reads no dicts:

    12, 1e-3, true, None, out/run one       a number, a boolean, None; anything else is text, as it stands
    'a, b', "12"                            in quotes, anything is text; a backslash is a backslash
    a,b   [a, (1, 2)]   (1,)                lists and tuples; spaces around their items do not count
    {a: 1, 'b c': x}   dict(a=1)            dicts; merged into what is there, as in a config file
"""

import argparse
import copy
from collections.abc import Iterator

from mmengine.config import Config, ConfigDict, DictAction
from mmengine.config.config import DELETE_KEY

from mmsb.options import one_line

from .processes import warn

_CLOSE = {'(': ')', '[': ']', '{': '}'}
_ASSIGNS = {'(': '=', '{': ':'}  # what stands between a key and its value in these brackets
_DICT = 'dict('
_MISSING = object()


class KeyValues(argparse.Action):
    """Collects the options in a dict, in the order in which they apply; of a key given twice, the last one counts."""

    def __call__(self, parser, namespace, values, option_string=None):
        options = dict(getattr(namespace, self.dest))
        for text in values:
            key, equals, value = text.partition('=')
            try:
                if not equals or not all(part.strip() for part in key.split('.')):
                    raise ValueError(f'needs KEY=VALUE, got {text!r}; put quotes around a value with spaces')
                parsed = parse_value(value)
            except ValueError as error:
                parser.exit(2, f'error: {option_string}{f" {key}:" if equals else ""} {one_line(error)}\n')
            if key in options and options.pop(key) != parsed:
                warn(f'{option_string} has {key} more than once: {value} counts')
            options[key] = parsed
        setattr(namespace, self.dest, options)


def parse_value(text: str):
    """Return the value that a text stands for.

    Raises:
        ValueError: a bracket or a quote is not closed, or what is in braces is no dict.
    """
    commas = [place for place, char, depth in _outside_quotes(text) if char == ',' and not depth] if ',' in text else []
    return [_value(item.strip()) for item in _split(text)] if commas else _value(text)


def _value(text: str):
    inner = text.strip()
    if inner[:1] in ('"', "'"):
        return inner[1 : _closing(inner, 0, '')]
    bare = inner.removeprefix('dict') if inner.startswith(_DICT) else inner
    if bare[:1] in _CLOSE:
        end = next(place for place, _, depth in _outside_quotes(inner) if place >= len(inner) - len(bare) and not depth)
        body = bare[1:-1]
        if end < len(inner) - 1 or (bare[0] == '{' and body.strip() and not {':', ','} & {*body}):
            return text  # such as '[a](b)' and '{name}'
        if bare is not inner or bare[0] == '{':
            return dict(_pair(item, bare[0]) for item in _split(body, bare[0]))
        items = [_value(item.strip()) for item in _split(body, bare[0])]
        return tuple(items) if bare[0] == '(' else items
    value = DictAction._parse_int_float_bool(inner)
    return text if isinstance(value, str) else value


def _pair(item: str, bracket: str) -> tuple:
    """Return the key and the value of an item of a dict."""
    assigns = _ASSIGNS[bracket]
    at = next((place for place, char, depth in _outside_quotes(item, bracket) if char == assigns and not depth), None)
    key = item[:at].strip()
    if at is None or not key:
        raise ValueError(f'{item.strip()!r} is no item of a dict: it needs KEY{assigns} VALUE; put quotes around text')
    return key if bracket == '(' else _value(key), _value(item[at + 1 :].strip())


def _split(text: str, bracket: str = '') -> list[str]:
    """Split what is in a bracket, or in none, at its commas; what follows the last one counts unless it is empty."""
    items, start = [], 0
    for place, char, depth in _outside_quotes(text, bracket):
        if char == ',' and not depth:
            items.append(text[start:place])
            start = place + 1
    return [*items, text[start:]] if text[start:].strip() else items


def _outside_quotes(text: str, bracket: str = '') -> Iterator[tuple[int, str, int]]:
    """Yield the characters outside of quotes, with their places and how many brackets are open after them.

    A quote opens only where a value begins. A bracket in the middle of a text, as in 'run (2)', begins no value.

    Args:
        text: what to read.
        bracket: the bracket that it was in.
    """
    opened, begins, place = [], True, 0
    while place < len(text):
        char = text[place]
        around = opened[-1] if opened else bracket
        if begins and char in ('"', "'"):
            place, begins = _closing(text, place, around), False
        else:
            if char in _CLOSE:
                begins = begins or text.endswith('dict', 0, place)
                opened.append(char if begins else f'text {char}')
            elif char in _CLOSE.values():
                if not opened or _CLOSE[opened.pop()[-1]] != char:
                    raise ValueError(f'{char!r} closes nothing in {text!r}; put quotes around text')
                begins = False
            elif not char.isspace():
                begins = char in (',', _ASSIGNS.get(around)) and not around.startswith('text')
            yield place, char, len(opened)
        place += 1
    if opened:
        raise ValueError(f'{opened[-1][-1]!r} is not closed in {text!r}; put quotes around text')


def _closing(text: str, place: int, bracket: str) -> int:
    """Find the quote that closes the one at a place: a value ends behind it, which leaves apostrophes alone."""
    ends = (',', _CLOSE.get(bracket), _ASSIGNS.get(bracket))
    for end in range(place + 1, len(text)):
        if text[end] == text[place] and (text[end + 1 :].lstrip()[:1] or ',') in ends:
            return end
    raise ValueError(f'{text[place]} is not closed in {text!r}; put the other kind of quotes around text')


def apply_options(cfg: Config, options: dict) -> None:
    """Write options into a config, in place; dicts and lists that it shares with other keys are copied.

    Raises:
        ValueError: a key leads through what has no such key or index.
    """
    for key, value in options.items():
        first, *rest = key.split('.')
        cfg[first] = _with(dict.get(cfg._cfg_dict, first, _MISSING), rest, value, first)


def _with(node, keys: list, value, place: str):
    """Return a copy of a part of a config with a value set in it."""
    if not keys:
        if not isinstance(value, dict):
            return copy.deepcopy(value)
        if not value or value.get(DELETE_KEY) or not isinstance(node, dict):
            node = ConfigDict()
        for key, child in value.items():
            if key != DELETE_KEY:
                node = _with(node, [key], child, place)
        return node
    key, *rest = keys
    inside = f'{place}.{key}'
    if isinstance(node, (list, tuple)):
        if not str(key).isdecimal() or int(key) >= len(node):
            raise ValueError(f'--cfg-options: {place} is a list of {len(node)}, and has no index {key!r}')
        items = list(node)
        items[int(key)] = _with(items[int(key)], rest, value, inside)
        return type(node)(items)
    if node is not _MISSING and not isinstance(node, dict):
        raise ValueError(f'--cfg-options: {place} is {node!r}, in which {key!r} can not be set')
    node = ConfigDict() if node is _MISSING else node.copy()
    node[key] = _with(dict.get(node, key, _MISSING), rest, value, inside)
    return node
