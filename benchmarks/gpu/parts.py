"""The parts, the most valuable first: what each runs, its share of the time, and how the page shows its results."""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from benchmarks import forms, launcher
from benchmarks.cifar100.table import table as cifar_table
from mmsb.analysis.report import markdown

ROOT = Path(__file__).resolve().parents[2]
CONFIG = 'configs/imagenet/sb-resnet50_b256-100e_in1k.py'
CASES = ('sb, ours', 'sb, ours --fast')
SAMPLES = ('--repeats', '5', '--sample-s', '0.1')
QUICK_SAMPLES = ('--repeats', '1', '--sample-s', '0', '--warmup', '1', '--batch-sizes', '1', '--dtypes', 'bf16')


@dataclass(frozen=True)
class Part:
    """A part of the call.

    Attributes:
        name: of its files, NAME.json with the results and NAME.log.
        title: for the page.
        share: of the time, relative to the shares of the others; what a part does not use goes to those after it.
        command: makes the arguments for Python from the options, the file for the results, and the seconds it has.
        table: lays out the results; None for a part that has only a last line.
        needs: says what is missing, in one line; '' if nothing is.
    """

    name: str
    title: str
    share: float
    command: Callable[[argparse.Namespace, Path, float], list[str]]
    table: Callable[[Mapping], str] | None = None
    needs: Callable[[argparse.Namespace], str] = lambda options: ''


def tests(options: argparse.Namespace, _json: Path, _seconds: float) -> list[str]:
    """Only the files that have such tests, since others may import what is not installed."""
    files = [path for path in sorted(ROOT.glob('tests/**/test_*.py')) if '@pytest.mark.gpu' in path.read_text()]
    names = [str(path.relative_to(ROOT)) for path in files]
    return ['-m', 'pytest', '-q', '-m', 'gpu', '-p', 'no:cacheprovider', *names]


def needs_pytest(_options: argparse.Namespace) -> str:
    return '' if find_spec('pytest') else 'it needs pytest, which is not installed'


def forms_command(options: argparse.Namespace, json: Path, _seconds: float) -> list[str]:
    quick = ['--quick', '--modes', 'eager', '--rounds', '1'] if options.quick else ['--rounds', '5']
    return ['-m', 'benchmarks.forms', '--device', options.device, '--json', str(json), *quick]


def throughput(options: argparse.Namespace, json: Path, *arguments: str) -> list[str]:
    command = ['tools/analysis/throughput.py', '--device', options.device, '--memory-formats', 'channels_last']
    return [*command, '--json', str(json), *arguments]


def plain_and_sb(options: argparse.Namespace, json: Path, _seconds: float) -> list[str]:
    """All that is eager first, since compiling takes most of the time."""
    full = ['--phases', 'training', 'inference', '--batch-sizes', '128', '1', '--modes', 'eager', 'compile',
            '--dtypes', 'bf16', 'fp32', *SAMPLES]  # fmt: skip
    return throughput(options, json, CONFIG, *(['--sizes', '64', *QUICK_SAMPLES] if options.quick else full))


def systems(options: argparse.Namespace, json: Path, _seconds: float) -> list[str]:
    full = ['--batch-sizes', '128', '--dtypes', 'bf16', *SAMPLES]
    return throughput(options, json, '--all-systems', *(['--sizes', '64', *QUICK_SAMPLES] if options.quick else full))


def detector(options: argparse.Namespace, json: Path, _seconds: float) -> list[str]:
    full = ['--iterations', '20', '--workers', '8']
    quick = ['--iterations', '1', '--workers', '0', '--batch', '1', '--size', '64', '96']
    command = ['-m', 'benchmarks.launcher', 'detector', '--data', str(options.work_dir / 'scenes'), '--rounds', '1']
    return [*command, '--cases', *CASES, '--json', str(json), *(quick if options.quick else full)]


def bits(options: argparse.Namespace, json: Path, _seconds: float) -> list[str]:
    command = ['-m', 'benchmarks.gpu.bits', '--work-dir', str(options.work_dir / 'bits'), '--json', str(json)]
    return [*command, *(['--quick'] if options.quick else [])]


def cifar100(options: argparse.Namespace, json: Path, seconds: float) -> list[str]:
    command = ['-m', 'benchmarks.gpu.epochs', '--work-dir', str(options.work_dir / 'cifar100'), '--json', str(json)]
    command += ['--data', options.data, '--device', options.device, '--seconds', f'{seconds:.0f}']
    return [*command, *(['--quick'] if options.quick else [])]


def needs_data(options: argparse.Namespace) -> str:
    missing = [name for name in ('train.npz', 'test.npz') if not Path(options.data, name).is_file()]
    made = 'which `python -m benchmarks.cifar100.data` makes'
    return f'it needs --data FOLDER with train.npz and test.npz, {made}' if missing else ''


def throughput_table(data: Mapping) -> str:
    """Show SB, or all systems, beside the plain network, and the paper's images a second where it prints them."""
    about, rows = data['networks'], []
    plain = about[data['plain']]['paper_images_per_s']
    for figures in data['results']:
        setting = [figures['phase'], str(figures['batch_size']), figures['mode'], figures['dtype'], figures['network']]
        paper = about[figures['network']]['paper_images_per_s'] if figures['phase'] == 'inference' else None
        rows.append([*setting, *_figures(figures), f'{plain / paper:.2f}, {paper:,.0f}' if plain and paper else '-'])
    header = ['phase', 'images', 'mode', 'dtype', 'network', 'images/s', 'time / plain', 'MiB', 'paper: time, images/s']
    return markdown(header, rows)


def _figures(figures: Mapping) -> list[str]:
    if figures['images_per_s'] is None:
        return [f'none: {figures["reason"] or "not reached"}'.replace('|', '/'), '-', '-']
    ratio, peak = figures['time_ratio'], figures['peak_mib']
    low, high = figures['time_ratio_quartiles'] or (None, None)
    return [
        f'{figures["images_per_s"]:,.0f}',
        '-' if ratio is None else f'{ratio:.2f} ({low:.2f} to {high:.2f})',
        '-' if peak is None else f'{peak:,.0f}',
    ]


def bits_table(data: Mapping) -> str:
    """Say whether the resumed training has the bits of the whole one."""
    same = 'the same bits' if not data['differing'] else f'{len(data["differing"])} tensors differ'
    return (
        f'Killed behind iteration {data["killed_behind"]} of {data["iterations"]} and resumed: **{same}** in '
        f'{data["tensors"]} tensors of weights, statistics and optimizer.'
    )


PARTS = (
    Part('tests', 'The tests marked `gpu`', 45, tests, needs=needs_pytest),
    Part('forms', 'Forms of the same computation', 95, forms_command,
         lambda data: f'{forms.summary(data)}\n\n{forms.conditions(data)}'),
    Part('modes', 'SB-ResNet-50 over ResNet-50, 224 x 224', 95, plain_and_sb, throughput_table),
    Part('systems', "All systems, bf16, beside the paper's figure 1", 60, systems, throughput_table),
    Part('detector', 'Faster R-CNN at 800 x 1333, a training step with and without `--fast`', 105, detector,
         lambda data: launcher.table(data['results'])),
    Part('bits', 'A training with `--fast` and `randomness.deterministic=True`, killed and resumed', 70, bits,
         bits_table),
    Part('cifar100', 'CIFAR-100, six trainings side by side', 70, cifar100,
         lambda data: cifar_table(data['records']), needs_data),
)  # fmt: skip
