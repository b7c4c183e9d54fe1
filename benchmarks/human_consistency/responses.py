"""A classifier's answers to the out-of-distribution sets of Geirhos et al., in the csv layout of the humans' answers.

Data sets are laid out as in their publication: as DATASET/dnn/session-1/*.png, with names such as
0001_cop_dnn_c30_knife_10_n03041632_7380.png (number, experiment, 'dnn', condition, category, and the image); or, those
without conditions (edge, silhouette and cue-conflict), as DATASET/CATEGORY/*.png.
"""

import csv
import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mmsb.files import write_text
from mmsb.infer import Inferencer, inputs

from .measures import COLUMNS, LEFT_OUT

NUM_CLASSES = 1000
_SESSION = 'session-'
_FIELDS = 5  # of an image's name, before those that name the image itself


def categories() -> dict[str, list[int]]:
    """Map the 16 categories to their classes among ImageNet's 1000, as mmpretrain's shape-bias metric does."""
    from mmpretrain.evaluation.metrics import ShapeBiasMetric  # an optional library

    suffix = '_indices'
    found = {name.removesuffix(suffix): value for name, value in vars(ShapeBiasMetric).items() if name.endswith(suffix)}
    return dict(sorted(found.items()))


def to_category(scores: np.ndarray, mapping: dict[str, list[int]]) -> str:
    """Choose the category whose classes have the highest mean probability.

    Args:
        scores: [1000], probabilities of ImageNet's classes.
        mapping: from `categories`.
    """
    means = {category: scores[classes].mean() for category, classes in mapping.items()}
    return max(means, key=means.get)


def describe(path: str) -> tuple[str, str]:
    """Return condition and category of an image; the condition is 'NaN' where there are none.

    Raises:
        ValueError: it is not named as in the publication.
    """
    if not Path(path).parent.name.startswith(_SESSION):
        return 'NaN', Path(path).parent.name
    parts = Path(path).stem.split('_')
    if len(parts) <= _FIELDS:
        raise ValueError(f'{path!r} is not named NUMBER_EXPERIMENT_dnn_CONDITION_CATEGORY_..._IMAGE.png')
    return parts[3], parts[4]


def find_datasets(folder: str | os.PathLike) -> dict[str, list[str]]:
    """List the images of each of the 17 data sets that is in a folder, after a look at their names.

    Raises:
        FileNotFoundError: there is none.
        ValueError: an image has another name than in the publication, or a category that is none of the 16.
    """
    found, known = {}, categories()
    for dataset in LEFT_OUT:
        patterns = (f'dnn/{_SESSION}*/*.png', '*/*.png')
        images = sorted(str(path) for pattern in patterns for path in Path(folder, dataset).glob(pattern))
        for path in images:
            category = describe(path)[1]
            if category not in known:
                raise ValueError(f'{path!r} is of category {category!r}; valid: {", ".join(known)}')
        if images:
            found[dataset] = images
    if not found:
        names = ', '.join(LEFT_OUT)
        where = 'DATASET/dnn/session-1/*.png or DATASET/CATEGORY/*.png'
        raise FileNotFoundError(f'there is no {where} in {os.fspath(folder)!r}; data sets: {names}')
    return found


def respond(
    inferencer: Inferencer,
    datasets: dict[str, list[str]],
    out: str | os.PathLike,
    *,
    name: str,
    batch_size: int = 1,
    show: Callable[[str, int, int], None] = lambda dataset, done, total: None,
) -> list[Path]:
    """Let a classifier answer data sets, and write OUT/DATASET/DATASET_NAME_session-1.csv for each.

    Args:
        inferencer: a classifier of ImageNet's 1000 classes.
        datasets: from `find_datasets`.
        out: folder for the csv files.
        name: of the subject.
        batch_size: the most images to predict at once.
        show: called with a data set and the number of its images that are done, and of all.

    Raises:
        ValueError: the network is another one, or an image can't be read.
        FileExistsError: `out` is a file.
    """
    if Path(out).is_file():
        raise FileExistsError(f'the folder of responses {os.fspath(out)!r} is a file')
    if inferencer.kind != 'classifier' or len(inferencer.classes) != NUM_CLASSES:
        got = f'a {inferencer.kind} of {len(inferencer.classes)}'
        raise ValueError(f'the 16 categories need a classifier of {NUM_CLASSES} classes, got {got}')
    mapping, written = categories(), []
    for dataset, paths in datasets.items():
        rows = []
        for prediction in inferencer.predict(inputs.read(paths, inferencer.pipeline, _refuse), batch_size=batch_size):
            path = prediction.picture.path
            condition, category = describe(path)
            answer = to_category(prediction.sample.pred_score.float().cpu().numpy(), mapping)
            rows.append([name, 1, len(rows) + 1, 'NaN', answer, category, condition, Path(path).name])
            show(dataset, len(rows), len(paths))
        file = Path(out, dataset, f'{dataset}_{name}_session-1.csv')
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, _as_csv(rows))
        written.append(file)
    return written


def _refuse(path: str, reason: str) -> None:
    raise ValueError(f'image {path!r} {reason}')


def _as_csv(rows: list[list]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerows([COLUMNS, *rows])
    return text.getvalue()
