"""Downloaded checkpoints are complete and verified, or refused; a local server provides them."""

import hashlib
import io
import os
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from chaos.forge import archive, os_system

from mmsb.checkpoints import download
from mmsb.checkpoints.load import load_checkpoint, load_state_dict
from mmsb.models.resnet import SBResNetCifar


class Site:
    """Serves files by path; with `short`, it sends fewer bytes than it announces."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.files: dict[str, bytes] = {}
        self.short = 0
        self.asked: list[str] = []

    def put(self, content: bytes, name: str = 'net-{hash}.pth', of: bytes | None = None) -> str:
        """Publish a file under its own hash, or under the hash of other content."""
        path = '/' + name.format(hash=hashlib.sha256(content if of is None else of).hexdigest()[:8])
        self.files[path] = content
        return self.address + path


@pytest.fixture
def site(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'home'))
    monkeypatch.setattr(torch.hub, '_hub_dir', None)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            site.asked.append(self.path)
            content = site.files.get(self.path)
            self.send_response(200 if content is not None else 404)
            if content is not None:
                self.send_header('Content-Length', str(len(content)))
            self.end_headers()
            self.wfile.write((content or b'')[: len(content or b'') - site.short])

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    site = Site(f'http://127.0.0.1:{server.server_address[1]}')
    yield site
    server.shutdown()
    server.server_close()


def weights(value: float = 1.0) -> bytes:
    file = io.BytesIO()
    torch.save(dict(weight=torch.full((2,), value)), file)
    return file.getvalue()


def kept(tmp_path) -> list:
    return [path for path in (tmp_path / 'home').rglob('*') if path.is_file() and path.suffix != '.lock']


def test_a_file_is_fetched_once_and_kept(site, tmp_path):
    url = site.put(weights())
    for _ in range(2):
        assert load_state_dict(url)['weight'].tolist() == [1, 1]
    assert len(site.asked) == 1
    assert [path.name for path in kept(tmp_path)] == [os.path.basename(url)]


def test_a_changed_file_is_refused_and_not_kept(site, tmp_path):
    url = site.put(weights(2.0), of=weights())
    with pytest.raises(
        ValueError, match=rf"{re.escape(url)}' does not match the hash in its name: SHA-256 \w+"
    ) as error:
        load_checkpoint(url)
    assert '\n' not in str(error.value)
    assert kept(tmp_path) == []


@pytest.mark.parametrize('name', ['net-{hash}.pth', 'net.pth'])
def test_a_part_is_never_taken_for_the_whole(name, site, tmp_path):
    url, site.short = site.put(weights(), name), 100
    with pytest.raises(ValueError, match=re.escape(url)) as error:
        load_checkpoint(url)
    assert '\n' not in str(error.value)
    assert kept(tmp_path) == []
    site.short = 0
    assert load_state_dict(url)['weight'].tolist() == [1, 1]


def test_a_damaged_file_of_the_cache_is_fetched_again(site, tmp_path):
    url = site.put(weights())
    load_checkpoint(url)
    (file,) = kept(tmp_path)
    file.write_bytes(weights(3.0))
    assert load_state_dict(url)['weight'].tolist() == [1, 1]
    assert len(site.asked) == 2


def test_files_without_a_hash_are_told_and_kept_apart(site, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(download, 'print_log', lambda text, **options: said.append(text))
    urls = [site.put(weights(value), f'{value}/model.pth') for value in (1.0, 2.0)]
    assert [load_state_dict(url)['weight'][0].item() for url in urls] == [1, 2]
    assert len(kept(tmp_path)) == 2
    assert all(any(url in text and 'cannot be verified' in text for text in said) for url in urls)
    assert download._HASH.search('model-20230101.pth')[1] == '20230101'  # a date is mistaken for a hash
    assert download._HASH.search('model.pth-0676ba61') is None


@pytest.mark.untrusted
def test_what_comes_from_the_network_is_data_as_well(site, tmp_path):
    canary = tmp_path / 'canary'
    url = site.put(archive(os_system(str(canary))))
    with pytest.raises(ValueError, match=f"{re.escape(url)}' cannot be read as data: Unsupported class posix.system"):
        load_checkpoint(url)
    assert not canary.exists()


@pytest.mark.parametrize(
    ('url', 'said'),
    [
        ('{site}/absent.pth', 'cannot be downloaded: HTTP Error 404'),
        ('http://127.0.0.1:1/net.pth', 'cannot be downloaded'),
        ('file:///etc/passwd', 'must be a file or start with one of http://'),
        ('pavi://net', 'must be a file or start with one of http://'),
        ('torchvision://resnet5', r'not among the \d+ names in its catalogue \(did you mean resnet50'),
        ('open-mmlab://resnet5', r'not among the \d+ names in its catalogue'),
        ('mmcls://resnet5', r'not among the \d+ names in its catalogue'),
    ],
)
def test_what_is_not_there_is_named_in_one_line(url, said, site, tmp_path):
    url = url.format(site=site.address)
    with pytest.raises(ValueError, match=f'checkpoint {url!r} .*{said}') as error:
        load_checkpoint(url)
    assert '\n' not in str(error.value)
    assert kept(tmp_path) == []


def test_names_of_the_catalogues_have_hashes(site):
    for url in (
        'torchvision://resnet50',
        'modelzoo://resnet50',
        'open-mmlab://detectron2/resnet50_caffe',
        'mmcls://vgg11',
    ):
        address = download.resolve(url)
        assert address.startswith('https://')
        assert download._HASH.search(address)


def test_processes_that_come_together_download_once(site):
    url = site.put(weights())
    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(download.fetch, [url] * 4))) == 1
    assert len(site.asked) == 1


def test_a_warm_start_from_the_network(site, monkeypatch):
    plain = SBResNetCifar(11, None)
    file = io.BytesIO()
    torch.save(plain.state_dict(), file)
    address = site.put(file.getvalue())
    monkeypatch.setattr(download.catalogue, 'get_torchvision_models', lambda: dict(resnet11=address))
    net = SBResNetCifar(11, init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet11'))
    net.init_weights()
    assert torch.equal(net.conv1.weight, plain.conv1.weight)
