"""Values of `--cfg-options` arrive as they are typed, and keys end where they should."""

import argparse
import ast
import importlib.util

import pytest
from mmengine.config import Config, DictAction

from mmsb.engine.cfg_options import KeyValues, apply_options, parse_value
from mmsb.engine.launcher import common_parser, load_config

PLAIN = (  # without spaces and quotes: as MMEngine reads them
    '', '1', '-1', '+2', '1e-3', '1_000', '0x10', 'nan', '[1.5,inf]', 'None', 'none', 'TRUE', 'true', 'x', 'a:b',
    'a,b', 'a,', ',a', ',', 'a,,b', '1,[2,3]', '[]', '()', '[a]', '(1)', '(1,)', '[1,]', '[,]', '[a,,b]', '[[]]',
    '[(1,2),(3,4)]', '[[1],[2]]', '((1,2))', '([1],)', '((1,),(2,3))', '[None,true]', '-1.5,+2', 'a[1]', 'a[1', 'a(1)',
    '[a](b)', '(a)b', '[a]b,c', 'x=1', 'a=b=c', 'epoch_{}.pth', '{a}', 'C:\\x\\new', 'http://a:1/b?c=d&e', '*.png',
    'ünï',
)  # fmt: skip
PYTHON = (  # as Python reads them
    "'out/run one'", "'a, b'", '"don\'t"', "'1'", "'None'", "''", '""', "['ant', 'bee', 'big cow']", "['1', 2, None]",
    '["it\'s", "b"]', "{'a': 1, 'b': [1, {'c': None}]}", "[dict(type='A'), dict(type='B', x='a, b')]",
    "dict(type='X', a=(1, 2.5), b=dict(c=-1e-3))", '{}', 'dict()', "{0: 'a', 1: 'b'}",
    "('x y', [2, (3, 'ü')], {'k': 'v'})",
    "{'a b': 'c: d, e'}", "dict(a='x=1, y')", "['a]', 'b']", "[' a ']", "['', ()]", '[[0, 1], [2, 3]]', "['a',]",
)  # fmt: skip
TYPED = {  # bare text as it stands
    text: text
    for text in (
        'out/run one', "it's", 'say "hi"', ' x ', 'C:\\new dir\\t', '大 牛', "dir ('90s)/x", '{epoch}_{iter}.pth',
        'run(1,2)',
    )
} | {
    "it's, that's": ["it's", "that's"],
    "['it's', 'b']": ["it's", 'b'],
    '[a b, c d]': ['a b', 'c d'],
    '{type: SGD, lr: 0.1}': dict(type='SGD', lr=0.1),
    "'C:\\new'": 'C:\\new',
    '{path: C:\\new dir}': dict(path='C:\\new dir'),
    '(1, 2), (3, 4)': [(1, 2), (3, 4)],
    ' [1, 2] ': [1, 2],
    ' 5 ': 5,
}  # fmt: skip
BROKEN = ('[1,2', '(1', '[1,2)', '[(1]', '1,2]', 'a(1,2', '{a: 1', 'dict(a=1', "'a", '"a', "[a, 'b]", "'a' b",
          '{1, 2}', '{a: 1, b}', 'dict(1)')  # fmt: skip


def python_value(text: str):
    """Evaluate literals and `dict(...)`."""
    return eval(compile(ast.parse(text, mode='eval'), text, 'eval'), {'__builtins__': {'dict': dict}})


@pytest.mark.parametrize('text', PLAIN)
def test_plain_values_are_those_of_mmengine(text):
    assert repr(parse_value(text)) == repr(DictAction._parse_iterable(text))


@pytest.mark.parametrize('text', PYTHON)
def test_quoted_values_are_those_of_python(text):
    assert parse_value(text) == python_value(text)


@pytest.mark.parametrize('text', TYPED)
def test_text_arrives_as_typed(text):
    assert parse_value(text) == TYPED[text]


@pytest.mark.parametrize('option', [*(f'a={text}' for text in BROKEN), 'a', '=1', 'a..b=1', '.a=1', 'a.=1', ' =1'])
def test_what_can_not_be_read_is_one_line(option, capsys):
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=KeyValues, default={})
    with pytest.raises(SystemExit) as end:
        parser.parse_args(['--cfg-options', option])
    said = capsys.readouterr()
    assert end.value.code == 2
    assert said.err.startswith('error: --cfg-options ')
    assert said.err.count('\n') == 1
    assert not said.out


def test_options_add_up_and_a_repeated_key_is_reported(capsys):
    parse = common_parser('').parse_args
    args = parse(['c.py', '--cfg-options', 'a=1', 'b=x y', '--cfg-options', 'c=3', 'b=x y'])
    assert args.cfg_options == dict(a=1, c=3, b='x y')
    assert capsys.readouterr().err == ''
    args = parse(['c.py', '--cfg-options', 'a=1', 'a.b=2', 'a={c: 3}'])
    assert list(args.cfg_options.items()) == [('a.b', 2), ('a', dict(c=3))]
    assert capsys.readouterr().err == 'warning: --cfg-options has a more than once: {c: 3} counts\n'


def applied(**options) -> dict:
    shared = dict(lr=0.1, steps=[8, 11], size=(4, 5))
    cfg = Config(dict(one=shared, other=shared, hooks=[dict(type='A', n=1), dict(type='B')], none=None, word='x'))
    apply_options(cfg, {key.replace('__', '.'): value for key, value in options.items()})
    return cfg.to_dict()


def test_options_reach_into_dicts_lists_and_tuples():
    before = applied()
    got = applied(one__lr=1, one__steps__1=9, one__size__0=7, hooks__0__n=2, new__a__b=3, none=dict(a=dict(b=1)))
    assert got['one'] == dict(lr=1, steps=[8, 9], size=(7, 5))
    assert got['other'] == before['other']
    assert got['hooks'] == [dict(type='A', n=2), dict(type='B')]
    assert got['new'] == dict(a=dict(b=3))
    assert got['none'] == dict(a=dict(b=1))
    assert before == applied()


def test_a_dict_is_merged_as_in_a_config_file():
    file = applied()
    child = dict(steps=[1], a=dict(b=2))
    assert applied(one=child)['one'] == Config._merge_a_into_b(child, file['one'])
    assert applied(one=dict(_delete_=True, a=1))['one'] == dict(a=1)
    assert applied(one={})['one'] == {}
    assert applied(hooks__1=dict(type='C', m=1))['hooks'][1] == dict(type='C', m=1)


@pytest.mark.parametrize(
    ('key', 'said'),
    [
        ('hooks.2.n', "hooks is a list of 2, and has no index '2'"),
        ('hooks.-1.n', "hooks is a list of 2, and has no index '-1'"),
        ('hooks.type', "hooks is a list of 2, and has no index 'type'"),
        ('word.a', "word is 'x', in which 'a' can not be set"),
        ('none.a', "none is None, in which 'a' can not be set"),
        ('one.lr.a.b', "one.lr is 0.1, in which 'a' can not be set"),
    ],
)
def test_a_key_that_leads_nowhere_is_named(key, said):
    with pytest.raises(ValueError, match=r'^--cfg-options: ') as caught:
        applied(**{key: 1})
    assert str(caught.value) == f'--cfg-options: {said}'


def work_dir_of(tmp_path, *arguments: str) -> str:
    config = tmp_path / 'a config.py'
    config.write_text('model = dict(type="x")\n')
    return load_config(common_parser('').parse_args([str(config), *arguments]), lambda cfg: None).work_dir


@pytest.mark.parametrize('how', [('--work-dir', '{}'), ('--cfg-options', 'work_dir={}')])
def test_the_work_dir_is_the_one_that_was_named(how, tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', '/home of')
    for text, folder in {'out/run one': 'out/run one', '~/runs': '/home of/runs', "it's": "it's"}.items():
        assert work_dir_of(tmp_path, *(part.format(text) for part in how)) == folder
    with pytest.raises(ValueError, match='work_dir is empty'):
        work_dir_of(tmp_path, *(part.format('') for part in how))
    assert work_dir_of(tmp_path) == 'work_dirs/a config'


def test_tools_do_not_print_that_an_optional_package_is_missing(tmp_path, run_tool):
    """The libraries print it as they are imported, unless they are stock ones or have the package."""
    found = [name for name in ('mmpretrain', 'mmdet', 'mmseg') if importlib.util.find_spec(name)]
    imports = '; '.join(f'import {name}.datasets' for name in found)
    path = tmp_path / 'tool.py'
    path.write_text(f'from mmsb.engine.launcher import run_tool\nrun_tool(lambda: exec({imports!r}))\n')
    done = run_tool(path, cwd=tmp_path, fresh=True)
    assert done.returncode == 0, done.stderr
    assert 'OneDL' not in done.stdout + done.stderr
