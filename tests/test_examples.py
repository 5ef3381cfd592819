"""Examples and README are what a new user runs first, so every line of them is run here, as a user would run it."""

from __future__ import annotations

import ast
import errno
import hashlib
import importlib.util
import math
import os
import re
import subprocess
import sys
import sysconfig
import tokenize
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
README = (ROOT / "README.md").read_text(encoding="utf-8")
STDLIB = sysconfig.get_path("stdlib")


class Entry(NamedTuple):
    """How a test runs an example: small, and with lines (regular expressions) that its report must contain."""

    arguments: tuple[str, ...]
    lines: tuple[str, ...]


ENTRIES = {
    "arrays.py": Entry(
        ("--megabytes", "4", "--workers", "2"),
        (
            r"a table of 7,812 rows and 64 columns, 4 MB",
            r"on 2 workers, in 2 blocks",
            r"  scatter: .* s .* GB/s",
            r"  as_completed: .* s .* GB/s",
            r"  gather: .* s .* GB/s",
            r"3 of 64 components are more than chance; they explain \d\d\.\d% of the variance",
            r"verify: all results equal those of plain NumPy",
        ),
    ),
    "census.py": Entry(
        ("--check", "--limit", "70", "--workers", "2"),
        (
            rf"census of {re.escape(STDLIB)}",
            r"  files +70   and 0 that could not be read",
            r"  lines +\d\d,\d\d\d",
            r" +\d,\d\d\d  self",
            r"files that could not be read: 0",
            r"parallel: \d+\.\d\d s on 2 workers, their start included",
            r"serial:   \d+\.\d\d s, .*",
            r"check:    both results are equal",
        ),
    ),
    "checksums.py": Entry(
        ("--check", "--workers", "2", os.path.join(STDLIB, "email")),
        (
            rf"\d\d files below {re.escape(os.path.join(STDLIB, 'email'))}, 0\.\d MB",
            r"\.py +\d\d +\d+,\d{3} +\d\d,\d{3} +\d{3},\d{3}",
            r"files that exist more than once: 0",
            r"files that could not be read: 0",
            r"localdist: \d+\.\d\d s, the start of workers included",
            r"concurrent\.futures: \d+\.\d\d s, the start of workers included",
            r"check: both results are equal",
        ),
    ),
    "service.py": Entry(
        (),
        (
            r" +\d\.\d\d s  2\*\*47 - 1: the client hung up",
            r" +\d\.\d\d s  2\*\*89 - 1: no answer within 1 s",
            r" +\d+\.\d\d s  2\*\*31 - 1: sorry, the process that worked on it died",
            r" +\d+\.\d\d s  2\*\*49 - 1: 127 x 4432676798593",
            r" +\d+\.\d\d s  2\*\*53 - 1: 6361 x 69431 x 20394401",
            r" +\d+\.\d\d s  2\*\*57 - 1: 7 x 32377 x 524287 x 1212847",
            r" +\d+\.\d\d s  2\*\*59 - 1: 179951 x 3203431780337",
            r" +\d+\.\d\d s  2\*\*69 - 1: 7 x 47 x 178481 x 10052678938039",
            r"the executor goes on:",
            r" +\d+\.\d\d s  2\*\*41 - 1: 13367 x 164511353",
            r"\d+ heartbeats, the latest \d+ ms late",
            r"closed",
        ),
    ),
}


def run(*command: str, cwd: Path, timeout: float = 50.0) -> subprocess.CompletedProcess[str]:
    """Run Python in a process of its own, which imports the package of this checkout; at most `timeout` seconds."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONIOENCODING": "utf-8"}
    return subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        timeout=timeout,
        check=False,
    )


def load(name: str) -> ModuleType:
    """Import an example by its path."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def python_blocks() -> str:
    """Return the Python blocks of the README, one after the other: a script without a ``__main__`` guard."""
    return "\n".join(re.findall(r"^```python\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL))


def test_every_example_has_an_entry() -> None:
    """A new example comes with an entry that runs it."""
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(ENTRIES)


@pytest.mark.slow
@pytest.mark.parametrize("name", ENTRIES)
def test_example_runs(name: str, tmp_path: Path) -> None:
    """An example ends with exit code 0 and its whole report, and writes nothing to standard error."""
    done = run(str(EXAMPLES / name), *ENTRIES[name].arguments, cwd=tmp_path)
    assert done.stderr == ""
    assert done.returncode == 0
    printed = done.stdout.splitlines()
    missing = [line for line in ENTRIES[name].lines if not any(re.fullmatch(line, p) for p in printed)]
    assert not missing, done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_census_of_the_whole_library_equals_a_serial_run(tmp_path: Path) -> None:
    """On all of the standard library, hundreds of files at least, tasks count what a plain loop counts."""
    done = run(str(EXAMPLES / "census.py"), "--check", cwd=tmp_path, timeout=280.0)
    assert done.stderr == ""
    assert done.returncode == 0
    assert "check:    both results are equal" in done.stdout
    found = re.search(r"^  files +([\d,]+) ", done.stdout, flags=re.MULTILINE)
    assert found is not None
    assert int(found[1].replace(",", "")) > 300


@pytest.mark.slow
def test_census_reports_files_it_cannot_read(tmp_path: Path) -> None:
    """A file that does not decode is listed with the reason and counted apart; the others count exactly."""
    (tmp_path / "good.py").write_text("def one():\n    two = 2\n\n    return two\n# end\n", encoding="utf-8")
    (tmp_path / "latin.py").write_bytes(b"word = '\xe9'\n")
    (tmp_path / "codec.py").write_bytes(b"# coding: no-such-codec\n")
    inside = tmp_path / "site-packages"
    inside.mkdir()
    (inside / "foreign.py").write_text("foreign = 1\n", encoding="utf-8")
    done = run(str(EXAMPLES / "census.py"), "--check", "--workers", "1", "--root", str(tmp_path), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^  files +1   and 2 that could not be read$", done.stdout, flags=re.MULTILINE)
    assert re.search(r"^  lines +5$", done.stdout, flags=re.MULTILINE)
    assert re.search(r"^  names +3   of them 2 different$", done.stdout, flags=re.MULTILINE)
    assert "4  one  (good.py:1)" in done.stdout
    assert re.search(r"^  codec.py\n +SyntaxError: unknown encoding: no-such-codec$", done.stdout, flags=re.MULTILINE)
    assert re.search(r"^  latin.py\n +(SyntaxError|UnicodeDecodeError): ", done.stdout, flags=re.MULTILINE)
    assert "foreign" not in done.stdout


def test_census_of_nothing_says_so(tmp_path: Path) -> None:
    """A folder without Python files gives one line on standard error and exit code 2."""
    done = run(str(EXAMPLES / "census.py"), "--root", str(tmp_path), cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == f"no .py file below {tmp_path}\n"


@pytest.mark.parametrize("field", ["files", "lines", "tokens", "names", "longest", "unreadable"])
def test_census_check_fails_on_any_difference(
    field: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With ``--check``, a parallel result that differs in one field ends with exit code 1 and the field's name."""
    census = load("census")
    (tmp_path / "good.py").write_text("def one():\n    return 1\n", encoding="utf-8")

    def count_wrongly(_client: object, paths: list[str]) -> Any:
        return {**census.merge([census.count_file(path) for path in paths]), field: census.merge([])[field]}

    if field == "unreadable":
        (tmp_path / "latin.py").write_bytes(b"word = '\xe9'\n")
    monkeypatch.setattr(census, "count_parallel", count_wrongly)
    assert census.main(["--check", "--workers", "1", "--root", str(tmp_path)]) == 1
    assert f"check:    FAILED, these differ: {field}\n" in capsys.readouterr().out


@pytest.mark.slow
def test_census_finds_functions_as_the_parser_does() -> None:
    """The lengths that the census takes from tokens are those of the syntax tree."""
    census = load("census")
    compared = 0
    for path in census.find_files(STDLIB)[::40]:
        try:
            with tokenize.open(path) as file, warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of invalid escapes in the library's own files
                tree = ast.parse(file.read())
        except (SyntaxError, UnicodeDecodeError):
            continue
        functions = [
            ((node.end_lineno or 0) - node.lineno + 1, path, node.lineno, node.name)
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        ]
        assert census.count_file(path)["longest"] == census.keep_longest(functions)
        compared += len(functions)
    assert compared > 100


def test_arrays_combines_moments_exactly() -> None:
    """Moments of unequal parts, combined in any order, are the moments of the whole."""
    arrays = load("arrays")
    table = arrays.make_table(1)
    parts = [arrays.moments(part) for part in (table[:10], table[10:700], table[700:])]
    for order in ([0, 1, 2], [2, 0, 1]):
        combined = arrays.combine(arrays.combine(parts[order[0]], parts[order[1]]), parts[order[2]])
        assert combined.rows == len(table)
        np.testing.assert_allclose(combined.mean, table.mean(axis=0))
        np.testing.assert_allclose(combined.squares / len(table), table.var(axis=0))


def test_arrays_fails_when_a_result_is_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A result that is not NumPy's own ends the example with exit code 1."""
    arrays = load("arrays")

    def analyse_wrongly(_client: object, table: Any) -> Any:
        correlation = np.corrcoef(table, rowvar=False)
        correlation[0, 1] += 1e-6
        variances = arrays.component_variances(correlation)
        return arrays.Analysis(
            arrays.moments(table), correlation, variances, variances, 0.0, arrays.blocks_of(table)[0]
        )

    monkeypatch.setattr(arrays, "analyse", analyse_wrongly)
    assert arrays.main(["--megabytes", "1", "--workers", "1"]) == 1
    assert "verify: FAILED against plain NumPy" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["localdist", "concurrent.futures"])
def test_checksums_finds_duplicates_on_either_pool(pool: str, tmp_path: Path) -> None:
    """Equal files are one group, the largest first; empty ones and those of equal size alone are none."""
    inside = tmp_path / "inside"
    inside.mkdir()
    contents = {"a.txt": "one two\nthree\n", "b.txt": "one two\nthree\n", "c.txt": "one two\nthre3\n", "d.txt": ""}
    for name, content in contents.items():
        (tmp_path / name).write_text(content, encoding="utf-8", newline="\n")
    for folder in (tmp_path, inside):
        (folder / "large").write_bytes(b"\0" * 100_000)
        (folder / "empty").write_bytes(b"")
    option = ["--stdlib"] if pool == "concurrent.futures" else []
    done = run(str(EXAMPLES / "checksums.py"), "--workers", "2", *option, str(tmp_path), cwd=tmp_path)
    assert done.stderr == ""
    assert done.returncode == 0
    assert re.search(r"^\.txt +4 +6 +9 +42$", done.stdout, flags=re.MULTILINE)
    assert re.search(r"^\(none\) +4 +0 +2 +200,000$", done.stdout, flags=re.MULTILINE)
    found = done.stdout.split("files that exist more than once: 2\n")[1].split("\n\n")[0]
    assert found.splitlines() == [f"  {Path('inside', 'large')} = large", "  a.txt = b.txt"]
    assert re.search(rf"^{re.escape(pool)}: \d", done.stdout, flags=re.MULTILINE)
    assert "check:" not in done.stdout


def test_checksums_reads_files_as_they_are(tmp_path: Path) -> None:
    """A summary has the file's own numbers, or the reason why it could not be read; equal means byte by byte."""
    checksums = load("checksums")
    one, same, other = (tmp_path / name for name in ("one", "same", "other"))
    one.write_bytes(b"a b\nc\n")
    same.write_bytes(b"a b\nc\n")
    other.write_bytes(b"a b\nd\n")
    digest = hashlib.sha256(b"a b\nc\n").hexdigest()
    assert checksums.summarize(str(one)) == (str(one), 6, 2, 3, digest, "")
    missing = checksums.summarize(str(tmp_path / "missing"))
    assert missing[1:] == (0, 0, 0, "", os.strerror(errno.ENOENT))
    assert checksums.equal_files([str(one), str(other), str(same)]) == [str(one), str(same)]
    text = checksums.report(checksums.Found([missing], []), str(tmp_path))
    assert text.endswith(f"files that could not be read: 1\n  missing: {os.strerror(errno.ENOENT)}")


@pytest.mark.parametrize("field", ["summaries", "duplicates"])
def test_checksums_check_fails_on_any_difference(
    field: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With ``--check``, pools that differ in anything end the example with exit code 1; nothing to read with 2."""
    checksums = load("checksums")
    assert checksums.main([str(tmp_path)]) == 2
    (tmp_path / "file").write_bytes(b"content")
    summary = checksums.summarize(str(tmp_path / "file"))
    right = checksums.Found([summary], [["file", "copy"]])
    found = iter([right, right, right, right._replace(**{field: []})])
    monkeypatch.setattr(checksums, "examine", lambda *_: next(found))
    assert checksums.main(["--check", str(tmp_path)]) == 0
    assert checksums.main(["--check", str(tmp_path)]) == 1
    assert capsys.readouterr().out.endswith("check: FAILED, the results differ\n")


def test_service_factors_numbers() -> None:
    """What the service tells its clients is true."""
    service = load("service")
    for number in range(2, 2_000):
        factors = service.factorize(number)
        assert math.prod(factors) == number
        assert all(factor % smaller for factor in factors for smaller in range(2, factor))


@pytest.mark.slow
def test_readme_blocks_print_what_their_comments_say(tmp_path: Path) -> None:
    """Each ``print(...)  # text`` of the README prints that text, in a script without a ``__main__`` guard."""
    script = tmp_path / "tour.py"
    script.write_text(python_blocks(), encoding="utf-8")
    expected = re.findall(r"^print\(.*\)  # (.*)$", python_blocks(), flags=re.MULTILINE)
    assert len(expected) >= 8
    done = run(str(script), cwd=tmp_path)
    assert done.stderr == ""
    assert done.returncode == 0
    assert done.stdout.splitlines() == expected


def test_readme_prints_are_all_compared() -> None:
    """No ``print`` of the README is without the comment that says what it prints."""
    prints = [line for line in python_blocks().splitlines() if "print(" in line]
    assert prints == [line for line in prints if re.fullmatch(r"print\(.*\)  # .+", line)]


def test_readme_names_only_what_exists() -> None:
    """Files, extras and sections that the README names exist."""
    for name in re.findall(r"\b(?:examples|tests|localdist)/[\w/]+\.py\b", README):
        assert (ROOT / name).is_file(), name
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extras = set(re.findall(r"\"\.\[(\w+)\]\"", README))
    assert extras
    section = project.split("[project.optional-dependencies]")[1].split("\n[")[0]
    assert extras <= set(re.findall(r"^(\w+) = ", section, flags=re.MULTILINE))
    headings = re.findall(
        r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", README, flags=re.MULTILINE | re.DOTALL), re.MULTILINE
    )
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    linked = re.findall(r"\]\(#([\w-]+)\)", README)
    assert linked
    assert set(linked) <= anchors
    for target in re.findall(r"\]\(([\w./-]+)\)", README):
        assert (ROOT / target).exists(), target
