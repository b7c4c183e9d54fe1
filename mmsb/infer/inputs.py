"""Find and read images and videos; a file that can't be read is reported and skipped."""

import glob
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from mmsb.datasets.loading import BadImageError, LoadImage

IMAGES = ('.bmp', '.gif', '.jpeg', '.jpg', '.pgm', '.png', '.ppm', '.tif', '.tiff', '.webp')
VIDEOS = ('.avi', '.m4v', '.mkv', '.mov', '.mp4', '.mpeg', '.mpg', '.webm', '.wmv')


@dataclass(frozen=True, eq=False)
class Picture:
    """An image, or a frame of a video.

    Args:
        path: the file.
        pixels: [H, W, 3], 8-bit BGR.
        frame: number of the frame in its video, from 0; None for an image.
    """

    path: str
    pixels: np.ndarray
    frame: int | None = None


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
            matches = sorted(glob.glob(name, recursive=True))
            files = [file for match in matches for file in (_files_in(match) if os.path.isdir(match) else [match])]
            files = _outside(closed, files)
            if not files:
                raise FileNotFoundError(f'no file matches {name!r}')
        else:
            raise FileNotFoundError(f'input {name!r} does not exist')
        found |= dict.fromkeys(files)
    return list(found)


def _files_in(folder: str) -> list[str]:
    known = (path for path in Path(folder).rglob('*') if path.suffix.lower() in (*IMAGES, *VIDEOS))
    hidden = (path for path in known if not any(part.startswith('.') for part in path.relative_to(folder).parts))
    return sorted(str(path) for path in hidden if path.is_file())


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


def read(paths: Iterable[str], skip: Callable[[str, str], None]) -> Iterator[Picture]:
    """Read images and the frames of videos.

    Args:
        paths: files.
        skip: called with the path and the reason for each file that can't be read.
    """
    load = LoadImage()
    for path in paths:
        if is_video(path):
            yield from _read_video(path, skip)
            continue
        try:
            pixels = load(dict(img_path=path))['img']
        except BadImageError as error:
            skip(path, str(error).removeprefix(f'image {path!r} '))
        else:
            yield Picture(path, pixels)


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
