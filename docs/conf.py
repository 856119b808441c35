"""The documentation site: `make docs` builds it into build/docs, offline, with warnings as errors.

Guides are the Markdown files beside this one. The pages of the API are made from the docstrings of
every room of the package, and those of the commands from their `--help`; both are written into
docs/generated, which is not committed, beside copies of the pages of the root.
"""

import inspect
import os
import pathlib
import re
import subprocess
import sys

DOCS = pathlib.Path(__file__).resolve().parent
ROOT = DOCS.parent
GENERATED = DOCS / "generated"
sys.path.insert(0, str(ROOT))

import tfssl  # noqa: E402

project = "tfssl"
author = "the authors of tfssl"
copyright = "the authors of tfssl, Apache-2.0"
version = release = tfssl.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"tfssl {release}"
html_show_sphinx = False
html_copy_source = False
templates_path = ["_templates"]
exclude_patterns = ["_templates"]
myst_heading_anchors = 3
suppress_warnings = [
    "myst.header",  # studies/ write tables below smaller headings
    "ref.python",  # one name in several rooms, in annotations
]

autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
autodoc_typehints = "signature"
autodoc_inherit_docstrings = False  # Keras's own are no pages of ours
autosummary_generate = True
autosummary_imported_members = False
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # fields of NamedTuples are members already
napoleon_use_param = False
napoleon_use_rtype = False
napoleon_preprocess_types = False

COMMANDS = {
    "train": "train",
    "export": "export",
    "eval": "evaluate",
    "finetune": "finetune",
    "predict": "predict",
    "import": "import_weights",
}
SECTIONS = ("Args:", "Returns:", "Yields:", "Raises:", "Attributes:")


def write_sources(_app, _config):
    """docs/generated: the index of the API, a line for each room; what each command answers to
    --help; the pages of the root folder."""
    rooms = sorted(path.parent.name for path in ROOT.glob("tfssl/*/__init__.py"))
    names = sorted(
        [*(f"tfssl.{room}" for room in rooms), "tfssl.export", "tfssl.errors", "tfssl.registry"]
    )
    lines = [
        "API",
        "===",
        "",
        "Every room of the package, from its docstrings.",
        "",
        ".. autosummary::",
    ]
    lines += ["   :toctree: .", "   :recursive:", "", *(f"   {name}" for name in names), ""]
    _write("api/index.rst", "\n".join(lines))
    for page in GENERATED.glob("api/tfssl.*.rst"):  # of modules that have gone since the last build
        source = ROOT / page.stem.replace("tfssl.export", "export").replace(".", "/")
        if not source.is_dir() and not source.with_suffix(".py").exists():
            page.unlink()
    for command, module in COMMANDS.items():
        line = [sys.executable, "-m", f"tfssl.{module}", "--help"]
        _write(
            f"help/{command}.txt",
            subprocess.run(line, capture_output=True, text=True, check=True, cwd=ROOT).stdout,
        )
    for path in ROOT.glob("*.md"):
        _write(
            path.name.lower(),
            _relinked(path.read_text(encoding="utf-8"), path, GENERATED / path.name.lower()),
        )


def _write(name, text):
    path = GENERATED / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if (
        not path.exists() or path.read_text(encoding="utf-8") != text
    ):  # an unchanged file is not read again
        path.write_text(text, encoding="utf-8")


def _relinked(text, original, page):
    """The Markdown of a file as `page` of the site: links to what they led to from `original`;
    those to a folder become plain text."""

    def link(match):
        shown, target, anchor = match.groups("")
        path = (original.parent / target).resolve()
        if "://" in target or not path.exists():
            return match.group()
        if path.is_dir():
            return shown.lstrip("!")[1:-1]
        if path.parent == ROOT and path.suffix == ".md":
            path = GENERATED / path.name.lower()
        return f"{shown}({os.path.relpath(path, page.parent)}{anchor})"

    return re.sub(r"(!?\[[^\]]*\])\(([^)#\s]+)(#[^)\s]*)?\)", link, text)


def to_restructured_text(_app, _what, _name, _obj, _options, lines):
    """Docstrings are plain text with `code`, sections, and indented blocks, which are shown
    unchanged: turn `lines` into RST."""
    blocks, inside = [], False
    for line in lines:
        indent = len(line) - len(line.lstrip())
        inside = line in SECTIONS or (inside and (not line.strip() or indent > 0))
        if line in SECTIONS:
            kind = "heading"
        elif not line.strip():
            kind = "blank"
        elif inside:
            kind = "section"
        elif line.startswith("- ") or (indent and blocks and blocks[-1][0] == "list"):
            kind = "list"
        else:
            kind = "literal" if indent else "text"
        if blocks and blocks[-1][0] == kind and kind != "heading":
            blocks[-1][1].append(line)
        elif kind == "blank" and blocks and blocks[-1][0] == "literal":
            blocks[-1][1].append(line)
        else:
            blocks.append((kind, [line]))
    result, heading = [], ""
    for kind, block in blocks:
        if kind == "text":
            result += [_escaped(" ".join(line.strip() for line in block)), ""]
        elif kind == "literal":
            result += ["::", "", *(f"    {line}" for line in block), ""]
        elif kind == "list":
            result += [*_escaped("\n".join(block)).splitlines(), ""]
        elif kind == "heading":
            heading = block[0]
            result += ["", heading]
        elif kind == "section":
            result += _items(block, one=heading in ("Returns:", "Yields:"))
        else:
            result.append("")
    lines[:] = result


def _items(block, one):
    """The items of a section, a line each. `one`: it is a single text, whose colons do not divide a
    type from its description."""
    items = []
    for line in filter(str.strip, block):
        if not items or (line[2] != " " and not one):
            items.append("  : " + line.strip() if one else line)
        else:
            items[-1] += " " + line.strip()
    return [*map(_escaped, items), ""]


def _escaped(text):
    """What has a meaning in reStructuredText, outside of `code`, loses it; `code` becomes
    ``code``."""
    parts = re.split(r"`+([^`]+)`+", text)
    for i, part in enumerate(parts):
        if i % 2:
            before = "\\ " if parts[i - 1][-1:].isalnum() else ""
            after = (
                "\\ " if parts[i + 1][:1].isalnum() else ""
            )  # a letter right after it, as in `Source`s
            parts[i] = f"{before}``{part}``{after}"
        else:
            parts[i] = re.sub(r"([\\*|_])", r"\\\1", part)
    return "".join(parts)


def constructor(_app, what, _name, obj, _options, signature, returns):
    """A Keras class is created by a `__new__` that takes anything: show what its constructor
    takes."""
    if what == "class" and signature == "(*args, **kwargs)":
        parameters = list(inspect.signature(obj.__init__).parameters.values())[1:]
        return str(inspect.Signature(parameters)), returns
    return signature, returns


def relink(app, docname, source):
    """Pages that lead to one of the root folder lead to its copy."""
    page = pathlib.Path(app.env.doc2path(docname))
    if page.suffix == ".md" and GENERATED not in page.parents:
        source[0] = _relinked(source[0], page, page)


def setup(app):
    app.connect("config-inited", write_sources)  # before the sources are looked for
    app.connect("source-read", relink)
    app.connect("autodoc-process-signature", constructor)
    app.connect(
        "autodoc-process-docstring", to_restructured_text, priority=100
    )  # before napoleon reads the sections
