"""The programs of Dask's own documents, one test for each: what they show is what happens here."""

from __future__ import annotations

import re
import uuid
from operator import getitem
from typing import Any

import numpy as np
import pandas as pd
import pytest

from localdist import CancelledError, Client, as_completed, default_client, fire_and_forget, wait
from tests.support import Gate, add, cancelled_everywhere, div, eventually, inc, wait_at


def test_row_5_client_page(client: Client) -> None:
    """Submit, map over a thousand numbers, futures as arguments alone and in a list, results gathered."""
    x = client.submit(inc, 10)
    numbers = client.map(inc, range(1000))
    y = client.submit(inc, x)
    total = client.submit(sum, numbers)
    assert x.result() == 11
    assert y.result() == 12
    assert client.gather(numbers)[:5] == [1, 2, 3, 4, 5]
    assert total.result() == sum(range(1, 1001))


def test_row_7_keys_of_pure_and_impure_functions(client: Client) -> None:
    """A pure call is named by its inputs, so it runs once; an impure one by a uuid, so it runs each time."""
    assert re.fullmatch(r"add-[0-9a-f]{32}", client.submit(add, 1, 2).key)
    assert client.submit(add, 1, 2).key == client.submit(add, 1, 2).key
    assert client.submit(inc, 10).key == client.map(inc, [10])[0].key
    draws = [client.submit(np.random.random, pure=False) for _ in range(2)]
    names = [re.fullmatch(r"(\w+)-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", draw.key) for draw in draws]
    assert [name and name[1] for name in names] == ["random", "random"]
    assert draws[0].key != draws[1].key
    first, second = client.gather([client.submit(uuid.uuid4, pure=False) for _ in range(2)])
    assert first != second, "each call runs"


def split_text(text: str) -> list[str]:
    return text.split()


def test_row_9_gather_and_submit_again(client: Client) -> None:
    """Data are gathered here, and new tasks are submitted on their elements."""
    future = client.submit(split_text, "some words of several lengths")
    data = future.result()
    futures = client.map(len, data)
    assert client.submit(sum, futures).result() == 25


def test_row_10_submit_on_data_that_stay(client: Client) -> None:
    """The length of the data is asked for, then tasks are submitted on each element, without gathering the data."""
    data = client.submit(split_text, "some words of several lengths")
    n = client.submit(len, data).result()
    elements = [client.submit(getitem, data, i) for i in range(n)]
    futures = client.map(len, elements)
    assert client.submit(sum, futures).result() == 25


@pytest.mark.parametrize("processes", [True, False])
def test_row_15_futures_page(processes: bool) -> None:
    """With processes and with threads: two calls, and one on their futures."""
    client = Client(processes=processes)
    a = client.submit(inc, 10)
    b = client.submit(inc, 20)
    c = client.submit(add, a, b)
    assert c.result() == 32
    futures = client.map(inc, range(1000))
    assert client.gather(futures) == [future.result() for future in futures]
    client.close()


def test_row_16_what_a_future_shows(client: Client, gate: Gate) -> None:
    """Pending, then finished with the type; the key stays."""
    a = client.submit(wait_at, gate.address, 11)
    key = re.escape(a.key)
    assert re.fullmatch(rf"<Future: status: pending, key: {key}>", repr(a))
    gate.wait_for()
    gate.open()
    assert a.result() == 11
    assert re.fullmatch(rf"<Future: status: finished, type: int, key: {key}>", repr(a))


def test_row_17_scatter(client: Client) -> None:
    """A frame is one finished future with a type; a list is a list of them; both are arguments."""
    frame = pd.DataFrame({"x": range(100)})
    remote = client.scatter(frame)
    assert re.fullmatch(r"<Future: status: finished, type: DataFrame, key: DataFrame-[0-9a-f]{32}>", repr(remote))
    assert client.submit(len, remote).result() == client.submit(len, frame).result() == 100
    three = client.scatter([1, 2, 3])
    shown = r"<Future: status: finished, type: int, key: int-[0-9a-f]{32}>"
    assert re.fullmatch(rf"\[{shown}, {shown}, {shown}\]", repr(three))
    assert client.gather(three) == [1, 2, 3]


def test_row_18_references_cancelling_exceptions(client: Client) -> None:
    """`del` and `cancel` give data up; errors reach those who depend, with exception and traceback."""
    future = client.submit(inc, 1, pure=False)
    key = future.key
    del future
    eventually(client, lambda: key not in client.futures)
    one, two = client.submit(inc, 5), client.submit(inc, 5)
    one.cancel()
    assert two.status == "cancelled", "even if other futures point to it"
    with pytest.raises(CancelledError):
        two.result()
    a = client.submit(div, 1, 0)
    with pytest.raises(ZeroDivisionError, match="division by zero"):
        a.result()
    assert re.fullmatch(r"<Future: status: error, key: div-[0-9a-f]{32}>", repr(a))
    b = client.submit(inc, a)
    assert isinstance(b.exception(), ZeroDivisionError)
    assert re.fullmatch(r"<Future: status: error, key: inc-[0-9a-f]{32}>", repr(b))
    assert b.traceback().tb_frame.f_code.co_name == "div"  # type: ignore[union-attr]
    assert isinstance(a.exception(), ZeroDivisionError)


def score(x: int) -> int:
    return -((x - 7) ** 2)


def test_row_19_waiting(client: Client) -> None:
    """`wait`; `as_completed` plain, with results, in batches, and with futures added during the iteration."""
    futures = client.map(score, range(20))
    assert wait(futures).not_done == set()
    best = None
    for future in as_completed(futures):
        y = future.result()
        if best is None or y > best:
            best = y
    assert best == 0
    assert max(result for _, result in as_completed(futures, with_results=True)) == 0
    seen = [pair for batch in as_completed(futures, with_results=True).batches() for pair in batch]
    assert dict(seen) == {future: future.result() for future in futures}
    seq = as_completed(client.map(inc, [0, 100]))
    results = []
    for future in seq:
        y = future.result()
        results.append(y)
        if y < 4:
            seq.add(client.submit(inc, future))
        elif y == 4:
            seq.update(client.map(inc, [10, 20]))
    assert sorted(results) == [1, 2, 3, 4, 11, 21, 101]


def load(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()


def write(text: str, path: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def process(path: str) -> None:
    client = default_client()
    a = client.submit(load, path)
    b = client.submit(str.upper, a)
    c = client.submit(write, b, f"{path}-out")
    fire_and_forget(c)


def test_row_20_fire_and_forget(client: Client, gate: Gate, tmp_path: Any) -> None:
    """The last of a chain is written although a function that returned held the only futures."""
    paths = [tmp_path / name for name in ("one", "two", "three")]
    for path in paths:
        path.write_text(f"text of {path.name}", encoding="utf-8")
    blockers = client.map(wait_at, [gate.address] * 2, pure=False)
    gate.wait_for(2)
    with client.as_current():
        for path in paths:
            process(str(path))
    cancelled_everywhere(client)
    assert not any(path.with_name(f"{path.name}-out").exists() for path in paths)
    gate.open()
    client.gather(blockers)
    for path in paths:
        wait_for_text(client, path.with_name(f"{path.name}-out"), f"TEXT OF {path.name.upper()}")


def wait_for_text(client: Client, path: Any, text: str) -> None:
    eventually(client, lambda: path.exists() and path.read_text() == text)
