"""Trackers beside the local logs, by one key of the config: `log_to`, a name or a list of names.

Each name stands for one of MMEngine's visualisation backends. One that the config lists already, with options of its
own, stays as it is.
"""

import importlib.util
import os

from mmengine.config import Config, ConfigDict

from mmsb.options import choose

KEY = 'log_to'
BACKENDS = {  # name, which is also that of the package to install
    'tensorboard': 'TensorboardVisBackend',
    'wandb': 'WandbVisBackend',
    'mlflow': 'MLflowVisBackend',
    'aim': 'AimVisBackend',
}


def names(cfg: Config) -> list[str]:
    """Return the names in `log_to`.

    Raises:
        ValueError: it is no name or list of names, or a name is unknown.
    """
    value = cfg.get(KEY) or []
    if not isinstance(value, (str, list, tuple)):
        raise ValueError(f'{KEY} must be a name or a list of names of {list(BACKENDS)}, got {value!r}')
    return [choose(KEY, name, BACKENDS) for name in ([value] if isinstance(value, str) else value)]


def add(cfg: Config, name: str) -> None:
    """Add a name to `log_to`."""
    cfg[KEY] = list(dict.fromkeys([*names(cfg), name]))


def add_backends(cfg: Config) -> None:
    """Write the backends that `log_to` names into the visualizer of a config, beside those that it has.

    Raises:
        ValueError: as `names` does.
    """
    wanted = names(cfg)
    if not wanted:
        return
    visualizer = cfg.setdefault('visualizer', ConfigDict(type='Visualizer'))
    backends = list(visualizer.get('vis_backends') or [ConfigDict(type='LocalVisBackend')])
    present = {str(backend.get('type')).rpartition('.')[2] for backend in backends}
    visualizer.vis_backends = [*backends, *(_backend(name) for name in wanted if BACKENDS[name] not in present)]


def _backend(name: str) -> ConfigDict:
    backend = ConfigDict(type=BACKENDS[name])
    if name == 'mlflow':  # MMEngine's default, a folder of files, is refused by MLflow 3; this is MLflow's own default
        backend.tracking_uri = os.environ.get('MLFLOW_TRACKING_URI') or 'sqlite:///mlflow.db'
    return backend


def check_installed(cfg: Config) -> None:
    """Check that the packages behind `log_to` are installed.

    Raises:
        ImportError: one is not; the message says what to install.
    """
    for name in names(cfg):
        if importlib.util.find_spec(name) is None:
            raise ImportError(f'{KEY}={name!r} needs the {name} package: run `pip install {name}`')
