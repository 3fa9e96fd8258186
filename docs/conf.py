from __future__ import annotations

import re
import sys
from pathlib import Path

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parents[1]))

from torch_projectors.version import VERSION

project = "torch-projectors"
version = release = VERSION
html_title = f"{project} {VERSION}"
html_theme = "furo"
html_show_copyright = False
html_copy_source = False
html_show_sourcelink = False

extensions = [
    "matplotlib.sphinxext.plot_directive",
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build"]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

# Docstrings write code in single backticks.
default_role = "code"
smartquotes = False
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 80
python_display_short_literal_types = True
# A list, since several arguments may share an entry.
napoleon_use_param = False
napoleon_use_rtype = False

plot_formats = [("png", 160)]
plot_html_show_formats = False
plot_html_show_source_link = False

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "filename_pattern": r"\.py$",
    "abort_on_example_error": True,
    "capture_repr": (),
    "download_all_examples": False,
    "min_reported_time": float("inf"),
    "remove_config_comments": True,
    "show_memory": False,
    "show_signature": False,
    "write_computation_times": False,
}


def escape_bars(
    _app: Sphinx, _what: str, _name: str, _obj: object, _options: object, lines: list[str]
) -> None:
    """|k| is an absolute value in docstrings, not a substitution."""
    text = "\n".join(lines)
    lines[:] = re.sub(r"`[^`]*`|\|", lambda m: m[0] if m[0] != "|" else r"\|", text).split("\n")


def visit_math(self: nodes.NodeVisitor, node: nodes.math) -> None:
    self.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def visit_math_block(self: nodes.NodeVisitor, node: nodes.math_block) -> None:
    self.body.append(f'<div class="math">{tex2mathml(node.astext(), as_block=True)}</div>')
    raise nodes.SkipNode


# Browsers draw MathML themselves, and pages load no script from elsewhere.
html_math_renderer = "mathml"


def setup(app: Sphinx) -> None:
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
    app.connect("autodoc-process-docstring", escape_bars)
