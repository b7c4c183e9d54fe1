"""Human consistency is that of naive loops over the formulas, in generated csv files of the publication's layout."""

import csv
import itertools
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

from benchmarks.human_consistency import responses as answers_of_networks
from benchmarks.human_consistency.measures import (
    COLUMNS,
    LEFT_OUT,
    compare,
    condition_of,
    find_humans,
    find_responses,
    humans_with_humans,
    mean,
    read_all,
    table,
    trial_of,
)
from mmsb.configs import build_model

CATEGORIES = ['airplane', 'bear', 'bicycle', 'bird', 'boat', 'bottle', 'car', 'cat', 'chair', 'clock', 'dog',
              'elephant', 'keyboard', 'knife', 'oven', 'truck']  # fmt: skip
CONDITIONS = {
    'contrast': ['c100', 'c50', 'c15', 'c01'],
    'uniform-noise': ['0.00', '0.10', '0.35', '0.90'],
    'edge': ['0'],
}


def write(folder: Path, dataset: str, subject: str, seed: int, header=COLUMNS, short_zero: bool = False) -> None:
    """Write answers to 20 images in each condition, in an order of the subject's own."""
    chance, rows = random.Random(seed), []
    for condition, number in itertools.product(CONDITIONS[dataset], range(20)):
        category = CATEGORIES[number % 16]
        response = chance.choice([category, category, 'na', 'dog'])
        name = f'n0{1000 + number}_{number}' if dataset == 'contrast' else f'{category}{number}'
        shown = condition.rstrip('0').rstrip('.') if short_zero and '.' in condition else condition
        rows.append([subject, 1, 0, 0.5, response, category, shown, f'_exp_s01_{shown}_{category}_10_{name}.png'])
    chance.shuffle(rows)
    for place, row in enumerate(rows, 1):
        row[2], row[7] = place, f'{place:04d}{row[7]}'
    (folder / dataset).mkdir(parents=True, exist_ok=True)
    with open(folder / dataset / f'{dataset}_{subject}_session_1.csv', 'w', newline='') as file:
        csv.writer(file).writerows([header, *rows])


@pytest.fixture
def folders(tmp_path) -> tuple[Path, Path]:
    """Answers of three humans, and of a network that writes its conditions and its header in another way."""
    for dataset, (seed, subject) in itertools.product(
        CONDITIONS, enumerate(('subject-01', 'subject-02', 'subject-03'))
    ):
        write(tmp_path / 'humans', dataset, subject, seed, [name.title() for name in COLUMNS])
    for dataset in ('contrast', 'uniform-noise'):
        write(tmp_path / 'networks', dataset, 'net', 9, short_zero=True)
    return tmp_path / 'humans', tmp_path / 'networks'


def naive(one: Path, other: Path, condition: str) -> list[float]:
    """Compute the three measures from two files, for one condition, by loops over their lines."""
    right = []
    for path in (one, other):
        with open(path) as file:
            rows = list(csv.reader(file))[1:]
        kept = [
            row for row in rows if row[6] == condition or (row[6][:2] == '0.' and float(row[6]) == float(condition))
        ]
        right.append({row[7].split('_10_')[1]: row[4] == row[5] for row in kept})
    assert right[0].keys() == right[1].keys()
    total, same, p, q = 0, 0, 0, 0
    for trial, first in right[0].items():
        second = right[1][trial]
        total, same, p, q = total + 1, same + (first == second), p + first, q + second
    p, q, same = p / total, q / total, same / total
    expected = p * q + (1 - p) * (1 - q)
    return [(p - q) ** 2, same, 1.0 if same == 1 else (same - expected) / (1 - expected)]


def compared(humans: Path, networks: Path) -> dict:
    files = find_humans(humans)
    return table(read_all(files), read_all(find_responses(networks, files)))


COUNTED = {'contrast': ['c50', 'c15'], 'uniform-noise': ['0.10', '0.35'], 'edge': ['0']}


def values(found) -> list[float]:
    return [found.accuracy_difference, found.observed_consistency, found.error_consistency]


def test_humans_are_compared_in_all_pairs(folders):
    found = humans_with_humans(read_all(find_humans(folders[0])))
    assert list(found) == ['contrast', 'uniform-noise', 'edge']
    for dataset, conditions in COUNTED.items():
        files = sorted((folders[0] / dataset).glob('*.csv'))
        wanted = [
            np.mean([naive(*pair, condition) for condition in conditions], axis=0)
            for pair in itertools.combinations(files, 2)
        ]
        np.testing.assert_allclose(values(found[dataset]), np.mean(wanted, axis=0))


def test_a_network_is_compared_with_each_human(folders):
    found = compared(*folders)['net']
    assert list(found) == ['contrast', 'uniform-noise']
    for dataset in found:
        (own,) = (folders[1] / dataset).glob('*.csv')
        wanted = [
            np.mean([naive(human, own, condition) for condition in COUNTED[dataset]], axis=0)
            for human in sorted((folders[0] / dataset).glob('*.csv'))
        ]
        np.testing.assert_allclose(values(found[dataset]), np.mean(wanted, axis=0))


def test_humans_who_missed_a_session(folders):
    files = sorted((folders[0] / 'contrast').glob('*.csv'))
    short = ''.join(line for line in files[0].open() if '_c50_' not in line)
    files[0].write_text(short)
    wanted = [naive(*files[1:], condition) for condition in COUNTED['contrast']]
    pairs = [np.mean(wanted, axis=0), *(naive(files[0], other, 'c15') for other in files[1:])]
    for subjects in itertools.permutations(read_all(find_humans(folders[0]))['contrast'].items()):
        found = humans_with_humans({'contrast': dict(subjects)})['contrast']
        np.testing.assert_allclose(values(found), np.mean(pairs, axis=0))


def test_one_human_is_compared_with_networks_only(folders):
    for path in [*folders[0].rglob('*subject-02*'), *folders[0].rglob('*subject-03*')]:
        path.unlink()
    assert list(compared(*folders)) == ['net']
    with pytest.raises(ValueError, match='no data set has the answers of two humans'):
        table(read_all(find_humans(folders[0])), {})


def test_files_as_spreadsheets_save_them(folders):
    wanted = compared(*folders)
    for path in folders[0].rglob('*.csv'):
        lines = path.read_bytes().splitlines()
        path.write_bytes(b'\xef\xbb\xbf' + b'\r\n'.join([*lines, b'', b'']))
    assert compared(*folders) == wanted


def test_networks_in_the_folders_of_the_humans_are_no_humans(folders):
    apart = compared(*folders)
    for path in folders[1].rglob('*.csv'):
        path.rename(folders[0] / path.relative_to(folders[1]))
    assert compared(folders[0], folders[0]) == apart


@pytest.mark.parametrize(
    ('model', 'human', 'wanted'),
    [
        ([1, 1, 0, 0], [1, 1, 0, 0], (0, 1, 1)),
        ([1, 1, 1, 1], [1, 1, 1, 1], (0, 1, 1)),  # e is 1 as well
        ([1, 1, 0, 0], [0, 0, 1, 1], (0, 0, -1)),
        ([1, 0, 1, 0], [1, 1, 0, 0], (0, 0.5, 0)),  # as often as chance
        ([1, 1, 1, 1], [1, 0, 0, 0], (0.5625, 0.25, 0)),
    ],
)
def test_the_measures_by_hand(model, human, wanted):
    assert values(compare(model, human)) == pytest.approx(wanted)


def test_the_17_sets_and_the_conditions_that_count():
    assert len(LEFT_OUT) == 17
    assert sum(not conditions for conditions in LEFT_OUT.values()) == 5
    left_out = {condition_of(condition) for conditions in LEFT_OUT.values() for condition in conditions}
    assert left_out == {condition for conditions in LEFT_OUT.values() for condition in conditions}


@pytest.mark.parametrize(
    ('name', 'trial'),
    [
        ('0001_cl_s01_cr_oven_40_n04111531_14126.png', 'n04111531_14126'),
        ('0001_s5n_s01_0_bird_00_bird3-bird2.png', 'bird3-bird2'),
        ('0001_ske_s01_0_boat_00_boat-0068-sketch-23.png', 'boat-0068-sketch-23'),
        ('0001_sty_s01_0_bicycle_00_bicycle-0011-ILSVRC2012-val-00011821.png', 'bicycle-0011-ILSVRC2012-val-00011821'),
    ],
)
def test_trials_are_identified_by_the_image(name, trial):
    assert trial_of(name) == trial


def test_the_command_prints_writes_and_draws(folders, tmp_path, run_tool):
    options = ('--humans', folders[0], '--responses', folders[1], '--json', 'found.json', '--figure', 'figure.png')
    done = run_tool('benchmarks.human_consistency', *options, '--datasets', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    wanted = compared(*folders)
    rows = [[cell.strip() for cell in line.split('|')[1:-1]] for line in done.stdout.splitlines()[2:]]
    assert [row[:2] for row in rows] == [
        ['humans', '3 of 17'], ['humans', 'contrast'], ['humans', 'uniform-noise'], ['humans', 'edge'],
        ['net', '2 of 17'], ['net', 'contrast'], ['net', 'uniform-noise'],
    ]  # fmt: skip
    assert rows[4][2:] == [f'{value:.3f}' for value in values(mean(wanted['net'].values()))]
    assert json.loads((tmp_path / 'found.json').read_text())['net']['contrast']['error_consistency'] == (
        wanted['net']['contrast'].error_consistency
    )
    assert Image.open(tmp_path / 'figure.png').size[0] > 1000


def _csv(folder: Path, text: str) -> None:
    (folder / 'edge').mkdir(parents=True)
    (folder / 'edge/a.csv').write_text(text)


HEADER = ','.join(COLUMNS)
ROW = 's,1,1,0.5,dog,dog,0,0001_edg_s01_0_dog_00_dog1.png'
WRONG = {
    'no csv': (None, 'there is no DATASET/*.csv in '),
    'another layout': ('subject,answer\n1,2\n', "has no column 'subj'; needed: subj, object_response"),
    'an empty file': ('', "has no column 'subj'"),
    'no answers': (f'{HEADER}\n', "a.csv' has no answers"),
    'a short line': (f'{HEADER}\ns,1,1\n', 'line 2: has 3 values, and the header 8'),
    'an image twice': (f'{HEADER}\n{ROW}\n{ROW}\n', "line 3: s answers '0001_edg_s01_0_dog_00_dog1.png' a second time"),
    'no common image': (f'{HEADER}\n{ROW.replace("dog1", "dog99")}\n', 'edge: no image has an answer of both'),
}


@pytest.mark.parametrize(('text', 'said'), WRONG.values(), ids=WRONG)
def test_bad_input_is_one_line_and_writes_nothing(text, said, folders, tmp_path, run_tool):
    wrong = tmp_path / 'wrong'
    wrong.mkdir()
    if text is not None:
        _csv(wrong, text)
    options = ('--humans', folders[0], '--responses', wrong, '--figure', 'figure.png', '--json', 'found.json')
    done = run_tool('benchmarks.human_consistency', *options, cwd=tmp_path)
    assert done.returncode == 1
    assert said in done.stderr.splitlines()[-1]
    assert 'Traceback' not in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {'humans', 'networks', 'wrong'}


@pytest.mark.parametrize(
    ('options', 'code', 'said'),
    [
        ((), 2, 'name the folder of --humans, or a --network'),
        (('--network', 'a.py', 'b.pth'), 2, '--network needs the --images'),
        (('--humans', 'humans', '--figure', 'a.bmp'), 1, 'the suffix of --figure must be one of'),
        (('--humans', 'humans', '--figure', 'no/a.png'), 2, 'the folder of --figure no/a.png does not exist'),
        (('--network', 'a.py', 'b.pth', '--images', '.', '--responses', 'o'), 1, "config 'a.py' does not exist"),
    ],
)
def test_arguments_are_checked(options, code, said, tmp_path, run_tool):
    done = run_tool('benchmarks.human_consistency', *options, cwd=tmp_path)
    assert done.returncode == code
    assert said in done.stderr.splitlines()[-1]


CLASSIFIER = """
default_scope = 'mmpretrain'
pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
test_dataloader = dict(dataset=dict(type='CustomDataset', pipeline=pipeline))
model = dict(
    type='ImageClassifier', data_preprocessor=dict(num_classes=1000, mean=[60.0] * 3, std=[90.0] * 3),
    backbone=dict(type='mmsb.SBResNetCifar', depth=11, out_indices=(2,)), neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=1000, in_channels=256),
)
"""


@pytest.fixture
def images(tmp_path) -> Path:
    """Images of two data sets, in the folders and under the names of the publication."""
    chance = np.random.default_rng(0)
    for number, category in enumerate(('bear', 'oven'), 1):
        for name in (
            f'contrast/dnn/session-1/{number:04d}_cop_dnn_c50_{category}_10_n04111531_{number}.png',
            f'edge/{category}/{category}{number}.png',
        ):
            path = tmp_path / 'images' / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(chance.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    return tmp_path / 'images'


@pytest.fixture
def network(tmp_path) -> tuple[Path, Path]:
    config, weights = tmp_path / 'tiny_net.py', tmp_path / 'tiny.pth'
    config.write_text(CLASSIFIER)
    torch.manual_seed(0)
    torch.save(dict(state_dict=build_model(Config.fromfile(config)).state_dict()), weights)
    return config, weights


def test_a_network_answers_in_the_layout_of_the_publication(images, network, tmp_path, run_tool):
    options = ('--network', *network, '--images', images, '--responses', 'out', '--device', 'cpu')
    done = run_tool('benchmarks.human_consistency', *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f'out/{name}/{name}_tiny-net_session-1.csv' for name in ('contrast', 'edge')]
    model = build_model(Config.fromfile(network[0])).eval()
    model.load_state_dict(torch.load(network[1])['state_dict'])
    for dataset in ('contrast', 'edge'):
        with open(tmp_path / f'out/{dataset}/{dataset}_tiny-net_session-1.csv') as file:
            header, *rows = csv.reader(file)
        assert header == list(COLUMNS)
        paths = sorted((images / dataset).rglob('*.png'))
        assert [row[7] for row in rows] == [path.name for path in paths]
        for row, path in zip(rows, paths, strict=True):
            pixels = torch.from_numpy(np.asarray(Image.open(path))[..., ::-1].copy()).permute(2, 0, 1)[None].float()
            with torch.no_grad():
                scores = model.head(model.neck(model.backbone((pixels - 60) / 90)))[0].softmax(0)
            best, answer = -1.0, None
            for category, classes in answers_of_networks.categories().items():
                if sum(scores[i] for i in classes) / len(classes) > best:
                    best, answer = sum(scores[i] for i in classes) / len(classes), category
            assert row[:3] == ['tiny-net', '1', str(rows.index(row) + 1)]
            assert row[4:7] == [answer, ('bear', 'oven')[rows.index(row)], 'c50' if dataset == 'contrast' else 'NaN']


def test_the_16_categories_are_those_of_the_shape_bias_metric():
    found = answers_of_networks.categories()
    assert list(found) == CATEGORIES
    classes = [one for classes in found.values() for one in classes]
    assert len(classes) == len(set(classes))
    assert found['dog'][0] == 152
    assert found['oven'] == [766]


def rename(folder: Path, pattern: str, name: str) -> None:
    path = next(folder.rglob(pattern))
    path.rename(path.with_name(name))


@pytest.mark.parametrize(
    ('spoil', 'said'),
    [
        (lambda folder: folder.rename(folder.with_name('other')), 'there is no DATASET/dnn/session-1/*.png or'),
        (lambda folder: rename(folder, '*cop*.png', 'a.png'), 'is not named'),
        (lambda folder: next(folder.rglob('*.png')).write_bytes(b'no'), 'is not an image'),
        (lambda folder: rename(folder, '*cop*.png', '1_e_d_0_cow_1_a.png'), "is of category 'cow'; valid: airplane"),
        (lambda folder: rename(folder, 'oven', 'cow'), "is of category 'cow'; valid: airplane"),
    ],
    ids=['folder', 'name', 'image', 'category in the name', 'category of a folder'],
)
def test_images_that_are_none_of_the_sets(spoil, said, images, network, tmp_path, run_tool):
    spoil(images)
    options = ('--network', *network, '--images', images, '--responses', 'out', '--device', 'cpu')
    done = run_tool('benchmarks.human_consistency', *options, cwd=tmp_path)
    assert done.returncode == 1
    assert said in done.stderr.splitlines()[-1]
    assert not (tmp_path / 'out').exists()


def test_a_file_where_responses_are_to_go_is_refused_before_the_network_runs(tmp_path):
    (tmp_path / 'out').touch()
    with pytest.raises(FileExistsError, match='is a file'):
        answers_of_networks.respond(None, {}, tmp_path / 'out', name='net')
