"""Sphinx's settings. `build.py` prepares the sources and calls Sphinx."""

import re
import sys
from pathlib import Path
from typing import Any

import latex2mathml.converter
from docutils import nodes
from pygments.lexers.special import TextLexer
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

sys.path.insert(0, str(Path(__file__).parent))

import docstrings  # noqa: E402

import blpjax  # noqa: E402

project = "blpjax"
author = "blpjax developers"
project_copyright = author
version = release = blpjax.__version__
root_doc = "docs/index"
extensions = ["sphinx.ext.autodoc", "sphinx.ext.viewcode", "myst_nb"]
nitpicky = False
default_role = "py:obj"

myst_enable_extensions = ["dollarmath", "amsmath", "attrs_inline"]
myst_heading_anchors = 4
nb_execution_mode = "off"  # what is shown was executed by `make notebooks`
nb_render_markdown_format = "myst"

autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
maximum_signature_line_length = 100

html_theme = "furo"
html_title = f"blpjax {release}"
html_static_path = [str(Path(__file__).parent / "style.css")]
html_css_files = ["style.css"]
html_math_renderer = "mathml"
html_show_sphinx = False
html_copy_source = True
html_sourcelink_suffix = ""
html_theme_options = {"navigation_with_keys": True}


class LinkNames(SphinxTransform):
    """Words of code that name something public, such as `Problem.solve`, are links to where it is documented."""

    default_priority = 500
    pattern = re.compile(r"(?:blpjax\.)?(?:results\.|problem\.|outcome\.)?[A-Za-z_][\w.]*(?:\(\))?$")

    def apply(self, **_: Any) -> None:
        """Replace literal text by references, which stay literal where they lead nowhere."""
        for node in list(self.document.findall(nodes.literal)):
            text = node.astext()
            if isinstance(node.parent, pending_xref | nodes.reference) or not self.pattern.match(text):
                continue
            target = text.removesuffix("()").removeprefix("blpjax.")
            for variable, kind in docstrings.VARIABLES.items():
                if target.startswith(f"{variable}."):
                    target = f"{kind}{target.removeprefix(variable)}"
            if target.split(".")[0] not in docstrings.DOCUMENTED:
                continue
            options = {"refdomain": "py", "reftype": "obj", "reftarget": f"blpjax.{target}", "refwarn": False}
            reference = pending_xref("", node.deepcopy(), refdoc=self.env.docname, **options)
            node.replace_self(reference)


def write_inline(writer: Any, node: Any) -> None:
    """A formula within a line."""
    writer.body.append(latex2mathml.converter.convert(node.astext()))
    raise nodes.SkipNode


def write_block(writer: Any, node: Any) -> None:
    """A formula of its own, with its number."""
    number = ""
    if node.get("number"):
        number = f'<a class="eqno" href="#{node["ids"][0]}">({node["number"]})</a>' if node["ids"] else ""
    formula = latex2mathml.converter.convert(node.astext(), display="block")
    identity = f' id="{node["ids"][0]}"' if node["ids"] else ""
    writer.body.append(f'<div class="math"{identity}>{formula}{number}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Formulas are MathML, which browsers draw by themselves: no script, nothing from elsewhere."""
    app.add_html_math_renderer("mathml", (write_inline, None), (write_block, None))
    app.add_transform(LinkNames)
    app.add_lexer("mermaid", TextLexer)
    app.connect("autodoc-process-docstring", docstrings.process)
    app.connect("autodoc-skip-member", docstrings.skip)
