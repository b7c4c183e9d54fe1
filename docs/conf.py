"""Configuration of Sphinx: Markdown pages, a reference made from docstrings, and nothing that needs the network."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import mmsb

project = 'mmsb'
author = 'The mmsb authors'
version = release = mmsb.__version__
extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon']
exclude_patterns = ['_build', 'tables']  # tables are included in pages
myst_heading_anchors = 3

default_role = 'code'  # docstrings quote code as Markdown does
autodoc_member_order = 'bysource'
autodoc_class_signature = 'mixed'
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 100
napoleon_use_rtype = False
nitpicky = True
nitpick_ignore_regex = [('py:.*', r'(?!mmsb\.).*')]  # types of Python and PyTorch: their pages are on the network

html_theme = 'furo'
html_title = f'mmsb {release}'
html_theme_options = dict(light_css_variables={'code-font-size': '75%'})
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False


def escape_stars(app, what, name, obj, options, lines: list[str]) -> None:
    """Keep a star in a docstring, as in (B, N, *size), from beginning an emphasis; code in backticks is left alone."""
    parts = '\n'.join(lines).split('`')
    parts[::2] = [part.replace('*', r'\*') for part in parts[::2]]
    lines[:] = '`'.join(parts).split('\n')


def setup(app) -> None:
    app.connect('autodoc-process-docstring', escape_stars)
