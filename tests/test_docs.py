"""Pages: what they say is complete, what they link to is there, their code runs, and browsers show them."""

import importlib.util
import inspect
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import pytest

import blpjax
from blpjax import exceptions
from tests.support.silence import silent

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
#: Pages whose code other tests run.
ELSEWHERE = {"conduct.md", "counterfactuals.md"}
#: Pages that readers see in the repository, and whose links have to lead somewhere.
LINKED = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGES.md", ROOT / "benchmarks" / "README.md", *PAGES]


def module(name: str) -> Any:
    """A module of the builder, which is no package."""
    specification = importlib.util.spec_from_file_location(name, ROOT / "docs" / "site" / f"{name}.py")
    assert specification is not None and specification.loader is not None
    found = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(found)
    return found


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


# What has to be complete


def test_every_public_name_is_in_a_group_of_the_reference_and_has_an_example() -> None:
    grouped = [name for names in module("docstrings").GROUPS.values() for name in names]
    assert sorted(grouped) == sorted(blpjax.__all__)
    assert sorted(re.findall(r"^## `(\w+)`$", page("examples.md"), re.MULTILINE)) == sorted(blpjax.__all__)


def test_every_status_and_every_exception_is_explained() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", page("failures.md"), re.MULTILINE)
    errors = [
        name
        for name, value in vars(exceptions).items()
        if inspect.isclass(value) and issubclass(value, Exception) and value.__module__ == exceptions.__name__
    ]
    errors.remove("MultipleErrors")  # another name of one of them
    assert sorted(rows) == sorted([*errors, *(status.name for status in exceptions.Status)])
    for status in exceptions.Status:
        assert f"| `{status.name}` | {status.sentence} |" in page("failures.md")


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 120


@pytest.mark.parametrize("path", LINKED, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)", BLOCK.sub("", text)):
        if "://" in link:
            continue
        name, _, place = link.partition("#")
        target = (path.parent / name) if name else path
        assert target.is_file(), link
        if place:
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert place in slugs, link


def test_every_notebook_is_in_the_gallery() -> None:
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        assert f"(../notebooks/{path.name})" in page("tutorials.md") and f"/notebooks/{path.stem}\n" in page(
            "tutorials.md"
        )


def test_tables_of_benchmarks_are_those_of_their_page() -> None:
    """Pages on choices and micro data repeat figures of the benchmarks' page, the README those on performance."""
    known = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ((?:blpjax|PyBLP) \w+) \| (\d+, \d+) \| (\d+ of 80) \|$", page("choose.md"), re.MULTILINE)
    assert len(rows) == 5
    for method, evaluations, solved in rows:
        assert f"| {method} | {evaluations} | {solved} " in known
    economies = re.findall(r"^\| (\w.*) \|" + r" (\S+) \|" * 8 + "$", known, re.MULTILINE)
    assert len(economies) == 6
    for name, _, _, _, _, gmm, likelihood, *_ in economies:
        assert f"| {name} | {gmm} | {likelihood} |" in page("micro.md")
    covered = sorted(float(one) for row in economies for one in row[-2:])
    assert f"covered between {covered[0]:.1%} and {covered[-1]:.1%}" in page("micro.md")
    measured = re.findall(
        r"^\| .+ \| (.+ s) \| ([\d.,]+ s)\b.* \| (\d+) \| (.+ s) \|$",
        (ROOT / "README.md").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    assert len(measured) == 6
    for ours, theirs, ratio, compiling in measured:
        row = rf"\| {ours}[^|]* \| {theirs}[^|]* \| {ratio} \| {compiling} \|$"
        assert re.search(row, page("performance.md"), re.MULTILINE), row


# What takes long


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    [one for one in PAGES if one.name not in ELSEWHERE and "```python" in page(one.name)],
    ids=lambda one: one.name,
)
def test_code_of_pages_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    matplotlib.use("agg")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "page"}
    with silent(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for number, (kind, source) in enumerate(BLOCK.findall(path.read_text(encoding="utf-8"))):
            if kind == "python":
                exec(compile(source, f"{path.name}, block {number}", "exec"), names)


@pytest.mark.slow
def test_estimates_on_the_page_about_parity_are_those_of_now() -> None:
    with silent():
        assert module("parity_table").table() in page("parity.md")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built anew."""
    pytest.importorskip("sphinx")
    pytest.importorskip("myst_nb")
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, str(ROOT / "docs" / "site" / "build.py"), str(target)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, where there is one, driven by playwright."""
    playwright = pytest.importorskip("playwright.sync_api")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("there is no browser")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.mark.slow
def test_no_page_scrolls_sideways_on_a_phone(site: Path, browser: Any) -> None:
    view = browser.new_page(viewport={"width": 375, "height": 700})
    wide = []
    for path in sorted(site.rglob("*.html")):
        if "_modules" in path.parts or path == site / "index.html":  # code, and what leads to the start page
            continue
        view.goto(path.as_uri())
        if view.evaluate("document.documentElement.scrollWidth") > 376:
            wide.append(path.name)
    assert not wide


@pytest.mark.slow
def test_the_search_finds_pages(site: Path, browser: Any) -> None:
    view = browser.new_page()
    view.goto((site / "search.html").as_uri() + "?q=compute_elasticities")
    view.wait_for_selector("ul.search li a", timeout=20_000)
    assert "ProblemResults" in view.inner_text("ul.search")
