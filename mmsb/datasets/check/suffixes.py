"""Find files that a dataset leaves out or looks for in vain, from listings of folders alone.

The libraries list files by suffix, and skip all others silently; or they add a suffix to a name in a list.
"""

import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping

from .findings import Finding, error, warning

# what people take for images, whether or not a decoder reads it
IMAGES = ('.avif', '.bmp', '.gif', '.heic', '.heif', '.jfif', '.jp2', '.jpe', '.jpeg', '.jpg', '.jxl', '.pbm', '.pgm')
IMAGES += ('.png', '.pnm', '.ppm', '.tif', '.tiff', '.webp', '.arw', '.cr2', '.dng', '.exr', '.nef')


def check_left_out(dataset, samples: list[dict], *, shared_masks: bool) -> Iterator[Finding]:
    """Warn of images and masks that are in the folders of a dataset, but not in its list.

    Args:
        dataset: the dataset.
        samples: its samples.
        shared_masks: whether the folder of its masks belongs to other images too.
    """
    folder = _listed_folder(dataset)
    if folder is None:
        return
    classes = hasattr(dataset, 'folder_to_idx')
    counts, listed, beside = _left_out(dataset, folder, classes=classes)
    if counts:
        option = 'extensions' if hasattr(dataset, 'extensions') else 'img_suffix'
        read = f'{", ".join(sorted(_suffixes(dataset)))} {"are" if classes else "is"} read'
        text = f'{_share(counts, listed)}: only {read}; set {option}, or convert'
        yield warning('image with another suffix', folder, '', text)
    if beside:
        yield warning('image without class', folder, '', f'skips what is in no class folder: {beside:,} of its images')
    masks = dataset.data_prefix.get('seg_map_path')
    if not hasattr(dataset, 'seg_map_suffix') or not masks or shared_masks or not os.path.isdir(masks):
        return
    wanted = {os.path.normpath(sample['seg_map_path']) for sample in samples if sample.get('seg_map_path')}
    there = [
        os.path.normpath(os.path.join(place, name))
        for place, name in _files(masks)
        if name.endswith(dataset.seg_map_suffix)
    ]
    alone = sorted({*there} - wanted)
    if alone and not counts:  # else that is said already
        text = f'{len(alone):,} of {len(there):,} masks have no image: skipped'
        yield warning('mask without image', masks, f'{os.path.relpath(alone[0], masks)} ...', text)


def left_out(dataset) -> str:
    """Tell how many images have other suffixes, for a dataset that has no samples; '' if none has."""
    folder = _listed_folder(dataset)
    counts, listed, _ = _left_out(dataset, folder, classes=False) if folder is not None else (Counter(), 0, 0)
    return _share(counts, listed) if counts else ''


def check_missing(samples: list[dict], *, images: bool, masks: bool) -> Iterator[Finding]:
    """Report images and masks that do not exist; each folder is listed once.

    Args:
        samples: samples of a dataset.
        images: whether images are checked.
        masks: whether masks are checked.
    """
    known: dict[str, Collection[str]] = {}
    for what, key in (('image', 'img_path'), ('mask', 'seg_map_path')):
        wanted = [one for one in samples if isinstance(one.get(key), str) and '://' not in one[key]]
        if not (masks if what == 'mask' else images):
            continue
        gone = [one for one in wanted if not _is_there(one[key], known)]
        instead = Counter(suffix for one in gone if (suffix := _other_suffix(one[key], known)))
        if instead:
            text = f'{instead.total():,} of {len(wanted):,} {what}s have another suffix ({_shares(instead)}) than '
            text += f'{os.path.splitext(gone[0][key])[1]!r}, which the dataset looks for: rename or convert them'
            yield error(f'{what} with another suffix', os.path.dirname(gone[0][key]), '', text)
        for one in gone:
            item = f'image id {one["img_id"]}' if what == 'image' and 'img_id' in one else ''
            yield error(f'missing {what}', one[key], item, 'does not exist')


def _listed_folder(dataset) -> str | None:
    """Return the folder whose images a dataset lists by suffix, None if a file lists them."""
    ann_file, prefix = getattr(dataset, 'ann_file', ''), getattr(dataset, 'data_prefix', None)
    if (ann_file and not os.path.isdir(ann_file)) or not isinstance(prefix, Mapping) or not _suffixes(dataset):
        return None
    folder = prefix.get('img_path')
    return folder if isinstance(folder, str) and os.path.isdir(folder) else None


def _suffixes(dataset) -> tuple[str, ...]:
    if hasattr(dataset, 'extensions'):
        return tuple(dataset.extensions)
    return (dataset.img_suffix,) if hasattr(dataset, 'img_suffix') and hasattr(dataset, 'seg_map_suffix') else ()


def _left_out(dataset, folder: str, *, classes: bool) -> tuple[Counter, int, int]:
    """Count the images below a folder.

    An image of the same name as one that is listed is not left out: the raw file of a camera, a mask.

    Returns:
        numbers of those left out by suffix, number of those listed, number of those beside the class folders.
    """
    suffixes = _suffixes(dataset)
    caseless = hasattr(dataset, 'extensions')
    others = {os.path.realpath(one) for one in dataset.data_prefix.values() if one and isinstance(one, str)}
    same = os.path.realpath(dataset.data_prefix.get('seg_map_path') or '') == os.path.realpath(folder)
    masks = getattr(dataset, 'seg_map_suffix', None) if same else None
    counts, listed, beside = Counter(), 0, 0
    places: dict[str, list[str]] = {}
    for place, name in _files(folder, skip=others - {os.path.realpath(folder)}):
        places.setdefault(place, []).append(name)
    for place, names in places.items():
        if classes and place == folder:
            beside = sum(_is_image(name) for name in names)
            continue
        good = {name for name in names if (name.lower() if caseless else name).endswith(suffixes)}
        stems = {_stem(name) for name in good}
        listed += len(good)
        end = '' if caseless else _stem(suffixes[0]).lower()  # of '_rgb.png', only *_rgb.* can be meant
        for name in {*names} - good:
            is_mask = masks and name.endswith(masks)
            if _is_image(name) and not is_mask and _stem(name) not in stems and _stem(name).lower().endswith(end):
                counts[os.path.splitext(name)[1]] += 1
    return counts, listed, beside


def _files(folder: str, skip: Collection[str] = ()) -> Iterator[tuple[str, str]]:
    """Yield the folder and name of each file below a folder, as mmengine lists them: no hidden ones; links followed."""
    for place, folders, names in os.walk(folder, followlinks=True):
        if skip:
            folders[:] = [name for name in folders if os.path.realpath(os.path.join(place, name)) not in skip]
        yield from ((place, name) for name in names if not name.startswith('.'))


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGES)


def _stem(name: str) -> str:
    return os.path.splitext(name)[0] if not name.startswith('.') else ''


def _is_there(path: str, known: dict[str, Collection[str]]) -> bool:
    folder, name = os.path.split(path)
    if folder not in known:
        known[folder] = frozenset(os.listdir(folder or '.')) if os.path.isdir(folder or '.') else ()
    return name in known[folder] or os.path.exists(path)  # a file system may know the same name in another case


def _other_suffix(path: str, known: dict[str, Collection[str]]) -> str | None:
    folder, name = os.path.split(path)
    names = known[folder]
    return next((end for one in IMAGES for end in (one, one.upper()) if os.path.splitext(name)[0] + end in names), None)


def _share(counts: Counter, listed: int) -> str:
    return f'{counts.total():,} of {counts.total() + listed:,} images have other suffixes ({_shares(counts)})'


def _shares(counts: Counter) -> str:
    return ', '.join(f'{suffix} {count:,}' for suffix, count in counts.most_common())
