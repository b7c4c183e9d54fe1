"""Which process of a run this is: what the launcher that the command names has put into the environment.

Variables of other launchers say nothing: an interactive shell on a Slurm node has SLURM_PROCID, too. A tool also runs
this file by its path, while the imports of mmsb are under way, so it needs only the standard library.
"""

import argparse
import os

VARIABLES = {  # of the process's number in the run and on its node, as MMEngine's `init_dist` reads them
    'pytorch': ('RANK', 'LOCAL_RANK'),
    'slurm': ('SLURM_PROCID', 'SLURM_LOCALID'),
    'mpi': ('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_LOCAL_RANK'),
}


def named_launcher() -> str:
    """Return the value of `--launcher` on the command line, 'none' without one."""
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    parser.add_argument('--launcher', default='none')
    try:
        return parser.parse_known_args()[0].launcher
    except argparse.ArgumentError:  # the parser of the tool says what is wrong
        return 'none'


def rank_in_environment() -> int:
    """Return the number of this process in the run, before the process group exists; 0 without a launcher."""
    launcher = named_launcher()
    number = os.environ.get(VARIABLES[launcher][0], '') if launcher in VARIABLES else ''
    return int(number) if number.isdecimal() else 0
