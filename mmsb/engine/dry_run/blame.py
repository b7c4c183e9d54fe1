"""Turns a failure while a run is rehearsed into one line that names the keys of the config that it is about."""

import itertools
import linecache
import re
import traceback

from mmsb.options import one_line

from .sections import Section, TypeName, joined, leaves
from .signatures import near, shown
from .watch import Mistake, Watch, unknown_type

MANY = 8  # values that an error shows at most
_ROOM = __name__.rpartition('.')[0]


def explained(error: BaseException, stage: str, cfg: Section, seen: Watch) -> str:
    """Return the line for the user: the place in the config, the values that the failure is about, and its message.

    Args:
        error: what was raised.
        stage: key of the config whose turn it was.
        cfg: the whole config.
        seen: what was built so far.
    """
    if isinstance(error, Mistake):
        return str(error)
    text = one_line(error) if not isinstance(error, SystemExit) else f'calls sys.exit({error.code!r})'
    if seen.missed and isinstance(error, (TypeError, AttributeError, KeyError)):
        return unknown_type(seen.missed[0], seen.missed[0].place, seen.missed[1])
    frames = _frames(error)
    if isinstance(error, AssertionError) and not str(error) and frames:
        text = f'`{frames[-1][1]}` fails'
    section = getattr(error, 'section', None)
    owners = [section] if section is not None else _owners(frames, seen)
    if owners and 'must contain the key "type"' in text:
        key = near('type', dict.keys(owners[0]))
        return f'{owners[0]._place} has no type' + (f' (did you write {key!r} for it?)' if key else '')
    for frame in itertools.islice(reversed(frames), 3):
        if values := _read(*frame):
            return _said('', values, text)
    for owner in owners:
        values = _blamed(_options(owner, owner._place), frames, text)
        if values:
            return _said(owner._place, values, text)
    place = next((owner._place for owner in owners if any(_counts(value) for _, value in leaves(owner, ''))), None)
    place = place or (owners[0]._place if owners else stage)
    return _said(place, _options(_at(cfg, place), place), text)


def _options(node, place: str) -> list[tuple[str, object]]:
    """List the values of a section, numbers first, without its types."""
    found = [(key, value) for key, value in leaves(node, place) if not isinstance(value, TypeName)]
    return sorted(found, key=lambda one: not _counts(one[1]))


def _counts(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _said(place: str, values: list[tuple[str, object]], text: str) -> str:
    if len(values) == 1:
        ((key, value),) = values
        return f'{key}={shown(value)}: {text}'
    own = ', '.join(f'{key.removeprefix(f"{place}.")}={shown(value)}' for key, value in values[:MANY])
    own += ', ...' if len(values) > MANY else ''
    return f'{place} ({own}): {text}' if place and own else f'{place or own}: {text}'


def _at(cfg: Section, place: str):
    for key in place.split('.'):
        cfg = dict.get(cfg, key) if isinstance(cfg, dict) else cfg[int(key)]
    return cfg


def _frames(error: BaseException) -> list[tuple[dict, str]]:
    """List the local variables and the statement of each frame of a traceback, the innermost last."""
    found = []
    for frame, line in traceback.walk_tb(error.__traceback__):
        file = frame.f_code.co_filename
        if frame.f_globals.get('__name__', '').startswith(_ROOM):
            continue
        positions = list(frame.f_code.co_positions()) if hasattr(frame.f_code, 'co_positions') else []
        end = max((stop for start, stop, *_ in positions if start == line and stop), default=line)
        lines = [linecache.getline(file, number).strip() for number in range(line, min(end, line + 5) + 1)]
        found.append((frame.f_locals, ' '.join(lines)))
    return found


def _owners(frames: list[tuple[dict, str]], seen: Watch) -> list[Section]:
    """List the sections of the objects in a traceback that were built from one, the innermost first."""
    found = [seen.built.get(id(variables.get('self'))) for variables, _ in reversed(frames)]
    return list({one[1]._place: one[1] for one in found if one}.values())


def _blamed(values: list[tuple[str, object]], frames: list, text: str) -> list[tuple[str, object]]:
    """Choose from the values of a section those that a failure is about; none if there is no sign of any.

    The signs, from the surest: the only value of a type that the message names; a condition in the traceback about a
    value of that name; the name of a key and its value in the message; its name; its value; the failed statement.
    """
    kinds = {kind for kind in ('str', 'NoneType', 'dict', 'list', 'tuple', 'bool') if re.search(rf'\b{kind}\b', text)}
    typed = [one for one in values if type(one[1]).__name__ in kinds]
    if len(typed) == 1:
        return typed
    for frame in itertools.islice(reversed(frames), 8):
        if re.match(r'(el)?if |assert |raise ', frame[1]) and (found := _mentioned(values, *frame)):
            return found
    named = [(key, value) for key, value in values if re.search(rf'\b{re.escape(key.rpartition(".")[2])}\b', text)]
    telling = [one for one in values if not isinstance(one[1], bool) and (len(str(one[1])) > 1 or one[1] == 0)]
    said = [one for one in telling if _in(one[1], text)]
    found = [one for one in named if one in said] or named or said
    return found or (_mentioned(values, *frames[-1]) if frames else [])


def _read(variables: dict, statement: str) -> list[tuple[str, object]]:
    """List the values that a statement reads from config sections, as in `self.test_cfg.nms.iou_threshold`."""
    found = {}
    for words in re.findall(r'[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+', statement.replace(".get('", '.')):
        first, *rest = words.split('.')
        node = variables.get(first)
        for word in rest:
            if not isinstance(node, Section):
                node = getattr(node, '__dict__', {}).get(word)
                continue
            section, node = node, dict.get(node, word)
            if section._place is not None and word in dict.keys(section) and not isinstance(node, (dict, TypeName)):
                found[joined(section._place, word)] = node
    return list(found.items())


def _mentioned(values: list[tuple[str, object]], variables: dict, statement: str) -> list[tuple[str, object]]:
    """List the values that a statement uses by the names of their keys."""
    names, own = set(re.findall(r'[A-Za-z_]\w*', statement)), variables.get('self')
    found = []
    for key, value in values:
        name = key.rpartition('.')[2]
        if name in names and value is not None and _same(variables.get(name, getattr(own, name, None)), value):
            found.append((key, value))
    return found


def _in(value, text: str) -> bool:
    return re.search(rf'(?<![\w.]){re.escape(str(value))}(?!\w|\.\w)', text) is not None


def _same(one, other) -> bool:
    try:
        return type(one) is type(other) and bool(one == other)
    except Exception:  # arrays of different shapes, and whatever compares in its own way
        return False
