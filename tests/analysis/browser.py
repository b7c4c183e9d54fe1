"""The page of explain in a browser: `make test-browser`, which `make test` leaves out.

The numbers on the page are recomputed here, by loops over the weights and activations that the network itself has.
"""

import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from mmsb.analysis import bias_maps, explain, trained
from mmsb.configs import load_trained

NAMES = ('chromium', 'chromium-browser', 'google-chrome', 'chrome')
DESKTOP, PHONE = dict(width=1200, height=900), dict(width=375, height=812)
SCREENSHOTS = os.environ.get('SCREENSHOTS')  # a folder to keep them in


def chromium() -> str:
    found = os.environ.get('CHROMIUM') or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.exit('needs Chromium: install it (`apt install chromium`) or name it in CHROMIUM', returncode=1)
    return found


@pytest.fixture(scope='module')
def browser():
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium(), args=['--no-sandbox', '--disable-gpu'])
        yield started
        started.close()


@pytest.fixture(scope='module')
def explained(digits, tmp_path_factory):
    """Path of the page, and the blocks, recorded anew."""
    cfg = Config.fromfile(digits.config)
    model = load_trained(cfg, str(digits.checkpoint))
    picture = trained.read_picture(cfg, model, digits.image)
    blocks = bias_maps.record(model.backbone, picture.inputs)
    answer = trained.answer_of(model, picture, [f'digit {i}' for i in range(10)])
    path = tmp_path_factory.mktemp('page') / 'page.html'
    path.write_text(explain.make_page(blocks, picture, answer, 'a test'))
    return path, blocks, answer


@pytest.fixture
def page(browser, explained):
    yield from opened(browser, explained[0], viewport=DESKTOP)


def opened(browser, path, **options):
    """Open the page; it must ask for nothing else and log no error."""
    context = browser.new_context(**options)
    page = context.new_page()
    said, asked = [], []
    page.on('console', lambda message: said.append(message.text))
    page.on('pageerror', lambda error: said.append(str(error)))
    page.on('request', lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    yield page
    context.close()
    assert said == []
    assert [url for url in asked if not url.startswith('data:')] == [path.as_uri()]


def numbers(text: str) -> list[float]:
    """Read the numbers of a text as the page writes them, with a minus sign of its own."""
    text = text.replace('\u2212', '-').replace('- ', '-').replace('+ ', '+')
    return [float(found) for found in re.findall(r'[+-]?\d+(?:\.\d+)?(?:e-?\d+)?', text)]


def same(shown: float, value: float) -> bool:
    """Tell whether a number is a value, rounded to three digits."""
    return shown == float(f'{value:.2e}')


def contributions(block: bias_maps.BlockMaps, index: int, to: int) -> list[float]:
    """Multiply and add, one cell and one tap at a time."""
    pooled, weight = block.pooled.double().flatten(1), block.weight.double()
    cells, taps = range(pooled.shape[1]), range(weight.shape[2])
    return [sum(float(weight[to, start, tap] * pooled[index + tap, start]) for tap in taps) for start in cells]


def check(page: Page, block: bias_maps.BlockMaps, index: int, cell: int) -> None:
    """Compare everything that the page says about a cell with a recomputation."""
    parts = contributions(block, index, cell)
    side = block.maps.shape[-1]
    row, column = divmod(cell, side)
    title = f'Map {index + 1} of {block.name}, row {row + 1}, column {column + 1}'
    assert page.locator('#cell-title').inner_text() == title
    more, less = ([part for part in parts if part * sign > 0] for sign in (1, -1))
    bias = float(block.bias[cell])
    value, shown_bias, shown_more, count_more, shown_less, count_less = numbers(page.locator('#sum').inner_text())
    assert same(value, sum(parts) + bias)
    assert value == pytest.approx(float(block.maps[index, row, column]), rel=6e-3), 'as the network computes it'
    assert same(shown_bias, bias)
    assert same(shown_more, sum(more))
    assert same(shown_less, sum(less))
    assert (count_more, count_less) == (len(more), len(less))
    strongest = sorted(range(side**2), key=lambda start: -abs(parts[start]))[:6]
    lines = page.locator('#strongest tr').all()
    assert len(lines) == 6
    for start, line in zip(strongest, lines, strict=True):
        place, terms, part = (cell.inner_text() for cell in line.locator('td').all())
        assert place == f'row {start // side + 1}, column {start % side + 1}'
        assert same(numbers(part)[0], parts[start])
        if terms:  # a phone has no room for them
            factors = numbers(terms)
            pooled = block.pooled.flatten(1)[index : index + 3, start]
            wanted = torch.stack([block.weight[cell, start], pooled], dim=1).flatten()
            assert all(same(shown, float(value)) for shown, value in zip(factors, wanted, strict=True))
    most = max(map(abs, parts))
    assert same(numbers(page.locator('#high').inner_text())[0], most)
    for start, drawn in enumerate(page.locator('#picture .cell').all()):
        style = drawn.get_attribute('style')
        share = float(re.search(r'([\d.]+)%', style)[1]) / 100
        assert share == pytest.approx(abs(parts[start]) / most * 0.85, abs=6e-4)
        assert share == 0 or ('--minus' in style) == (parts[start] < 0)


def test_hover_and_click(page, explained):
    _, blocks, _ = explained
    for grid, cell in (('#picture', 0), ('#picture', 22), ('#map', 35)):
        page.locator(f'{grid} .cell').nth(cell).hover()
        check(page, blocks[0], 0, cell)
        for other in ('#picture', '#map'):
            target = page.locator(f'{other} .cell.target')
            assert target.count() == 1
            assert target.get_attribute('data-cell') == str(cell)


def test_sliders_and_thumbnails(page, explained):
    _, blocks, _ = explained
    assert page.locator('#stage').get_attribute('max') == '1'
    assert page.locator('#block').is_disabled(), 'one block a stage'
    page.locator('#index').focus()
    page.keyboard.press('ArrowRight')
    check(page, blocks[0], 1, 0)
    page.locator('#stage').fill('1')
    assert page.locator('#stage-name').inner_text() == 'layer2'
    check(page, blocks[1], 1, 0)
    page.locator('#thumbs button').nth(2).click()
    assert page.locator('#index').input_value() == '2'
    check(page, blocks[1], 2, 0)
    assert page.locator('#map-title').inner_text() == 'Map 3 of layer2.0'
    values = blocks[1].maps[2].flatten()
    assert same(numbers(page.locator('#map-high').inner_text())[0], float(values.abs().max()))
    for value, cell in zip(values.tolist(), page.locator('#map .cell').all(), strict=True):
        style = cell.get_attribute('style')
        share = float(re.search(r'([\d.]+)%', style)[1]) / 100
        assert share == pytest.approx(abs(value) / float(values.abs().max()), abs=6e-4)


def test_keyboard(page, explained):
    _, blocks, _ = explained
    page.locator('#index').focus()
    page.keyboard.press('Tab')  # into the grid over the picture
    assert page.evaluate('document.activeElement.closest("#picture") !== null')
    page.keyboard.press('ArrowUp')  # there is no row above
    check(page, blocks[0], 0, 0)
    for key in ('ArrowDown', 'ArrowDown', 'ArrowRight', 'End', 'ArrowLeft'):
        page.keyboard.press(key)
    check(page, blocks[0], 0, 2 * 6 + 4)
    focused = page.evaluate('document.activeElement.getAttribute("aria-label")')
    assert focused == 'row 3, column 5'
    page.keyboard.press('Home')
    check(page, blocks[0], 0, 2 * 6)


def test_one_scale_for_the_whole_map(page, explained):
    _, blocks, _ = explained
    page.locator('#same').check()
    most = max(abs(part) for to in range(36) for part in contributions(blocks[0], 0, to))
    for cell in (0, 20):
        page.locator('#picture .cell').nth(cell).hover()
        assert same(numbers(page.locator('#high').inner_text())[0], most)


def test_the_answer(page, explained):
    _, _, answer = explained
    shown = [line.inner_text().split('\n') for line in page.locator('#answer li').all()]
    assert [line[0] for line in shown] == [name for name, _ in answer.rows]
    assert [line[-1] for line in shown] == [f'{score * 100:.1f} %' for _, score in answer.rows]
    widths = [bar.bounding_box()['width'] for bar in page.locator('#answer .bar').all()]
    filled = [bar.bounding_box()['width'] for bar in page.locator('#answer .bar i').all()]
    shares = [one / whole for one, whole in zip(filled, widths, strict=True)]
    assert shares == pytest.approx([score for _, score in answer.rows], abs=0.01)


@pytest.mark.parametrize('scheme', ['light', 'dark'])
@pytest.mark.parametrize('device', ['desktop', 'phone'])
def test_touch_screenshots_and_width(device, scheme, browser, explained, tmp_path):
    path, blocks, _ = explained
    phone = device == 'phone'
    options = dict(viewport=PHONE if phone else DESKTOP, color_scheme=scheme, has_touch=phone, is_mobile=phone)
    for page in opened(browser, path, **options):
        cell = page.locator('#picture .cell').nth(13)
        cell.tap() if phone else cell.hover()
        check(page, blocks[0], 0, 13)
        width = page.evaluate('document.documentElement.scrollWidth')
        assert width <= options['viewport']['width'], 'nothing to scroll sideways'
        file = Path(SCREENSHOTS or tmp_path) / f'{device}-{scheme}.png'
        page.screenshot(path=file, full_page=True)
        with Image.open(file) as shot:
            assert (sum(shot.convert('RGB').getpixel((2, 2))) < 128 * 3) == (scheme == 'dark')
            assert len(shot.convert('RGB').getcolors(2**20)) > 100
