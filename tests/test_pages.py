"""The pages of prose: what they show runs, what they link to is there, and they fit on a screen."""

import doctest
import pathlib
import re
from typing import Any

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(page for room in ("gradxform", "examples", "benchmarks", "tests") for page in (ROOT / room).rglob("*.md")),
    ]
)
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
OWN = "gradxform/resume/README.md"
"""Is run by ``tests/resume/test_resume_page.py``, with what it does to signals."""
FENCED = re.compile(r"^```.*?^```", flags=re.MULTILINE | re.DOTALL)


def blocks_of(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)


@pytest.mark.long
@pytest.mark.parametrize("page", [name for name in NAMES if blocks_of(name) and name != OWN])
def test_the_page_runs(page: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every python block, from the first to the last in one session, as a reader would type them."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for i, block in enumerate(blocks_of(page)):
        if ">>>" in block:
            test = doctest.DocTestParser().get_doctest(block, namespace, f"{page} block {i}", page, 0)
            report: list[str] = []
            runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
            runner.run(test, out=report.append, clear_globs=False)
            assert runner.summarize(verbose=False).failed == 0, "".join(report)
            namespace = test.globs
        else:
            exec(compile(block, f"{page} python block {i}", "exec"), namespace)


@pytest.mark.parametrize("page", NAMES)
def test_lines_fit_on_a_screen(page: str) -> None:
    """At most 120 columns; a row of a table cannot be broken, but in the README it has to fit too."""
    lines = (ROOT / page).read_text().splitlines()
    wide = {
        i: len(line)
        for i, line in enumerate(lines, 1)
        if len(line) > 120 and (page == "README.md" or not line.startswith("|"))
    }
    assert wide == {}


@pytest.mark.parametrize("page", NAMES)
def test_what_a_page_names_is_there(page: str) -> None:
    """The pages and files that it links to, and the files of the repository that it names by their path."""
    text = FENCED.sub("", (ROOT / page).read_text())
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    missing = [link for link in links if link and not ((ROOT / page).parent / link).exists()]
    files = re.findall(r"`((?:gradxform|tests|examples|benchmarks)/[\w/.-]+\.\w+)`", text)
    assert missing + [path for path in files if not (ROOT / path).exists()] == []
    assert "```py\n" not in (ROOT / page).read_text(), "write ```python, or the block is not run"


def test_the_readme_is_short_and_leads_to_every_page() -> None:
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= 200
    rooms = {name for name in NAMES if name.endswith("/README.md")} - {"gradxform/masking/README.md"}
    assert [name for name in rooms if name not in readme] == []
    assert "@gx.transformation" in "".join(blocks_of("gradxform/README.md"))
