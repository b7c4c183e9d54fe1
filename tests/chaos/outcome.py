"""How a training ended: where it resumed, with which bits, in how many words, and which files are left."""

import hashlib
import re
from pathlib import Path

from chaos.victim import Victim, differing, train, weights_of

LAST = 'iter_18.pth'


def weights_of_whole(folder: Path, config: Path, *args, name: str = 'whole', last: str = LAST) -> dict:
    """Return the weights at the end of a training that nothing interrupts."""
    victim = train(folder, config, '--work-dir', name, *args)
    if victim.code:
        raise RuntimeError(f'the training that nothing interrupts failed: {victim.said()}')
    return weights_of(folder / name / last)


def resumed_at(victim: Victim) -> int:
    """Return the iteration from which a training went on, 0 if it began anew."""
    found = re.findall(r'resumed epoch: \d+, iter: (\d+)', victim.said())
    return int(found[-1]) if found else 0


def wrong_bits(path: Path, whole: dict) -> str:
    """Return what is wrong with the end of a training, or ''."""
    if not path.exists():
        return 'did not come to its end'
    return 'ended with other weights' if differing(weights_of(path), whole) else ''


def many_words(victim: Victim) -> str:
    """Return 'N tracebacks' if the output has any, or ''."""
    count = victim.said().count('Traceback (most recent call last)')
    return f'{count if count < 2 else "several"} traceback{"s" if count > 1 else ""}' if count else ''


def refused(victim: Victim) -> bool:
    """Return whether a tool ended with an error in one line."""
    lines = victim.said().splitlines()
    return bool(victim.code) and not many_words(victim) and bool(lines) and lines[-1].startswith('error: ')


def contents(folder: Path) -> dict[str, str]:
    """Map the name of each checkpoint in a folder to the hash of its content; links to nowhere are left out."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
        if path.suffix in ('.pth', '.pt') and path.is_file()
    }


def lost(before: dict[str, str], folder: Path, names: set[str] | None = None) -> list[str]:
    """List the checkpoints of `before` whose content is nowhere below a folder any more."""
    there = {hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob('*.pt*') if path.is_file()}
    return [name for name, digest in before.items() if digest not in there and (names is None or name in names)]
