"""Writes the API reference and the pages of prose as one site.

    pip install -e ".[docs]" && python .ci/docs.py

The pages are those beside the code, the reference is made from the docstrings by pdoc, and the schedules are drawn;
with ``--pictures`` the gallery of augmentations and the figures are too, which takes minutes. A warning, a public name
that is missing or a link that leads nowhere ends it with an error.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import re
import shutil
import subprocess
import sys
import typing
import warnings
from types import ModuleType
from typing import Any

import jinja2
import matplotlib
import pdoc
from pdoc import render, render_helpers

matplotlib.use("Agg")

import gradxform as gx

ROOT = pathlib.Path(__file__).resolve().parents[1]
OUTPUT = ROOT / "build" / "docs"
ROOMS = (
    "augment",
    "losses",
    "masking",
    "norm",
    "norm.linen",
    "norm.nnx",
    "plot",
    "precision",
    "resume",
    "schedules",
    "sharding",
    "transfer",
)
PICTURES = {
    "schedules": "schedules.png",
    "augment": "augmentation_gallery.png",
    "norm": "normalization.png",
    "gradxform": "trajectories.png",
}
"""What is shown at the top of a room's reference, where it has been drawn."""

NAVIGATION = """
<a class="pdoc-button module-list-button" href="{{ up }}index.html">gradxform</a>
<input type="search" placeholder="Search the reference..." role="searchbox" aria-label="search" pattern=".+" required>
<h2>Pages</h2>
<ul>{% for path, title in pages.items() %}<li><a href="{{ up }}{{ path }}">{{ title }}</a></li>{% endfor %}</ul>
<h2>Reference</h2>
<ul>{% for name in modules %}
<li><a href="{{ up }}{{ name.replace('.', '/') }}.html">{{ name }}</a></li>{% endfor %}</ul>
"""
TEMPLATES = {
    "index.html.jinja2": "",  # README is the front page
    "custom.css": """
        main.pdoc table { border-collapse: collapse; display: block; overflow-x: auto; margin-bottom: 1rem; }
        main.pdoc td, main.pdoc th { border-bottom: 1px solid #ddd; padding: .25rem .6rem; text-align: left; }
        main.pdoc td { vertical-align: top; }
        main.pdoc img { max-width: 100%; }
        nav.pdoc h2 { font-size: 1.15rem; margin-top: 1.2rem; }
        main.pdoc section.prose { padding: 1rem 3vw 3rem; max-width: 66rem; }
        .pdoc .docstring h6 { font-size: 1rem; margin: .8rem 0 .2rem; font-weight: 600; }
        .pdoc .docstring blockquote { border: 0; margin: 0; padding: 0; color: inherit; }
        .pdoc .docstring blockquote > p { margin: 0 0 0 1.5rem; }
    """,
    "page.html.jinja2": """
        {% extends "frame.html.jinja2" %}
        {% block title %}{{ title }}{% endblock %}
        {% block nav %}"""
    + NAVIGATION
    + """{% endblock %}
        {% block content %}<main class="pdoc"><section class="prose">{{ html | safe }}</section></main>
        {% include "search.html.jinja2" %}{% endblock %}
    """,
    "module.html.jinja2": """
        {% extends "default/module.html.jinja2" %}
        {% set up = "../" * module.modulename.count(".") %}
        {% block module_list_link %}"""
    + NAVIGATION
    + """{% endblock %}
        {% block search_box %}{% endblock %}
        {% block nav_submodules %}{% endblock %}
        {% block module_contents %}
            <section>
            {% if prose(module) %}<p>How it works, why, and what was measured: <a href="{{ up }}{{ prose(module) }}">the
                page of this room</a>.</p>{% endif %}
            {% if picture(module) %}<img src="{{ up }}{{ picture(module) }}" alt="{{ module.modulename }}">{% endif %}
            </section>
            {{ super() }}
        {% endblock %}
        {% macro is_public(doc) %}
            {% if in_attributes(doc) %}
            {% elif doc.kind == "module" %}{% if doc.fullname in all_modules %}true{% endif %}
            {% elif doc.name == "__init__" %}{% if doc.signature_without_self.parameters %}true{% endif %}
            {% elif not doc.name.startswith("_") %}true{% endif %}
        {% endmacro %}
        {% macro docstring(var) %}{% if docstring_of(var) %}<div class="docstring">
            {{ docstring_of(var) | to_markdown | to_html | linkify(namespace=var.qualname, shorten=False) }}
        </div>{% endif %}{% endmacro %}
    """,
}


def sources() -> dict[str, pathlib.Path]:
    """The pages of prose: where each goes in the site, and where it is read."""
    found = [
        *sorted(ROOT.glob("*.md"), reverse=True),  # README before CONTRIBUTING and CHANGELOG
        *(page for room in ("gradxform", "examples", "benchmarks") for page in sorted((ROOT / room).rglob("*.md"))),
    ]
    return {target(page): page for page in found}


def target(page: pathlib.Path) -> str:
    """Where a page of prose goes."""
    path = page.relative_to(ROOT)
    return "index.html" if path == pathlib.Path("README.md") else str(path.with_suffix(".html"))


def rewritten(text: str, page: pathlib.Path) -> str:
    """A page whose links lead to pages of the site, with the pictures that it shows copied there.

    Raises:
      FileNotFoundError: what a link leads to is not there.
    """
    here = (OUTPUT / target(page)).parent

    def link(found: re.Match[str]) -> str:
        name, hash_, anchor = found[1].partition("#")
        if "://" in name or not name:
            return found[0]
        file = (page.parent / name).resolve()
        if not file.exists():
            raise FileNotFoundError(f"{page.relative_to(ROOT)}: expected {name} to be there")
        place = OUTPUT / (target(file) if file.suffix == ".md" else file.relative_to(ROOT))
        if file.suffix != ".md":
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, place)
        return f"]({os.path.relpath(place, here)}{hash_}{anchor})"

    return re.sub(r"\]\(([^)\s]+)\)", link, text).replace(" ± ", "\u00a0±\u00a0")


def write_pages(pages: dict[str, str], modules: list[str]) -> None:
    """Writes the pages of prose."""
    template = render.env.get_template("page.html.jinja2")
    for path, page in sources().items():
        html = render_helpers.to_html(rewritten(page.read_text(), page))
        place = OUTPUT / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(
            template.render(
                title=pages[path],
                html=html,
                up="../" * path.count("/"),
                pages=pages,
                modules=modules,
                all_modules={},
                root_module_name="gradxform",
            )
        )


def title(page: pathlib.Path) -> str:
    """The heading of a page."""
    return page.read_text().splitlines()[0].removeprefix("# ")


def draw(everything: bool) -> dict[str, str]:
    """Draws the schedules, and the slow pictures if they are asked for; which there are, by room."""
    folder = OUTPUT / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    s = gx.schedules
    axes = gx.plot.schedules(
        [
            s.constant(0.5),
            s.cosine(1.0, 1000, 0.0),
            s.linear(1.0, 0.1, 1000),
            s.polynomial(1.0, 0.0, 1000, 2.0),
            s.warmup(100, s.cosine(1.0, 900)),
            s.warmup_stable_decay(1.0, 100, 600, 300),
            s.one_cycle(1.0, 1000),
            s.cosine_restarts(1.0, 250),
            s.inverse_sqrt(1.0, 100),
        ],
        1000,
    )
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure = axes.figure
    figure.set_size_inches(9, 4.5)
    figure.savefig(folder / "schedules.png", dpi=110, bbox_inches="tight")
    if everything:
        for program in ("augmentation_gallery.py", "figures.py"):
            subprocess.run([sys.executable, ROOT / "examples" / program, "--output", folder], check=True)
    return {room: f"pictures/{name}" for room, name in PICTURES.items() if (folder / name).exists()}


def check_names(modules: dict[str, ModuleType]) -> None:
    """Every public name has its place in the reference, with a signature if it is called.

    Raises:
      LookupError: some have not.
    """
    missing = []
    for name, module in modules.items():
        html = (OUTPUT / f"{name.replace('.', '/')}.html").read_text()
        missing += [
            f"{name}.{public}"
            for public in module.__all__
            if not isinstance(getattr(module, public), ModuleType) and f'<section id="{public}">' not in html
        ]
    if missing:
        raise LookupError(f"not in the reference: {', '.join(missing)}")


def main(arguments: list[str] | None = None) -> None:
    """Writes the site."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", action="store_true", help="draw the gallery and the figures too (minutes)")
    options = parser.parse_args(arguments)
    shutil.rmtree(OUTPUT, ignore_errors=True)
    pictures = draw(options.pictures)
    names = ["gradxform", *(f"gradxform.{room}" for room in ROOMS)]
    pages = {path: title(page) for path, page in sources().items()}
    render.configure(docformat="google", show_source=True, footer_text=f"gradxform {gx.__version__}")
    render.env.loader = jinja2.ChoiceLoader([jinja2.DictLoader(TEMPLATES), render.env.loader])

    def room(module: pdoc.doc.Module) -> str:
        return module.modulename.removeprefix("gradxform.")

    def prose(module: pdoc.doc.Module) -> str | None:
        path = f"gradxform/{'' if room(module) == 'gradxform' else room(module).partition('.')[0] + '/'}README.html"
        return path if path in pages else None

    render.env.globals.update(
        pages=pages,
        modules=names,
        prose=prose,
        in_attributes=in_attributes,
        docstring_of=docstring_of,
        picture=lambda module: pictures.get(room(module)),
    )
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        write_reference(names)
    write_pages(pages, names)
    check_names({name: sys.modules[name] for name in names})
    if found:
        raise UserWarning("\n".join(sorted({str(warning.message) for warning in found})))
    print(OUTPUT / "index.html")


def write_reference(names: list[str]) -> None:
    """Writes the pages of the modules."""
    # Annotations stand in the reference as in the source: evaluated, ``Scalar`` is three lines of unions.
    pdoc.doc_types.safe_eval_type = pdoc.doc.safe_eval_type = as_written
    # The submodules are documented where their names are public, so only these have pages.
    rest = "|".join(re.escape(name.removeprefix("gradxform.")) for name in names[1:])
    # Those that a room imports only when they are asked for are not found by walking.
    lazy = [name for name in names if name.startswith("gradxform.norm.")]
    pdoc.pdoc("gradxform", rf"!gradxform\.(?!({rest})$).*", *lazy, output_directory=OUTPUT)


class Written(str):
    """An annotation, printed as it is written."""

    __repr__ = str.__str__


def as_written(annotation: Any, *where: Any) -> Any:
    """An annotation that is a string, by its text."""
    text = annotation.__forward_arg__ if isinstance(annotation, typing.ForwardRef) else annotation
    return Written(text) if isinstance(text, str) else annotation


def in_attributes(item: pdoc.doc.Doc[Any]) -> bool:
    """Whether it is a field, which the docstring of its class describes."""
    return (
        isinstance(item, pdoc.doc.Variable)
        and "." in item.qualname
        and item.docstring.partition(" for ")[0] in ("", "Alias")
    )


def docstring_of(item: pdoc.doc.Doc[Any]) -> str:
    """The docstring, if somebody wrote it."""
    return "" if item.docstring.startswith("Create new instance of") else item.docstring


if __name__ == "__main__":
    main()
