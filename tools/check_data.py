"""Look at every sample that a config names, before a training does: what would end the run or spoil it hours later.

python tools/check_data.py configs/coco/faster-rcnn_sb-r50_fpn_1x_coco.py [--workers 16] [--json findings.json]

Exit code 1 if there are errors. A warning is of what the library skips or clips by itself.
"""

import logging
import sys
from dataclasses import asdict

from mmsb.analysis.report import check_folders, write_json
from mmsb.configs import check_library
from mmsb.engine.data_check import check_and_print
from mmsb.engine.launcher import config_parser, load_config, run_tool


def parse_args():
    parser = config_parser('Check the data of a config: files, images, masks, boxes, labels.')
    parser.add_argument('--workers', type=int, metavar='N', help='threads that read images (default: one a core)')
    parser.add_argument('--json', metavar='FILE', help='write all findings as json')
    args = parser.parse_args()
    check_folders(parser, args, 'json')
    return args


def main() -> None:
    args = parse_args()
    logging.disable(logging.WARNING)  # the findings say it, with the file
    cfg = load_config(args, lambda cfg: None)
    check_library(cfg)
    reports = check_and_print(cfg, workers=args.workers)
    if args.json:
        write_json(args.json, [asdict(report) for report in reports])
    sys.exit(int(any(report.count('error') for report in reports)))


if __name__ == '__main__':
    run_tool(main)
