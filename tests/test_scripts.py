"""The shell scripts and the Makefile: the commands that they start, and their arguments."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted((ROOT / 'tools').glob('*.sh'))
MEETING = """
import pathlib, sys, time
own, other = (pathlib.Path(__file__).with_name(name) for name in sys.argv[1].split('-'))
own.touch()
until = time.time() + 120
while not other.exists() and time.time() < until:
    time.sleep(0.1)
sys.exit(0 if other.exists() else f'{other} did not come')
"""


def command_of(script: str, *args: str, folder: Path, **environment: str) -> list[str]:
    """Return the arguments that a script starts `srun`, or Python, with."""
    for name in ('srun', 'python'):
        (folder / name).write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
        (folder / name).chmod(0o755)
    env = {**os.environ, 'PATH': f'{folder}:{os.environ["PATH"]}', **environment}
    done = subprocess.run(['bash', ROOT / 'tools' / script, *args], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def unguarded(text: str) -> list[str]:
    """List the arrays that may be empty where they are expanded: an unbound variable for `set -u` of bash < 4.4."""
    expanded = re.findall(r'(?<!\+)"\$\{(\w+)\[@\]\}', text)
    return [name for name in expanded if re.search(rf'read -ra {name}\b|\b{name}=\(\)', text)]


def test_arrays_that_may_be_empty_are_guarded():
    assert {script.name: unguarded(script.read_text()) for script in SCRIPTS} == {path.name: [] for path in SCRIPTS}
    assert unguarded('read -ra extra <<<"$A"\nsrun "${extra[@]}"') == ['extra']
    assert unguarded('extra=()\nsrun "${extra[@]}"') == ['extra']
    assert unguarded('read -ra extra <<<"$A"\nsrun ${extra[@]+"${extra[@]}"}') == []


@pytest.mark.parametrize(
    ('environment', 'count', 'per_node', 'gpus'),
    [
        (dict(), '8', '8', ['--gres=gpu:8']),
        (dict(GPUS='16', GPUS_PER_NODE='4'), '16', '4', ['--gres=gpu:4']),
        (dict(GPUS='0'), '1', '1', []),
        (dict(GPUS='0', TASKS='16'), '16', '8', []),
        (dict(GPUS='0', TASKS='16', TASKS_PER_NODE='16'), '16', '16', []),
    ],
)
def test_slurm_is_asked_for_gpus_only_where_there_are_some(environment, count, per_node, gpus, tmp_path):
    args = command_of('slurm_train.sh', 'part', 'a job', 'config.py', '--seed', '1', folder=tmp_path, **environment)
    assert [arg for arg in args if 'gpu' in arg] == gpus
    assert {f'--ntasks={count}', f'--ntasks-per-node={per_node}', '--job-name=a job'} <= set(args)
    assert args[-5:] == ['config.py', '--launcher', 'slurm', '--seed', '1']


def test_srun_gets_further_arguments_word_by_word(tmp_path):
    args = command_of('slurm_train.sh', 'part', 'job', 'config.py', folder=tmp_path, SRUN_ARGS='-w node1')
    assert args[args.index('-w') + 1 : args.index('-w') + 3] == ['node1', 'python']


def test_several_nodes_meet_at_address_and_port(tmp_path):
    where = dict(NNODES='2', NODE_RANK='1', MASTER_ADDR='10.0.0.1', PORT='12345')
    args = command_of('dist_train.sh', 'config.py', '4', '--seed', '1', folder=tmp_path, **where)
    wanted = {'--nnodes=2', '--node_rank=1', '--master_addr=10.0.0.1', '--master_port=12345', '--nproc_per_node=4'}
    assert wanted <= set(args)
    assert args[-5:] == ['config.py', '--launcher', 'pytorch', '--seed', '1']


def test_two_runs_on_one_machine_go_on_at_once(tmp_path):
    (tmp_path / 'meet.py').write_text(MEETING)
    tool = os.path.relpath(tmp_path.resolve() / 'meet.py', ROOT / 'tools')
    env = {**os.environ, 'PYTHON': sys.executable}
    runs = [
        subprocess.Popen(
            ['bash', ROOT / 'tools/launch.sh', tool, '1', names, '1'], env=env, stderr=subprocess.PIPE, text=True
        )
        for names in ('one-two', 'two-one')
    ]
    said = [run.communicate(timeout=300)[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said


def test_an_old_python_is_named_before_it_makes_an_environment(tmp_path):
    python = tmp_path / 'python-of-old'
    old = "import sys; sys.version_info = (3, 8, 20, 'final', 0)\n"
    python.write_text(
        f'#!/bin/sh\necho "$1" >> "{tmp_path}/calls"\n[ "$1" = -c ] && exec "{sys.executable}" -c "{old}$2"\n'
    )
    python.chmod(0o755)
    command = ['make', '-C', ROOT, f'PYTHON={python}', f'VENV={tmp_path}/venv', f'{tmp_path}/venv/light']
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0
    line = next(line for line in done.stderr.splitlines() if line.startswith('error: '))
    assert 'needs Python 3.10 or newer' in line
    assert f'{python} is 3.8' in line
    assert (tmp_path / 'calls').read_text().split() == ['-c']
    python.write_text(python.read_text().replace('(3, 8', '(3, 10'))
    subprocess.run(command, capture_output=True, text=True)
    assert (tmp_path / 'calls').read_text().split() == ['-c', '-c', '-m']
