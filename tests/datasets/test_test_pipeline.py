"""Images are loaded as the test pipeline of a config loads them, whatever it says of orientation, colours and type."""

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image, ImageOps

from mmsb.datasets import test_pipeline
from mmsb.datasets.loading import BadImageError
from mmsb.datasets.test_pipeline import ImagePipeline, to_8_bit

RANDOM = np.random.default_rng(0)


def pipeline(*steps, channels: int = 3) -> ImagePipeline:
    dataset = dict(type='ImageNet', pipeline=[*steps, dict(type='PackInputs')])
    return ImagePipeline(
        Config(dict(default_scope='mmpretrain', test_dataloader=dict(dataset=dataset))), channels=channels
    )


@pytest.fixture(scope='module')
def files(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp('files')
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: shown turned by 90 degrees
    smooth = np.linspace(0, 255, 20 * 30 * 3).reshape(20, 30, 3).astype(np.uint8)
    Image.fromarray(smooth).save(folder / 'turned.jpg', exif=exif, quality=100)
    Image.fromarray(RANDOM.integers(0, 256, (20, 30, 4), dtype=np.uint8), 'RGBA').save(folder / 'rgba.png')
    Image.fromarray(RANDOM.integers(0, 2**16, (20, 30), dtype=np.uint16)).save(folder / 'wide.png')
    Image.fromarray(RANDOM.integers(0, 256, (20, 30), dtype=np.uint8)).save(folder / 'grey.png')
    tifffile = pytest.importorskip('tifffile')
    tifffile.imwrite(folder / 'six.tif', RANDOM.integers(0, 256, (20, 30, 6), dtype=np.uint8), photometric='minisblack')
    return {path.stem: str(path) for path in folder.iterdir()}


def turned(path: str) -> np.ndarray:
    return np.asarray(ImageOps.exif_transpose(Image.open(path)))


def raw(path: str) -> np.ndarray:
    return np.asarray(Image.open(path))


def read_tiff(path: str) -> np.ndarray:
    import tifffile

    return tifffile.imread(path)


BGR = np.s_[..., ::-1]
LOADED = {  # file, options of the transform, what Pillow or tifffile makes of it
    'turned by default': ('turned', {}, lambda path: turned(path)[BGR]),
    'unturned': ('turned', dict(color_type='color_ignore_orientation'), lambda path: raw(path)[BGR]),
    'unchanged': ('turned', dict(color_type='unchanged'), lambda path: raw(path)[BGR]),
    'by Pillow, which mmcv lets turn': (
        'turned', dict(imdecode_backend='pillow'), lambda path: turned(path)[BGR],
    ),
    'by Pillow, unturned': (
        'turned', dict(imdecode_backend='pillow', color_type='color_ignore_orientation'), lambda path: raw(path)[BGR],
    ),
    'four channels': ('rgba', dict(color_type='unchanged'), lambda path: raw(path)[..., [2, 1, 0, 3]]),
    'three of four channels': ('rgba', {}, lambda path: raw(path)[..., [2, 1, 0]]),
    'sixteen bits': ('wide', dict(color_type='unchanged'), raw),
    'grey': ('grey', dict(color_type='grayscale'), raw),
    'grey as colours': ('grey', {}, lambda path: raw(path)[..., None].repeat(3, -1)),
    'as floats': ('rgba', dict(to_float32=True), lambda path: raw(path)[..., [2, 1, 0]].astype(np.float32)),
    'six channels': ('six', dict(imdecode_backend='tifffile'), read_tiff),
}  # fmt: skip


@pytest.mark.parametrize('kind', ['LoadImageFromFile', 'mmsb.LoadImage'])
@pytest.mark.parametrize('case', LOADED)
def test_what_the_config_says_is_loaded(case, kind, files):
    name, options, oracle = LOADED[case]
    loaded = pipeline(dict(type=kind, **options)).load(files[name])
    wanted = oracle(files[name])
    assert loaded['img'].dtype == wanted.dtype
    assert loaded['img'].shape == wanted.shape
    tolerance = 3 if name == 'turned' else 0  # decoders of JPEG round differently
    assert np.abs(loaded['img'].astype(float) - wanted).max() <= tolerance
    assert loaded['ori_shape'] == wanted.shape[:2]


def test_a_dataset_of_arrays_gets_rgb_or_grey(files):
    np.testing.assert_array_equal(pipeline().load(files['rgba'])['img'], raw(files['rgba'])[..., :3])
    np.testing.assert_array_equal(pipeline(channels=1).load(files['grey'])['img'], raw(files['grey']))


@pytest.mark.parametrize(
    ('options', 'wanted'),
    [
        (dict(), lambda bgr: bgr),
        (dict(to_float32=True), lambda bgr: bgr.astype(np.float32)),
        (dict(color_type='grayscale'), lambda bgr: np.rint(bgr @ (0.114, 0.587, 0.299)).astype(np.uint8)),
        (dict(imdecode_backend='tifffile'), lambda bgr: bgr[..., ::-1]),
    ],
)
def test_an_image_in_memory_is_what_loading_would_give(options, wanted):
    bgr = RANDOM.integers(0, 256, (8, 9, 3), dtype=np.uint8)
    found = pipeline(dict(type='LoadImageFromFile', **options)).of_pixels(bgr)
    assert found['img'].dtype == wanted(bgr).dtype
    assert np.abs(found['img'].astype(float) - wanted(bgr)).max() <= (1 if 'color_type' in options else 0)
    assert found['img_shape'] == (8, 9)


def test_files_are_local_wherever_the_dataset_has_its_own(files):
    step = dict(type='LoadImageFromFile', backend_args=dict(backend='http'))
    assert pipeline(step).load(files['grey'])['img'].shape == (20, 30, 3)


@pytest.mark.parametrize('kind', ['LoadImageFromFile', 'mmsb.LoadImage'])
def test_a_truncated_file_is_damaged(kind, tmp_path):
    Image.fromarray(RANDOM.integers(0, 256, (200, 300, 3), dtype=np.uint8)).save(tmp_path / 'half.jpg')
    content = (tmp_path / 'half.jpg').read_bytes()
    (tmp_path / 'half.jpg').write_bytes(content[: len(content) // 2])
    with pytest.raises(BadImageError, match=r"image '.*half\.jpg' is damaged"):
        pipeline(dict(type=kind)).load(tmp_path / 'half.jpg')


def test_what_a_test_has_read_is_read_again(files, monkeypatch):
    """Older versions of OpenCV read a truncated file, with grey in the place of what is missing."""
    monkeypatch.setattr(test_pipeline, 'missing_pixels', lambda path: 'is damaged')
    load = pipeline(dict(type='LoadImageFromFile')).load
    with pytest.raises(BadImageError, match='is damaged'):
        load(files['grey'])
    assert load(files['grey'], whole=False)['img'].shape == (20, 30, 3)


@pytest.mark.parametrize('options', [{}, dict(on_error='skip')])
def test_what_is_no_image_is_named(options, tmp_path):
    (tmp_path / 'text.png').write_text('no image')
    load = pipeline(dict(type='mmsb.LoadImage' if options else 'LoadImageFromFile', **options)).load
    with pytest.raises(BadImageError, match=r"^image '.*text\.png' is not an image: it starts with b'no image'$"):
        load(tmp_path / 'text.png')
    with pytest.raises(BadImageError, match=r"^image '.*nothing\.png' cannot be read: No such file or directory$"):
        load(tmp_path / 'nothing.png')


def test_a_look_at_any_image():
    np.testing.assert_array_equal(to_8_bit(np.array([[0, 4095]], np.uint16)), [[[0] * 3, [255] * 3]])
    np.testing.assert_array_equal(to_8_bit(np.array([[-3.0, 260.4]])), [[[0] * 3, [255] * 3]])
    np.testing.assert_array_equal(to_8_bit(np.full((1, 1, 3), 7.4, np.float32)), [[[7] * 3]])
    assert to_8_bit(np.zeros((2, 3, 6), np.uint8)).shape == to_8_bit(np.zeros((2, 3, 2))).shape == (2, 3, 3)
    assert to_8_bit(np.full((2, 2), 1000.0)).max() == 0


def test_a_config_without_a_test_pipeline():
    with pytest.raises(ValueError, match=r'has no test_dataloader\.dataset\.pipeline'):
        ImagePipeline(Config(dict(default_scope='mmpretrain')))
