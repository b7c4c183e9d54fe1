"""Find and read images and videos; a file that can't be read is reported and skipped."""

import glob
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from mmsb.datasets.loading import BadImageError
from mmsb.datasets.test_pipeline import ImagePipeline

IMAGES = (
    '.bmp', '.gif', '.jfif', '.jpe', '.jpeg', '.jpg', '.pbm', '.pgm', '.png', '.ppm', '.tif', '.tiff', '.webp',
)  # fmt: skip
VIDEOS = ('.avi', '.m4v', '.mkv', '.mov', '.mp4', '.mpeg', '.mpg', '.webm', '.wmv')


@dataclass(frozen=True, eq=False)
class Picture:
    """An image, or a frame of a video.

    Args:
        path: the file.
        pixels: [H, W, 3], 8-bit BGR: what is drawn on and, of an image in memory or a frame, what the network gets.
        frame: number of the frame in its video, from 0; None for an image.
        loaded: what the config's own loading made of the file; None for an image in memory and for a frame.
    """

    path: str
    pixels: np.ndarray
    frame: int | None = None
    loaded: dict | None = None


def is_video(path: str | os.PathLike) -> bool:
    return Path(path).suffix.lower() in VIDEOS


def find(
    inputs: str | os.PathLike | Iterable[str | os.PathLike], *, without: Iterable[str | os.PathLike] = ()
) -> list[str]:
    """List the files that inputs name, each once and in order.

    Args:
        inputs: one or several: files; folders, of which all images and videos in them and in their subfolders are
            listed by name; and glob patterns.
        without: folders whose files are listed only if they are named one by one.

    Raises:
        FileNotFoundError: an input does not exist, or has no image or video.
    """
    found: dict[str, None] = {}
    closed = [Path(folder).resolve() for folder in without]
    for name in map(os.fspath, [inputs] if isinstance(inputs, (str, os.PathLike)) else inputs):
        if os.path.isdir(name):
            files = _outside(closed, _files_in(name))
            if not files:
                raise FileNotFoundError(f'there is no image or video in the folder {name!r}')
        elif os.path.exists(name):
            files = [name]
        elif glob.has_magic(name):
            matches = sorted(str(Path(match)) for match in _matches(name))
            files = [file for match in matches for file in (_files_in(match) if os.path.isdir(match) else [match])]
            files = _outside(closed, files)
            if not files:
                raise FileNotFoundError(f'no file matches {name!r}')
        else:
            raise FileNotFoundError(f'input {name!r} does not exist')
        found |= dict.fromkeys(files)
    return list(found)


def _folders(top: str) -> Iterator[tuple[str, list[str]]]:
    """Walk through a folder and its subfolders, also behind links; yield each once with the names of its files.

    Hidden subfolders are left out. A folder that several links lead to, or one of its own, comes under the first name.
    """
    seen = {os.path.realpath(top)}
    for folder, below, files in os.walk(top, followlinks=True):
        paths = {name: os.path.realpath(os.path.join(folder, name)) for name in below if not name.startswith('.')}
        names = sorted(paths, key=lambda name: (os.path.islink(os.path.join(folder, name)), name))
        below[:] = [name for name in names if not (paths[name] in seen or seen.add(paths[name]))]
        yield folder, files


def _files_in(folder: str) -> list[str]:
    known = (*IMAGES, *VIDEOS)
    paths = (os.path.join(place, name) for place, names in _folders(folder) for name in names if name[0] != '.')
    return sorted(str(Path(path)) for path in paths if path.lower().endswith(known) and os.path.isfile(path))


def _matches(pattern: str) -> Iterable[str]:
    """List what a glob pattern matches; its `**` walks as `_folders` does, so that links can't form a loop."""
    parts = pattern.split(os.sep)
    if '**' not in parts:
        return glob.glob(pattern)
    place = parts.index('**')
    tops = glob.glob(os.sep.join([*parts[:place], ''])) if place else ['.']
    rest = os.sep.join(parts[place + 1 :])
    if not rest:
        return tops
    folders = (glob.escape(folder) for top in tops for folder, _ in _folders(top))
    return [match for folder in folders for match in _matches(os.path.join(folder, rest))]


def _outside(folders: list[Path], files: list[str]) -> list[str]:
    return [file for file in files if not set(folders) & set(Path(file).resolve().parents)]


def count(paths: Iterable[str]) -> int:
    """Count images and frames; the number of frames is what the video's header says."""
    return sum(_frames_of(path) if is_video(path) else 1 for path in paths)


def _frames_of(path: str) -> int:
    video = cv2.VideoCapture(path)
    try:
        return max(1, int(video.get(cv2.CAP_PROP_FRAME_COUNT)))
    finally:
        video.release()


def read(paths: Iterable[str], pipeline: ImagePipeline, skip: Callable[[str, str], None]) -> Iterator[Picture]:
    """Read images as the test pipeline of a config loads them, and the frames of videos.

    Args:
        paths: files.
        pipeline: the test pipeline.
        skip: called with the path and the reason for each file that can't be read.
    """
    for path in paths:
        if is_video(path):
            yield from _read_video(path, skip)
            continue
        try:
            loaded = pipeline.load(path)
        except BadImageError as error:
            skip(path, str(error).removeprefix(f'image {path!r} '))
        else:
            yield Picture(path, pipeline.shown(loaded), loaded=loaded)


def _read_video(path: str, skip: Callable[[str, str], None]) -> Iterator[Picture]:
    video = cv2.VideoCapture(path)
    try:
        frame = -1
        while True:
            done, pixels = video.read()
            if not done:
                break
            frame += 1
            yield Picture(path, pixels, frame)
        if frame < 0:
            skip(path, 'is not a video that OpenCV can read')
    finally:
        video.release()
