"""What a rehearsal makes of the findings of a data check."""

from mmsb.datasets.check.dataset import UNUSABLE
from mmsb.datasets.check.findings import Finding

from .watch import Mistake


class Heed:
    """Raises the first error, and keeps a warning of each kind.

    Attributes:
        warnings: one line each.
    """

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def __call__(self, found: list[Finding]) -> None:
        """Take the findings of a check.

        Raises:
            Mistake: there is an error. What cannot be built is none here: the rehearsal itself says why.
        """
        errors = [one for one in found if one.level == 'error' and one.kind != UNUSABLE]
        if errors:
            raise Mistake(_first_of(errors))
        warnings = [one for one in found if one.level == 'warning']
        for kind in dict.fromkeys(one.kind for one in warnings):
            self.warnings.append(_first_of([one for one in warnings if one.kind == kind]))


def _first_of(found: list[Finding]) -> str:
    text = str(found[0]).partition(': ')[2]
    return text + (f' (and {len(found) - 1:,} more: tools/check_data.py lists them)' if len(found) > 1 else '')
