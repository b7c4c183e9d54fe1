"""Write figures as tables and files."""

import argparse
import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from mmsb.files import write_text


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out a Markdown table with aligned columns."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [header, ['-' * width for width in widths], *rows]
    return '\n'.join(
        '| ' + ' | '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + ' |' for line in lines
    )


def check_folders(parser: argparse.ArgumentParser, args: argparse.Namespace, *options: str) -> None:
    """Exit with an error before any work is done if an output file is to go into a folder that does not exist.

    Args:
        parser: parser of the command line.
        args: the parsed arguments.
        options: names of the options that take an output file, such as 'json'.
    """
    for option in options:
        path = getattr(args, option)
        if path and not Path(path).parent.is_dir():
            parser.error(f'the folder of --{option} {path} does not exist')


def write_json(path: str | Path, data) -> None:
    """Write JSON atomically: a reader of the file finds either the old data or the new."""
    write_text(path, json.dumps(data, indent=2) + '\n')


def write_csv(path: str | Path, rows: Sequence[Mapping]) -> None:
    """Write rows with the same keys as CSV with a header, atomically."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
