"""Find how many principal components a table of hundreds of megabytes has, block by block, on all cores.

Shows how arrays travel: `scatter` puts each block into shared memory once, tasks take futures of blocks as
arguments and give new blocks back, `as_completed` hands over results in the order in which they are ready.
All results are verified against plain NumPy.

    python examples/arrays.py --megabytes 400
"""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import contextmanager
from functools import reduce
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from localdist import Client, as_completed, wait

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from localdist import Future

Array: TypeAlias = npt.NDArray[np.float64]

COLUMNS = 64
FACTORS = 3  # hidden causes in the made-up data: the number of components to be found
BLOCK_BYTES = 25_000_000  # of one block: with a few in work, small beside the whole; far above the cost of a task


class Moments(NamedTuple):
    """Of the rows of a block: their number, and per column the mean and the sum of squared deviations from it."""

    rows: int
    mean: Array
    squares: Array


class Analysis(NamedTuple):
    """What `analyse` found."""

    of_all: Moments
    correlation: Array  # (columns, columns)
    variances: Array  # (columns,) along the principal components, largest first
    by_chance: Array  # the same of shuffled columns
    total: float  # sum of all standardized values
    untouched: Array  # the first block, read back after tasks wrote into their arguments


def make_table(megabytes: int) -> Array:
    """Return a table (rows, COLUMNS) of that many MB whose columns follow a few hidden factors, plus noise."""
    rng = np.random.default_rng(seed=7)
    loadings = rng.normal(scale=2.0, size=(FACTORS, COLUMNS))
    table = rng.standard_normal((megabytes * 1_000_000 // (8 * COLUMNS), COLUMNS))
    for part in blocks_of(table):
        part[...] += rng.standard_normal((len(part), FACTORS)) @ loadings + 5.0
    return table


def blocks_of(table: Array) -> list[Array]:
    """Cut a table into blocks of rows (views, not copies), at least two."""
    return np.array_split(table, max(2, round(table.nbytes / BLOCK_BYTES)))


def moments(block: Array) -> Moments:
    """Return the moments of one block (rows, columns)."""
    mean = block.mean(axis=0)
    return Moments(len(block), mean, ((block - mean) ** 2).sum(axis=0))


def combine(one: Moments, other: Moments) -> Moments:
    """Return the moments of two blocks together, by the update of Chan, Golub and LeVeque."""
    rows = one.rows + other.rows
    step = other.mean - one.mean
    squares = one.squares + other.squares + step**2 * (one.rows * other.rows / rows)
    return Moments(rows, one.mean + step * (other.rows / rows), squares)


def standardize(block: Array, of_all: Moments) -> Array:
    """Give every column mean 0 and variance 1; a task may write into its argument, nobody else sees it."""
    block -= of_all.mean
    block /= np.sqrt(of_all.squares / of_all.rows)
    return block


def products(block: Array) -> Array:
    """Return the sums of products of each pair of columns, shape (columns, columns)."""
    sums: Array = block.T @ block
    return sums


def correlate(parts: Sequence[Array], of_all: Moments) -> Array:
    """Return the correlations (columns, columns) from the sums of products of all blocks."""
    total: Array = np.sum(parts, axis=0) / of_all.rows
    return total


def component_variances(correlation: Array) -> Array:
    """Return the variances along the principal components, largest first."""
    return np.linalg.eigvalsh(correlation).astype(np.float64)[::-1]


def shuffled_products(block: Array, seed: int) -> Array:
    """Return `products` after each column was shuffled, which leaves only correlations that are there by chance."""
    return products(np.random.default_rng(seed).permuted(block, axis=0))


@contextmanager
def timed(what: str, table: Array) -> Iterator[None]:
    """Print how long the body took, and how many GB/s that is when the table is counted once."""
    start = time.perf_counter()
    yield
    seconds = time.perf_counter() - start
    print(f"  {what:<58} {seconds:7.2f} s {table.nbytes / seconds / 1e9:7.2f} GB/s", flush=True)


def analyse(client: Client, table: Array) -> Analysis:
    """Do all the work in tasks; the table leaves this process once, in `scatter`."""
    with timed("scatter: the blocks go to shared memory", table):
        blocks: list[Future] = client.scatter(blocks_of(table))

    with timed("as_completed: moments of each block, combined as they come", table):
        completed = as_completed(client.map(moments, blocks), with_results=True)
        of_all = reduce(combine, (part for _, part in completed))

    with timed("map: standardized blocks, which stay in shared memory", table):
        standardized = client.map(standardize, blocks, of_all=of_all)
        wait(standardized)
    untouched: Array = blocks[0].result()  # the tasks wrote into their arguments: this must not show it
    del blocks  # the last holder is gone, so their memory is free

    with timed("futures as arguments: products, correlations, variances", table):
        correlation = client.submit(correlate, client.map(products, standardized), of_all)
        variances = client.submit(component_variances, correlation).result()

    with timed("the same after each column of each block was shuffled", table):
        shuffled = client.map(shuffled_products, standardized, range(len(standardized)))
        by_chance = client.submit(component_variances, client.submit(correlate, shuffled, of_all)).result()

    with timed("gather: all standardized blocks come back and are read", table):
        total = sum(block.sum() for block in client.gather(standardized))
    return Analysis(of_all, correlation.result(), variances, by_chance, total, untouched)


def verify(table: Array, found: Analysis) -> None:
    """Compute the same with plain NumPy, in place to save memory; raise AssertionError where it differs."""
    np.testing.assert_array_equal(found.untouched, blocks_of(table)[0])
    with timed("plain NumPy in this process, the same work", table):
        mean, deviation = table.mean(axis=0), table.std(axis=0)
        table -= mean
        table /= deviation
        correlation = products(table) / len(table)
        by_chance = sum((shuffled_products(b, seed) for seed, b in enumerate(blocks_of(table))), np.zeros(())) / len(
            table
        )
    np.testing.assert_allclose(found.of_all.mean, mean, rtol=1e-9)
    np.testing.assert_allclose(np.sqrt(found.of_all.squares / found.of_all.rows), deviation, rtol=1e-9)
    np.testing.assert_allclose(found.correlation, correlation, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found.variances, component_variances(correlation), rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(found.by_chance, component_variances(by_chance), rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(found.total, table.sum(), atol=1e-6 * table.size)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Principal components of a large table, on all cores.")
    parser.add_argument("--megabytes", type=int, default=400, metavar="N", help="size of the table (default: 400)")
    parser.add_argument("--workers", type=int, metavar="N", help="worker processes (default: one per core)")
    options = parser.parse_args(arguments)
    if options.megabytes < 1 or (options.workers is not None and options.workers < 1):
        parser.error("both numbers must be positive")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the analysis and verify it; return 0, or 1 when plain NumPy gets another result."""
    options = parse(arguments)
    table = make_table(options.megabytes)
    print(f"a table of {len(table):,} rows and {COLUMNS} columns, {table.nbytes / 1e6:,.0f} MB")
    with Client(n_workers=options.workers, threads_per_worker=1) as client:
        print(f"on {len(client.nthreads())} workers, in {len(blocks_of(table))} blocks\n")
        found = analyse(client, table)
    try:
        verify(table, found)
    except AssertionError as error:
        print(f"verify: FAILED against plain NumPy\n{error}")
        return 1
    mattering = int((found.variances > found.by_chance[0]).sum())
    share = found.variances[:mattering].sum() / found.variances.sum()
    print(f"\n{mattering} of {COLUMNS} components are more than chance; they explain {share:.1%} of the variance")
    print("verify: all results equal those of plain NumPy")
    return 0


if __name__ == "__main__":
    sys.exit(main())
