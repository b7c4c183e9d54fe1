"""One key of the config names the trackers; MMEngine's backends stand for them."""

import importlib.util
from argparse import Namespace
from pathlib import Path

import pytest
from chaos.inject import at_iteration
from chaos.victim import train, write_config
from mmengine.config import Config
from mmengine.registry import VISBACKENDS
from mmengine.visualization import Visualizer

from mmsb.engine import log_to
from mmsb.engine.launcher import load_config

DIGITS = Path(__file__).resolve().parents[2] / 'configs/demo/sb-resnet11_b64-10e_digits.py'


def load(tmp_path, *, tensorboard: bool = False, config: str = '', **cfg_options) -> Config:
    path = tmp_path / 'config.py'
    path.write_text(f'_base_ = {str(DIGITS)!r}\n{config}')
    args = Namespace(
        config=str(path), cfg_options=cfg_options, work_dir=str(tmp_path / 'run'), launcher='none', local_rank=0,
        tensorboard=tensorboard, trust_checkpoint=False,
    )  # fmt: skip
    return load_config(args, lambda cfg: None)


def backends(cfg: Config) -> list[str]:
    return [backend.type for backend in (cfg.get('visualizer') or {}).get('vis_backends', [])]


@pytest.mark.parametrize(
    ('given', 'expected'),
    [
        (dict(), []),
        (dict(log_to='wandb'), ['LocalVisBackend', 'WandbVisBackend']),
        (dict(config="log_to = ['mlflow', 'aim']"), ['LocalVisBackend', 'MLflowVisBackend', 'AimVisBackend']),
        (dict(tensorboard=True), ['LocalVisBackend', 'TensorboardVisBackend']),
        (dict(tensorboard=True, config="log_to = 'aim'"),
         ['LocalVisBackend', 'AimVisBackend', 'TensorboardVisBackend']),
        (dict(tensorboard=True, log_to='aim'), ['LocalVisBackend', 'AimVisBackend']),  # the options have the last word
        (dict(config="log_to = 'aim'", log_to=None), []),
        (dict(config="log_to = 'aim'\nvisualizer = dict(type='Visualizer', vis_backends=[dict(type='AimVisBackend')])"),
         ['AimVisBackend']),
    ],
)  # fmt: skip
def test_names_become_backends(tmp_path, given, expected):
    cfg = load(tmp_path, **given)
    assert backends(cfg) == expected
    again = tmp_path / 'dumped.py'
    cfg.dump(str(again))
    dumped = Config.fromfile(again)
    log_to.add_backends(dumped)
    assert backends(dumped) == expected


@pytest.mark.parametrize(
    ('value', 'said'),
    [
        ('wandbb', "log_to must be one of ['tensorboard', 'wandb', 'mlflow', 'aim'], got 'wandbb'"),
        (['wandb', 3], "log_to must be one of ['tensorboard', 'wandb', 'mlflow', 'aim'], got 3"),
        (3, "log_to must be a name or a list of names of ['tensorboard', 'wandb', 'mlflow', 'aim'], got 3"),
    ],
)
def test_wrong_names(tmp_path, value, said):
    with pytest.raises(ValueError) as error:
        load(tmp_path, log_to=value)
    assert str(error.value) == said


@pytest.mark.parametrize('name', log_to.BACKENDS)
def test_every_backend_takes_what_the_visualizer_gives_it(name, tmp_path):
    backend = dict(type=log_to.BACKENDS[name])
    assert VISBACKENDS.get(backend['type'])
    visualizer = Visualizer(name=f'{name} {tmp_path}', vis_backends=[backend], save_dir=str(tmp_path))
    (built,) = visualizer._vis_backends.values()
    assert built._save_dir == str(tmp_path / 'vis_data')


def test_a_missing_package_is_said_before_anything_is_written(arena):
    config = write_config(arena / 'config.py')

    def before() -> None:
        find = importlib.util.find_spec
        importlib.util.find_spec = lambda name, *args: None if name == 'mlflow' else find(name, *args)

    stopped = train(arena, config, '--work-dir', 'run', '--cfg-options', 'log_to=mlflow', before=before)
    assert stopped.code == 1
    assert stopped.said().splitlines()[-1] == (
        "error: log_to='mlflow' needs the mlflow package: run `pip install mlflow`"
    )
    assert not (arena / 'run').exists()


def test_a_tracker_that_fails_ends_no_run(arena):
    config = write_config(arena / 'config.py', steps=1, interval=6)

    def fail(runner) -> None:
        def write(*_, **__) -> None:
            raise RuntimeError('the server is gone')

        runner.visualizer._vis_backends['TensorboardVisBackend']._tensorboard.add_scalar = write

    def before() -> None:
        at_iteration(2, fail)

    done = train(arena, config, '--work-dir', 'run', '--cfg-options', 'log_to=tensorboard', before=before)
    assert done.code == 0, done.said()
    line = 'what TensorboardVisBackend writes could not be written: the server is gone; the run goes on'
    assert done.said().count(line) == 1
    assert (arena / 'run/iter_6.pth').exists()


def test_a_tracker_that_does_not_start_is_tried_once(arena):
    config = write_config(arena / 'config.py', steps=1, interval=6)

    def before() -> None:
        def start(self) -> None:
            print('trying to start')
            raise ConnectionError('no route to the server')

        VISBACKENDS.get('TensorboardVisBackend')._init_env = start

    done = train(arena, config, '--work-dir', 'run', '--cfg-options', 'log_to=tensorboard', before=before)
    assert done.code == 0, done.said()
    assert done.said().count('trying to start') == 1
    assert 'no route to the server; the run goes on' in done.said()
