"""List the networks of timm that can have spatial bias, and what it adds to their parameters and operations.

python -m benchmarks.timm_networks 'resnet*' convnext_tiny
python -m benchmarks.timm_networks --csv docs/tables/timm_networks.csv --markdown docs/tables/timm_networks.md

Weights are random, and nothing is downloaded or computed. Without a name or pattern, all of timm's networks are
counted; this takes many minutes.
"""

import argparse
import fnmatch
import logging
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import nn

from mmsb.analysis.complexity import count_parts
from mmsb.analysis.report import check_folders, markdown, write_csv
from mmsb.engine.launcher import run_tool
from mmsb.engine.progress import progress_of
from mmsb.files import write_text
from mmsb.models.any_network import BLOCKS, add_spatial_bias, type_name
from mmsb.models.bottleneck import BIAS_PARTS
from mmsb.options import one_line

HEADER = ['network', 'blocks with bias', 'params M', 'added %', 'operations M', 'added %']
FAMILIES = ['module of timm', 'names', 'types of blocks', 'added parameters, %', 'added operations, %']


@dataclass(frozen=True)
class Row:
    """A network with the default bias, `add_spatial_bias(network)`.

    Attributes:
        name: as in `timm.list_models()`.
        family: module of `timm.models` that defines it.
        blocks: types of its blocks that are in `BLOCKS`, without their modules, with how many of each have a bias.
        side_px: height and width of the image that is counted, those of timm's config of the network.
        params: parameters without the bias.
        ops: operations without the bias; see `mmsb.analysis.complexity`.
        added_params: parameters of the bias.
        added_ops: operations of the bias.
        reason: why it cannot have a bias, all numbers then being 0; empty if it can.
    """

    name: str
    family: str
    blocks: str
    side_px: int = 0
    params: int = 0
    ops: int = 0
    added_params: int = 0
    added_ops: int = 0
    reason: str = ''

    @property
    def params_percent(self) -> float:
        return 100 * self.added_params / self.params

    @property
    def ops_percent(self) -> float:
        return 100 * self.added_ops / self.ops


def find_names(patterns: Sequence[str] = ()) -> list[str]:
    """List the names of timm's own networks that match one of the patterns, such as 'resnet*'; without any, all.

    Raises:
        ValueError: for a pattern that no name matches.
    """
    import timm  # takes seconds

    names = [name for name in timm.list_models() if _family(name)]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise ValueError(f'no name in timm.list_models() matches {pattern!r}')
    return [name for name in names if not patterns or any(fnmatch.fnmatchcase(name, p) for p in patterns)]


def _family(name: str) -> str:
    """Return the module of `timm.models` that registers a name; empty if that is done elsewhere."""
    from timm.models import model_entrypoint

    module = model_entrypoint(name).__module__
    return module.removeprefix('timm.models.') if module.startswith('timm.models.') else ''


def measure(names: Iterable[str]) -> Iterator[Row]:
    """Yield a row for each of the names whose network has blocks of `BLOCKS`."""
    import timm

    for name in names:
        with torch.device('meta'):
            net = timm.create_model(name)
        if any(type_name(module) in BLOCKS for module in net.modules()):
            yield measure_network(name, net)


def measure_network(name: str, net: nn.Module) -> Row:
    """Measure one network, which gets a bias and moves to the meta device."""
    found = Counter(type(module).__qualname__ for module in net.modules() if type_name(module) in BLOCKS)
    shape = net.pretrained_cfg['input_size']
    try:
        add_spatial_bias(net)
    except ValueError as error:
        return Row(name, _family(name), ', '.join(found), reason=one_line(error))
    chosen = {path: module for path, module in net.named_modules() if hasattr(module, 'bias_conv')}
    parts = count_parts(net, shape, [f'{path}.{part}' for path in chosen for part in BIAS_PARTS])
    whole = parts.pop('')
    added = {key: sum(getattr(part, key) for part in parts.values()) for key in ('params', 'ops')}
    kinds = Counter(type(module).__qualname__ for module in chosen.values())
    return Row(
        name,
        _family(name),
        ', '.join(f'{number} {kind}' for kind, number in kinds.items()),
        shape[-1],
        whole.params - added['params'],
        whole.ops - added['ops'],
        added['params'],
        added['ops'],
    )


def as_dict(row: Row) -> dict[str, str | int | float]:
    """Return the columns of the full table, one line per network."""
    if row.reason:
        return asdict(row) | dict(params_percent='', ops_percent='')
    return asdict(row) | dict(params_percent=round(row.params_percent, 2), ops_percent=round(row.ops_percent, 2))


def by_family(rows: Sequence[Row]) -> list[list[str]]:
    """Summarise rows: family, number of names, types of blocks, and the ranges of added parameters and operations."""
    families: dict[str, list[Row]] = {}
    for row in rows:
        if not row.reason:
            families.setdefault(row.family, []).append(row)
    table = []
    for family, found in sorted(families.items()):
        kinds = sorted({kind.split()[-1] for row in found for kind in row.blocks.split(', ')})
        ranges = [_range([getattr(row, name) for row in found]) for name in ('params_percent', 'ops_percent')]
        table.append([family, str(len(found)), ', '.join(f'`{kind}`' for kind in kinds), *ranges])
    return table


def _range(values: Sequence[float]) -> str:
    low, high = f'{min(values):.1f}', f'{max(values):.1f}'
    return low if low == high else f'{low} to {high}'


def parse_args():
    parser = argparse.ArgumentParser(prog='python -m benchmarks.timm_networks', description=__doc__.splitlines()[0])
    parser.add_argument('names', nargs='*', metavar='NAME', help="names or patterns, 'resnet*' (default: all)")
    parser.add_argument('--csv', metavar='FILE', help='write all figures as CSV, one network per line')
    parser.add_argument('--markdown', metavar='FILE', help='write a summary by family as Markdown')
    args = parser.parse_args()
    check_folders(parser, args, 'csv', 'markdown')
    return args


def main() -> None:
    args = parse_args()
    logging.disable(logging.WARNING)  # hide what the libraries log while building
    warnings.simplefilter('ignore')
    names, rows = find_names(args.names), []
    with progress_of('counting') as show:
        for i, name in enumerate(names):
            rows += measure([name])
            show('networks of timm', i + 1, len(names))
    if not rows:
        raise ValueError(f'none of the networks ({", ".join(names)}) has blocks that are in BLOCKS of add_spatial_bias')
    works = [row for row in rows if not row.reason]
    table = [
        [
            row.name,
            row.blocks,
            f'{row.params / 1e6:.2f}',
            f'{row.params_percent:.2f}',
            f'{row.ops / 1e6:.1f}',
            f'{row.ops_percent:.2f}',
        ]
        for row in works
    ]
    print(markdown(HEADER, table))
    for row in rows:
        if row.reason:
            print(f'{row.name}: {row.reason}')
    print(f'\n{len(works)} networks')
    if args.csv:
        write_csv(args.csv, [as_dict(row) for row in rows])
    if args.markdown:
        write_text(args.markdown, markdown(FAMILIES, by_family(rows)) + '\n')


if __name__ == '__main__':
    run_tool(main)
