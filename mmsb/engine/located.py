"""Config sections that know their place, so that a failure while one is built names the key to change.

`Section` also records which keys are read. `watch` looks at everything that is built by a registry meanwhile.
"""

import contextlib
import importlib.util
import itertools
import linecache
import re
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field

from mmengine.config import ConfigDict
from mmengine.registry import Registry

from mmsb.options import one_line

from .signatures import SURE, Options, hint, near, options_of, shown, unknown_option, wrong_value

NOT_OPTIONS = {'type', '_scope_', 'convert_to_iter_based'}  # what the registries take out first
_HERE = __file__
MANY = 8  # values that an error shows at most


class Mistake(Exception):  # noqa: N818  (it is the user's)
    """A mistake in a config; its message names the key."""


@dataclass
class Reads:
    """The keys of a config that were read, and those that were asked for and missing."""

    found: set[str] = field(default_factory=set)
    missing: set[str] = field(default_factory=set)


class TypeName(str):
    """The name of a type in a config, with its place; equal to the plain text.

    Args:
        name: the name.
        place: its key in the config.
    """

    def __new__(cls, name: str, place: str) -> 'TypeName':
        made = super().__new__(cls, name)
        made.place = place
        return made

    def __deepcopy__(self, memo) -> 'TypeName':
        return self

    def __reduce__(self):
        return TypeName, (str(self), self.place)


class Section(ConfigDict):
    """A dict of a config; copies keep the place and share the record of reads."""

    def __init__(self, *args, **kwargs) -> None:
        object.__setattr__(self, '_place', None)
        object.__setattr__(self, '_reads', Reads())
        super().__init__(*args, **kwargs)

    def _at(self, place: str | None, reads: Reads) -> 'Section':
        object.__setattr__(self, '_place', place)
        object.__setattr__(self, '_reads', reads)
        return self

    def _note(self, key) -> None:
        if self._place is not None:
            (self._reads.found if dict.__contains__(self, key) else self._reads.missing).add(joined(self._place, key))

    def __getitem__(self, key):
        self._note(key)
        return super().__getitem__(key)

    def __contains__(self, key) -> bool:
        self._note(key)
        return super().__contains__(key)

    def get(self, key, default=None):
        self._note(key)
        return super().get(key, default)

    def pop(self, key, *default):
        self._note(key)
        return super().pop(key, *default)

    def setdefault(self, key, default=None):
        self._note(key)
        return super().setdefault(key, default)

    def keys(self):
        for key in dict.keys(self):
            self._note(key)
        return super().keys()

    def items(self):
        self.keys()
        return super().items()

    def values(self):
        self.keys()
        return super().values()

    def __copy__(self) -> 'Section':
        other = type(self)()
        for key, value in dict.items(self):
            dict.__setitem__(other, key, value)
        return other._at(self._place, self._reads)

    copy = __copy__

    def __deepcopy__(self, memo) -> 'Section':
        import copy

        other = type(self)()
        memo[id(self)] = other
        for key, value in dict.items(self):
            dict.__setitem__(other, key, copy.deepcopy(value, memo))
        return other._at(self._place, self._reads)

    def __reduce_ex__(self, protocol):
        return ConfigDict, (dict(dict.items(self)),)


def joined(place: str, key) -> str:
    return f'{place}.{key}' if place else str(key)


def locate(node, place: str = '', reads: Reads | None = None):
    """Copy a config so that its dicts are `Section`s and its types `TypeName`s."""
    reads = Reads() if reads is None else reads
    if isinstance(node, dict):
        made = Section()
        for key, value in dict.items(node):
            value = node.build_lazy(value) if isinstance(node, ConfigDict) else value
            inner = joined(place, key)
            new = TypeName(value, inner) if key == 'type' and isinstance(value, str) else locate(value, inner, reads)
            dict.__setitem__(made, key, new)
        return made._at(place, reads)
    if type(node) in (list, tuple):
        return type(node)(locate(value, joined(place, i), reads) for i, value in enumerate(node))
    return node


def leaves(node, place: str) -> Iterator[tuple[str, object]]:
    """Yield the values of a section that are no dicts, each with its place; lists of dicts are entered."""
    if isinstance(node, dict):
        for key, value in dict.items(node):
            yield from leaves(value, joined(place, key))
    elif isinstance(node, (list, tuple)) and any(isinstance(value, dict) for value in node):
        for i, value in enumerate(node):
            yield from leaves(value, joined(place, i))
    else:
        yield place, node


def ignored_key(node: Section) -> tuple[str, str] | None:
    """Find a key that nobody has read, and that is like one that was looked for or read in the same section.

    Returns:
        its place, and the key that was looked for.
    """
    reads = node._reads
    looked_for: dict[str, set[str]] = {}
    for place in reads.missing:
        section, _, key = place.rpartition('.')
        looked_for.setdefault(section, set()).add(key)
    for section in sections(node):
        for key in dict.keys(section):
            place = joined(section._place, key)
            if place not in reads.found and isinstance(key, str):
                there = set(dict.keys(section))
                read = [other for other in there if joined(section._place, other) in reads.found]
                meant = near(key, looked_for.get(section._place, set()) - there) or near(key, read, SURE)
                if meant:
                    return place, meant
    return None


def sections(node) -> Iterator[Section]:
    """Yield a section and those inside of it."""
    if isinstance(node, Section):
        yield node
    if isinstance(node, (dict, list, tuple)):
        for child in dict.values(node) if isinstance(node, dict) else node:
            yield from sections(child)


@dataclass
class Watch:
    """What `watch` has seen.

    Args:
        built: by id, each object with the section it was built from; the objects are kept, so that ids stay theirs.
        missed: the last type that was looked up and not found, with the registry.
        no_download: whether a dataset was told not to download what is missing.
    """

    built: dict[int, tuple[object, Section]] = field(default_factory=dict)
    missed: tuple[TypeName, Registry] | None = None
    no_download: bool = False


@contextlib.contextmanager
def watch() -> Iterator[Watch]:
    """Check the options of all that registries build, and note on a failure which section it was built from."""
    seen = Watch()
    build, get = Registry.build, Registry.get

    def watched_get(self, key):
        found = get(self, key)
        if found is None and isinstance(key, TypeName):
            seen.missed = key, self
        return found

    def watched_build(self, cfg, *args, **kwargs):
        section = cfg if isinstance(cfg, Section) and cfg._place is not None else None
        if section is not None:
            default = (kwargs.get('default_args') or {}).get('type')
            cfg = check_section(self, section, seen, default)
            section = section.copy()  # as it was: some constructors change what they are given
        try:
            made = build(self, cfg, *args, **kwargs)
        except (Exception, SystemExit) as error:
            if section is not None and not hasattr(error, 'section'):
                error.section = section
            raise
        if section is not None:
            seen.built[id(made)] = made, section
        return made

    Registry.build, Registry.get = watched_build, watched_get
    try:
        yield seen
    finally:
        Registry.build, Registry.get = build, get


def check_section(registry: Registry, section: Section, seen: Watch, default: str | None = None) -> Section:
    """Check the type of a section and its options; a dataset is told not to download."""
    kind, scope = dict.get(section, 'type', default), dict.get(section, '_scope_')
    if scope is not None and (not isinstance(scope, str) or importlib.util.find_spec(scope) is None):
        raise Mistake(f'{joined(section._place, "_scope_")}: no package {scope!r}')
    with registry.switch_scope_and_registry(scope) as scoped:
        target = scoped.get(kind) if isinstance(kind, str) else kind
        if kind is not None and target is None:
            raise Mistake(unknown_type(kind, joined(section._place, 'type'), scoped))
    if kind is None or not callable(target):
        return section
    options = options_of(target)
    check_options(section, kind, options)
    if 'download' in options.parameters and dict.get(section, 'download', True):
        seen.no_download = True
        section = section.copy()
        dict.__setitem__(section, 'download', False)
    return section


def check_options(section: Section, kind, options: Options) -> None:
    """Check the names of the options in a section, and the kind of plain values.

    Raises:
        Mistake: one is wrong.
    """
    name = str(kind) if isinstance(kind, str) else getattr(kind, '__name__', str(kind))
    keys = [key for key in dict.keys(section) if key not in NOT_OPTIONS]
    unknown = unknown_option(keys, options)
    if unknown:
        key, meant = unknown
        like = f' (did you mean {meant!r}?)' if meant else ''
        valid = ', '.join(options.parameters) or 'none'
        raise Mistake(f'{joined(section._place, key)}: {name} has no option {key!r}{like}; valid: {valid}')
    for key in keys:
        value = dict.__getitem__(section, key)
        must = wrong_value(value, options.parameters[key]) if key in options.parameters else None
        if must:
            raise Mistake(f'{joined(section._place, key)} must be {must}, got {shown(value)}')


def unknown_type(name: str, place: str, registry: Registry) -> str:
    """Return the error for a type that a registry does not have."""
    tree = registry
    while tree.parent is not None:
        tree = tree.parent
    own, up = set(), registry
    while up is not None:
        own |= {*up.module_dict}
        up = up.parent
    others = {f'{scope}.{key}' for scope, child in tree.children.items() for key in child.module_dict}
    return f'{place}: no {str(name)!r} among the {registry.name}s' + hint(name, own | others if '.' in name else own)


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
    own = ', '.join(f'{key.removeprefix(place + ".")}={shown(value)}' for key, value in values[:MANY])
    own += ', ...' if len(values) > MANY else ''
    return f'{place} ({own}): {text}' if own else f'{place}: {text}'


def _at(cfg: Section, place: str):
    for key in place.split('.'):
        cfg = dict.get(cfg, key) if isinstance(cfg, dict) else cfg[int(key)]
    return cfg


def _frames(error: BaseException) -> list[tuple[dict, str]]:
    """List the local variables and the statement of each frame of a traceback, the innermost last."""
    found = []
    for frame, line in traceback.walk_tb(error.__traceback__):
        file = frame.f_code.co_filename
        if file == _HERE:
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
    value of that name; the name of a key and its value in the message; its name; its value.
    """
    kinds = {kind for kind in ('str', 'NoneType', 'dict', 'list', 'tuple', 'bool') if re.search(rf'\b{kind}\b', text)}
    typed = [one for one in values if type(one[1]).__name__ in kinds]
    if len(typed) == 1:
        return typed
    for number, (variables, statement) in enumerate(itertools.islice(reversed(frames), 8)):
        if number == 0 or re.match(r'(el)?if |assert |raise ', statement):
            names = set(re.findall(r'[A-Za-z_]\w*', statement))
            own = variables.get('self')
            found = []
            for key, value in values:
                name = key.rpartition('.')[2]
                if name in names and value is not None and _same(variables.get(name, getattr(own, name, None)), value):
                    found.append((key, value))
            if found:
                return found
    named = [(key, value) for key, value in values if re.search(rf'\b{re.escape(key.rpartition(".")[2])}\b', text)]
    said = [one for one in values if len(str(one[1])) > 1 and not isinstance(one[1], bool) and _in(one[1], text)]
    return [one for one in named if one in said] or named or said


def _in(value, text: str) -> bool:
    return re.search(rf'(?<![\w.]){re.escape(str(value))}(?!\w|\.\w)', text) is not None


def _same(one, other) -> bool:
    try:
        return type(one) is type(other) and bool(one == other)
    except Exception:  # arrays of different shapes, and whatever compares in its own way
        return False
