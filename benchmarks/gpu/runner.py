"""Runs the parts, each in a process group of its own: it is killed wholly at its deadline, and ends no other part."""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.parts import ROOT, Part
from mmsb.analysis.report import write_json

SUMMARY = 'gpu.json'


def run_all(parts: Sequence[Part], options: argparse.Namespace, end: float) -> dict:
    """Run all parts one after the other, and write SUMMARY after each.

    Args:
        parts: to run; what one does not use of its share goes to those after it.
        options: device, out, work_dir, data, quick.
        end: when all must have ended, by `time.monotonic`.

    Returns:
        By the name of the part: `status` ('done', 'failed', 'out of time', 'not started', or 'left out' for want of
        something), `seconds`, `limit_s` and `last_line` of its output.
    """
    found = {part.name: dict(status='not started', seconds=0.0, limit_s=0.0, last_line='') for part in parts}
    for index, part in enumerate(parts):
        left = max(end - time.monotonic(), 0)
        limit_s = left * part.share / sum(later.share for later in parts[index:])
        (options.out / f'{part.name}.json').unlink(missing_ok=True)  # an earlier call's
        if missing := part.needs(options):
            found[part.name].update(status='left out', last_line=missing)
            print(f'{part.name}: left out: {missing}', flush=True)
        elif limit_s > 0:
            print(f'{part.name}: {part.title}, {limit_s:.0f} s at most', flush=True)
            found[part.name] = run_part(part, options, limit_s)
            print(f'{part.name}: {describe(found[part.name])}', flush=True)
        write_json(options.out / SUMMARY, dict(device=options.device, quick=options.quick, parts=found))
    return found


def run_part(part: Part, options: argparse.Namespace, limit_s: float) -> dict:
    """Run a part until it ends, or to its limit."""
    log, start = options.out / f'{part.name}.log', time.monotonic()
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])}
    if options.device == 'cpu':
        environment['CUDA_VISIBLE_DEVICES'] = ''
    command = [sys.executable, *part.command(options, options.out / f'{part.name}.json', limit_s)]
    with log.open('wb') as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip
        try:
            process.wait(limit_s)
        except subprocess.TimeoutExpired:
            pass
        finally:  # also when this process is told to end
            in_time = process.poll() is not None
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
    status = 'out of time' if not in_time else 'failed' if code else 'done'
    seconds = round(time.monotonic() - start, 1)
    return dict(status=status, seconds=seconds, limit_s=round(limit_s, 1), last_line=last_line(log))


def last_line(log: Path) -> str:
    """Return the last line of a log that says something."""
    lines = [line for line in log.read_text(errors='replace').splitlines() if line.strip()]
    return lines[-1].strip() if lines else ''


def describe(result: dict) -> str:
    """Describe how a part ended, in one line."""
    said = f': {result["last_line"]}' if result['status'] != 'done' and result['last_line'] else ''
    return f'{result["status"]} after {result["seconds"]:.0f} s{said}'
