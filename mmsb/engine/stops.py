"""How a run ends that neither finished nor met a mistake: each end has an exit code, so that a script can tell.

The codes are those of sysexits.h that come nearest.
"""

EXIT_NOT_FINITE = 65  # EX_DATAERR: the loss or the gradient is NaN or infinite
EXIT_NOT_SAVED = 74  # EX_IOERR: the checkpoints can't be written
EXIT_PREEMPTED = 75  # EX_TEMPFAIL: told to stop by a signal; start again with --resume


class RunStopped(Exception):  # noqa: N818  (not always an error)
    """Ends a run with an exit code of its own.

    Args:
        message: one line for the user.
        exit_code: one of the codes of this module.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code
