"""Each room of the package imports only from rooms below it; checked in the sources without importing them."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = [  # from top to bottom; those of one line do not know each other
    ('engine', 'analysis'),
    ('export', 'infer', 'publish_timm'),
    ('exported',),
    ('configs', 'timm_registry'),
    ('models', 'datasets'),
    ('checkpoints',),
    ('ops',),
    ('files', 'imports', 'options', 'registry', 'version'),
]
LEVEL = {room: level for level, rooms in enumerate(reversed(ROOMS)) for room in rooms}
OF_CHECKPOINTS = {'mmsb.checkpoints.load'}  # what models may import
ABOVE_THE_PACKAGE = ('tests', 'benchmarks', 'tools', 'chaos', 'conftest')


def imports(source: str, module: str, package: bool = False) -> set[str]:
    """List the full names of all that a module imports, also inside of functions.

    Args:
        source: its text.
        module: its full name.
        package: whether it is the `__init__` of one.
    """
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = module.split('.')[: -node.level + package or None] if node.level else []
            base = '.'.join([*above, *([node.module] if node.module else [])])
            found |= {f'{base}.{alias.name}' for alias in node.names}
    return found


def room(name: str) -> str | None:
    """Return the room of a full name; None for what is not of the package, or is the package itself."""
    parts = name.split('.')
    return parts[1] if parts[0] == 'mmsb' and len(parts) > 1 and not parts[1].startswith('__') else None


def wrong(module: str, names: set[str]) -> list[str]:
    """List what a module must not import."""
    own = room(module)
    found = []
    for name in sorted(names):
        other = room(name)
        if name.split('.')[0] in ABOVE_THE_PACKAGE:
            found.append(f'{module} imports {name}: it is not a part of the package')
        elif own and other and other != own and LEVEL[other] >= LEVEL[own]:
            found.append(f'{module} imports {name}: {other} is not below {own}')
        elif own == 'models' and other == 'checkpoints' and name.rpartition('.')[0] not in OF_CHECKPOINTS:
            found.append(f'{module} imports {name}: of checkpoints only {OF_CHECKPOINTS}')
    return found


def sources() -> dict[str, tuple[str, bool]]:
    """Map each module of the package to its source, and whether it is an `__init__`."""
    found = {}
    for path in sorted((ROOT / 'mmsb').rglob('*.py')):
        parts = path.relative_to(ROOT).with_suffix('').parts
        package = parts[-1] == '__init__'
        found['.'.join(parts[:-1] if package else parts)] = path.read_text(), package
    return found


def test_each_room_uses_only_those_below_it():
    found = sources()
    assert {'mmsb.configs', 'mmsb.engine.launcher', 'mmsb.datasets.check.coco'} <= set(found)
    assert [line for name, (text, package) in found.items() for line in wrong(name, imports(text, name, package))] == []


def test_each_room_has_its_place():
    assert {room(name) for name in sources()} - {None} <= set(LEVEL)


@pytest.mark.parametrize(
    ('module', 'source', 'said'),
    [
        ('mmsb.analysis.zoo', 'from mmsb.engine.launcher import build_model', 'engine is not below analysis'),
        ('mmsb.analysis.zoo', 'def f():\n    import mmsb.engine.launcher', 'engine is not below analysis'),
        ('mmsb.analysis.zoo', 'from ..engine import launcher', 'engine is not below analysis'),
        ('mmsb.analysis.zoo', 'from mmsb import engine', 'engine is not below analysis'),
        ('mmsb.models.weights', 'from mmsb.checkpoints.archive import check', 'of checkpoints only'),
        ('mmsb.models.weights', 'from mmsb.checkpoints import load, stand_ins', 'checkpoints.stand_ins: of check'),
        ('mmsb.models.weights', 'from mmsb.checkpoints.download import fetch', 'of checkpoints only'),
        ('mmsb.datasets.check.coco', 'from mmsb.models import SE', 'models is not below datasets'),
        ('mmsb.files', 'from .options import one_line', 'options is not below files'),
        ('mmsb.ops.ext', 'if True:\n    from mmsb.models import SE', 'models is not below ops'),
        ('mmsb.datasets.digits', 'from tests.warm import python', 'not a part of the package'),
        ('mmsb.engine.runner', 'import benchmarks.cifar100', 'not a part of the package'),
        ('mmsb', 'from chaos import forge', 'not a part of the package'),
    ],
)
def test_a_forbidden_import_is_found(module, source, said):
    assert said in ' '.join(wrong(module, imports(source, module)))


@pytest.mark.parametrize(
    ('module', 'package', 'source'),
    [
        ('mmsb.models.weights', False, 'from mmsb.checkpoints.load import load_state_dict'),
        ('mmsb.models.weights', False, 'from .context import SE'),
        ('mmsb.models', True, 'from .context import SE'),
        ('mmsb.engine.runner', False, 'from . import rng'),
        ('mmsb', True, 'from . import ops'),
        ('mmsb.configs', False, 'import torch, analysis\nfrom mmengine.config import Config'),
    ],
)
def test_an_allowed_import_is_not(module, package, source):
    assert wrong(module, imports(source, module, package)) == []


def test_tests_that_read_proc_say_that_they_need_linux():
    texts = {path: path.read_text() for path in (ROOT / 'tests').rglob('*.py') if path != Path(__file__)}
    assert [str(path) for path, text in texts.items() if '/proc/' in text and "== 'linux'" not in text] == []
