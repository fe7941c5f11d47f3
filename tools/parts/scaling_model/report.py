"""The scaling model's tables and picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm1b.files import atomic_file
from parts.scaling_model.collectives import Network
from parts.scaling_model.layouts import LAYOUTS, Layout, Prediction

# What a network's curves are called -> predictions of every layout, in the order of ranks.
Predictions = dict[str, list[Prediction]]
LABELS: dict[Layout, str] = {
    "sharded": "rows cut over ranks (ours)",
    "sparse": "replicated tables, sparse all-gather",
    "dense": "replicated tables, dense all-reduce",
}
STYLES: dict[Layout, str] = {"sharded": "o-", "sparse": "s--", "dense": "^:"}


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Right-aligned columns; the first row is the head."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def _by_ranks(predictions: Sequence[Prediction]) -> dict[int, dict[Layout, Prediction]]:
    found: dict[int, dict[Layout, Prediction]] = {}
    for each in predictions:
        found.setdefault(each.ranks, {})[each.layout] = each
    return found


def as_text(predictions: Predictions) -> str:
    """One table of bytes and memory, which no network changes, and one of words/s and time for each network."""
    some = _by_ranks(next(iter(predictions.values())))
    rows = [["ranks", *(f"{what} {layout}" for what in ("MB sent", "MB held") for layout in LAYOUTS)]]
    for ranks, of in some.items():
        sent = [f"{of[layout].sent_bytes / 1e6:,.2f}" for layout in LAYOUTS]
        rows.append([f"{ranks:,}", *sent, *(f"{of[layout].memory_bytes / 1e6:,.0f}" for layout in LAYOUTS)])
    parts = [f"Each rank, a step:\n{aligned(rows)}"]
    for name, of_network in predictions.items():
        head = [
            "ranks",
            *(f"words/s {layout}" for layout in LAYOUTS),
            "ours: a rank against one alone",
            "ours: waiting for communication",
        ]
        rows, found = [head], _by_ranks(of_network)
        alone = found[min(found)]["sharded"]
        for ranks, of in found.items():
            ours = of["sharded"]
            efficiency = ours.words_per_second / ours.ranks / (alone.words_per_second / alone.ranks)
            shares = [f"{100 * efficiency:.0f} %", f"{100 * ours.communication_seconds / ours.step_seconds:.0f} %"]
            rows.append([f"{ranks:,}", *(f"{of[layout].words_per_second:,.0f}" for layout in LAYOUTS), *shares])
        parts.append(f"{name}:\n{aligned(rows)}")
    return "\n\n".join(parts)


def describe(network: Network) -> str:
    """Name and figures, as a heading."""
    return f"{network.name} ({network.latency_seconds * 1e6:,.0f} µs, {network.bytes_per_second * 8 / 1e9:,.3g} Gbit/s)"


def draw(predictions: Predictions, title: str, path: Path) -> None:
    """PNG, written whole: words/s against ranks for each network, then bytes sent and memory of a rank. Logarithmic axes."""
    # Matplotlib is slow to import and only needed here; this canvas draws without a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(3, len(predictions) + 2)
    lines = -(-(len(predictions) + 2) // columns)
    figure = Figure(figsize=(4.3 * columns, 3.7 * lines + 0.9), layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    some = next(iter(predictions.values()))
    fastest = [each.words_per_second for found in predictions.values() for each in found]
    for axes, (name, found) in zip(panels, predictions.items(), strict=False):
        _draw_panel(axes, found, lambda each: each.words_per_second, name, "words a second, all ranks")
        alone = next(each for each in found if each.layout == "sharded")
        ranks = sorted({each.ranks for each in found})
        linear = [alone.words_per_second * count / alone.ranks for count in ranks]
        axes.plot(ranks, linear, color="gray", linewidth=0.8, label="as many times one rank", zorder=1)
        axes.set_ylim(min(fastest) / 2, max([*fastest, linear[-1]]) * 2)
    sent, held = panels[len(predictions) : len(predictions) + 2]
    over = [each for each in some if each.ranks > 1]
    _draw_panel(sent, over, lambda each: each.sent_bytes, "Sent by a rank in a step (one rank alone: nothing)", "bytes")
    _draw_panel(held, some, lambda each: each.memory_bytes, "Memory of a rank", "bytes")
    sent.set_xlim(held.get_xlim())
    for axes in (sent, held):
        _name_bytes(axes)
    for axes in panels[len(predictions) + 2 :]:
        axes.set_axis_off()
    figure.suptitle(title, fontsize=11)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=110)


def _draw_panel(axes: Any, found: Sequence[Prediction], value: Any, title: str, label: str) -> None:
    from matplotlib.ticker import EngFormatter, LogLocator, StrMethodFormatter

    for layout in LAYOUTS:
        points = [(each.ranks, value(each)) for each in found if each.layout == layout]
        axes.plot(*zip(*points, strict=True), STYLES[layout], markersize=4, label=LABELS[layout])
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(LogLocator(base=4))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.yaxis.set_major_formatter(EngFormatter())
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("ranks")
    axes.set_ylabel(label)


def _name_bytes(axes: Any) -> None:
    from matplotlib.ticker import EngFormatter, LogLocator

    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 1000 * low else (1.0,), numticks=20))
    axes.yaxis.set_major_formatter(EngFormatter(unit="B"))
