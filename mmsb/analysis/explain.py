"""A page that shows which cells of a picture feed which cells of the bias maps: one file, without network access."""

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from mmsb.analysis.bias_maps import BlockMaps
from mmsb.analysis.trained import Answer, Picture

TEMPLATE = Path(__file__).with_name('explain.html')
MAX_BYTES = 5_000_000
_MAX_SIDE_PX = 1024  # of the picture on the page
_LOSSLESS_PX = 256**2  # smaller pictures are stored as PNG
_STEPS = 2**15 - 1  # of a weight of 16 bits, up to the largest


def choose_blocks(blocks: Sequence[BlockMaps], names: Sequence[str] | None = None) -> list[BlockMaps]:
    """Choose the blocks to explain: those of these names, or all that mix positions.

    Args:
        blocks: from `bias_maps.record`.
        names: of blocks ('layer2.0') or stages ('layer2'); None: all.

    Raises:
        ValueError: for an unknown name, and where no block mixes positions (mix=False).
    """
    mixing = [block for block in blocks if block.weight is not None]
    if not mixing:
        raise ValueError('no block mixes positions (mix=False): each cell of a map is fed by itself alone')
    if names is None:
        return mixing
    known = {name: None for block in mixing for name in (block.stage, block.name)}
    for name in names:
        if name not in known:
            raise ValueError(f'no block with spatial bias is named {name!r}; valid: {", ".join(known)}')
    return [block for block in mixing if {block.stage, block.name} & set(names)]


def make_page(blocks: Sequence[BlockMaps], picture: Picture, answer: Answer, subtitle: str) -> str:
    """Write the page as HTML in ASCII, with all data in it.

    Weights are stored with 32 bits, or with 16 where the page would pass MAX_BYTES.

    Args:
        blocks: from `choose_blocks`.
        picture: the picture.
        answer: of the network.
        subtitle: which network and picture these are.

    Raises:
        ValueError: the page would be larger than MAX_BYTES with 16 bits too.
    """
    height, width = picture.pixels.shape[:2]
    image = dict(source=_as_url(picture.pixels), name=Path(picture.path).name, width=width, height=height)
    page = ''
    for exact in (True, False):
        content = dict(
            subtitle=subtitle, image=image, answer=asdict(answer), blocks=[_as_data(block, exact) for block in blocks]
        )
        text = json.dumps(content).replace('</', '<\\/')  # which would end the script element
        page = TEMPLATE.read_text(encoding='ascii').replace('@DATA@', text)
        if len(page) <= MAX_BYTES:
            return page
    size = f'{len(page) / 1e6:.1f} MB, more than {MAX_BYTES / 1e6:.0f} MB'
    raise ValueError(f'the page of {len(blocks)} blocks would have {size}: name fewer blocks')


def _as_data(block: BlockMaps, exact: bool) -> dict:
    weight = block.weight.double().numpy()
    step = 0.0 if exact else float(np.abs(weight).max() / _STEPS)
    stored = np.rint(weight / step).astype('<i2') if step else weight.astype('<f4')
    return dict(
        name=block.name,
        stage=block.stage,
        side=block.maps.shape[-1],
        maps=len(block.maps),
        taps=weight.shape[2],
        step=step,  # weights are multiples of it; 0: they are floats
        weight=_base64(stored.tobytes()),
        bias=_floats(block.bias),
        pooled=_floats(block.pooled),
    )


def _floats(values: Tensor) -> str:
    return _base64(values.float().numpy().astype('<f4').tobytes())


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode('ascii')


def _as_url(pixels: np.ndarray) -> str:
    """Encode RGB pixels, (H, W, 3), as a data URL."""
    picture = Image.fromarray(pixels)
    picture.thumbnail((_MAX_SIDE_PX, _MAX_SIDE_PX))
    kind = 'png' if pixels.shape[0] * pixels.shape[1] <= _LOSSLESS_PX else 'jpeg'
    content = io.BytesIO()
    picture.save(content, kind, **(dict(optimize=True) if kind == 'png' else dict(quality=88)))
    return f'data:image/{kind};base64,{_base64(content.getvalue())}'
