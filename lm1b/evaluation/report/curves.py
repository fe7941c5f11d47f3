"""Curves of runs against words, steps and time: single panels, the report's picture, and panels as SVG for its page.

Panels of a page have the page's own colour of text, light or dark: what is drawn in INK becomes `currentColor`.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lm1b.evaluation.report.records import RunRecord
from lm1b.files import atomic_file
from lm1b.training.evaluations import Evaluation

FINE_TICKS = (1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0)  # of a perplexity axis of a decade or less
SMOOTHED_SHARE = 0.02  # of the logged points, on either side
LONGEST_LABEL = 58  # letters that fit below a panel
INK = "#010203"
Levels = list[tuple[str, float]]  # label and perplexity on validation, drawn as a horizontal line


class Axis(NamedTuple):
    """places: of a run's steps on it, or None where the run does not tell. name: for captions."""

    name: str
    label: str
    places: Callable[[RunRecord, np.ndarray], np.ndarray | None]


class Panel(NamedTuple):
    """title: what is drawn. draw(axes, run, colour, axis) draws one run, where it has something to show."""

    title: str
    label: str
    draw: Callable[[Any, RunRecord, str, Axis], None]
    is_log: bool = False


def axes_of(runs: Sequence[RunRecord]) -> list[Axis]:
    """Words, steps, and time in the unit that suits the longest run."""
    longest = max((run.metrics[-1].get("elapsed_seconds") or 0.0 for run in runs if run.metrics), default=0.0)
    unit, size = ("hours", 3600.0) if longest > 7200 else ("minutes", 60.0) if longest > 120 else ("seconds", 1.0)

    def times_at(run: RunRecord, steps: np.ndarray) -> np.ndarray | None:
        seconds = run.seconds_at(steps)
        return None if seconds is None else seconds / size

    return [
        Axis("words", "training words and sentence ends", lambda run, steps: run.words_at(steps)),
        Axis("steps", "steps", lambda run, steps: steps),
        Axis("time", f"{unit} of training", times_at),
    ]


def _points(run: RunRecord, axis: Axis, values: Iterable[tuple[int, float | None]]) -> np.ndarray:
    """[2, n]: places on the axis and values, in order. values: with their steps, those of None left out."""
    steps, known = np.array([point for point in values if point[1] is not None], float).reshape(-1, 2).T
    places = axis.places(run, steps)
    return np.empty((2, 0)) if places is None else np.array([places, known])


def _logged(run: RunRecord, axis: Axis, key: str) -> np.ndarray:
    """The points of a key of metrics.jsonl."""
    return _points(run, axis, ((line["step"], line.get(key)) for line in run.metrics))


def _draw_loss(axes: Any, run: RunRecord, color: str, axis: Axis) -> None:
    places, nats = _logged(run, axis, "nats_per_word")
    if len(nats):
        axes.plot(places, nats, color=color, alpha=0.25, linewidth=0.8)
        axes.plot(places, _smooth(nats), color=color, label=_short(run.name))
    places, nats = _logged(run, axis, "true_nats_checked")
    if len(nats):
        axes.plot(places, nats, ".", color=color, markersize=4, alpha=0.7, label=_short(f"{run.name}, full softmax on a few positions"))


def _smooth(values: np.ndarray) -> np.ndarray:
    """Mean of each value and of some on either side, fewer at the ends but as many on the one as on the other."""
    reach = round(SMOOTHED_SHARE * len(values))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    middle = np.arange(len(values))
    reaches = np.minimum(reach, np.minimum(middle, len(values) - 1 - middle))
    return (sums[middle + reaches + 1] - sums[middle - reaches]) / (2 * reaches + 1)


def _draw_perplexity(axes: Any, run: RunRecord, color: str, axis: Axis) -> None:
    series: dict[tuple[Any, ...], list[Evaluation]] = {}
    for each in run.evaluations:
        if each.split == "validation":
            series.setdefault((each.weights, *each.protocol), []).append(each)
    for found in series.values():
        in_order = sorted(found, key=lambda each: each.step)
        places, values = _points(run, axis, ((each.step, each.word_perplexity) for each in in_order))
        if len(values):
            first = found[0]
            how = f"{first.weights}, {f'{first.lanes} lanes' if first.lanes else first.state}, {first.precision}"
            style = {"ema": "o-", "raw": "s--"}[first.weights]
            axes.plot(places, values, style, color=color, markersize=4, label=_short(run.name, f" ({how})"))


def _metric(key: str) -> Callable[[Any, RunRecord, str, Axis], None]:
    def draw(axes: Any, run: RunRecord, color: str, axis: Axis) -> None:
        places, values = _logged(run, axis, key)
        if len(values):
            axes.plot(places, values, color=color, alpha=0.25, linewidth=0.8)
            axes.plot(places, _smooth(values), color=color, label=_short(run.name))

    return draw


def _draw_radius(axes: Any, run: RunRecord, color: str, axis: Axis) -> None:
    radii = [(each.step, max(each.spectral_radius.values())) for each in run.evaluations if each.spectral_radius]
    places, values = _points(run, axis, sorted(radii, key=lambda point: point[0]))
    if len(values):
        axes.plot(places, values, "o-", color=color, markersize=4, label=_short(run.name))


LOSS = Panel("Training loss", "nats a word", _draw_loss)
PERPLEXITY = Panel("Exact perplexity on validation", "word perplexity", _draw_perplexity, is_log=True)
HEALTH = [
    Panel("Gradient norm before clipping", "norm", _metric("gradient_norm"), is_log=True),
    Panel("Largest activation", "absolute value", _metric("largest_activation")),
    Panel("Dead ReLUs", "share of units", _metric("dead_relus")),
    Panel("Spectral radius of the recurrent weight", "absolute eigenvalue", _draw_radius),
    Panel("Speed", "words a second", _metric("words_per_second")),
    Panel("Share of the matrix products' rate", "share", _metric("share_of_ceiling")),
]


def _short(name: str, more: str = "") -> str:
    """A label that fits: a long name loses its middle."""
    room = max(16, LONGEST_LABEL - len(more))
    if len(name) > room:
        name = f"{name[: room // 2 - 1]}…{name[-(room // 2) :]}"
    return "".join(letter if letter.isprintable() else "?" for letter in name) + more


def draw_panel(axes: Any, panel: Panel, runs: Sequence[RunRecord], axis: Axis, levels: Levels) -> bool:
    """Draw all runs. False where none has anything to show."""
    from matplotlib.ticker import EngFormatter, LogLocator, StrMethodFormatter

    for number, run in enumerate(runs):
        panel.draw(axes, run, f"C{number % 10}", axis)
    is_drawn = bool(axes.lines)
    for number, (label, perplexity) in enumerate(levels if panel is PERPLEXITY else ()):
        axes.axhline(perplexity, color="gray", linestyle=(":", "-.")[number % 2], linewidth=1, label=_short(label, f" ({perplexity:.1f})"))
    if panel.is_log and axes.lines:
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high > 10 * low else FINE_TICKS, numticks=20))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
        axes.yaxis.set_minor_formatter("")
    elif panel.title == "Speed":
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.get_major_locator().set_params(nbins=6)
    axes.set_xlabel(axis.label)
    axes.set_ylabel(panel.label)
    axes.grid(alpha=0.25)
    return is_drawn


@contextmanager
def _plain_text(**settings: Any) -> Generator[None]:
    """Names of runs are no formulas, and a letter that the font lacks is a box."""
    import matplotlib

    rc: Any = {"text.parse_math": False, **settings}
    with matplotlib.rc_context(rc), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)
        yield


def draw_curves(runs: Sequence[RunRecord], levels: Levels, path: Path) -> None:
    """Loss and validation perplexity against words, steps and time, two by three. PNG, written whole."""
    # Matplotlib is slow to import and only needed here; this canvas draws without a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with _plain_text():
        figure = Figure(figsize=(15, 9), layout="constrained")
        FigureCanvasAgg(figure)
        # Each row is a figure of its own, so that each legend has a place of its own.
        parts: Any = figure.subfigures(2, 1)
        for part, panel in zip(parts, (LOSS, PERPLEXITY), strict=True):
            row = part.subplots(1, 3, sharey=True)
            for axes, axis in zip(row, axes_of(runs), strict=True):
                draw_panel(axes, panel, runs, axis, levels)
            row[0].set_title(panel.title, loc="left")
            _legend_below(part, row[0], columns=3 if panel is LOSS else 2)
        with atomic_file(path) as file:
            figure.savefig(file, format="png", dpi=100)


def _legend_below(figure: Any, axes: Any, columns: int = 1) -> None:
    """Lines of `axes` by name, named here since a label that begins with `_` would be left out."""
    lines = [line for line in axes.lines if not str(line.get_label()).startswith("_child")]
    if lines:
        legend = figure.legend(
            lines, [str(line.get_label()) for line in lines], loc="outside lower center", ncols=columns, frameon=False, fontsize=9
        )
        legend.set_in_layout(True)


def panel_svg(panel: Panel, runs: Sequence[RunRecord], axis: Axis, levels: Levels, number: int) -> str | None:
    """One panel as an <svg> element with its legend below; None where there is nothing to show. number: its own on the page."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    ink = dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color"), INK)
    with _plain_text(**ink, **{"svg.hashsalt": str(number)}):
        figure = Figure(figsize=(4.8, 3.4), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        if not draw_panel(axes, panel, runs, axis, levels):
            return None
        figure.set_figheight(3.0 + 0.2 * len(axes.lines))
        _legend_below(figure, axes)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg [^>]*?)height="[^"]*" ', r"\1", svg, count=1)
    svg = re.sub(r'(<svg [^>]*?)width="[^"]*" ', r"\1", svg, count=1)
    # Names inside an SVG are names of the whole page.
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>p{number}_", svg)
    return svg.replace(INK, "currentColor")
