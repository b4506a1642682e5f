"""The house is in order: short modules, few positional parameters, and nothing that only tests use."""

import ast
import functools
import inspect
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import blpjax

ROOT = Path(__file__).parents[1]
LIBRARY = sorted((ROOT / "blpjax").rglob("*.py"))
#: Code that uses the library as its users do. That of tests is not among it.
USERS = sorted(path for folder in ("benchmarks", "examples") for path in (ROOT / folder).rglob("*.py"))

MOST_LINES = 500
MOST_PARAMETERS = 8

#: Public methods with more positional parameters, because PyBLP's have as many, and calls may rely on their places.
AS_IN_PYBLP = {
    "blpjax.problem.data.DataHolder.__init__",
    "blpjax.problem.problem.Problem.solve",
    "blpjax.simulation.results.SimulationResults.to_problem",
    "blpjax.simulation.simulation.Simulation.__init__",
}
#: Modules whose names are all for users.
PUBLIC_MODULES = {"blpjax.data", "blpjax.exceptions", "blpjax.options", "blpjax.plots", "blpjax.r_style"}
#: Names that no code of the library mentions, and why they stay.
KEPT = {
    "blpjax.kernels.linear_algebra._factorise_many": "its decorator registers it as a rule of vmap",
    "blpjax.machine.store._Describer.persistent_id": "pickle calls it",
    "blpjax.machine.store._Describer.reducer_override": "pickle calls it",
    "blpjax.machine.store._Restorer.persistent_load": "pickle calls it",
}


def test_modules_are_short_or_say_why() -> None:
    """The docstring of a longer one says why it has "more than 500 lines"."""
    long = {}
    for path in LIBRARY:
        text = path.read_text(encoding="utf-8")
        lines = text.count("\n")
        if lines > MOST_LINES and f"more than {MOST_LINES} lines" not in (ast.get_docstring(parse(path)) or ""):
            long[str(path.relative_to(ROOT))] = lines
    assert not long


def test_functions_have_few_positional_parameters() -> None:
    many = {}
    for path in LIBRARY:
        for name, node in definitions(path):
            if isinstance(node, ast.FunctionDef):
                names = [one.arg for one in (*node.args.posonlyargs, *node.args.args) if one.arg not in ("self", "cls")]
                if len(names) > MOST_PARAMETERS:
                    many[name] = len(names)
    assert set(many) == AS_IN_PYBLP


def test_nothing_is_used_by_tests_only() -> None:
    """Functions, classes and constants of modules are imported or called; members are at least mentioned somewhere."""
    trees = {path: parse(path) for path in (*LIBRARY, *USERS)}
    trees |= {ROOT / name: ast.parse(code) for name, code in documents()}
    used, mentioned = set(), defaultdict(list)
    for path, tree in trees.items():
        nodes = list(ast.walk(tree))
        used |= set(references(nodes))
        for word, line in words(nodes):
            mentioned[word].append((path, line))
    unused = []
    for path in LIBRARY:
        module = module_of(path)
        for name, node in definitions(path):
            *owners, last = name.removeprefix(f"{module}.").split(".")
            outside = [at for at in mentioned[last] if at[0] != path or not node.lineno <= at[1] <= node.end_lineno]
            here = any(place == path for place, _ in outside)
            if is_public(module, owners, last) or (outside if owners else here or name in used):
                continue
            unused.append(name)
    assert sorted(unused) == sorted(KEPT)


def test_the_page_on_architecture_names_what_exists() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    missing = [name for name in re.findall(r"`(\w+/(?:\w+\.py)?)`", text) if not (ROOT / "blpjax" / name).exists()]
    known = {name.rpartition(".")[2] for path in LIBRARY for name, _ in definitions(path)} | {p.stem for p in LIBRARY}
    names = re.findall(r"`(?:[A-Z]\w*\.(?!md`))?([A-Za-z_]\w*)`", text)
    missing += [name for name in names if name not in known]
    assert names and not missing


def is_public(module: str, owners: list[str], name: str) -> bool:
    """Whether a name is for users, or Python's own."""
    if re.fullmatch(r"__\w+__", name) or module in PUBLIC_MODULES or module == "blpjax":
        return True
    if not owners:
        return name in blpjax.__all__
    if name.startswith("_"):
        return False
    return (module, owners[0]) in exported_classes()


@functools.cache
def exported_classes() -> set[tuple[str, str]]:
    """Modules and names of classes for users, and of their bases."""
    exported = [value for name in blpjax.__all__ if inspect.isclass(value := getattr(blpjax, name))]
    return {(base.__module__, base.__name__) for cls in exported for base in cls.__mro__}


@functools.cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def definitions(path: Path) -> Iterator[tuple[str, ast.stmt]]:
    """Dotted names of functions, classes, their members, and constants, with the statements that define them."""

    def visit(body: list[ast.stmt], owner: str) -> Iterator[tuple[str, ast.stmt]]:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                yield f"{owner}.{node.name}", node
            if isinstance(node, ast.ClassDef):
                yield from visit(node.body, f"{owner}.{node.name}")
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            for target in targets:
                if isinstance(target, ast.Name) and isinstance(node, ast.Assign | ast.AnnAssign):
                    yield f"{owner}.{target.id}", node

    yield from visit(parse(path).body, module_of(path))


def references(nodes: list[ast.AST]) -> Iterator[str]:
    """Dotted names of what a module imports, and of attributes of modules that it imports."""
    modules = {}
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "blpjax":
            for alias in node.names:
                yield f"{node.module}.{alias.name}"
                modules[alias.asname or alias.name] = f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            yield f"{modules[node.value.id]}.{node.attr}"


def words(nodes: list[ast.AST]) -> Iterator[tuple[str, int]]:
    """Names, attributes and words of strings that could be names, with their lines. Docstrings are left out."""
    docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    for node in nodes:
        if isinstance(node, ast.Name):
            yield node.id, node.lineno
        elif isinstance(node, ast.Attribute):
            yield node.attr, node.end_lineno or node.lineno
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            if re.fullmatch(r"[\w.\s:]+", node.value):
                yield from ((word, node.lineno) for word in re.findall(r"\w+", node.value))


def documents() -> Iterator[tuple[str, str]]:
    """Code of notebooks, of the README and of pages, and the command of pyproject.toml as code, each under a name."""
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        for i, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"]):
            if cell["cell_type"] == "code":
                yield f"{path.name} {i}", "".join(cell["source"])
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for i, code in enumerate(re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)):
            yield f"{path.name} {i}", code
    for module, name in re.findall(r'^blpjax = "(.+):(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE):
        yield "pyproject.toml", f"from {module} import {name}"
