"""What to train, the most informative first: the paper's main rows, deeper networks, ablations, other blocks."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from mmsb.analysis import zoo
from mmsb.options import check_keys

FIRST, DEEPER, ABLATIONS, CONTEXT, OTHER = GROUPS = ('first', 'deeper', 'ablations', 'context', 'other')


@dataclass(frozen=True)
class Row:
    """A network to train: a config, options of its backbone, and the errors in % that the paper prints, if any."""

    group: str
    system: str
    setting: str
    config: str
    backbone_options: str
    top1_err: str = ''
    top5_err: str = ''

    @property
    def name(self) -> str:
        return re.sub(r'[^a-z0-9]+', '-', f'{self.system} {self.setting}'.lower()).strip('-')


NOT_IN_TABLES = (
    Row(ABLATIONS, 'SB-ResNet-65', 'position conv1', 'cifar100/sb-resnet65_b64-300e_cifar100.py',
        "spatial_bias.position='conv1'"),
    *(Row(CONTEXT, f'{bias}{block}-ResNet-38', '-', f'cifar100/{bias}{block}-resnet38_b64-300e_cifar100.py'.lower(), '')
      for block in ('SE', 'GC', 'NL') for bias in ('', 'SB-')),
)  # fmt: skip


def all_rows() -> list[Row]:
    """List all rows in the order of the groups; a network that is in two of the paper's tables is listed once."""
    found: dict[tuple[str, str], Row] = {}
    for row in zoo.paper_rows():
        if row['config'].startswith('cifar100/'):
            fields = ('system', 'setting', 'config', 'backbone_options', 'top1_err', 'top5_err')
            found.setdefault((row['config'], row['backbone_options']), Row(_group(row), *(row[key] for key in fields)))
    return sorted([*found.values(), *NOT_IN_TABLES], key=lambda row: GROUPS.index(row.group))


def _group(row: dict[str, str]) -> str:
    if row['table'] != '1':
        return ABLATIONS
    depth = row['system'].rpartition('-')[2]
    return {'38': FIRST, '65': DEEPER}.get(depth, OTHER) if row['setting'] in ('-', 'stages 1,2') else OTHER


def choose_rows(names: Iterable[str]) -> list[Row]:
    """Choose rows by the names of groups or rows.

    Raises:
        ValueError: for an unknown name.
    """
    known = all_rows()
    check_keys('the list of rows', names, [*GROUPS, *(row.name for row in known)])
    return [row for row in known if {row.group, row.name} & set(names)]
