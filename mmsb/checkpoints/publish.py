"""Publish a checkpoint: keep some of its content, put a hash in the name, and describe it in a model card."""

import hashlib
import io
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mmsb.checkpoints.card import model_card
from mmsb.checkpoints.load import forget, load_checkpoint, load_state_dict
from mmsb.files import write_text, write_whole
from mmsb.options import choose
from mmsb.version import __version__

FORMATS = ('.pth', '.safetensors')
_HASH = re.compile(r'-[0-9a-f]{8}$')
_BACKBONE = 'backbone.'
_LENGTH_BYTES = 8  # of the header's length, in a .safetensors file


@dataclass(frozen=True)
class Published:
    """Files that `publish_weights` has written.

    Args:
        path: the weights.
        card: the model card.
        card_is_new: whether the card was written; one that was there is kept, because people edit it.
    """

    path: str
    card: str
    card_is_new: bool


def publish(path: str, keys: Iterable[str]) -> str:
    """Write a copy of a checkpoint, with only some of its keys, beside it.

    Returns:
        the path, NAME-HASH.pth, where HASH is the first eight digits of the SHA-256, as verified by `download.fetch`.
    """
    keys = set(keys)
    kept = {key: value for key, value in load_checkpoint(path).items() if key in keys}
    return _write(os.path.splitext(path)[0], '.pth', _torch_file(kept))


def publish_weights(checkpoint: str | os.PathLike, out: str | os.PathLike, *, backbone: bool = False) -> Published:
    """Write the weights of a checkpoint, without optimizer and logs, and a model card beside them.

    Of the rest only the names and colours of the classes are kept. The same weights give the same name.

    Args:
        checkpoint: file or URL.
        out: NAME.pth or NAME.safetensors; the files are NAME-HASH.pth and NAME-HASH.md.
        backbone: whether to keep only the backbone of a network, under the names of a backbone alone.

    Raises:
        FileNotFoundError: the checkpoint or the output folder does not exist.
        ValueError: `out` ends otherwise, or the checkpoint can't be read or has no such weights.
    """
    out = Path(out)
    choose('the suffix of the output', out.suffix, FORMATS)
    if not out.parent.is_dir():
        raise FileNotFoundError(f'the folder of the output {str(out)!r} does not exist')
    content = load_checkpoint(checkpoint, keep=True)
    state = load_state_dict(checkpoint, keep=True)
    forget()
    if backbone:
        state = {key.removeprefix(_BACKBONE): value for key, value in state.items() if key.startswith(_BACKBONE)}
        if not state:
            raise ValueError(f'checkpoint {os.fspath(checkpoint)!r} has no weights named {_BACKBONE}*')
    state = {key: value.detach().clone().contiguous() for key, value in state.items()}
    meta = content['meta'] if isinstance(content.get('meta'), dict) else {}
    kept = {'mmsb_version': __version__}
    if isinstance(meta.get('dataset_meta'), dict) and not backbone:
        kept['dataset_meta'] = meta['dataset_meta']
    file = _torch_file(dict(meta=kept, state_dict=state)) if out.suffix == '.pth' else _safetensors_file(state, kept)
    path = _write(str(out.with_name(_HASH.sub('', out.stem))), out.suffix, file)
    card = Path(path).with_suffix('.md')
    is_new = not card.exists()
    if is_new:
        write_text(card, model_card(path, content, checkpoint=os.fspath(checkpoint), backbone=backbone))
    return Published(path, str(card), is_new)


def _torch_file(content: dict) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def _safetensors_file(state: dict[str, Tensor], meta: dict) -> bytes:
    from safetensors.torch import save

    texts = {key: json.dumps(value, default=lambda array: array.tolist()) for key, value in meta.items()}
    content = save(state, metadata={'format': 'pt', **texts})
    end = _LENGTH_BYTES + int.from_bytes(content[:_LENGTH_BYTES], 'little')
    header = json.loads(content[_LENGTH_BYTES:end])
    header['__metadata__'] = dict(sorted(header['__metadata__'].items()))  # the library's order is random
    text = json.dumps(header, separators=(',', ':')).encode()
    text += b' ' * (-len(text) % _LENGTH_BYTES)  # the tensors stay aligned
    return len(text).to_bytes(_LENGTH_BYTES, 'little') + text + content[end:]


def _write(stem: str, suffix: str, content: bytes) -> str:
    path = f'{stem}-{hashlib.sha256(content).hexdigest()[:8]}{suffix}'
    write_whole(path, lambda unfinished: unfinished.write_bytes(content))
    return path
