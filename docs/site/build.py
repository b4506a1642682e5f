"""Build the documentation site: ``python docs/site/build.py build/site``, or ``make docs``.

Sources are prepared in ``build/site-source``: pages of ``docs``, the notebooks (executed copies of ``build/notebooks``
where there are some), what pages link to, and a reference of every public name. Then Sphinx builds them, where warnings
are errors, and every link is followed. Nothing is taken from a network.
"""

import base64
import html
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import docstrings

import blpjax

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "build" / "site-source"
#: Pages that are not in docs, as the site has them too.
PAGES = ["CHANGES.md", "CONTRIBUTING.md", "benchmarks/README.md", "tests/ARGUMENTS.md"]
#: Where pages of docs come that `index.md` does not name.
OTHERS = "(other pages)"
LINK = re.compile(r"\]\(([^)\s#]+)(?:#[^)]*)?\)")


def main(target: Path) -> int:
    """Build the site in a directory; 0 when nothing was wrong."""
    shutil.rmtree(SOURCE, ignore_errors=True)
    stage()
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-q", "-W", "--keep-going", "-j", "auto"]
    command += ["-c", str(ROOT / "docs" / "site"), "-d", str(ROOT / "build" / "site-trees"), str(SOURCE), str(target)]
    shutil.rmtree(target, ignore_errors=True)
    done = subprocess.run(command)
    if done.returncode:
        return done.returncode
    start = "docs/index.html"
    redirect = f'<!doctype html><meta http-equiv="refresh" content="0; url={start}"><a href="{start}">blpjax</a>'
    (target / "index.html").write_text(redirect)
    (target / "llms.txt").write_text(describe_for_machines())
    problems = broken_links(target)
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"{len(list(target.rglob('*.html')))} pages in {target}, {len(problems)} broken links.")
    return 1 if problems else 0


def stage() -> None:
    """Lay sources out as they are in the repository, so that links between them hold."""
    for path in sorted((ROOT / "docs").glob("*.md")):
        copy(path, SOURCE / "docs" / path.name)
    for path in sorted((ROOT / "docs").glob("*.png")):
        copy(path, SOURCE / "docs" / path.name)
    for name in PAGES:
        copy(ROOT / name, SOURCE / name)
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        executed = ROOT / "build" / "notebooks" / path.name
        current = executed.exists() and executed.stat().st_mtime >= path.stat().st_mtime
        copy(executed if current else path, SOURCE / "notebooks" / path.name)
    write_navigation()
    write_gallery()
    write_arguments()
    write_reference()
    for page in sorted(SOURCE.rglob("*.md")):
        copy_what_is_linked(page)


def copy(path: Path, target: Path) -> None:
    """Copy a file into a directory that may not exist yet."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, target)


def copy_what_is_linked(page: Path) -> None:
    """Files of the repository that a page links to become downloads."""
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        if "://" in link or link.startswith("mailto:"):
            continue
        path = (page.parent / unquote(link)).resolve()
        known = ROOT / path.relative_to(SOURCE)
        if not path.exists() and known.is_file():
            copy(known, path)


def write_navigation() -> None:
    """Pages of docs that the start page does not name come where it says that others do."""
    index = SOURCE / "docs" / "index.md"
    text = index.read_text(encoding="utf-8")
    named = set(re.findall(r"^(?:/docs/)?([\w-]+)$", text, re.MULTILINE))
    others = sorted(path.stem for path in (SOURCE / "docs").glob("*.md") if path.stem not in named | {"index"})
    index.write_text(text.replace(OTHERS, "\n".join(others)), encoding="utf-8")


def write_gallery() -> None:
    """Give the gallery a picture of each notebook that has one."""
    page = SOURCE / "docs" / "tutorials.md"
    text = page.read_text(encoding="utf-8")
    for path in sorted((SOURCE / "notebooks").glob("*.ipynb")):
        picture = first_picture(path)
        if picture is not None:
            (SOURCE / "docs" / f"{path.stem}.png").write_bytes(picture)
            text = text.replace(f"<!-- {path.stem} -->", f"![]({path.stem}.png)")
    page.write_text(re.sub(r"<!-- \w+ -->", "", text), encoding="utf-8")


def write_arguments() -> None:
    """Summarise the table of PyBLP's arguments on the page for its users."""
    text = (ROOT / "tests" / "ARGUMENTS.md").read_text(encoding="utf-8")
    lines = ["| part of PyBLP | names with a test | of these, with a remark |", "|---|---|---|"]
    for title, body in re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL):
        rows = re.findall(r"^\| `(.+?)` \| (.*?) \| (.*?) ?\|$", body, re.MULTILINE)
        remarks = [f"`{name}`: {remark.strip()}" for name, _, remark in rows if remark.strip()]
        lines.append(f"| {title} | {len(rows)} | {'<br>'.join(remarks)} |")
    page = SOURCE / "docs" / "coming.md"
    known = page.read_text(encoding="utf-8")
    page.write_text(known.replace("<!-- table of arguments -->", "\n".join(lines)), encoding="utf-8")


def first_picture(notebook: Path) -> bytes | None:
    """The first figure in an executed notebook."""
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        for output in cell.get("outputs", ()):
            if picture := output.get("data", {}).get("image/png"):
                return base64.b64decode(picture if isinstance(picture, str) else "".join(picture))
    return None


def write_reference() -> None:
    """A page for each public name, with its example, and pages of modules."""
    folder = SOURCE / "docs" / "api"
    folder.mkdir(parents=True)
    examples = read_examples()
    lines = ["# Reference", "", "Every public name, by what it is for.", ""]
    for title, names in docstrings.GROUPS.items():
        lines += [f"## {title}", "", "```{toctree}", ":hidden:", "", *names, "```", "", "| name | |", "|---|---|"]
        for name in names:
            lines.append(f"| [`{name}`]({name}.rst) | {summary(name)} |")
            (folder / f"{name}.rst").write_text(reference_page(name, examples.get(name, "")), encoding="utf-8")
        lines.append("")
    lines += ["## Modules", "", "```{toctree}", *docstrings.MODULES, "```", ""]
    for title, modules in docstrings.MODULES.items():
        heading = f"{title.capitalize()}\n{'=' * len(title)}\n\n"
        body = "\n".join(f".. automodule:: {module}\n   :members:\n" for module in modules)
        (folder / f"{title}.rst").write_text(heading + body, encoding="utf-8")
    (folder / "index.md").write_text("\n".join(lines), encoding="utf-8")


def read_examples() -> dict[str, str]:
    """Code of examples.md, by the name that it is an example of."""
    text = (ROOT / "docs" / "examples.md").read_text(encoding="utf-8")
    return dict(re.findall(r"^## `(\w+)`\n.*?```python\n(.*?)```", text, re.MULTILINE | re.DOTALL))


def reference_page(name: str, example: str) -> str:
    """The documentation of a name in reStructuredText."""
    thing = getattr(blpjax, name)
    if name == "__version__":
        body = f".. data:: blpjax.__version__\n\n   The version, ``{thing!r}`` here.\n"
    elif name in ("data", "options", "exceptions"):
        body = f".. automodule:: blpjax.{name}\n   :members:\n   :undoc-members:\n"
    elif isinstance(thing, type):
        body = f".. autoclass:: blpjax.{name}\n   :members:\n   :inherited-members: tuple, object, Module\n"
    else:
        body = f".. autofunction:: blpjax.{name}\n"
    title = name.replace("_", r"\_")
    shown = "\n".join(f"   {line}".rstrip() for line in example.rstrip().split("\n"))
    if not example:
        return f"{title}\n{'=' * len(title)}\n\n{body}"
    note = "Names that are not defined here are those of the :doc:`first example </docs/examples>`."
    return (
        f"{title}\n{'=' * len(title)}\n\n{body}\n.. rubric:: Example\n\n.. code-block:: python\n\n{shown}\n\n{note}\n"
    )


def summary(name: str) -> str:
    """What a name is, in a sentence."""
    thing = getattr(blpjax, name)
    if isinstance(thing, str):
        return "The version."
    text = " ".join((thing.__doc__ or "").strip().split("\n\n")[0].split())
    return re.split(r"(?<=[a-z)`'0-9])[.:] ", text)[0].rstrip(".").replace("``", "`").replace("|", r"\|") + "."


def describe_for_machines() -> str:
    """The file llms.txt: what the library is, and where its pages are, as Markdown."""
    index = (SOURCE / "docs" / "index.md").read_text(encoding="utf-8")
    lead = index.split("\n\n")[1].replace("\n", " ")
    lines = ["# blpjax", "", f"> {lead}", "", "## Pages", ""]
    for path in sorted((SOURCE / "docs").glob("*.md")):
        text = path.read_text(encoding="utf-8")
        title = text.split("\n", 1)[0].lstrip("# ")
        first = next((p for p in text.split("\n\n")[1:] if re.match(r"[A-Z]", p)), "")
        lines.append(f"- [{title}](_sources/docs/{path.name}): {' '.join(first.split())}")
    lines += ["", "## Reference", ""]
    for names in docstrings.GROUPS.values():
        lines += [f"- [{name}](docs/api/{name}.html): {summary(name)}" for name in names]
    return "\n".join([*lines, ""])


class Links(HTMLParser):
    """Targets and sources of a page, and the places in it that can be targets."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.places: set[str] = set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what a tag refers to."""
        known = {name: value or "" for name, value in attrs}
        self.places |= {known[name] for name in ("id", "name") if name in known}
        if tag == "a" and "href" in known:
            self.links.append(known["href"])
        if tag in ("img", "script") and "src" in known:
            self.loaded.append(known["src"])
        if tag == "link" and known.get("rel") in ("stylesheet", "icon"):
            self.loaded.append(known["href"])


def broken_links(site: Path) -> list[str]:
    """Sentences on links that lead nowhere within the site, and on what pages load from elsewhere."""
    pages = {page.resolve(): Links(page) for page in site.rglob("*.html")}
    problems = []
    for page, found in pages.items():
        where = page.relative_to(site.resolve())
        problems += [f"{where} loads {source}" for source in found.loaded if urlsplit(source).netloc]
        for link in [*found.links, *found.loaded]:
            parts = urlsplit(html.unescape(link))
            if parts.scheme or parts.netloc:
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            if not target.exists():
                problems.append(f"{where}: there is no {link}")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].places:
                problems.append(f"{where}: there is no place {link}")
    return problems


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "build/site")))
