"""LoadImage gives 8-bit BGR for any file, an error that names the file, or another sample; tested in real datasets."""

import io
import logging

import cv2
import mmcv
import numpy as np
import pytest
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import DATASETS, init_default_scope
from PIL import Image
from torch.utils.data import DataLoader

from mmsb.datasets.check import check_data
from mmsb.datasets.loading import LoadImage
from mmsb.registry import TRANSFORMS

SIZE_PX = (40, 30)  # width, height
COLOUR = (200, 120, 40)  # red, green, blue


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def plain(mode: str = 'RGB') -> Image.Image:
    return Image.new('RGB', SIZE_PX, COLOUR).convert(mode)


def noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (*SIZE_PX[::-1], 3), np.uint8))


def wide(channels: int, kind: str) -> bytes:
    values = [256 * value + 77 for value in COLOUR[::-1]] if channels == 3 else 256 * 99 + 77
    image = np.full((*SIZE_PX[::-1], 3) if channels == 3 else SIZE_PX[::-1], values, np.uint16)
    return cv2.imencode(kind, image)[1].tobytes()


def floats(value: float) -> bytes:
    return encoded(Image.fromarray(np.full(SIZE_PX[::-1], value, np.float32)), 'TIFF')


def npy() -> bytes:
    file = io.BytesIO()
    np.save(file, np.full((4, 4), np.nan))
    return file.getvalue()


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def loaded(path, content: bytes, **options) -> np.ndarray:
    path.write_bytes(content)
    return LoadImage(**options)(dict(img_path=str(path)))['img']


READABLE = {
    'jpeg': (encoded(plain(), 'JPEG', quality=95), COLOUR, 3),
    'grey jpeg': (encoded(Image.new('L', SIZE_PX, 99), 'JPEG'), (99, 99, 99), 2),
    'cmyk jpeg': (encoded(plain('CMYK'), 'JPEG', quality=95), COLOUR, 6),
    'png': (encoded(plain(), 'PNG'), COLOUR, 0),
    'palette png': (encoded(plain().quantize(4), 'PNG'), COLOUR, 4),
    'bits png': (encoded(Image.new('1', SIZE_PX, 1), 'PNG'), (255, 255, 255), 0),
    'alpha png': (encoded(plain('RGBA'), 'PNG'), COLOUR, 0),
    'grey alpha png': (encoded(Image.new('LA', SIZE_PX, (99, 128)), 'PNG'), (99, 99, 99), 0),
    '16-bit png': (wide(3, '.png'), COLOUR, 0),
    '16-bit grey png': (wide(1, '.png'), (99, 99, 99), 0),
    '16-bit tiff': (wide(3, '.tiff'), COLOUR, 0),
    'cmyk tiff': (encoded(plain('CMYK'), 'TIFF'), COLOUR, 4),
    'webp': (encoded(plain(), 'WEBP', lossless=True), COLOUR, 0),
    'bmp': (encoded(plain(), 'BMP'), COLOUR, 0),
    'gif': (encoded(plain(), 'GIF'), COLOUR, 4),
    'animated gif': (encoded(plain(), 'GIF', save_all=True, append_images=[Image.new('RGB', SIZE_PX)]), COLOUR, 4),
    'jpeg with a trailer': (encoded(plain(), 'JPEG', quality=95) + bytes(999), COLOUR, 3),
}
UNREADABLE = {
    'zero bytes': (b'', 'is empty'),
    'text': (b'<!DOCTYPE html>', 'is not an image'),
    'numpy': (npy(), 'is not an image'),
    'nan': (floats(float('nan')), 'floating-point'),
    'floats': (floats(0.5), 'floating-point'),
    'half a jpeg': (half(encoded(noise(), 'JPEG')), 'is damaged'),
    'half a png': (half(encoded(noise(), 'PNG')), 'is damaged'),
    'half a webp': (half(encoded(noise(), 'WEBP')), 'is damaged'),
    'half a bmp': (half(encoded(noise(), 'BMP')), 'is damaged'),
    'half a tiff': (half(encoded(noise(), 'TIFF')), 'is damaged'),
    'half a gif': (half(encoded(noise(), 'GIF')), 'is damaged'),
    'bomb': (encoded(Image.new('1', (20_000, 20_000)), 'PNG'), 'too many pixels|more than max_pixels'),
}


@pytest.mark.parametrize('name', READABLE)
def test_all_kinds_become_8_bit_bgr(name, tmp_path):
    content, colour, tolerance = READABLE[name]
    image = loaded(tmp_path / 'image', content)
    assert (image.shape, image.dtype) == ((*SIZE_PX[::-1], 3), np.uint8)
    assert np.abs(image.reshape(-1, 3)[:, ::-1].astype(int) - colour).max() <= tolerance


@pytest.mark.parametrize('name', UNREADABLE)
def test_an_error_names_the_file_in_one_line(name, tmp_path):
    content, said = UNREADABLE[name]
    with pytest.raises(ValueError, match=said) as error:
        loaded(tmp_path / 'image', content)
    assert repr(str(tmp_path / 'image')) in str(error.value)
    assert '\n' not in str(error.value)


def test_a_sound_image_is_mmcvs(tmp_path):
    content = encoded(noise(), 'JPEG')
    assert np.array_equal(loaded(tmp_path / 'image', content), mmcv.imfrombytes(content))
    assert loaded(tmp_path / 'image', content, to_float32=True).dtype == np.float32
    assert loaded(tmp_path / 'image', wide(3, '.png'), color_type='unchanged').dtype == np.uint16


def test_options_are_checked(tmp_path):
    with pytest.raises(ValueError, match=r"on_error must be one of \['raise', 'skip'\], got 'ignore'"):
        LoadImage(on_error='ignore')
    with pytest.raises(ValueError, match='max_pixels must be an integer of at least 1, got 0'):
        LoadImage(max_pixels=0)
    with pytest.raises(ValueError, match='40 x 30 px, more than max_pixels=1,199'):
        loaded(tmp_path / 'image', encoded(plain(), 'PNG'), max_pixels=1199)
    with pytest.raises(ValueError, match='cannot be read'):
        TRANSFORMS.build(dict(type='mmsb.LoadImage'))(dict(img_path=str(tmp_path / 'absent')))


def folders(root, on_error: str, *, test_mode: bool = False):
    for name in 'ab':
        for number in range(6):
            path = root / 'train' / name / f'{number}.jpg'
            path.parent.mkdir(parents=True, exist_ok=True)
            content = encoded(noise(), 'JPEG')
            path.write_bytes(half(content) if number == 0 else content)
    load = dict(type='mmsb.LoadImage', on_error=on_error)
    return dict(type='CustomDataset', data_root=str(root), data_prefix='train', pipeline=[load], test_mode=test_mode)


def read_all(dataset, workers: int) -> list[str]:
    loader = DataLoader(dataset, batch_size=None, num_workers=workers, persistent_workers=workers > 0)
    return [sample['img_path'] for _ in range(2) for sample in loader]


@pytest.mark.parametrize('workers', [0, 2])
def test_a_dataset_takes_other_samples(workers, tmp_path, capfd):
    init_default_scope('mmpretrain')
    MMLogger.get_instance(f'loading-{workers}', log_file=str(tmp_path / 'run.log'), log_level=logging.INFO)
    dataset = DATASETS.build(folders(tmp_path, 'skip'))
    paths = read_all(dataset, workers)
    assert len(paths) == 24
    assert not any(path.endswith('/0.jpg') for path in paths)
    assert dataset.pipeline.transforms[0].skipped_files == 2
    said = (tmp_path / 'run.log').read_text()
    assert all(said.count(str(tmp_path / f'train/{name}/0.jpg')) == 1 for name in 'ab')


@pytest.mark.parametrize('workers', [0, 2])
def test_a_dataset_names_the_file(workers, tmp_path):
    init_default_scope('mmpretrain')
    with pytest.raises(ValueError, match=r"image '.*/train/a/0.jpg' is damaged"):
        read_all(DATASETS.build(folders(tmp_path, 'raise')), workers)


def test_in_a_test_nothing_is_skipped(tmp_path):
    init_default_scope('mmpretrain')
    with pytest.raises(Exception, match='None'):
        read_all(DATASETS.build(folders(tmp_path, 'skip', test_mode=True)), 0)


def test_the_check_of_the_data_reads_as_it_does(tmp_path):
    cfg = dict(default_scope='mmpretrain', model=dict(head=dict(num_classes=2)))
    cfg['train_dataloader'] = dict(dataset=folders(tmp_path, 'skip'))
    (tmp_path / 'train/b/1.jpg').write_bytes(floats(0.5))
    (report,) = check_data(Config(cfg))
    files = sorted(one.file.partition('train/')[2] for one in report.findings if one.level == 'error')
    assert files == ['a/0.jpg', 'b/0.jpg', 'b/1.jpg']


@pytest.mark.parametrize('library', ['mmdet', 'mmseg'])
def test_other_libraries_take_other_samples_too(library, tmp_path):
    folders(tmp_path, 'skip')
    init_default_scope(library)
    load = dict(type='mmsb.LoadImage', on_error='skip')
    images = [dict(img_path=str(tmp_path / f'train/a/{i}.jpg'), instances=[]) for i in range(6)]
    dataset = DATASETS.build(dict(type='BaseDetDataset' if library == 'mmdet' else 'BaseSegDataset', lazy_init=True,
                                  serialize_data=False, pipeline=[load]))  # fmt: skip
    dataset.data_list, dataset._fully_initialized = images, True
    assert not any(path.endswith('/0.jpg') for path in read_all(dataset, 0))
    assert dataset.pipeline.transforms[0].skipped_files == 1
