"""Which modules a callable leads to, and that a reload of one of them is noticed and followed."""

from __future__ import annotations

import functools
import importlib
import json
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from localdist import _modules
from localdist._modules import generations, modules_of, unchanged

Write = Callable[[str, str], ModuleType]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Write modules of a user, and import them."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    written = []

    def write_one(name: str, source: str) -> ModuleType:
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(source))
        importlib.invalidate_caches()
        written.append(name)
        return importlib.reload(sys.modules[name]) if name in sys.modules else importlib.import_module(name)

    yield write_one
    for name in written:
        sys.modules.pop(name, None)
        _modules._generations.pop(name, None)
        _modules._closures.pop(name, None)


def names(func: Any) -> list[str]:
    return [module.__name__ for module, _ in modules_of(func)]


def test_modules_that_others_need_come_first(write: Write) -> None:
    """A function leads to its own module, and to what that imports, however it does so."""
    write("deepest", "def g(): return 1")
    write("helper", "from deepest import g\nimport json")
    mine = write("mine", "import helper, os\ndef f(): return helper.g()")
    assert names(mine.f) == ["deepest", "helper", "mine"]
    assert names(functools.partial(mine.f, 1)) == ["deepest", "helper", "mine"]


def test_what_nobody_edits_is_left_out() -> None:
    """The standard library, installed packages and localdist itself are no modules of the user."""
    assert names(json.dumps) == []
    assert names(pytest.raises) == []
    assert names(modules_of) == []
    assert names(len) == []


def test_what_travels_by_value_leads_to_what_it_captures(write: Write) -> None:
    """Globals, cells, methods' classes, and imports within the function."""
    module = write("mine", "class C:\n    def method(self): pass\ndef f(): pass")
    scope: dict[str, Any] = {"__name__": "__main__", "mine": module, "f": module.f}
    exec(
        "def by_module(): return mine.f()\ndef by_name(): return f()\ndef late():\n    import mine as m\n    return m",
        scope,
    )
    captured = module.f
    for func in (scope["by_module"], scope["by_name"], lambda: captured(), module.C().method, module.C):
        assert "mine" in names(func)
    del scope["mine"]
    assert "mine" in names(scope["late"])


def test_modules_that_import_each_other(write: Write) -> None:
    """A circle is walked once."""
    write("one", "import sys")
    write("two", "import one\ndef g(): pass")
    one = write("one", "import two\ndef f(): pass")
    assert sorted(names(one.f)) == ["one", "two"]


def test_a_reload_is_noticed_and_counted(write: Write) -> None:
    """As often as it happens, also of a module that the function itself is not defined in."""
    write("helper", "def g(): return 1")
    mine = write("mine", "import helper\ndef f(): return helper.g()")
    before = modules_of(mine.f)
    generations(before)
    assert unchanged(before)
    for count in (1, 2):
        write("helper", f"def g(): return {count}")
        assert not unchanged(before)
        before = modules_of(mine.f)
        assert ("helper", count) in generations(before)
        assert "mine" not in dict(generations(before))


def test_a_worker_follows_once(write: Write, tmp_path: Path) -> None:
    """What it has loaded it reloads, once for each reload; what it has not loaded comes fresh anyway."""
    (tmp_path / "told.py").write_text("import sys\nsys.loads = getattr(sys, 'loads', 0) + 1")
    code = """
        import sys
        sys.path.insert(0, sys.argv[1])
        from localdist._modules import follow
        follow([("told", 1)])
        print("told" in sys.modules)
        import told
        for reloads in (1, 1, 2, 2, 1, 5):
            follow([("told", reloads)])
            print(sys.loads)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert done.stdout.split() == ["False", "1", "1", "2", "2", "2", "3"]
