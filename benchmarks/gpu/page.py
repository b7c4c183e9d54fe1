"""The page of the docs that shows the results: docs/gpu.md."""

import json
from collections.abc import Mapping
from pathlib import Path

from benchmarks.gpu.parts import PARTS, ROOT
from benchmarks.gpu.runner import SUMMARY
from mmsb.analysis.machine import summary
from mmsb.analysis.report import markdown

PAGE = ROOT / 'docs/gpu.md'
RESULTS = ROOT / 'benchmarks/results/gpu'
TEXT = """# On a GPU

{state}

## One call

```bash
python -m benchmarks.gpu --out work_dirs/gpu --minutes 9 --data data/cifar100      # or: make bench-gpu
python -m benchmarks.gpu --out work_dirs/gpu --device cpu --quick                  # all of it, small, on a CPU
```

It installs nothing. It needs PyTorch with Triton, the packages of `requirements/mminstall.txt` and
`requirements/runtime.txt`, and pytest for the first part. Each part runs in a process of its own and has a share of
the time; what one does not use goes to those after it. A part that fails, or is killed at its limit, ends no other,
and what it has measured until then stays. The folder gets `gpu.json`, which says how each part ended, and for each
part a file of results and a log. This page is made from such files, those in the folder `gpu` of
`benchmarks/results/`:

```bash
python -m benchmarks.gpu --page
```

{parts}

## What to expect

Reasoned from the code and from figures of a CPU; not measured. In brackets: the part of the call that will tell.

* **Deterministic** (`bits`). None of our operations is on PyTorch's list of those that raise under
  `randomness.deterministic=True`: the classifier trains, and a killed training ends with the bits of a whole one.
* **SB over plain** (`modes`, `systems`). At batch 128, SB-ResNet-50 should take 1.1 of the time of ResNet-50 in
  inference: 1.11 in the paper, 1.02 on a CPU. With one image a GPU waits for its kernels to be launched. In
  bf16 the bias launches about 18 in each of 13 blocks, and about 46 if pooling must be deterministic: the ratio will
  be larger, and compiling helps most there.
* **Forms** (`forms`). In bf16 and channels_last, tensor cores want channels in multiples of 8, and the concatenation
  has 3 more: with maps of zeros up to the next multiple (`padded`) the convolution should be faster. Matrices in the
  place of the kernels for pooling and upsampling launch more, and should pay only where the result must be
  deterministic.
* **Detector** (`detector`). `--fast` should take less than half of the time of a step, most of it by bf16, with one
  graph for all sizes.
* **CIFAR-100** (`cifar100`). Launches limit these small networks. As CUDA graphs on six streams, six trainings should
  take less time than one after another.
"""
NOTHING = 'Nothing of mmsb has been run on a GPU yet: all figures of these pages are from CPUs.'


def page(folder: Path) -> str:
    """Write the page from a folder of results; without any, it says so."""
    path = folder / SUMMARY
    if not path.is_file():
        titles = markdown(['part', 'what it runs'], [[f'`{part.name}`', part.title] for part in PARTS])
        return TEXT.format(state=NOTHING, parts=titles)
    about = json.loads(path.read_text())
    found = {part.name: read(folder / f'{part.name}.json') for part in PARTS}
    machines = [data['machine'] for data in found.values() if data and 'machine' in data]
    where = f'{summary(machines[0])}, {machines[0]["date"][:10]}.' if machines else 'No part has results.'
    if about['device'] == 'cpu' or about['quick']:
        where = f'{NOTHING} What follows is a short run that shows only that the call works: {where}'
    rows, sections = [], []
    for part in PARTS:
        result = about['parts'][part.name]
        shown = part.table and result['status'] == 'done'
        said = '-' if shown else result['last_line'].replace('|', '/') or '-'
        rows.append([f'`{part.name}`', part.title, result['status'], f'{result["seconds"]:.0f}', said])
        if part.table and found[part.name]:
            sections.append(f'## {part.title}\n\n{part.table(found[part.name]).strip()}')
    table = markdown(['part', 'what it ran', 'ended', 's', 'its last line'], rows)
    return TEXT.format(state=where, parts='\n\n'.join([table, *sections]))


def read(path: Path) -> Mapping | None:
    """Read the results of a part; None if it has none."""
    return json.loads(path.read_text()) if path.is_file() else None
