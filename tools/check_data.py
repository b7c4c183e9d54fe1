"""Check every sample that a config uses, to find before training what would stop or spoil the run hours later.

python tools/check_data.py configs/coco/faster-rcnn_sb-r50_fpn_1x_coco.py [--workers 16] [--json findings.json]

The exit code is 1 if there are errors. Warnings are about data that the library itself skips or clips.
"""

import logging
import sys
from dataclasses import asdict

from mmsb.analysis.report import check_folders, write_json
from mmsb.configs import check_library
from mmsb.engine.data_check import check_and_print
from mmsb.engine.launcher import config_parser, load_config, run_tool


def parse_args():
    parser = config_parser('Check the data of a config: files, images, masks, boxes and labels.')
    parser.add_argument('--workers', type=int, metavar='N', help='reader threads (default: one per core, at most 16)')
    parser.add_argument('--json', metavar='FILE', help='write all findings as JSON')
    args = parser.parse_args()
    check_folders(parser, args, 'json')
    return args


def main() -> None:
    args = parse_args()
    logging.disable(logging.WARNING)  # the findings report the same, with the file
    cfg = load_config(args, lambda cfg: None)
    check_library(cfg)
    reports = check_and_print(cfg, workers=args.workers)
    if args.json:
        write_json(args.json, [asdict(report) for report in reports])
    sys.exit(int(any(report.count('error') for report in reports)))


if __name__ == '__main__':
    run_tool(main)
