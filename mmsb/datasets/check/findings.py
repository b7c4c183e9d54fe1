"""Findings of the data check, and their report."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

LINES_PER_KIND = 20
NAMES = 20  # in a message


@dataclass(frozen=True)
class Finding:
    """One fault in the data.

    Args:
        level: 'error' if it stops a run or spoils its result, 'warning' if the library skips or clips the faulty part.
        kind: the group in which it is counted, e.g. 'damaged image'.
        file: the file or folder, or the config key.
        item: the part of it, e.g. 'annotation id 7'; empty for the whole file.
        message: what is wrong, the value, and the remedy or the consequence.
    """

    level: str
    kind: str
    file: str
    item: str
    message: str

    def __str__(self) -> str:
        return ': '.join(part for part in (self.level, self.file, self.item, self.message) if part)


def error(kind: str, file: str, item: str, message: str) -> Finding:
    return Finding('error', kind, file, item, message)


def warning(kind: str, file: str, item: str, message: str) -> Finding:
    return Finding('warning', kind, file, item, message)


def listed(names: Sequence[str], shown: int | None = NAMES) -> str:
    more = f' and {len(names) - shown:,} more' if shown and len(names) > shown else ''
    return ', '.join(map(repr, names[:shown])) + more


@dataclass
class Report:
    """Findings in one split, or in several that use the same dataset."""

    split: str
    images: int = 0
    findings: list[Finding] = field(default_factory=list)

    def count(self, level: str) -> int:
        return sum(finding.level == level for finding in self.findings)

    def lines(self) -> Iterator[str]:
        """Yield a line for each finding, errors first and at most 20 of a kind, and then a line of totals."""
        kinds: dict[tuple[str, str], list[Finding]] = {}
        for finding in sorted(self.findings, key=lambda finding: finding.level):
            kinds.setdefault((finding.level, finding.kind), []).append(finding)
        for (level, kind), found in kinds.items():
            yield from map(str, found[:LINES_PER_KIND])
            if len(found) > LINES_PER_KIND:
                yield f'{level}: {kind}: ... and {len(found) - LINES_PER_KIND:,} more'
        yield f'{self.split}: ' + ', '.join(
            f'{count:,} {name}{"" if count == 1 else "s"}'
            for name, count in (('image', self.images), *((level, self.count(level)) for level in ('error', 'warning')))
        )
