"""From samples to what one wants to know: medians, ratios, goals; as plain data for JSON, and as a table to read."""

from __future__ import annotations

import os
import platform
from statistics import median
from typing import TYPE_CHECKING, Any

from localdist.bench._peers import PEERS
from localdist.bench._rows import BEST_PEER, MEASUREMENTS, Goal, Row, rows_of

if TYPE_CHECKING:
    from localdist.bench._run import Outcome, Settings

__all__ = ["report", "table"]

_OURS = "localdist"


def report(settings: Settings, outcome: Outcome) -> dict[str, Any]:
    """Return everything that a run found, as data that `json` can write.

    Returns:
        `machine`: what it ran on; `settings`: how; `peers`: name -> version, state and failures; `left_out`:
        measurement -> reason; `skipped`: measurement -> peer -> reason; `rows`: a list, each with name, unit, work,
        `figures` (peer -> median, samples, facts), `ratios` (peer -> how many times as good localdist is, whether more
        or less is better) and `goals` (goal, met: true, false or null, why).
    """
    medians = {
        row: {peer: median(samples) for peer, samples in of_peers.items() if samples}
        for row, of_peers in outcome.samples.items()
    }
    return {
        "machine": {
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.machine()}",
            "cpus": os.cpu_count(),
        },
        "settings": {
            "workers": settings.workers,
            "rounds": settings.rounds,
            "quick": settings.quick,
            "figure": "median of all samples",
            "seconds": round(outcome.seconds, 1),
        },
        "peers": {name: _peer(name, outcome) for name in settings.peers},
        "left_out": {name: why for name, why in outcome.left_out.items() if name in MEASUREMENTS},
        "skipped": outcome.skipped,
        "rows": [_row(row, medians, outcome) for row in rows_of(settings.measurements)],
    }


def _peer(name: str, outcome: Outcome) -> dict[str, Any]:
    if name in outcome.left_out:
        return {"version": None, "state": outcome.left_out[name], "failures": []}
    failures = outcome.failures.get(name, [])
    return {"version": PEERS[name].version(), "state": "failed" if failures else "measured", "failures": failures}


def _row(row: Row, medians: dict[str, dict[str, float]], outcome: Outcome) -> dict[str, Any]:
    of_row = medians.get(row.name, {})
    facts = outcome.facts.get(row.name, {})
    figures = {
        peer: {
            "median": of_row[peer],
            "samples": outcome.samples[row.name][peer],
            "facts": facts.get(peer, {}),
        }
        for peer in PEERS
        if peer in of_row
    }
    ratios = {}
    for peer, figure in of_row.items():
        ours = of_row.get(_OURS)
        above, below = (ours, figure) if row.more_is_better else (figure, ours)
        if peer != _OURS and above is not None and below:
            ratios[peer] = above / below
    goals = [_judge(goal, row, medians) for goal in row.goals]
    goals += [_judge_fact(name, value, facts.get(_OURS, {})) for name, value in row.facts.items()]
    return {
        "name": row.name,
        "unit": row.unit,
        "more_is_better": row.more_is_better,
        "work": row.work,
        "figures": figures,
        "ratios": ratios,
        "goals": goals,
    }


def _judge(goal: Goal, row: Row, medians: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Say whether a goal is met; None when one of the figures that it compares is missing."""
    judged: dict[str, Any] = {"goal": goal.text(row.unit), "met": None, "why": None}
    of_row = medians.get(row.name, {})
    ours = of_row.get(_OURS)
    of = _best_peer(row, of_row) if goal.of == BEST_PEER else goal.of
    if of is None:
        other = None if goal.of else 1.0
    elif of in PEERS:
        other = of_row.get(of)
    else:
        other = medians.get(of, {}).get(_OURS)
    if ours is None or other is None:
        judged["why"] = f"no figure of {_OURS if ours is None else goal.of}"
        return judged
    judged["met"] = goal.met(ours, other)
    judged["why"] = f"{ours / other:.3g}x" if of is not None and other else f"{ours:.4g}"
    if of != goal.of:
        judged["why"] += f" {of}"
    return judged


def _best_peer(row: Row, of_row: dict[str, float]) -> str | None:
    """Return the peer with the best figure of a row, or None where no peer has one."""
    peers = [peer for peer in of_row if peer != _OURS]
    return (max if row.more_is_better else min)(peers, key=of_row.__getitem__, default=None)


def _judge_fact(name: str, value: object, facts: dict[str, object]) -> dict[str, Any]:
    met = facts[name] == value if name in facts else None
    why = f"no figure of {_OURS}" if met is None else str(facts[name])
    return {"goal": f"{name} is {value}", "met": met, "why": why}


def _short(figure: float) -> str:
    """Write a figure with about three digits and, from ten thousand, k or M."""
    for above, size, letter in ((1e6, 1e6, " M"), (1e4, 1e3, " k")):
        if abs(figure) >= above:
            return f"{figure / size:.3g}{letter}"
    return f"{figure:,.0f}" if abs(figure) >= 100 else f"{figure:.3g}"


def _ratio(ratio: float) -> str:
    return f"{ratio:.0f}x" if ratio >= 10 else f"{ratio:.2g}x"


_VERDICTS = {True: "met", False: "NOT MET", None: "open"}


def table(found: dict[str, Any]) -> str:
    """Return what `report` found as text: a line for each row, its goals beneath, and what is missing at the end."""
    peers = [name for name, peer in found["peers"].items() if peer["version"] is not None]
    lines = [_cells("", "", {name: name for name in peers})]
    for row in found["rows"]:
        cells = {}
        for peer, figure in row["figures"].items():
            ratio = row["ratios"].get(peer)
            cells[peer] = _short(figure["median"]) + (f" {_ratio(ratio)}" if ratio is not None else "")
        lines.append(_cells(row["name"], row["unit"], {peer: cells.get(peer, "-") for peer in peers}))
        lines.extend(f"    goal {goal['goal']}: {_VERDICTS[goal['met']]} ({goal['why']})" for goal in row["goals"])
    return "\n".join([*_head(found), "", *(line.rstrip() for line in lines), "", *_foot(found)])


def _cells(name: str, unit: str, cells: dict[str, str]) -> str:
    return f"{name:<20} {unit:<8}" + "".join(f" {text:>{9 if peer == _OURS else 14}}" for peer, text in cells.items())


def _head(found: dict[str, Any]) -> list[str]:
    machine, settings = found["machine"], found["settings"]
    versions = ", ".join(f"{name} {peer['version']}" for name, peer in found["peers"].items() if peer["version"])
    return [
        (
            f"{settings['workers']} workers each, {settings['rounds']} rounds in {settings['seconds']:.0f} s; "
            f"Python {machine['python']}, {machine['system']}, {machine['cpus']} CPUs"
        ),
        versions,
        "Figures are medians of all samples. Behind each peer's: how many times as good localdist is.",
        *(["Quick sizes: the figures mean nothing."] if settings["quick"] else []),
    ]


def _foot(found: dict[str, Any]) -> list[str]:
    lines = [f"{row['name']}: {row['work']}" for row in found["rows"]]
    lines.append("")
    for name, peer in found["peers"].items():
        if peer["version"] is None:
            lines.append(f"left out: {name}: {peer['state']}")
        lines.extend(f"failed: {name}: {text}" for text in peer["failures"])
    lines.extend(f"left out: {name}: {why}" for name, why in found["left_out"].items())
    by_reason: dict[str, list[str]] = {}
    for name, of_peers in found["skipped"].items():
        for peer, why in of_peers.items():
            by_reason.setdefault(f"{peer} {why}", []).append(name)
    lines.extend(f"not comparable: {why}: {', '.join(names)}" for why, names in by_reason.items())
    lines.extend(_fewer(found))
    return lines


def _fewer(found: dict[str, Any]) -> list[str]:
    """Say which peers got fewer tasks than others, in which rows."""
    notes: dict[str, list[str]] = {}
    for row in found["rows"]:
        tasks = {peer: figure["facts"].get("tasks", 0) for peer, figure in row["figures"].items()}
        for peer, count in tasks.items():
            if count < max(tasks.values()):
                notes.setdefault(peer, []).append(f"{row['name']} {count:,}")
    return [f"fewer tasks in a sample of {peer}: {', '.join(texts)}" for peer, texts in notes.items()]
