"""Compare trainings by their work dirs: one table of results and differences, one figure of the curves.

python tools/analysis/compare.py work_dirs/{sb,plain}-{0,1} --plot curves.png

Runs whose configs differ only in the seed are one row. A run may still be in progress.
"""

import argparse
import logging

from mmsb.analysis.compare import as_csv, as_json, compare, metrics_of, table
from mmsb.analysis.compare_figure import plot
from mmsb.analysis.paired import table_of_differences
from mmsb.analysis.report import check_folders, markdown, write_csv, write_json
from mmsb.engine.launcher import run_tool
from mmsb.options import choose


def parse_args():
    parser = argparse.ArgumentParser(description='Compare trainings by their work dirs.')
    parser.add_argument('work_dirs', nargs='+', metavar='WORK_DIR', help='output folder of a training')
    parser.add_argument('--metrics', nargs='+', metavar='NAME', help='validation metrics to show (default: all)')
    parser.add_argument('--plot', metavar='FILE', help='plot the curves (.png, .svg or .pdf)')
    parser.add_argument('--json', metavar='FILE', help='write the table as JSON, with all differences in full')
    parser.add_argument('--csv', metavar='FILE', help='write the table as CSV')
    args = parser.parse_args()
    check_folders(parser, args, 'plot', 'json', 'csv')
    return args


def main() -> None:
    args = parse_args()
    logging.disable(logging.INFO)  # hide what the libraries log while building
    rows = compare(args.work_dirs)
    metrics = metrics_of(rows)
    for name in args.metrics or ():
        choose('--metrics', name, metrics)
    metrics = args.metrics or metrics
    for header, lines in (table(rows, metrics), table_of_differences(rows, metrics)):
        if lines:
            print(markdown(header, [[cell.replace('|', '\\|') for cell in line] for line in lines]), end='\n\n')
    if args.plot:
        plot(rows, metrics, args.plot)
    if args.json:
        write_json(args.json, [as_json(row) for row in rows])
    if args.csv:
        write_csv(args.csv, [as_csv(row, metrics) for row in rows])


if __name__ == '__main__':
    run_tool(main)
