"""What to train, in the order of its worth: the paper's first rows, deeper networks, ablations, others."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from mmsb.analysis import zoo
from mmsb.options import check_keys

FIRST, DEEPER, ABLATIONS, CONTEXT, OTHER = GROUPS = ('first', 'deeper', 'ablations', 'context', 'other')
SB38, SB65 = (f'cifar100/sb-resnet{depth}_b64-300e_cifar100.py' for depth in (38, 65))
NOT_IN_TABLES = (  # system, setting, config, options of the backbone
    (ABLATIONS, 'SB-ResNet-65', 'position conv1', SB65, "spatial_bias.position='conv1'"),
    *(
        (CONTEXT, f'{bias}{block}-ResNet-38', '-', f'cifar100/{bias}{block}-resnet38_b64-300e_cifar100.py'.lower(), '')
        for block in ('SE', 'GC', 'NL')
        for bias in ('', 'SB-')
    ),
)


@dataclass(frozen=True)
class Row:
    """A network to train: a config, options of its backbone, and the paper's errors in % where it has them."""

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


def rows() -> list[Row]:
    """List all rows, the most worthwhile first; a network that stands in two tables is there once."""
    found: dict[tuple[str, str], Row] = {}
    for row in zoo.paper_rows():
        if row['config'].startswith('cifar100/'):
            key = row['config'], row['backbone_options']
            texts = {
                name: row[name] for name in ('system', 'setting', 'config', 'backbone_options', 'top1_err', 'top5_err')
            }
            found.setdefault(key, Row(group=_group(row), **texts))
    extra = [Row(*fields) for fields in NOT_IN_TABLES]
    return sorted([*found.values(), *extra], key=lambda row: GROUPS.index(row.group))


def _group(row: dict[str, str]) -> str:
    if row['table'] != '1':
        return ABLATIONS
    depth = row['system'].rpartition('-')[2]
    return {'38': FIRST, '65': DEEPER}.get(depth, OTHER) if row['setting'] in ('-', 'stages 1,2') else OTHER


def choose_rows(names: Iterable[str]) -> list[Row]:
    """Pick rows by the names of groups or of rows.

    Raises:
        ValueError: for an unknown name.
    """
    known = rows()
    check_keys('the list of rows', names, [*GROUPS, *(row.name for row in known)])
    return [row for row in known if {row.group, row.name} & set(names)]
