"""Exit codes for runs that stop early for reasons other than a user error, so that a script can tell them apart.

The codes are the closest ones in sysexits.h.
"""

EXIT_NOT_FINITE = 65  # EX_DATAERR: the loss or the gradient is NaN or infinite
EXIT_NOT_SAVED = 74  # EX_IOERR: the checkpoints can't be written
EXIT_PREEMPTED = 75  # EX_TEMPFAIL: stopped by a signal; restart with --resume
SIGNALS = ('SIGTERM', 'SIGUSR1')  # those that stop a training


class RunStopped(Exception):  # noqa: N818  (not always an error)
    """Ends a run with a specific exit code.

    Args:
        message: one line for the user.
        exit_code: one of the codes in this module.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code
