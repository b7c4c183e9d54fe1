"""A row of the table that `campaign.py` prints."""

from dataclasses import dataclass, field


@dataclass
class Row:
    """The outcomes of one kind of fault, with mmsb and with stock mmengine.

    Args:
        fault: the injected fault.
        must: the required behaviour.
        least: the share of cases with mmsb that must be good.
    """

    fault: str
    must: str
    cases: int = 0
    good: int = 0
    stock_cases: int = 0
    stock_good: int = 0
    notes: dict[str, int] = field(default_factory=dict)
    least: float = 1.0

    def add(self, good: bool, why: str = '', *, stock: bool) -> None:
        """Count a case; `why` describes what went wrong."""
        if stock:
            self.stock_cases += 1
            self.stock_good += good
        else:
            self.cases += 1
            self.good += good
        if not good:
            key = ('stock: ' if stock else '') + why
            self.notes[key] = self.notes.get(key, 0) + 1

    def line(self) -> str:
        """Return the row in Markdown."""
        stock = f'{self.stock_good:,} of {self.stock_cases:,}' if self.stock_cases else '-'
        notes = ', '.join(f'{count:,} {why}' for why, count in self.notes.items())
        return f'| {self.fault} | {self.must} | {self.good:,} of {self.cases:,} | {stock} | {notes} |'
