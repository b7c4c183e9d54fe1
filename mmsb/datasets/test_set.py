"""What a config says of its test set: where its pipeline is, the names and colours of its classes."""

from collections.abc import Mapping, Sequence, Sized

from mmengine.config import Config
from mmengine.registry import DATASETS


def dataset_with_pipeline(cfg: Mapping | Config, loader: str = 'test_dataloader') -> Mapping:
    """Find the test set of a config, or another one, inside its wrappers, as for repetition; {} where there is none."""
    dataset = (cfg.get(loader) or {}).get('dataset') or {}
    while 'pipeline' not in dataset and isinstance(dataset.get('dataset'), Mapping):
        dataset = dataset['dataset']
    return dataset


def loads_image(step: Mapping) -> bool:
    """Tell whether a step of a pipeline reads an image file."""
    name = str(step.get('type'))
    return 'Load' in name and 'Image' in name


def loads_rgb(pipeline: Sequence[Mapping]) -> bool:
    """Tell whether a pipeline starts from RGB and not BGR: tifffile's, or arrays, as of CIFAR, which no step loads."""
    loading = [step for step in pipeline if loads_image(step)]
    return not loading or loading[-1].get('imdecode_backend') == 'tifffile'


def dataset_meta(cfg: Config, checkpoint: object = None) -> list[dict]:
    """List what tells of the classes, the surest first: a checkpoint, the config's test set, the type of that set.

    Args:
        cfg: the config.
        checkpoint: the content of a checkpoint; that of a run holds what its training set knew.

    Returns:
        dicts with keys in lower case, such as 'classes' (names in the order of the labels) and 'palette'; where it
        names no classes, a dict has no such key.
    """
    dataset = dataset_with_pipeline(cfg)
    kind = dataset.get('type')
    if isinstance(kind, str):
        kind = DATASETS.get(kind if '.' in kind else f'{cfg.get("default_scope") or "mmengine"}.{kind}')
    meta = checkpoint.get('meta') if isinstance(checkpoint, Mapping) else None
    found = (
        meta.get('dataset_meta') if isinstance(meta, Mapping) else None,
        dataset.get('metainfo'),
        getattr(kind, 'METAINFO', None),
    )
    known = [{str(key).lower(): value for key, value in one.items()} for one in found if isinstance(one, Mapping)]
    return [{key: value for key, value in one.items() if key != 'classes' or _are_names(value)} for one in known]


def class_names(cfg: Config, checkpoint: object = None) -> tuple[str, ...]:
    """Find the names of the classes, as `dataset_meta` does; () where nothing names them."""
    names = next((one['classes'] for one in dataset_meta(cfg, checkpoint) if 'classes' in one), ())
    return tuple(map(str, names))


def _are_names(value) -> bool:
    return isinstance(value, Sized) and not isinstance(value, str) and len(value) > 0  # a string is the path of a file
