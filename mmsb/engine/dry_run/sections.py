"""Config sections that know their place in the config, also in copies, and record which of their keys are read."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field

from mmengine.config import ConfigDict

from .signatures import SURE, near


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
