"""Run a trained network on images and videos: drawn pictures, and one JSON file of all predictions.

python tools/infer.py CONFIG CHECKPOINT photo.jpg folder/ 'more/*.png' clip.mp4 --out predictions

A file that can't be read is named and skipped; the exit code is 1 only if none can be read.
"""

import logging
import os
import sys

import mmsb  # noqa: F401  # says in one line if the packages below are missing or do not load

# isort: split
from mmengine.config import Config

from mmsb.checkpoints.load import require_file
from mmsb.configs import drop_warm_starts
from mmsb.engine.launcher import config_parser, load_config, run_tool
from mmsb.engine.progress import progress_of
from mmsb.infer import Inferencer, inputs, write_predictions
from mmsb.infer.results import JSON, written_to
from mmsb.options import positive_integer


def parse_args():
    parser = config_parser('Run a trained network on images and videos.')
    parser.add_argument('checkpoint', help='checkpoint file or URL')
    parser.add_argument('inputs', nargs='+', metavar='INPUT', help='image, video, folder of them, or glob pattern')
    parser.add_argument('--out', default='predictions', metavar='DIR', help='output folder (default: %(default)s)')
    parser.add_argument('--deploy', action='store_true', help='fold all batch norms before')
    parser.add_argument('--device', help='such as cpu or cuda:1 (default: a GPU if there is one)')
    parser.add_argument(
        '--batch-size', type=int, default=1, metavar='N', help='most images of one size at once (default: %(default)s)'
    )
    parser.add_argument(
        '--min-score', type=float, default=0.3, metavar='S', help='draw boxes from this score on (default: %(default)s)'
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    logging.disable(logging.WARNING)  # what the libraries say while they build and load
    positive_integer('--batch-size', args.batch_size)
    require_file(args.checkpoint)
    files = inputs.find(args.inputs, without=written_to(args.out))  # before the seconds that building takes
    os.environ.setdefault('OPENCV_FFMPEG_LOGLEVEL', '-8')  # no lines of its own about a file that can't be read

    def apply_flags(cfg: Config) -> None:
        drop_warm_starts(cfg.model)

    cfg = load_config(args, apply_flags)

    def skip(path: str, reason: str) -> None:
        if len(files) > 1:  # else it is the error that ends the run
            print(f'skipped {path!r}, which {reason}', file=sys.stderr, flush=True)

    inferencer = Inferencer(cfg, args.checkpoint, deploy=args.deploy, device=args.device)
    with progress_of('predict') as show:
        found = write_predictions(
            inferencer,
            files,
            args.out,
            batch_size=args.batch_size,
            min_score=args.min_score,
            skip=skip,
            show=lambda done, total: show('images', done, total),
        )
    number, skipped = len(found['images']), len(found['skipped'])
    print(f'{args.out}/{JSON}: {number} image{"s" * (number != 1)}' + (f', {skipped} skipped' if skipped else ''))


if __name__ == '__main__':
    run_tool(main)
