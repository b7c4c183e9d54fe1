"""The one call on a GPU: parts end in time and alone, all of it runs small on a CPU, and its page shows results."""

import argparse
import contextlib
import fcntl
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import warm
from markdown_tables import cells

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import epochs, page, parts, runner
from mmsb.datasets import cifar

ROOT = Path(__file__).resolve().parents[2]
CHILD = """
import fcntl, signal, sys, time
file = open(sys.argv[1], 'w')
fcntl.flock(file, fcntl.LOCK_EX)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print('holds it', file=file, flush=True)
time.sleep(99)
"""
HANGS = f"""
import pathlib, subprocess, sys, time
subprocess.Popen([sys.executable, '-c', {CHILD!r}, HELD])
while not pathlib.Path(HELD).exists() or not pathlib.Path(HELD).read_text():
    time.sleep(0.05)
print('has begun', flush=True)
time.sleep(99)
"""


def part(name: str, code: str, share: float = 1.0, **options) -> parts.Part:
    """Make a part that runs some Python; it reads its file and its seconds from the command line."""
    return parts.Part(
        name, name.title(), share, lambda _, json, seconds: ['-c', code, str(json), f'{seconds:.2f}'], **options
    )


def options_of(folder: Path, **more) -> argparse.Namespace:
    return argparse.Namespace(**dict(device='cpu', out=folder, quick=True, data='', work_dir=folder) | more)


def released(lock: Path) -> bool:
    """Return whether the process that held a lock ends within seconds."""
    with lock.open() as file:
        for _ in range(100):
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            time.sleep(0.05)
    return False


def test_parts_end_alone_wholly_and_in_time(tmp_path, capsys):
    started = time.monotonic()
    lock = tmp_path / 'lock'
    seen = "import json, pathlib, sys; pathlib.Path(sys.argv[1]).write_text('{\"a\": 1}'); print('seen', sys.argv[2])"
    found = runner.run_all(
        [
            part('fails', "print('one'); print('two'); print(); raise SystemExit(3)"),
            part('hangs', HANGS.replace('HELD', repr(str(lock))), share=2.0),
            part('lacks', '', needs=lambda _: 'it needs a thing'),
            part('works', seen),
        ],
        options_of(tmp_path),
        time.monotonic() + 12,
    )
    assert time.monotonic() - started < 12
    assert [result['status'] for result in found.values()] == ['failed', 'out of time', 'left out', 'done']
    lines = [result['last_line'] for result in found.values()]
    assert lines[:3] == ['two', 'has begun', 'it needs a thing']
    assert found['fails']['limit_s'] == pytest.approx(12 / 5, abs=0.1)
    # what the first left of its share is shared by the others, 2 : 1 : 1
    assert found['hangs']['limit_s'] == pytest.approx((12 - found['fails']['seconds']) / 2, abs=0.2)
    assert float(lines[3].split()[1]) == pytest.approx(found['works']['limit_s'], abs=0.1)
    assert released(lock), 'the processes of a part go with it'
    assert json.loads((tmp_path / 'works.json').read_text()) == {'a': 1}
    written = json.loads((tmp_path / runner.SUMMARY).read_text())
    assert written == dict(device='cpu', quick=True, parts=found)
    assert 'fails: failed after 0 s: two' in capsys.readouterr().out


def test_nothing_starts_when_the_time_is_up_and_old_results_go(tmp_path):
    (tmp_path / 'works.json').write_text('{}')
    found = runner.run_all([part('works', '')], options_of(tmp_path), time.monotonic() - 1)
    assert found['works']['status'] == 'not started'
    assert not (tmp_path / 'works.json').exists()


def test_a_gpu_is_hidden_from_parts_for_the_cpu(tmp_path):
    code = "import os; print(repr(os.environ['CUDA_VISIBLE_DEVICES']))"
    found = runner.run_all([part('shows', code)], options_of(tmp_path), time.monotonic() + 30)
    assert found['shows']['last_line'] == "''"


def test_whoever_ends_the_call_ends_its_part(tmp_path):
    lock = tmp_path / 'lock'
    hangs = HANGS.replace('HELD', repr(str(lock)))
    code = (
        'from benchmarks.gpu import __main__ as gpu, parts\n'
        f"gpu.PARTS = [parts.Part('hangs', 'Hangs', 1, lambda *_: ['-c', {hangs!r}])]\n"
        f"gpu.main(['--out', {str(tmp_path)!r}, '--device', 'cpu'])"
    )
    process = subprocess.Popen([sys.executable, '-c', code], cwd=ROOT, stdout=subprocess.DEVNULL)
    while not lock.exists() or not lock.read_text():
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    assert process.wait(20) == 128 + 15
    assert released(lock)


@pytest.fixture(scope='module')
def quick(tmp_path_factory) -> Path:
    """Results of the whole call on a CPU, everything small, with 70 training and 50 test images of CIFAR's kind."""
    folder, generator = tmp_path_factory.mktemp('gpu'), torch.Generator().manual_seed(0)
    for split, count in dict(train=70, test=50).items():
        images = torch.randint(0, 256, (count, 32, 32, 3), generator=generator, dtype=torch.uint8)
        labels = torch.randint(0, 10, (count,), generator=generator, dtype=torch.uint8)
        cifar.write(images.numpy(), labels.numpy(), folder / f'data/{split}.npz')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'executable', warm.python())
        patch.setenv('PYTHON', warm.python())
        patch.setattr(gpu, 'START', time.monotonic())  # not when the tests began
        handler = signal.getsignal(signal.SIGTERM)
        try:
            gpu.main(['--out', str(folder / 'out'), '--data', str(folder / 'data'), '--device', 'cpu', '--quick',
                      '--minutes', '20'])  # fmt: skip
        finally:
            signal.signal(signal.SIGTERM, handler)
    return folder / 'out'


def test_all_of_it_runs_small_on_a_cpu(quick):
    ended = json.loads((quick / runner.SUMMARY).read_text())['parts']
    assert {name: result['status'] for name, result in ended.items()} == {part.name: 'done' for part in parts.PARTS}
    found = {part.name: json.loads((quick / f'{part.name}.json').read_text()) for part in parts.PARTS[1:]}
    assert 'skipped' in ended['tests']['last_line'], 'they need a GPU'
    assert all(data['machine']['device'] == 'cpu' for data in found.values())
    assert {row['network'] for row in found['modes']['results']} == {'resnet50', 'sb-resnet50'}
    assert len(found['systems']['networks']) == 15
    assert list(found['detector']['results']) == list(parts.CASES)
    assert found['bits']['differing'] == []
    assert 0 < found['bits']['killed_behind'] < found['bits']['iterations']
    assert {record['system'] for record in found['cifar100']['records']} == {'ResNet-38', 'SB-ResNet-38'}


def test_the_page_shows_all_parts_and_claims_nothing_of_a_short_run(quick):
    text = page.page(quick)
    for part_ in parts.PARTS[1:]:
        assert f'## {part_.title}' in text
    assert page.NOTHING in text
    assert '**the same bits**' in text


def test_the_page_of_the_docs_is_that_of_the_published_results():
    assert page.PAGE.read_text() == page.page(page.RESULTS)


def test_the_page_of_a_run_on_a_gpu(tmp_path):
    ended = {part.name: dict(status='done', seconds=10.0, last_line='a | b') for part in parts.PARTS}
    ended['systems'] = dict(status='out of time', seconds=30.0, last_line='')
    (tmp_path / runner.SUMMARY).write_text(json.dumps(dict(device='cuda', quick=False, parts=ended)))
    machine = dict(device='cuda', gpu='A GPU', torch='2.11', date='2026-12-01T00:00', tf32_convolutions=True,
                   tf32_matmuls=False)  # fmt: skip
    figures = dict(phase='inference', batch_size=128, mode='eager', dtype='bf16', network='sb', peak_mib=900.4,
                   images_per_s=2000.4, time_ratio=1.2, time_ratio_quartiles=[1.1, 1.3], reason=None)  # fmt: skip
    missing = dict(figures, network='nl', images_per_s=None, reason='out of memory')
    networks = dict(plain=dict(paper_images_per_s=2042), sb=dict(paper_images_per_s=1836),
                    nl=dict(paper_images_per_s=None))  # fmt: skip
    data = dict(machine=machine, plain='plain', networks=networks, results=[figures, missing])
    (tmp_path / 'systems.json').write_text(json.dumps(data))
    bits = dict(killed_behind=15, iterations=320, tensors=9, differing=['conv1.weight'])
    (tmp_path / 'bits.json').write_text(json.dumps(bits))
    text = page.page(tmp_path)
    assert page.NOTHING not in text
    assert 'A GPU, PyTorch 2.11, TF32 in fp32: convolutions, 2026-12-01.' in text
    rows = [cells(line) for line in text.splitlines() if '| eager' in line]
    # 2042 / 1836 = 1.11
    assert rows[0][4:] == ['sb', '2,000', '1.20 (1.10 to 1.30)', '900', '1.11, 1,836']
    assert rows[1][4:] == ['nl', 'none: out of memory', '-', '-', '-']
    assert 'Killed behind iteration 15 of 320 and resumed: **1 tensors differ** in 9' in text
    assert '| out of time | 30 | -' in text


@pytest.mark.parametrize(('seconds', 'side_by_side', 'expected'), [
    (115, 6, 10),  # 10 s an epoch of all six, and 15 % more
    (115, 1, 1),  # one after another: 60 s
    (1e6, 6, 300),  # the paper's
])  # fmt: skip
def test_as_many_epochs_as_fit(seconds, side_by_side, expected):
    history = [dict(train_s=30.0, side_by_side=side_by_side), dict(train_s=10.0, side_by_side=side_by_side)]
    assert epochs.epochs_for(seconds, [dict(history=history)] * 6) == expected


def test_too_little_time_for_an_epoch_is_said():
    history = [dict(train_s=10.0, side_by_side=6)]
    with pytest.raises(ValueError, match='an epoch takes 10 s, and 3 s are left: give more --minutes'):
        epochs.epochs_for(3, [dict(history=history)] * 6)


def test_missing_data_and_pytest_are_named(monkeypatch, tmp_path):
    by_name = {part.name: part for part in parts.PARTS}
    said = by_name['cifar100'].needs(options_of(tmp_path, data=str(tmp_path)))
    assert said.startswith('it needs --data FOLDER with train.npz and test.npz')
    monkeypatch.setattr(parts, 'find_spec', lambda name: None)
    assert by_name['tests'].needs(options_of(tmp_path)) == 'it needs pytest, which is not installed'


@pytest.mark.parametrize(('arguments', 'said'), [
    (['--out', 'out'], 'PyTorch finds no GPU here'),
    (['--out', 'out', '--minutes', '0.3', '--device', 'cpu'], '--minutes must be a number above 0.5, got 0.3'),
    (['--out', 'out', '--minutes', 'inf', '--device', 'cpu'], '--minutes must be a number above 0.5, got inf'),
    (['--out', 'out', '--minutes', 'nan', '--device', 'cpu'], '--minutes must be a number above 0.5, got nan'),
])  # fmt: skip
def test_mistakes_are_named_before_anything_is_written(arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=said):
        gpu.main(arguments)
    assert not list(tmp_path.iterdir())
