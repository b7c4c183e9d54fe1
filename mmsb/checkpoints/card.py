"""Model cards: what a checkpoint says of itself, in Markdown, with a mark where its author has to fill in something.

The config in a checkpoint is read as text and never executed.
"""

import ast
import json
import os
import re
from collections.abc import Mapping
from numbers import Real
from pathlib import Path

from mmengine.logging import HistoryBuffer

from mmsb.checkpoints.load import load_state_dict
from mmsb.files import sha256_of
from mmsb.version import __version__

TO_FILL = '**To be filled in:**'
_SECTIONS = ('default_scope', 'data_preprocessor', 'model', 'train_cfg', 'optim_wrapper', 'param_scheduler')
_NOT_METRICS = ('data_time', 'time', 'step')
_GIT_HASH = re.compile(r'([0-9a-f]{40}|unknown)$')  # mmengine adds that of the current folder to its version
_BUFFERS = ('running_mean', 'running_var', 'num_batches_tracked')


def model_card(path: str, content: Mapping, *, checkpoint: str, backbone: bool) -> str:
    """Describe a published file.

    Args:
        path: the file.
        content: the checkpoint that it was made from.
        checkpoint: path or URL of that checkpoint.
        backbone: whether the file holds the backbone only.
    """
    meta = content['meta'] if isinstance(content.get('meta'), Mapping) else {}
    state = load_state_dict(path)
    config = config_of(meta)
    name, stamp = _experiment(meta)
    counted = sum(value.numel() for key, value in state.items() if not key.endswith(_BUFFERS))
    size = os.path.getsize(path)
    facts = {
        'file': f'`{os.path.basename(path)}`, {size / 1e6:.1f} MB',
        'SHA-256': f'`{sha256_of(path)}`',
        'holds': f'{"the backbone" if backbone else "all weights"}: {len(state)} tensors, {counted:,} parameters',
        'made from': f'`{os.path.basename(checkpoint)}`, by mmsb {__version__}',
        'trained': _training(meta),
    }
    lines = [f'# {Path(path).stem}', '', f'{TO_FILL} what the network does, and for whom.', '']
    lines += ['| | |', '|---|---|', *(f'| {key} | {value} |' for key, value in facts.items() if value), '']
    lines += ['## Use', '', *_use(path, backbone), '']
    lines += ['## Config', '', *_config_section(name, config), '']
    lines += ['## Metrics', '', *_metrics_section(content, checkpoint, stamp), '']
    lines += ['## Data', '', *_data_section(meta, config), '']
    licence = f'{TO_FILL} the licence of the weights, and whether those of the data and of the weights it started from'
    lines += ['## Licence', '', f'{licence} allow it.']
    return '\n'.join(lines) + '\n'


def _experiment(meta: Mapping) -> tuple[str, str]:
    """Split the experiment's name, CONFIG_DATE_TIME, into the config's and the time stamp; empty if there is none."""
    parts = str(meta.get('experiment_name') or '').rsplit('_', 2)
    if len(parts) == 3 and parts[1].isdecimal() and parts[2].isdecimal():
        return parts[0], f'{parts[1]}_{parts[2]}'
    return '', ''


def _training(meta: Mapping) -> str:
    known = {'epoch': 'epochs', 'iter': 'iterations'}
    counts = [f'{meta[key]:,} {noun}' for key, noun in known.items() if isinstance(meta.get(key), int)]
    seed = [f'seed {meta["seed"]}'] if meta.get('seed') is not None else []
    version = _GIT_HASH.sub('', str(meta.get('mmengine_version') or ''))
    return ', '.join([*counts, *seed, *([f'MMEngine {version}'] if version else [])])


def _use(path: str, backbone: bool) -> list[str]:
    name = os.path.basename(path)
    if backbone:
        start = f"model = dict(backbone=dict(init_cfg=dict(type='Pretrained', checkpoint='{name}')))"
        return ['In the config of a network with this backbone:', '', '```python', start, '```']
    return ['```bash', f'python tools/test.py CONFIG {name}', '```']


def config_of(meta: Mapping) -> dict[str, str]:
    """Return the text of each top-level assignment of the config in a checkpoint."""
    text = meta.get('cfg') or meta.get('config')
    try:
        tree = ast.parse(text) if isinstance(text, str) else ast.parse('')
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # whatever the file holds in its place
        return {}
    return {
        node.targets[0].id: ast.get_source_segment(text, node) or ''
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }


def _config_section(name: str, config: Mapping[str, str]) -> list[str]:
    lines = [f'`{name}`' if name else f'{TO_FILL} the name of the config.']
    shown = [config[section] for section in _SECTIONS if section in config]
    return [*lines, '', '```python', *shown, '```'] if shown else lines


def _metrics_section(content: Mapping, checkpoint: str, stamp: str) -> list[str]:
    when, metrics = _metrics(content, checkpoint, stamp)
    if not metrics:
        return [f'{TO_FILL} metric, value, data set and command.']
    rows = [f'| {name} | {value:.4g} |' for name, value in metrics.items()]
    return [f'| {when} | value |', '|---|---|', *rows, '', f'{TO_FILL} the data set that they are of.']


def _metrics(content: Mapping, checkpoint: str, stamp: str) -> tuple[str, dict[str, float]]:
    """Find the metrics of the validation of this checkpoint, and say which they are.

    They are in the run's log beside it. In itself it has those of the last validation before it was saved, and it is
    saved before its own, unless it is the best one so far.
    """
    meta = content['meta'] if isinstance(content.get('meta'), Mapping) else {}
    log = Path(checkpoint).parent / stamp / 'vis_data/scalars.json'
    if stamp and log.is_file():
        steps = (meta.get('epoch'), meta.get('iter'))
        for line in reversed(log.read_text(encoding='utf-8', errors='replace').splitlines()):
            try:
                found = dict(json.loads(line))
            except (ValueError, TypeError):  # a line that was cut off
                continue
            if found.get('step') in steps and 'lr' not in found and 'loss' not in found:
                metrics = {key: value for key, value in found.items() if key not in _NOT_METRICS and _is_number(value)}
                return 'of the validation', metrics
    hub = content['message_hub'] if isinstance(content.get('message_hub'), Mapping) else {}
    scalars = hub['log_scalars'] if isinstance(hub.get('log_scalars'), Mapping) else {}
    last = {str(key).removeprefix('val/'): value for key, value in scalars.items() if str(key).startswith('val/')}
    known = {key: value for key, value in last.items() if isinstance(value, HistoryBuffer) and len(value.data[0])}
    last = {key: value.current() for key, value in known.items() if key not in _NOT_METRICS}
    info = hub['runtime_info'] if isinstance(hub.get('runtime_info'), Mapping) else {}
    if not last and _is_number(info.get('best_score')):
        return 'of the best validation before it was saved', {'best score': info['best_score']}
    last = {key: value for key, value in last.items() if _is_number(value)}
    return 'of the last validation before it was saved', last


def _is_number(value) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _data_section(meta: Mapping, config: Mapping[str, str]) -> list[str]:
    dataset = _dataset_type(config.get('train_dataloader', ''))
    known = meta['dataset_meta'] if isinstance(meta.get('dataset_meta'), Mapping) else {}
    classes = next((value for key, value in known.items() if str(key).lower() == 'classes'), None)
    lines = [f'Dataset type of the config: `{dataset}`.'] if dataset else []
    if isinstance(classes, (list, tuple)) and classes:
        named = ', '.join(map(str, classes[:20])) + (f' and {len(classes) - 20} more' if len(classes) > 20 else '')
        lines.append(f'{len(classes)} classes: {named}.')
    return [
        *lines,
        *([''] if lines else []),
        f'{TO_FILL} what the network was trained on, where it comes from, its licence.',
    ]


def _dataset_type(assignment: str) -> str | None:
    """Find `dataset=dict(type='...')` in the text of a dataloader's config; wrapped datasets give the wrapper."""
    for node in ast.walk(ast.parse(assignment)):
        if isinstance(node, ast.keyword) and node.arg == 'dataset' and isinstance(node.value, ast.Call):
            for option in node.value.keywords:
                if option.arg == 'type' and isinstance(option.value, ast.Constant):
                    return str(option.value.value)
    return None
