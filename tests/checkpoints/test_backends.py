"""Where checkpoints go is for the file backend to say, not for the look of a path."""

import hashlib

import pytest
import torch
from chaos.toy import runner
from mmengine.config import Config
from mmengine.fileio import BaseStorageBackend, FileClient, LocalBackend, register_backend
from mmengine.runner import Runner

from mmsb.checkpoints.store import is_local
from mmsb.engine import SafeRunner
from mmsb.engine.safety import output_folders
from mmsb.engine.start import WorkDir

RISING = dict(interval=1, max_keep_ckpts=1, save_best='toy/acc', rule='less')
RUNNERS = pytest.mark.parametrize('kind', [Runner, SafeRunner], ids=['stock', 'safe'])


class Bucket(BaseStorageBackend):
    """A store of objects, by key."""

    objects: dict[str, bytes] = {}

    def get(self, filepath):
        return self.objects[str(filepath)]

    def get_text(self, filepath, encoding='utf-8'):
        return self.get(filepath).decode(encoding)

    def put(self, obj, filepath):
        self.objects[str(filepath)] = bytes(obj)

    def remove(self, filepath):
        del self.objects[str(filepath)]  # a store may raise errors of any kind

    def isfile(self, filepath):
        return str(filepath) in self.objects

    def isdir(self, filepath):
        return False

    def exists(self, filepath):
        return self.isfile(filepath)

    def join_path(self, filepath, *filepaths):
        return '/'.join([str(filepath).rstrip('/'), *filepaths])


class Mirror(LocalBackend):
    """Writes local files in a way of its own."""


register_backend('bucket', Bucket, force=True)
register_backend('mirror', Mirror, force=True)
FileClient.register_backend('bucket', Bucket, force=True, prefixes='bucket')
register_backend('bucket', Bucket, force=True, prefixes='bucket')


@pytest.mark.parametrize(
    ('path', 'options', 'local'),
    [
        ('out', {}, True),
        ('/data/out', {}, True),
        ('C:/out', {}, True),
        ('out', dict(backend_args=dict(backend='local')), True),
        ('out', dict(file_client_args=dict(backend='disk')), True),
        ('out', dict(backend_args=dict(backend='mmsb')), True),
        ('out', dict(backend_args=dict(backend='mirror')), False),
        ('s3:bucket/out', dict(backend_args=dict(backend='bucket')), False),
        ('s3:bucket/out', dict(file_client_args=dict(backend='bucket')), False),
        ('s3://bucket/out', {}, False),
        ('cluster:s3://bucket/out', {}, False),
        ('out', dict(file_client_args=dict(prefix='s3')), False),
        ('unknown://out', {}, False),
    ],
)
def test_the_backend_says_whether_a_path_is_local(path, options, local):
    assert is_local(path, **options) == local
    saving = dict(type='mmsb.CheckpointHook', out_dir=path, **options)
    cfg = Config(dict(work_dir='runs/one', default_hooks=dict(checkpoint=saving)))
    assert output_folders(cfg) == ['runs/one', *([f'{path}/one'] if local else [])]


@RUNNERS
@pytest.mark.parametrize(
    'options',
    [
        dict(out_dir='s3:bucket/x', backend_args=dict(backend='bucket')),
        dict(out_dir='s3:bucket/x', file_client_args=dict(backend='bucket')),
        dict(out_dir='bucket://x'),
    ],
    ids=['backend_args', 'file_client_args', 'prefix'],
)
def test_a_store_keeps_the_last_and_the_best_only(tmp_path, monkeypatch, kind, options):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Bucket, 'objects', {})
    run = runner(tmp_path / 'run', kind, saving={**RISING, **options, 'published_keys': ['state_dict']})
    hook = next(hook for hook in run.hooks if type(hook).__name__ == 'CheckpointHook')
    hook.is_better_than = {'toy/acc': lambda new, old: True}  # so that each epoch has a new best one
    run.train()
    place = f'{options["out_dir"]}/run'
    whole = {f'{place}/best_toy_acc_epoch_3.pth', f'{place}/epoch_3.pth'}
    published = Bucket.objects.keys() - whole
    assert Bucket.objects.keys() >= whole
    assert len(published) == 2
    for name in published:
        assert name.rpartition('-')[2] == f'{hashlib.sha256(Bucket.objects[name]).hexdigest()[:8]}.pth'
    assert (tmp_path / 'run/last_checkpoint').read_text() == f'{place}/epoch_3.pth'
    assert sorted(path.name for path in tmp_path.iterdir()) == ['run']
    assert not list(tmp_path.rglob('*.pth'))


@RUNNERS
def test_another_backend_for_local_files_is_used_as_it_is(tmp_path, monkeypatch, kind):
    written = []
    monkeypatch.setattr(Mirror, 'put', lambda self, obj, path: (written.append(path), LocalBackend().put(obj, path)))
    runner(tmp_path / 'run', kind, saving={**RISING, 'backend_args': dict(backend='mirror')}).train()
    assert len(written) >= 4
    assert not list((tmp_path / 'run').glob('*.sha256'))
    assert len(list((tmp_path / 'run').glob('epoch*.pth'))) == 1
    assert len(list((tmp_path / 'run').glob('best*.pth'))) == 1


def test_what_a_users_hook_saves_locally_is_whole_and_has_a_hash(tmp_path):
    run = runner(tmp_path / 'run', saving=dict(interval=1))
    run.train()
    run.save_checkpoint(run.work_dir, 'epoch_3.pth')  # over the hook's own
    content = (tmp_path / 'run/epoch_3.pth').read_bytes()
    assert (tmp_path / 'run/epoch_3.pth.sha256').read_text() == f'{hashlib.sha256(content).hexdigest()}  epoch_3.pth\n'
    assert torch.load(tmp_path / 'run/epoch_3.pth', weights_only=False)['meta']['epoch'] == 3


def test_resume_names_a_checkpoint_that_only_a_store_has(tmp_path):
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run/last_checkpoint').write_text('s3:bucket/x/run/epoch_3.pth')
    saving = dict(type='mmsb.CheckpointHook', out_dir='s3:bucket/x', backend_args=dict(backend='bucket'))
    cfg = Config(dict(work_dir=str(tmp_path / 'run'), launcher='none', default_hooks=dict(checkpoint=saving)))
    with pytest.raises((ValueError, FileNotFoundError), match=r"checkpoint 's3:bucket/x/run/epoch_3.pth'"):
        WorkDir(cfg).decide('auto')
