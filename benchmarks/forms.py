"""Time every form of each computation in `mmsb/models/forms.py`, on any device: what decides its table.

python -m benchmarks.forms --json forms.json                      # and forms.md beside it
python -m benchmarks.forms --device cuda --modes eager --json forms.json

The maps are made, or read, by the parts of a bottleneck that do so in a training, at the sizes of the paper's networks.
Each round times every form once, one after the other, and ratios are taken within a round. Two kinds of training: in
bf16 and channels_last, as with `--fast`, and in fp32 and NCHW, as by default. Results are written after each setting.
On a CPU the times are the processor's, which other programs lengthen less than those of the clock.
"""

import argparse
import itertools
import logging
import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from mmsb.analysis import machine
from mmsb.analysis.report import check_folders, markdown, write_json
from mmsb.analysis.throughput import interleave, quartiles, reason_of, sample
from mmsb.engine.launcher import run_tool
from mmsb.files import write_text
from mmsb.models import Bottleneck
from mmsb.models.forms import FORMS, TABLE
from mmsb.options import positive_integer

MODES = ('eager', 'compiled')
KINDS = {  # whether it is in bf16, and the memory format
    'bf16, channels_last': (True, torch.channels_last),
    'fp32, nchw': (False, torch.contiguous_format),
}
STAGES = {  # M, the pixels of an image that one of the features stands for, and the pool size
    'ResNet-50, stage 2': (128, 8, 10),
    'ResNet-50, stage 3': (256, 16, 10),
    'ResNet-38, stage 1': (16, 1, 6),
}
SIZES = (  # stage; images, height, width
    ('ResNet-50, stage 2', (32, 224, 224)),
    ('ResNet-38, stage 1', (64, 32, 32)),
    ('ResNet-50, stage 2', (1, 800, 1333)),
    ('ResNet-50, stage 2', (1, 224, 224)),
    ('ResNet-50, stage 3', (32, 224, 224)),
    ('ResNet-50, stage 3', (1, 800, 1333)),
    ('ResNet-50, stage 3', (1, 224, 224)),
)
QUICK_SIZES = (('ResNet-50, stage 2', (1, 64, 96)),)
PHASES = ('forward', 'forward and backward')
PARTS = {'make': ('pool', 'upsample', 'maps'), 'read': ('read', 'gradients')}  # part of the bottleneck: computations
SAMPLE_S = 0.03  # and at least two calls, behind one that does not count


class Block(nn.Module):
    """The two parts of a bottleneck that deal with maps, and what is handed to them in a training.

    Args:
        stage: a key of STAGES.
        images: number, height and width of the images.
        kind: of the training, a key of KINDS.
        device: to compute on.
    """

    def __init__(self, stage: str, images: tuple[int, int, int], kind: str, device: torch.device):
        super().__init__()
        torch.manual_seed(0)
        self.bf16, memory_format = KINDS[kind]
        width, stride, pool_size = STAGES[stage]
        self.block = Bottleneck(4 * width, width, spatial_bias=dict(pool_size=pool_size))
        self.to(device, memory_format=memory_format)
        shape = (images[0], width, *(-(-side // stride) for side in images[1:]))
        dtype = torch.bfloat16 if self.bf16 else torch.float32
        y, z = (torch.randn(shape).to(device, dtype, memory_format=memory_format) for _ in range(2))
        y = y.relu_()
        with torch.no_grad(), self.autocast(device):
            maps = self.make(y, z)
        self.inputs = {'make': (y.requires_grad_(), z), 'read': (z.detach().requires_grad_(), maps.requires_grad_())}
        modules = {'make': (self.block.spatial_bias, self.block.bias_norm),
                   'read': (self.block.bn2, self.block.conv3, self.block.bias_conv)}  # fmt: skip
        self.weights = {part: [w for module in some for w in module.parameters()] for part, some in modules.items()}

    def autocast(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, torch.bfloat16, enabled=self.bf16)

    def make(self, y: Tensor, z: Tensor) -> Tensor:
        """Make the maps of the input of conv2, (B, M, H, W), at the size of its output: (B, N, H, W), normalised."""
        return self.block.make_maps('conv2', y, z)[1]

    def read(self, z: Tensor, maps: Tensor) -> Tensor:
        """Read the output of conv2, (B, M, H, W), and the maps, (B, N, H, W): (B, 4M, H, W)."""
        block = self.block
        return block.conv_with_maps(block.conv3, block.relu(block.bn2(z)), maps)

    def calls(self, part: str, compiled: bool, device: torch.device) -> dict[str, Callable[[], None]]:
        """Return what each phase of a part does."""
        inputs = self.inputs[part]
        wanted = [*(value for value in inputs if value.requires_grad), *self.weights[part]]
        compute = getattr(self, part)
        if compiled:
            compute = torch.compile(compute, fullgraph=True, dynamic=False)

        def forward() -> Tensor:
            with self.autocast(device):
                return compute(*inputs)

        grad = torch.randn_like(forward())

        def both() -> None:
            torch.autograd.grad(forward(), wanted, grad)

        return dict(zip(PHASES, (forward, both), strict=True))


@contextmanager
def form_in_table(place: str, computation: str, form: str) -> Iterator[None]:
    """Put a form into the table."""
    row = TABLE[computation]
    before, row[place] = row[place], form
    try:
        yield
    finally:
        row[place] = before


def measure(block: Block, part: str, mode: str, device: torch.device, rounds: int) -> list[dict]:
    """Time all forms of the computations of a part in one mode; returns a row for each form and phase."""
    place = ('cpu' if device.type == 'cpu' else 'gpu') + (' compiled' if mode == 'compiled' else '')
    pairs = [(computation, form) for computation in PARTS[part] for form in FORMS[computation]]
    others = [pair for pair in pairs if TABLE[pair[0]][place] != pair[1]]
    default = (PARTS[part][0], TABLE[PARTS[part][0]][place])  # all computations in the form of the table
    calls, first_s, failed = {}, {}, {}
    clock = time.process_time if device.type == 'cpu' else time.perf_counter

    def wait() -> None:
        if device.type == 'cuda':
            torch.cuda.synchronize(device)

    for pair in (default, *others):
        try:
            with form_in_table(place, *pair):
                for phase, call in block.calls(part, mode == 'compiled', device).items():
                    call()
                    first_s[phase] = min(sample(call, 1, wait, clock), first_s.get(phase, math.inf))
                    calls[pair, phase] = call
        except Exception as error:  # of a compiler, which has many: the row says so
            failed.update({(pair, phase): reason_of(error) for phase in PHASES})

    def taking(pair: tuple[str, str], phase: str) -> Callable[[], float]:
        def take() -> float:
            count = max(2, math.ceil(SAMPLE_S / first_s[phase]))  # the same for all forms
            with form_in_table(place, *pair):
                return sample(calls[pair, phase], count, wait, clock)

        return take

    takes = {key: taking(*key) for key in calls if key not in failed}
    found: dict[tuple, list[float]] = {key: [] for key in takes}
    for seconds in interleave(takes, rounds, lambda key, error: failed.update({key: reason_of(error)})):
        for key, value in seconds.items():
            found[key].append(value)
    if mode == 'compiled':
        torch._dynamo.reset()
    rows = []
    for (computation, form), phase in itertools.product(pairs, PHASES):
        chosen = TABLE[computation][place] == form
        key = (default if chosen else (computation, form)), phase
        figures = summarise(found.get(key, []), found.get((default, phase), []), failed.get(key))
        rows.append(dict(computation=computation, form=form, chosen=chosen, phase=phase, **figures))
    return rows


def summarise(seconds: list[float], chosen: list[float], reason: str | None) -> dict:
    """Return quartiles of the milliseconds, and of the ratio to the chosen form within each round."""
    if reason or not seconds:
        return dict(ms=None, ratio=None, samples_ms=[], reason=reason or 'not measured')
    ratios = [one / other for one, other in zip(seconds, chosen, strict=False)] if chosen else []
    ms = [round(1000 * value, 4) for value in seconds]
    return dict(
        ms=[round(value, 4) for value in quartiles(ms)],
        ratio=[round(value, 3) for value in quartiles(ratios)] if ratios else None,
        samples_ms=ms,
        reason=None,
    )


def run(options: argparse.Namespace) -> Iterator[tuple[list[dict], bool]]:
    """Measure all settings; yields all rows so far after each, and whether it was the last."""
    rows: list[dict] = []
    settings = list(itertools.product(options.modes, QUICK_SIZES if options.quick else SIZES, KINDS))
    for mode, (stage, images), kind in settings:
        block = Block(stage, images, kind, options.device)
        size = f'{stage}, {images[0]} x {images[1]} x {images[2]}'
        for part in PARTS:
            found = measure(block, part, mode, options.device, options.rounds)
            rows += [dict(mode=mode, kind=kind, size=size, **row) for row in found]
        print(f'{mode}, {kind}, {size}', flush=True)
        yield rows, (mode, (stage, images), kind) == settings[-1]


def by(rows: list[dict], *keys: str) -> dict[tuple, list[dict]]:
    """Group rows by their values of some keys."""
    found: dict[tuple, list[dict]] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in keys), []).append(row)
    return found


def cell(row: Mapping | None) -> str:
    """Format a figure: ms of the chosen form, of another the ratio of its time to that, with quartiles."""
    if row is None or row['reason']:
        return '-' if row is None else f'none: {row["reason"].replace("|", "/")}'
    if row['chosen'] or not row['ratio']:
        return f'{row["ms"][1]:.3g} ms'
    low, middle, high = row['ratio']
    return f'{middle:.2f} ({low:.2f} to {high:.2f})'


def table(data: Mapping) -> str:
    """Lay out all figures: a table for each mode, kind of training and phase."""
    texts = [f'{conditions(data)}\n\nThe form that runs has its time; the others have theirs as a multiple of that.']
    for (mode, kind, phase), rows in by(data['rows'], 'mode', 'kind', 'phase').items():
        sizes = by(rows, 'size')
        lines = []
        for (computation, form), some in by(rows, 'computation', 'form').items():
            here = by(some, 'size')
            lines.append([computation, form, *(cell(here[size][0] if size in here else None) for size in sizes)])
        header = ['computation', 'form', *(size for (size,) in sizes)]
        texts.append(f'{mode}, {kind}, {phase}:\n\n{markdown(header, lines)}')
    return '\n\n'.join(texts) + '\n'


def summary(data: Mapping) -> str:
    """Lay out in one table what decides: the time of forward and backward, as a multiple of the chosen form's."""
    rows = [row for row in data['rows'] if row['phase'] == PHASES[1]]
    columns = by(rows, 'mode', 'kind')
    lines = []
    for (computation, form), some in by(rows, 'computation', 'form').items():
        here = by(some, 'mode', 'kind')
        lines.append([computation, form, *(overall(here.get(column, [])) for column in columns)])
    return markdown(['computation', 'form', *(', '.join(column) for column in columns)], lines)


def overall(rows: list[dict]) -> str:
    """Format the median of the ratios over sizes, with the smallest and the largest."""
    ratios = [row['ratio'][1] for row in rows if row['ratio']]
    if rows and all(row['chosen'] for row in rows):
        return 'runs'
    if not ratios:
        return '-'
    return f'{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})'


def conditions(data: Mapping) -> str:
    """Name machine, versions and command, and whether the run came to its end."""
    about = data['machine']
    end = '' if data['complete'] else ' The run was ended before it was complete.'
    return f'{machine.summary(about)}, {about["date"][:10]}; medians of {data["rounds"]} rounds, with quartiles.{end}'


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line.

    Raises:
        ValueError: the device is not there, or there are no rounds.
    """
    parser = argparse.ArgumentParser(prog='python -m benchmarks.forms', description=__doc__.splitlines()[0])
    parser.add_argument('--json', required=True, metavar='FILE.json', help='file to write; the tables go into FILE.md')
    parser.add_argument('--device', help='cpu, cuda or cuda:N (default: a GPU if there is one)')
    parser.add_argument('--modes', nargs='+', choices=MODES, default=MODES, help='default: both')
    parser.add_argument('--rounds', type=int, default=9, help='default: %(default)s')
    parser.add_argument('--quick', action='store_true', help='one small size: shows that it runs, and no more')
    options = parser.parse_args(arguments)
    check_folders(parser, options, 'json')
    positive_integer('--rounds', options.rounds)
    if Path(options.json).suffix != '.json':
        raise ValueError(f'--json must name a file .json, got {options.json!r}')
    options.device = machine.find_device(options.device)
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse_options(arguments)
    logging.disable(logging.WARNING)  # what the compiler says of the machine
    warnings.simplefilter('ignore')
    about = machine.describe(options.device, seed=0)
    for rows, complete in run(options):
        data = dict(machine=about, rounds=options.rounds, complete=complete, rows=rows)
        write_json(options.json, data)
        write_text(Path(options.json).with_suffix('.md'), table(data))
    print(f'\n{conditions(data)}\n\n{summary(data)}')


if __name__ == '__main__':
    run_tool(main)
