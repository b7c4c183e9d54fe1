"""Find mistakes in a config before a run writes anything: by reading it (`static`) and by rehearsing the run.

The rehearsal builds the objects of a run as the runner would, and takes one batch through them. `sections` are config
dicts that know their place, `watch` checks the options of what is built by `signatures`, and `blame` says which keys a
failure is about.
"""

from .rehearsal import dry_run
from .static import check_config, known_keys

__all__ = ['check_config', 'dry_run', 'known_keys']
