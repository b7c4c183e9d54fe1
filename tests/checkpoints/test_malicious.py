"""No code in a malicious checkpoint runs, and each is refused in one line; valid data load as torch loads them."""

import codecs
import contextlib
import sys
import zipfile

import numpy as np
import pytest
import torch
from chaos.malicious import DATA, REFUSED, checkpoints
from mmengine.logging import HistoryBuffer

from mmsb.checkpoints.load import load_checkpoint, load_state_dict

pytestmark = pytest.mark.untrusted
ATTACKS = list(checkpoints('/canary'))
RUNS = ('os.system', 'os.exec', 'os.posix_spawn', 'os.fork', 'os.rename', 'os.remove', 'os.mkdir', 'subprocess.Popen',
        'exec', 'compile', 'socket.connect', 'pickle.find_class', 'shutil.move', 'ctypes.dlopen')  # fmt: skip
_watched: list[list] = []


def _audit(event: str, args: tuple) -> None:
    if _watched and (event in RUNS or (event == 'open' and isinstance(args[1], str) and args[1][0] in 'wax+')):
        _watched[-1].append((event, args))


sys.addaudithook(_audit)  # cannot be removed, so it is silent unless a test watches


@pytest.fixture(scope='module')
def warm(tmp_path_factory):
    """Import what a reader imports on first use, so that no import looks like an attack."""
    import safetensors.torch  # noqa: F401

    for codec in ('latin1', 'punycode'):
        codecs.encode('é', codec)
    path = tmp_path_factory.mktemp('warm') / 'sound.pth'
    HistoryBuffer()  # the first instance registers its methods in the class
    torch.save(dict(state_dict=dict(weight=torch.ones(2))), path)
    load_state_dict(path)


@pytest.fixture(scope='module')
def attacks(tmp_path_factory):
    folder = tmp_path_factory.mktemp('attacks')
    canary = folder / 'canary'
    made = checkpoints(str(canary))
    for path in folder.iterdir():
        path.unlink()
    return made, canary


@pytest.mark.usefixtures('warm')
@pytest.mark.parametrize('attack', ATTACKS)
def test_nothing_runs(attack, attacks, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made, canary = attacks
    name, content, right = made[attack]
    path = tmp_path / name
    path.write_bytes(content)
    methods, numbers = dict(HistoryBuffer._statistics_methods), np.dtype('f8')
    _watched.append([])
    try:
        if right == REFUSED:
            with pytest.raises(ValueError, match='cannot be read as data') as error:
                load_checkpoint(path)
        elif right == DATA:
            assert load_state_dict(path)['conv1.weight'].shape == (2,)
        else:
            with contextlib.suppress(ValueError):
                load_checkpoint(path)
    finally:
        seen = _watched.pop()
    assert not seen
    assert not canary.exists()
    assert [one.name for one in tmp_path.iterdir()] == [name]
    assert (HistoryBuffer._statistics_methods, numbers.isnative, numbers.itemsize) == (methods, True, 8)
    if right == REFUSED:
        assert str(path) in str(error.value)
        assert '\n' not in str(error.value)


def content_of_all_kinds() -> dict:
    shared = torch.arange(12.0).reshape(3, 4)
    kinds = (
        torch.float64,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.int8,
        torch.uint8,
        torch.bool,
    )
    return dict(
        tensors=[shared.to(kind) for kind in kinds],
        view=shared[1:, ::2],
        transposed=shared.t(),
        shared=shared,
        empty=torch.empty(0, 3),
        number=torch.tensor(2.5),
        parameter=torch.nn.Parameter(torch.ones(2)),
        arrays=[np.arange(6).astype(kind).reshape(2, 3) for kind in ('f4', '>f8', 'i2', 'u4', 'U3', '?')],
        scalars=[np.float32(1.5), np.int64(-1), np.bool_(True)],
        size=torch.Size((1, 2)),
        device=torch.device('cuda', 1),
        dtype=torch.float16,
        plain=(None, True, -(2**70), 2.5, 'é', b'\x00\xff', {1, 2}, {(1, 'a'): []}),
    )


def same(one, other) -> bool:
    if isinstance(one, torch.Tensor):
        return type(one) is type(other) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, np.ndarray):  # in native byte order, as NumPy loads it
        return one.dtype.newbyteorder('=') == other.dtype and np.array_equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, (list, tuple)):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


@pytest.mark.parametrize('zipped', [True, False])
def test_data_are_read_as_torch_reads_them(zipped, tmp_path):
    path, content = tmp_path / 'sound.pth', content_of_all_kinds()
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    loaded = load_checkpoint(path)
    assert same(content, loaded)
    assert same(torch.load(path, weights_only=False), loaded)
    assert loaded['shared'].untyped_storage().data_ptr() == loaded['transposed'].untyped_storage().data_ptr()
    loaded['shared'][1, 0] = 99
    assert loaded['view'][0, 0] == 99
    torch.save(loaded, path)
    assert same(loaded, load_checkpoint(path))


@pytest.mark.parametrize('zipped', [True, False])
def test_a_damaged_file_is_never_taken_for_a_whole_one(zipped, tmp_path):
    path, weights = tmp_path / 'sound.pth', dict(weight=torch.arange(40.0), bias=torch.ones(3))
    torch.save(weights, path, _use_new_zipfile_serialization=zipped)
    content, generator = path.read_bytes(), np.random.default_rng(0)
    damaged = [content[:end] for end in range(0, len(content), 37)]
    for position in generator.integers(0, len(content), 200):
        damaged.append(
            content[:position] + bytes([content[position] ^ 1 << generator.integers(8)]) + content[position + 1 :]
        )
    for one in damaged:
        path.write_bytes(one)
        said, loaded = outcome(path)
        assert '\n' not in said
        assert (loaded is None) == (str(path) in said)
        if zipped:  # the old format has no checksum
            assert loaded is None or same(weights, loaded)


def outcome(path) -> tuple[str, dict | None]:
    try:
        return '', load_checkpoint(path)
    except ValueError as error:
        return str(error), None


def test_trust_is_asked_for(tmp_path):
    path = tmp_path / 'whole.pth'
    torch.save(torch.nn.Linear(2, 2), path)
    with pytest.raises(ValueError, match=r'Unsupported class torch.nn.modules.linear.Linear'):
        load_checkpoint(path)
    assert isinstance(load_checkpoint(path, trust=True), torch.nn.Linear)


def test_a_zip_of_anything_is_no_checkpoint(tmp_path):
    path = tmp_path / 'code.pth'
    with zipfile.ZipFile(path, 'w') as out:
        out.writestr('src/main.py', 'print()')
    with pytest.raises(ValueError, match=r'no data.pkl'):
        load_checkpoint(path)
