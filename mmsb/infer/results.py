"""Write predictions to a folder: drawn pictures, masks, and one JSON file for the run.

Every file is written whole; the JSON file comes last, so where it is, the run is complete.

predictions.json is, for a detector, in COCO's format with a score for each annotation (pycocotools reads it);
otherwise its `images` hold the classes, or the name of the file of the mask.
"""

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from mmsb.files import write_text, write_whole
from mmsb.version import __version__

from . import inputs
from .drawn import Names, suffix_of, write_picture
from .inferencer import Inferencer, Prediction

JSON = 'predictions.json'
DRAWN, MASKS = 'drawn', 'masks'
_PALETTE_COLOURS = 256


def write_predictions(
    inferencer: Inferencer,
    files: str | os.PathLike | Iterable[str | os.PathLike],
    out: str | os.PathLike,
    *,
    batch_size: int = 1,
    min_score: float = 0.3,
    skip: Callable[[str, str], None] = lambda path, reason: None,
    show: Callable[[int, int], None] = lambda done, total: None,
) -> dict:
    """Predict images and videos, and write what is predicted to a folder.

    Args:
        inferencer: the network.
        files: files, folders or glob patterns, see `inputs.find`.
        out: the folder; it is made when the first prediction is there. What an earlier run has drawn is no input.
        batch_size: the most images of one size to predict at once.
        min_score: boxes below it are not drawn; the JSON has them all.
        skip: called with the path and the reason for each file that can't be read.
        show: called with the number of images that are done, and of all.

    Returns:
        what is in predictions.json.

    Raises:
        FileNotFoundError: an input does not exist, or has no image or video.
        FileExistsError: `out` is a file.
        ValueError: no image can be read.
    """
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise FileExistsError(f'the output {str(out)!r} is a file, and must be a folder')
    paths = inputs.find(files, without=written_to(out))
    total, skipped = inputs.count(paths), []

    def note(path: str, reason: str) -> None:
        skipped.append(dict(file_name=path, reason=reason))
        skip(path, reason)

    run = _Run(inferencer, out, min_score, Names(paths))
    pictures = inputs.read(paths, inferencer.pipeline, note)
    for done, prediction in enumerate(inferencer.predict(pictures, batch_size=batch_size), 1):
        if done == 1:
            (out / JSON).unlink(missing_ok=True)  # of an earlier run
        run.add(prediction)
        show(done + len(skipped), max(total, done + len(skipped)))
    if not run.content['images']:
        first = f'{skipped[0]["file_name"]!r} {skipped[0]["reason"]}'
        raise ValueError(first if len(paths) == 1 else f'none of the {len(paths)} files can be read: {first}')
    run.content['skipped'] = skipped
    write_text(out / JSON, json.dumps(run.content, indent=1) + '\n')
    return run.content


def written_to(out: str | os.PathLike) -> list[Path]:
    """List the folders of a run's pictures, which a later run on a folder around them leaves out."""
    return [Path(out, DRAWN), Path(out, MASKS)]


class _Run:
    """What one run has predicted so far."""

    def __init__(self, inferencer: Inferencer, out: Path, min_score: float, names: Names) -> None:
        self._inferencer, self._out, self._min_score, self._names = inferencer, out, min_score, names
        config = getattr(inferencer.config, 'filename', None)
        info = dict(mmsb_version=__version__, config=config, checkpoint=inferencer.checkpoint, kind=inferencer.kind)
        first = 1 if inferencer.kind == 'detector' else 0  # COCO's categories count from 1
        categories = [dict(id=number, name=name) for number, name in enumerate(inferencer.classes, first)]
        self.content: dict = dict(info=info, images=[], categories=categories)
        if inferencer.kind == 'detector':
            self.content['annotations'] = []

    def add(self, prediction: Prediction) -> None:
        picture, found = prediction.picture, prediction.found
        height, width = picture.pixels.shape[:2]
        image = dict(id=len(self.content['images']) + 1, file_name=picture.path, width=width, height=height)
        if picture.frame is not None:
            image['frame'] = picture.frame
        name = self._names.choose(picture.path, '' if picture.frame is None else f'_{picture.frame:06d}')
        image[DRAWN] = f'{DRAWN}/{name}{suffix_of(picture.path, picture.frame)}'
        write_picture(self._out / image[DRAWN], self._inferencer.draw(prediction, min_score=self._min_score))
        if self._inferencer.kind == 'classifier':
            image['classes'] = found
        elif self._inferencer.kind == 'segmenter':
            image['mask'] = f'{MASKS}/{name}.png'
            mask = self._out / image['mask']
            mask.parent.mkdir(parents=True, exist_ok=True)
            write_whole(mask, lambda path: _save_mask(path, found, self._inferencer.palette))
            labels, counts = np.unique(found, return_counts=True)
            names = [self._inferencer.classes[label] for label in labels]
            image['pixels'] = dict(zip(names, counts.tolist(), strict=True))
        else:
            first = len(self.content['annotations']) + 1
            self.content['annotations'] += [_annotation(box, image['id'], i) for i, box in enumerate(found, first)]
        self.content['images'].append(image)


def _save_mask(path: Path, labels: np.ndarray, palette: list[tuple[int, int, int]]) -> None:
    """Save labels as the values of a PNG: with a palette, so that viewers show colours, if there are 256 at most."""
    if len(palette) > _PALETTE_COLOURS:
        Image.fromarray(labels.astype(np.uint16)).save(path, 'PNG')
        return
    image = Image.fromarray(labels.astype(np.uint8))
    image.putpalette([value for colour in palette for value in colour])
    image.save(path, 'PNG')


def _annotation(box: dict, image_id: int, number: int) -> dict:
    _, _, width, height = box['bbox']
    found = dict(id=number, image_id=image_id, category_id=box['label'] + 1, bbox=box['bbox'], score=box['score'])
    if 'segmentation' not in box:
        return {**found, 'area': width * height, 'iscrowd': 0}
    from pycocotools.mask import area  # only of mmdet

    return {**found, 'area': int(area(box['segmentation'])), 'iscrowd': 0, 'segmentation': box['segmentation']}
