"""Notes the signals that are to stop a training, for as long as it lasts."""

import signal


class SignalNotes:
    """The handlers of some signals; a program has its own ones back afterwards.

    Args:
        names: of the signals.

    Raises:
        ValueError: a name is not that of a signal.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        unknown = [name for name in names if not hasattr(signal, name)]
        if unknown:
            raise ValueError(f'signals must be names such as SIGTERM, got {unknown[0]!r}')
        self._numbers = [getattr(signal, name) for name in names]
        self._before: dict[int, object] = {}
        self.got: int | None = None  # number of the latest signal

    @property
    def name(self) -> str:
        """Name of the signal that has come."""
        return signal.Signals(self.got).name

    def begin(self) -> bool:
        """Set the handlers; return whether that is possible: Python has none outside of the main thread."""
        for number in self._numbers:
            try:
                self._before[number] = signal.signal(number, self._note)
            except ValueError:
                return False
        return True

    def end(self) -> int | None:
        """Give the handlers back, but for one that somebody else has set since; return the signal that has come."""
        for number, before in self._before.items():
            if signal.getsignal(number) == self._note:
                signal.signal(number, signal.SIG_DFL if before is None else before)
        self._before.clear()
        got, self.got = self.got, None
        return got

    def _note(self, number: int, _frame) -> None:
        self.got = number
