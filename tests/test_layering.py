"""Imports run one way: held on the source text, so that late imports and imports for types are seen too."""

from __future__ import annotations

import ast
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "localdist"

# The order, lowest first. A part may import from its own row and the rows above it in this list, never from below.
# A new part of the package gets its place here.
ORDER = [
    {"errors", "abc"},
    {"_key", "_modules", "_pickler", "_serialize", "_wire"},
    {"_kept", "_graph", "_schedule", "_pipe", "_chunk"},
    {"_state", "_registry", "_store", "_transport", "sync"},
    {"_worker"},
    {"_dispatch", "_future", "_callbacks", "_options"},
    {"_gather", "_waiting"},
    {"_cluster", "_inspection", "_scattering", "_submission"},
    {"_client", "_executor"},
    {"actors", "collections", "streams"},
    {"testing", "bench"},
    {"pytest_plugin", "__main__"},
]
RANK = {part: rank for rank, parts in enumerate(ORDER) for part in parts}
ROOT_RANK = RANK["_client"]  # a name taken from the root may be any public one, and the highest of them is Client

# What runs in a worker knows nothing of what decides about it, not even for type hints.
UNKNOWN_TO_WORKERS = {"_schedule", "_dispatch", "_cluster", "_client", "_executor"}

# Parts that decide and nothing else: no clock, no thread, no input or output, no chance. What they may import is
# listed, since what would break the rule cannot be. To add a module here, see that it does none of that.
PURE_PARTS = ("_schedule", "_store._ledger")
HARMLESS = {
    *("__future__", "abc", "bisect", "collections", "contextlib", "copy", "dataclasses", "enum", "functools", "heapq"),
    *("itertools", "math", "operator", "types", "typing", "weakref"),
}
IMPURE_BUILTINS = {"open", "print", "input", "__import__", "exec", "eval", "breakpoint"}

# What `pip install localdist` brings; anything else is imported where it is used.
DEPENDENCIES = {"loky", "cloudpickle", "psutil", "xxhash", "tblib"}
OWN_PURPOSE = {"pytest_plugin": {"pytest"}}


@dataclass(frozen=True)
class Import:
    """One module imported by another.

    Attributes:
        importer: dotted name inside the package, "" for its root.
        imported: dotted name in full.
        line: where.
        late: it stands inside a function.
        for_types: it is never run.
    """

    importer: str
    imported: str
    line: int
    late: bool
    for_types: bool

    def __str__(self) -> str:
        return f"localdist/{self.importer.replace('.', '/')}, line {self.line}: imports {self.imported}"

    @property
    def own(self) -> str | None:
        """The dotted name inside the package, "" for the root; None when it is not of the package."""
        if self.imported == "localdist":
            return ""
        return self.imported.removeprefix("localdist.") if self.imported.startswith("localdist.") else None


def module_names(package: Path) -> dict[str, Path]:
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


class Finder(ast.NodeVisitor):
    """Collects the imports of one module."""

    def __init__(self, importer: str, is_package: bool, modules: set[str]) -> None:
        self.importer, self.is_package, self.modules = importer, is_package, modules
        self.found: list[Import] = []
        self._depth = 0
        self._for_types = False

    def _add(self, node: ast.stmt, imported: str) -> None:
        self.found.append(Import(self.importer, imported, node.lineno, self._depth > 0, self._for_types))

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._add(node, alias.name)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        base = node.module or ""
        if node.level:
            up = self.importer.split(".") if self.importer else []
            up = up[: len(up) - (node.level - self.is_package)]
            base = ".".join(["localdist", *up, *([node.module] if node.module else [])])
        for alias in node.names:
            inside = f"{base}.{alias.name}"
            self._add(node, inside if inside.removeprefix("localdist.") in self.modules else base)

    def visit_Call(self, node: ast.Call) -> None:
        # importlib.import_module("localdist._x") and __import__("localdist._x") are imports as well.
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if called in ("import_module", "__import__") and node.args and isinstance(node.args[0], ast.Constant):
            self.found.append(Import(self.importer, str(node.args[0].value), node.lineno, self._depth > 0, False))
        self.generic_visit(node)

    def generic_visit(self, node: ast.AST) -> None:
        inside = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        self._depth += inside
        super().generic_visit(node)
        self._depth -= inside

    def visit_If(self, node: ast.If) -> None:
        if not ast.unparse(node.test).endswith("TYPE_CHECKING"):
            self.generic_visit(node)
            return
        outside, self._for_types = self._for_types, True
        for statement in node.body:
            self.visit(statement)
        self._for_types = outside
        for statement in node.orelse:
            self.visit(statement)


def imports_of(package: Path) -> list[Import]:
    modules = module_names(package)
    found = []
    for name, path in modules.items():
        finder = Finder(name, path.name == "__init__.py", set(modules))
        finder.visit(ast.parse(path.read_text(encoding="utf-8")))
        found += finder.found
    return found


def part_of(module: str) -> str:
    return module.split(".")[0]


def is_within(module: str, part: str) -> bool:
    return module == part or module.startswith(part + ".")


def rank_of(module: str) -> int:
    return RANK.get(part_of(module), len(ORDER)) if module else ROOT_RANK


def against_the_order(imports: list[Import]) -> list[str]:
    return [
        str(i)
        for i in imports
        if i.own is not None and i.importer and not i.for_types and rank_of(i.own) > rank_of(i.importer)
    ]


def known_to_workers(imports: list[Import]) -> list[str]:
    of_workers = [i for i in imports if part_of(i.importer) == "_worker" and i.own is not None]
    return [str(i) for i in of_workers if not i.own or part_of(i.own) in UNKNOWN_TO_WORKERS]


def impure(imports: list[Import]) -> list[str]:
    of_pure = [i for i in imports if i.own is None and any(is_within(i.importer, pure) for pure in PURE_PARTS)]
    return [str(i) for i in of_pure if part_of(i.imported) not in HARMLESS]


def impure_calls(package: Path) -> list[str]:
    return [
        f"{name}, line {node.lineno}: calls {node.func.id}"
        for name, path in module_names(package).items()
        if any(is_within(name, pure) for pure in PURE_PARTS)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in IMPURE_BUILTINS
    ]


def too_early(imports: list[Import]) -> list[str]:
    """Imports at module level of what may not be installed, or is not wanted at every start."""
    at_once = [i for i in imports if i.own is None and not i.late and not i.for_types]
    allowed = sys.stdlib_module_names | DEPENDENCIES
    return [str(i) for i in at_once if part_of(i.imported) not in allowed | OWN_PURPOSE.get(i.importer, set())]


def cycles(imports: list[Import]) -> list[list[str]]:
    """Return each cycle of modules as the path around it. Importing a package's module is not importing the package."""
    edges: dict[str, set[str]] = {}
    for i in imports:
        # The root loads names on first use, so what it can load is no import of its own.
        if i.own is not None and i.importer and i.own != i.importer and not i.for_types:
            edges.setdefault(i.importer, set()).add(i.own)
    found, done = [], set()

    def follow(module: str, path: list[str]) -> None:
        if module in path:
            found.append([*path[path.index(module) :], module])
            return
        if module in done:
            return
        for target in sorted(edges.get(module, ())):
            follow(target, [*path, module])
        done.add(module)

    for module in sorted(edges):
        follow(module, [])
    return found


IMPORTS = imports_of(PACKAGE)


def test_every_part_has_its_place() -> None:
    """A module or folder of the package without a place in the order breaks the test, not the order."""
    assert {part_of(name) for name in module_names(PACKAGE)} - {""} <= set(RANK)


def test_imports_run_one_way() -> None:
    """No part imports from a part above it, however late; imports for type hints alone are free."""
    assert against_the_order(IMPORTS) == []


def test_workers_know_no_scheduler() -> None:
    """Nothing that runs in a worker imports the scheduler, the dispatcher or the client, not even for type hints."""
    assert known_to_workers(IMPORTS) == []


def test_what_decides_does_nothing_else() -> None:
    """The pure parts import neither clocks, threads, files, sockets nor chance, and call no builtin that acts."""
    assert impure(IMPORTS) == []
    assert impure_calls(PACKAGE) == []


def test_optional_packages_are_imported_where_they_are_used() -> None:
    """At module level the package imports the standard library, its five dependencies and itself."""
    assert too_early(IMPORTS) == []


def test_no_cycles() -> None:
    """No module imports itself through others, however late."""
    assert cycles(IMPORTS) == []


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return tmp_path


def write(package: Path, **modules: str) -> list[Import]:
    for name, text in modules.items():
        path = package / (name.replace("__in__", "/") + ".py")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return imports_of(package)


@pytest.mark.parametrize(
    "text",
    [
        "import localdist._client",
        "from localdist import _client",
        "from localdist._client import Client",
        "from localdist import Client",
        "from . import _client",
        "from ._client import Client",
        "def late():\n    from localdist._client import Client",
        "import importlib\nimportlib.import_module('localdist._client')",
        "class A:\n    try:\n        import localdist._client\n    except ImportError:\n        pass",
    ],
)
def test_each_way_to_import_is_seen(text: str, package: Path) -> None:
    """The order is held for every form of import there is."""
    assert len(against_the_order(write(package, _client="", _key=text))) == 1
    assert against_the_order(write(package, _key="", _client=text.replace("_client", "_key"))) == []


def test_imports_for_types_are_told_kept(package: Path) -> None:
    """What only a type checker imports is free of the order, but workers must not do even that."""
    text = "if TYPE_CHECKING:\n    from localdist._schedule import core\nelse:\n    import numpy"
    imports = write(package, _schedule__in__core="", _key=text, _worker__in__loop=text)
    assert against_the_order(imports) == []
    assert len(known_to_workers(imports)) == 1
    assert len(too_early(imports)) == 2


@pytest.mark.parametrize("text", ["import time", "from os import path", "def late():\n    import random"])
def test_impurity_is_seen(text: str, package: Path) -> None:
    """A pure part that imports anything unlisted is found; others may."""
    assert len(impure(write(package, _schedule__in__core=text, _dispatch__in__loop=text))) == 1


def test_acting_builtin_is_seen(package: Path) -> None:
    """A pure part that opens a file or prints is found."""
    write(package, _store__in___ledger="print(open('x'))", _store__in___segment="print(open('x'))")
    assert len(impure_calls(package)) == 2


def test_cycle_is_seen(package: Path) -> None:
    """A cycle is found with its path, also one closed by a late import."""
    late = "def late():\n    import localdist._key"
    graph = "from localdist import errors, _schedule"
    imports = write(package, _key="import localdist._graph", _graph=graph, _schedule=late, errors="")
    assert cycles(imports) == [["_graph", "_schedule", "_key", "_graph"]]
