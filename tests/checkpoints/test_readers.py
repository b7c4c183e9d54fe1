"""Every place in the installed libraries that reads a checkpoint or a pickle reads it as data, or the docs name it.

The test finds these places in the sources, resolves which function each of them calls, and runs malicious files through
each of these functions.
"""

import ast
import contextlib
import importlib
import importlib.util
import pickle
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import mmengine
import numpy as np
import pytest
import torch
from chaos.forge import Call, os_system, raw
from chaos.malicious import checkpoints
from mmengine.dataset import BaseDataset
from mmengine.model import PretrainedInit
from mmengine.runner import CheckpointLoader
from mmengine.runner import checkpoint as of_mmengine
from torch import nn

from mmsb.checkpoints.load import install_reader, load_checkpoint

ROOT = Path(__file__).resolve().parents[2]
LIBRARIES = ('mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain')
NAMES = {'load', 'loads', 'load_checkpoint', '_load_checkpoint', '_load_checkpoint_with_prefix', 'load_from_local',
         'load_state_dict_from_url', 'load_url', 'Unpickler', 'read_pickle', 'from_pretrained', '_safe_torch_load',
         'load_from_http', 'loadmat'}  # fmt: skip
OURS = {of_mmengine.load_checkpoint, of_mmengine._load_checkpoint, of_mmengine._load_checkpoint_with_prefix,
        CheckpointLoader.load_checkpoint.__func__, mmengine.load, torch.load}  # fmt: skip
TEXT = {'json.load', 'json.loads', 'yaml.load', 'numpy.load',  # which reads pickles only with allow_pickle=True
        'mat4py.loadmat', 'modelindex.load_model_index.load', 'client.datasets.load', 'parrots.extension.load',
        }  # fmt: skip
OTHER_METHODS = {'mmdet.evaluation.metrics.crowdhuman_metric': '.load'}  # of an object that reads no file
IN_MMENGINE = 'mmengine.runner.checkpoint'  # the loaders of the schemes, in whose place ours is registered
OWN_MESSAGES = {'mmengine.dist.dist', 'mmdet.utils.dist_utils', 'mmengine.dataset.base_dataset',
                'mmdet.evaluation.metrics.base_video_metric'}  # within one run  # fmt: skip
HANDLER = 'mmengine.fileio.handlers.pickle_handler'  # ours is registered in its place
HUGGING_FACE = 'from_pretrained'  # its own reader, which loads no code either
METHODS = {'self', 'super', 'runner', 'cls', 'model'}  # their methods are found where they are defined
NOT_COVERED = {  # module -> what docs/reliability.md says of it
    'mmpretrain.models.multimodal.ram.ram': 'RAM',
    'mmseg.utils.io': "decode_backend='pickle'",
    'mmdet.datasets.openimages': 'OpenImages',
    'mmpretrain.datasets.cifar': 'CIFAR',
    'mmengine._strategy.deepspeed': 'FlexibleRunner',
    'mmengine._strategy.colossalai': 'FlexibleRunner',
    'mmengine._strategy.fsdp': 'FlexibleRunner',
    'mmdet.models.detectors.d2_wrapper': 'Detectron2Wrapper',
}
ATTACKS = ('call of os.system', 'call of getattr of a module', 'call of class with setstate', 'old format, pickle 3',
           'bare pickle')  # fmt: skip


def dotted(node: ast.AST) -> str:
    """Return 'a.b.c' for such an expression; for a method of anything else, the name of the method after a dot."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    parts.append(node.id if isinstance(node, ast.Name) else '')
    return '.'.join(reversed(parts))


def imported(tree: ast.AST, module: str, package: bool) -> dict[str, str]:
    """Map each name that a module imports to its full name."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {one.asname or one.name.split('.')[0]: one.name if one.asname else one.name.split('.')[0]
                      for one in node.names}  # fmt: skip
        elif isinstance(node, ast.ImportFrom):
            above = module.split('.')[: -node.level + package or None] if node.level else []
            base = '.'.join([*above, *([node.module] if node.module else [])])
            names |= {one.asname or one.name: f'{base}.{one.name}' for one in node.names}
    return names


def reads(source: str, module: str, package: bool = False) -> Iterator[tuple[str, ast.Call]]:
    """Yield each call of a reader in a module, with the full name of what it calls."""
    tree = ast.parse(source)
    names = imported(tree, module, package)
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            first, _, rest = dotted(node.func).partition('.')
            local = first in own and not rest and first not in names
            full = f'{module}.{first}' if local else '.'.join([names.get(first, first), *([rest] if rest else [])])
            if full.split('.')[-1] in NAMES:
                yield full, node


def resolved(name: str):
    """Return the function of a full name; None if it has none."""
    parts = name.split('.')
    for count in range(len(parts) - 1, 0, -1) if parts[0] else ():
        try:
            found = importlib.import_module('.'.join(parts[:count]))
        except ImportError:
            continue
        for part in parts[count:]:
            found = getattr(found, part, None)
        return getattr(found, '__func__', found)
    return None


def flaw(module: str, name: str, call: ast.Call) -> str | None:
    """Say why a call may run code of a file; None for one that cannot, and for one that the docs name."""
    options = {option.arg: getattr(option.value, 'value', None) for option in call.keywords}
    if module in {*OWN_MESSAGES, *NOT_COVERED, IN_MMENGINE, HANDLER} or OTHER_METHODS.get(module) == name:
        return None
    if name.split('.')[-1] == HUGGING_FACE:
        return None
    if name.split('.')[0] in METHODS or (name in TEXT and not options.get('allow_pickle')):
        return None
    if resolved(name) in OURS:
        return None
    return f'{module}:{call.lineno}: {name}'


def sources() -> Iterator[tuple[str, str, bool]]:
    """Yield the name and the source of each module of the libraries that may read, and whether it is an `__init__`."""
    for library in LIBRARIES:
        spec = importlib.util.find_spec(library)
        root = Path(spec.origin).parent if spec else None
        for path in sorted(root.rglob('*.py')) if root else ():
            parts = path.relative_to(root.parent).with_suffix('').parts
            if '.mim' in parts:  # tools, which nothing imports
                continue
            text = path.read_text()
            if any(name in text for name in NAMES):
                package = parts[-1] == '__init__'
                yield '.'.join(parts[:-1] if package else parts), text, package


@pytest.fixture(autouse=True)
def _reader(monkeypatch):
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '')  # as it was, afterwards
    install_reader(everywhere=True)


def test_every_reader_of_the_libraries_is_ours_or_is_named_in_the_docs():
    found = [(module, name, call) for module, text, package in sources() for name, call in reads(text, module, package)]
    assert [flaw(*one) for one in found if flaw(*one)] == []
    assert sum(resolved(name) in OURS for _, name, _ in found) > 60
    assert set(NOT_COVERED) <= {module for module, _, _ in found}
    docs = (ROOT / 'docs/reliability.md').read_text()
    assert [what for what in NOT_COVERED.values() if what not in docs] == []


@pytest.mark.parametrize(
    ('source', 'name'),
    [
        ('import pickle\npickle.load(file)', 'pickle.load'),
        ('from pickle import loads as read_it\nread_it(file)', 'pickle.loads'),
        ('import json\njson.load(file)', None),
        ('def f():\n    from torch.hub import load_state_dict_from_url as load\n    load(url)',
         'torch.hub.load_state_dict_from_url'),
        ('import numpy as np\nnp.load(file, allow_pickle=True)', 'numpy.load'),
    ],
)  # fmt: skip
def test_a_reader_that_is_not_ours_would_be_found(source, name):
    found = [flaw('a.b', *one) for one in reads(source, 'a.b')]
    assert [line.split(': ')[1] for line in found if line] == ([name] if name else [])


def test_every_scheme_of_mmengine_is_ours():
    assert {loader.__module__ for loader in CheckpointLoader._schemes.values()} == {'mmsb.checkpoints.load'}


def _swav_hook(path: Path) -> None:
    hooks = pytest.importorskip('mmpretrain.engine.hooks')
    path.rename(path.with_name('queue.pth'))
    hooks.SwAVHook(batch_size=1).before_run(SimpleNamespace(work_dir=str(path.parent)))


def _backbone(library: str, name: str, path: Path) -> None:
    backbones = pytest.importorskip(f'{library}.models')
    getattr(backbones, name)(init_cfg=dict(type='Pretrained', checkpoint=str(path))).init_weights()


READ = {
    'load_checkpoint': lambda path: of_mmengine.load_checkpoint(nn.Linear(1, 1), str(path)),
    '_load_checkpoint': lambda path: of_mmengine._load_checkpoint(str(path)),
    '_load_checkpoint_with_prefix': lambda path: of_mmengine._load_checkpoint_with_prefix('a', str(path)),
    'CheckpointLoader': lambda path: CheckpointLoader.load_checkpoint(str(path)),
    'Pretrained': lambda path: PretrainedInit(str(path))(nn.Linear(1, 1)),
    'torch.load': lambda path: torch.load(path),
    'torch.load, told otherwise': lambda path: torch.load(path, weights_only=False),
    'SwAVHook of mmpretrain': _swav_hook,
    'Swin of mmdet': lambda path: _backbone('mmdet', 'SwinTransformer', path),
    'MAE of mmseg': lambda path: _backbone('mmseg', 'MAE', path),
    'BEiT of mmseg': lambda path: _backbone('mmseg', 'BEiT', path),
}


@pytest.mark.untrusted
@pytest.mark.parametrize('way', READ)
def test_no_way_of_reading_a_checkpoint_runs_it(way, tmp_path):
    canary = tmp_path / 'canary'
    made = checkpoints(str(canary))
    for attack in ATTACKS:
        canary.unlink(missing_ok=True)
        path = tmp_path / 'attack.pth'
        path.write_bytes(made[attack][1])
        with pytest.raises(Exception):  # noqa: B017  (torch's own, or ours)
            READ[way](path)
        assert not canary.exists(), attack


@pytest.mark.parametrize('content', ['REDUCE', 'BUILD', 'an attribute of a function', 'INST'])
def test_pickled_annotations_are_data(content, tmp_path):
    canary = tmp_path / 'canary'
    attacks = {
        'REDUCE': os_system(str(canary)),
        'BUILD': pickle.dumps(Call(np.ndarray, (1,), state=(1, (1,), np.dtype('O'), False, b'a'))),
        'an attribute of a function': raw(
            b'cnumpy.core.multiarray\nscalar\n', (None, dict(__code__=1)), b'b'
        ),
        'INST': raw(b'(', f'touch {canary}', b'iposix\nsystem\n'),
    }  # fmt: skip
    path = tmp_path / 'attack.pkl'
    path.write_bytes(attacks[content])
    for read in (mmengine.load, lambda file: BaseDataset(ann_file=file)):
        with pytest.raises(ValueError, match='a pickled file cannot be read as data: ') as error:
            read(str(path))
        assert '\n' not in str(error.value)
    assert not canary.exists()


@pytest.mark.parametrize('protocol', range(pickle.HIGHEST_PROTOCOL + 1))
def test_sound_annotations_are_read_as_before(protocol, tmp_path):
    value = dict(
        boxes=np.arange(6, dtype=np.float32).reshape(2, 3, order='F'),
        score=np.float64(0.5),
        name='é',
        names=np.array(['a', 'bc']),
        rle=[dict(size=(3, 4), counts=b'\xff1')],
        more=({1, 2}, frozenset('a'), None, True, 10**30, b''),
    )
    path = tmp_path / 'sound.pkl'
    path.write_bytes(pickle.dumps(value, protocol))
    read = mmengine.load(str(path))
    assert repr(read) == repr(value)
    assert read['boxes'].dtype == np.float32


def test_with_trust_all_runs_as_in_mmengine(tmp_path):
    install_reader(trust=True, everywhere=True)
    for name, read in (('a.pkl', mmengine.load), ('a.pth', lambda file: torch.load(file, weights_only=False))):
        canary = tmp_path / f'{name}-ran'
        (tmp_path / name).write_bytes(os_system(str(canary)))
        with contextlib.suppress(RuntimeError):  # it is no checkpoint, but its code runs first
            read(str(tmp_path / name))
        assert canary.exists()


def test_one_trusted_file_does_not_open_the_door(tmp_path):
    torch.save(nn.Linear(1, 1), tmp_path / 'own.pth')
    assert isinstance(load_checkpoint(tmp_path / 'own.pth', trust=True), nn.Linear)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / 'own.pth', weights_only=False)
