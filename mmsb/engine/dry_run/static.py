"""Find mistakes in a config by reading it: unknown names at the top level, values of the wrong kind, absurd numbers."""

import ast
import importlib.util
import inspect
import logging
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from mmengine.config import Config
from mmengine.runner import Runner
from mmengine.utils.dl_utils import set_multi_processing

from mmsb.configs import LIBRARIES
from mmsb.options import check_keys, choose

from .. import fast, log_to, resumed_settings
from ..processes import warn
from .signatures import SURE, fits, hint, kinds_of, near, shown, wrong_value

RUNNER_READS = (  # keys that it reads from the config beyond its own arguments
    'activation_checkpointing',
    'compile',
    'custom_imports',
    'efficient_conv_bn_eval',
    'find_unused_parameters',
    'model_wrapper_cfg',
    'runner_type',
    'sync_bn',
    'trust_checkpoint',  # ours
    *fast.KEYS,
    log_to.KEY,
    resumed_settings.KEY,
)
OTHERS_READ = ('tta_model', 'tta_pipeline')  # the libraries' own tools
ARGUMENTS = {
    name: one for name, one in inspect.signature(Runner.__init__).parameters.items() if name not in ('self', 'cfg')
}
ENVIRONMENT = ('cudnn_benchmark', 'dist_cfg', 'mp_cfg', 'resource_limit')  # what the runner reads from env_cfg
STANDARD_HOOKS = ('runtime_info', 'timer', 'sampler_seed', 'logger', 'param_scheduler', 'checkpoint')
LEVELS = ('CRITICAL', 'ERROR', 'WARNING', 'INFO', 'DEBUG', 'NOTSET')
SEEDS = 2**32
# Keys whose values are counts, and the least value of each. Where -1 means "never", it is allowed too.
COUNTS = (
    (r'train_cfg\.(max_epochs|max_iters|val_interval)', 1),
    (r'train_cfg\.val_begin', 0),
    (r'(train|val|test)_dataloader\.(batch_size|prefetch_factor|num_batch_per_epoch)', 1),
    (r'(train|val|test)_dataloader\.num_workers', 0),
    (r'(train|val|test)_dataloader\.timeout', 0),
    (r'(default_hooks\.\w+|custom_hooks\.\d+)\.interval', 1),
    (r'(log_processor\.window_size|auto_scale_lr\.base_batch_size|optim_wrapper\.accumulative_counts)', 1),
)
NEVER = r'(default_hooks\.\w+|custom_hooks\.\d+)\.(interval|max_keep_ckpts)'


def known_keys() -> list[str]:
    """List the top-level keys of a config that something reads."""
    return sorted({*ARGUMENTS, *RUNNER_READS, *OTHERS_READ})


def check_config(cfg: Config, given: Iterable[str] = ()) -> None:
    """Check what can be told from a config alone.

    Args:
        cfg: the config, with the flags and options in it.
        given: the keys of `--cfg-options`.

    Raises:
        ValueError: one line that names the key, its value, and what is valid.
    """
    given = list(given)
    check_names(cfg)
    for key, value in cfg.items():
        if key in ARGUMENTS and not fits(value, ARGUMENTS[key].annotation) and key != 'model':
            raise ValueError(f'{key} must be {kinds_of(ARGUMENTS[key].annotation)}, got {shown(value)}')
    _check_words(cfg)
    check_keys('auto_scale_lr', cfg.get('auto_scale_lr') or {}, ('enable', 'base_batch_size'))
    _check_near('env_cfg', cfg.get('env_cfg') or {}, ENVIRONMENT)
    processes = (cfg.get('env_cfg') or {}).get('mp_cfg') or {}
    parameters = inspect.signature(set_multi_processing).parameters
    _check_near('env_cfg.mp_cfg', processes, parameters)
    for key in {*processes} & {*parameters}:
        must = wrong_value(processes[key], parameters[key])
        if must:
            raise ValueError(f'env_cfg.mp_cfg.{key} must be {must}, got {shown(processes[key])}')
    _check_near('default_hooks', cfg.get('default_hooks') or {}, STANDARD_HOOKS)
    check_keys('randomness', cfg.get('randomness') or {}, ('seed', 'deterministic', 'diff_rank_seed'))
    seed = (cfg.get('randomness') or {}).get('seed')
    if seed is not None and (not _whole(seed) or not 0 <= seed < SEEDS):
        raise ValueError(f'randomness.seed must be an integer of at least 0 and below 2**32, got {shown(seed)}')
    for key, value in _values(cfg._cfg_dict, ''):
        if re.fullmatch(r'(train|val|test)_dataloader\..*\bdata_root', key) and not isinstance(value, str):
            raise ValueError(f'{key} must be a string, got {shown(value)}')
        least = next((least for pattern, least in COUNTS if re.fullmatch(pattern, key)), None)
        if least is not None and not (_whole(value) and (value >= least or (value == -1 and re.fullmatch(NEVER, key)))):
            raise ValueError(f'{key} must be an integer of at least {least}, got {shown(value)}')


def _check_words(cfg: Config) -> None:
    """Check values that are one of several words, or that exclude each other."""
    scope = cfg.get('default_scope')
    if scope and scope not in LIBRARIES and importlib.util.find_spec(scope.partition('.')[0]) is None:
        raise ValueError(f'default_scope: no package {scope!r}{hint(scope, LIBRARIES)}')
    choose(resumed_settings.KEY, cfg.get(resumed_settings.KEY, True), (True, False))
    level = cfg.get('log_level')
    if level and not isinstance(logging.getLevelName(level), int):
        raise ValueError(f'log_level must be one of {", ".join(LEVELS)}, got {level!r}')
    loop = cfg.get('train_cfg') or {}
    if 'type' in loop and 'by_epoch' in loop:
        kind = 'EpochBasedTrainLoop' if loop['by_epoch'] else 'IterBasedTrainLoop'
        if str(loop['type']).rpartition('.')[2] != kind:
            raise ValueError(f'train_cfg.type={loop["type"]!r} is not {kind!r}, as by_epoch={loop["by_epoch"]} says')


def _check_near(owner: str, keys: Iterable[str], valid: Iterable[str]) -> None:
    """Refuse keys that are like valid ones; others may be of a user's own."""
    for key in keys:
        if key not in valid and near(key, valid, SURE):
            check_keys(owner, [key], valid)


def _whole(value) -> bool:
    return fits(value, float) and value == value // 1


def _values(node, place: str) -> Iterator[tuple[str, object]]:
    """Yield the values of a config that are not None and no containers, with their keys."""
    if isinstance(node, (dict, list, tuple)):
        for key, child in node.items() if isinstance(node, dict) else enumerate(node):
            yield from _values(child, f'{place}.{key}' if place else str(key))
    elif node is not None:
        yield place, node


def check_names(cfg: Config) -> None:
    """Check the top-level names of a config file and of the files that it inherits from.

    A name must be a known key, or be used in the file that sets it or, as `_base_.NAME`, in one that inherits from it;
    a warning lists others. Files that belong to an installed library may have unused names; so may a dumped config, in
    which a name that was used has become a value, and a config with `custom_imports`, whose code may read any name.

    Raises:
        ValueError: a name is a misspelt key.
    """
    known = known_keys()
    try:
        sources = list(_sources(cfg.filename)) if cfg.filename and cfg.filename.endswith('.py') else []
    except (OSError, SyntaxError, ValueError, TypeError):
        return
    from_bases = {name for _, source in sources for name in re.findall(r'_base_(?:\.|\[[\'"])(\w+)', source)}
    for path, source in sources:
        tree = ast.parse(re.sub(r'\{\{.*?\}\}', 'None', source).replace('"None"', 'None').replace("'None'", 'None'))
        set_here = {name.id: name for statement in tree.body for name in _targets(statement)}
        used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
        lenient = 'custom_imports' in cfg or {'launcher', 'work_dir', 'randomness'} <= {*set_here}
        if '.mim' in Path(path).parts:
            continue
        others = {*set_here} - {*known, '_base_', *used, *from_bases}
        unused = sorted(name for name in others if not name.startswith('__'))
        for name in unused:
            if meant := near(name, known, SURE):
                raise ValueError(f'config {path!r} sets {name!r}, which has no effect: did you mean {meant!r}?')
        if unused and not lenient:
            warn(f'config {path!r} sets {", ".join(unused)}, which nothing uses')


def _targets(statement: ast.stmt) -> Iterator[ast.Name]:
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    if isinstance(statement, ast.AnnAssign):
        targets = [statement.target]
    for target in targets:
        yield from (node for node in ast.walk(target) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store))


def _sources(path: str) -> Iterator[tuple[str, str]]:
    """Yield the path and the text of a config file and of those that it inherits from."""
    yield path, Path(path).read_text(encoding='utf-8')
    if not Config._is_lazy_import(path):
        for base in Config._get_base_files(path):
            inner = Config._get_cfg_path(base, path)[0]
            if inner.endswith('.py'):
                yield from _sources(inner)
