"""Looks at all that registries build: checks the type and the options, and notes which section a failure is about."""

import contextlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, field

from mmengine.registry import Registry

from .sections import Section, TypeName, joined
from .signatures import Options, hint, options_of, shown, unknown_option, wrong_value

NOT_OPTIONS = {'type', '_scope_', 'convert_to_iter_based'}  # what the registries take out first


class Mistake(Exception):  # noqa: N818  (it is the user's)
    """A mistake in a config; its message names the key."""


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
