"""All pictures of papers.md: curves of the seeds and the learning rate's effect, one colour a cell; untrained cells' states over time."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from lm1b.files import atomic_file
from lm1b.sequence_tasks.papers.kept_result import KeptResult

COLORS = {"irnn": "C0", "np_rnn": "C1", "relu_rnn": "C2", "tanh_rnn": "C3", "lstm": "C4"}
STYLES: tuple[Any, ...] = ("-", "--", ":", "-.")  # of several results of one cell
CELL_ORDER = list(COLORS)
Style = tuple[str, Any]  # colour and line
Shown = TypeVar("Shown")  # in a panel
BASELINE = "a constant answer"
VANISHED = 1e-12  # norms below this are not drawn
INPUTS = {"nothing": "no input", "pixels": "input like pixels"}
DIVERGED_AT = 4  # times a constant answer's loss: where plots put a rate that diverged
INCHES_A_LETTER = 0.09  # of a legend


def format_loss_axis(axes: Any, baseline: float) -> None:
    """A logarithmic axis of losses: at least the decade below a constant answer's, which is drawn; what is far above has diverged."""
    from matplotlib.ticker import NullFormatter

    axes.axhline(baseline, color="black", linestyle="--", linewidth=1)
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    low, high = min(low, 0.4 * baseline), min(max(high, 1.5 * baseline), 20 * baseline)
    axes.set_ylim(low, high)
    is_narrow = high / low < 30  # too few powers of ten to read a value by
    if is_narrow:
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "235" else "")
    else:
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3, which="both" if is_narrow else "major")


def new_figure(columns: int, rows: int = 1, *, width: float = 5.2, height: float = 4.0, **more: Any) -> tuple[Any, list[Any]]:
    """A figure and its panels, row after row. width, height: of a panel, in inches. more: of matplotlib's `subplots`."""
    # Matplotlib is slow to import and only needed here; this canvas draws without a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(7.0, width * columns), height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(rows, columns, squeeze=False, **more).flat)


def save_figure(figure: Any, path: Path, *handles: Any) -> None:
    """PNG, written whole. handles: what one legend above all panels names; none: no such legend."""
    if handles:
        longest = max(len(handle.get_label()) for handle in handles)
        fitting = int(figure.get_figwidth() / (0.8 + INCHES_A_LETTER * longest))
        columns = max(1, min(4, fitting, len(handles)))
        figure.legend(handles=list(handles), loc="outside upper center", ncols=columns, frameon=False, fontsize=11)
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=110)


def style_of(results: list[KeptResult]) -> dict[str, Style]:
    """Label -> colour and line style, the same in every panel of a picture."""
    labels = sorted({(CELL_ORDER.index(result.cell), result.label) for result in results})
    found: dict[str, Style] = {}
    for place, label in labels:
        number = sum(other == place for other, _ in labels[: labels.index((place, label))])
        found[label] = (COLORS[CELL_ORDER[place]], STYLES[number % len(STYLES)])
    return found


def legend_of(styles: dict[str, Style], *, baseline: bool = False) -> list[Any]:
    """One legend entry a label; baseline: and one for the dashed line of a constant answer."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=color, linestyle=line, linewidth=2, label=label) for label, (color, line) in styles.items()]
    return [*handles, Line2D([], [], color="black", linestyle="--", linewidth=1, label=BASELINE)] if baseline else handles


def _draw_seeds(axes: Any, result: KeptResult, style: Style, key: str, change: Callable[[float], float], scale: float) -> None:
    """Every seed thin, and thick the median of those that did not diverge over the looks that all of them have."""
    color, line = style
    curves = []
    for run in result.runs:
        points = [(x * scale, change(y)) for x, y in zip(run["curve"]["updates"], run["curve"][key], strict=True) if y is not None]
        if points:
            axes.plot(*zip(*points, strict=True), color=color, linestyle=line, linewidth=0.7, alpha=0.45)
        if not run["diverged"]:
            curves.append(dict(points))
    shared = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
    if shared:
        axes.plot(shared, [statistics.median(curve[x] for curve in curves) for x in shared], color=color, linestyle=line, linewidth=2.2)


def mark_diverged(axes: Any, result: KeptResult, color: str) -> None:
    """A cross at the top of the picture for each seed that diverged, at its last update."""
    ends = [run["curve"]["updates"][-1] for run in result.runs if run["diverged"]]
    axes.plot(ends, [0.97] * len(ends), "x", color=color, markersize=9, markeredgewidth=2, transform=axes.get_xaxis_transform())
    if ends:
        said = f"{len(ends)} of {len(result.runs)} diverged: {result.label}"
        height = 0.03 + 0.05 * len(axes.texts)  # above what another cell's says
        axes.text(0.97, height, said, color=color, ha="right", va="bottom", fontsize=9, transform=axes.transAxes)


def draw_losses(panels: dict[str, list[KeptResult]], path: Path) -> None:
    """Loss on dev over updates, a panel a task (title -> its results); a constant answer's as a dashed line."""
    from matplotlib.ticker import EngFormatter

    columns = min(2, len(panels))
    figure, axes_list = new_figure(columns, math.ceil(len(panels) / columns))
    styles = style_of([result for results in panels.values() for result in results])
    for axes, (title, results) in _pair(axes_list, panels):
        for result in results:
            _draw_seeds(axes, result, styles[result.label], "dev_loss", lambda loss: max(loss, 1e-6), 1.0)
            mark_diverged(axes, result, styles[result.label][0])
        format_loss_axis(axes, results[0].facts["baseline_loss"])
        axes.set(title=title, xlabel="updates", ylabel="loss on dev")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    save_figure(figure, path, *legend_of(styles, baseline=True))


def draw_accuracies(panels: dict[str, list[KeptResult]], path: Path) -> None:
    """Accuracy on dev in percent over epochs, a panel a task (title -> its results)."""
    figure, axes_list = new_figure(len(panels))
    styles = style_of([result for results in panels.values() for result in results])
    for axes, (title, results) in _pair(axes_list, panels):
        for result in results:
            _draw_seeds(axes, result, styles[result.label], "dev_error", lambda error: 100 * (1 - error), result.epochs / result.updates)
        axes.set(title=title, xlabel="epochs", ylabel="accuracy on dev, %", ylim=(0, 100))
        axes.grid(alpha=0.3)
    save_figure(figure, path, *legend_of(styles))


def draw_rates(panels: dict[str, list[KeptResult]], path: Path) -> None:
    """Loss on dev over the learning rate, a panel a task: lines where all rates were tried, dots where the better half went on.

    What diverged stands at the top, at DIVERGED_AT times a constant answer's loss.
    """
    columns = min(2, len(panels))
    figure, axes_list = new_figure(columns, math.ceil(len(panels) / columns))
    styles = style_of([result for results in panels.values() for result in results])
    for axes, (title, results) in _pair(axes_list, panels):
        top = DIVERGED_AT * results[0].facts["baseline_loss"]
        for result in results:
            color, line = styles[result.label]
            for number, rung in enumerate(result.rungs):
                outcomes = zip(rung["learning_rates"], rung["dev_loss"], rung["diverged"], strict=True)
                points = sorted((rate, top if gone else min(loss or top, top)) for rate, loss, gone in outcomes if gone or loss is not None)
                rates, losses = [rate for rate, _ in points], [loss for _, loss in points]
                if number == 0:
                    axes.plot(rates, losses, color=color, linestyle=line, linewidth=1.8, marker="x", markersize=6)
                else:
                    axes.plot(rates, losses, "o", color=color, markersize=3 + 2 * number, alpha=0.8, linestyle="none")
        format_loss_axis(axes, results[0].facts["baseline_loss"])
        if any(any(rung["diverged"]) for result in results for rung in result.rungs):
            axes.text(0.02, 0.97, "top: diverged", transform=axes.transAxes, va="top", fontsize=10, backgroundcolor="white")
        axes.set(title=title, xlabel="learning rate", ylabel="loss on dev", xscale="log")
    save_figure(figure, path, *legend_of(styles, baseline=True))


def _pair(axes_list: list[Any], panels: dict[str, Shown]) -> Iterable[tuple[Any, tuple[str, Shown]]]:
    """Panels with what they show; those that are left over are taken away."""
    for axes in axes_list[len(panels) :]:
        axes.remove()
    return zip(axes_list, panels.items(), strict=False)


def draw_norms(found: dict[str, Any], path: Path) -> None:
    """Norm of the state over time, a panel an input, one line an initialisation."""
    figure, panels = new_figure(2, height=4.6, sharey=True)
    for axes, (key, title) in zip(panels, INPUTS.items(), strict=True):
        for number, (name, cell) in enumerate(found["cells"].items()):
            values = [value if value > VANISHED else None for value in cell["norms"][key]]
            drawn = [(step, value) for step, value in zip(found["steps"], values, strict=True) if value is not None]
            axes.plot(*zip(*drawn, strict=True), color=f"C{number}", linewidth=2, label=name, linestyle="-" if number % 2 else "--")
        axes.set(title=title, xlabel="step", yscale="log", ylim=(VANISHED, 100.0))
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("norm of the state, relative to its start")
    save_figure(figure, path, *panels[0].get_legend_handles_labels()[0])


def draw_spectra(found: dict[str, Any], path: Path) -> None:
    """Eigenvalues of the initial recurrent matrices with the unit circle, a panel a matrix."""
    from matplotlib.patches import Circle

    shown: dict[str, Any] = {}
    for name, cell in found["cells"].items():
        if name in ("IRNN (W = 0.99 I)", "IRNN (W = 0.9 I)"):
            continue  # one point each, that looks like I's; said below the picture
        same = next((other for other, values in shown.items() if values == cell["eigenvalues"]), None)
        if same is None:
            shown[name] = cell["eigenvalues"]
        else:  # one matrix under two nonlinearities
            shown = {f"{same}; {name}" if other == same else other: values for other, values in shown.items()}
    figure, panels = new_figure(3, -(-len(shown) // 3), width=3.6, height=3.6, sharex=True, sharey=True)
    for axes, (name, values) in _pair(panels, shown):
        axes.add_patch(Circle((0, 0), 1.0, fill=False, color="gray", linewidth=1))
        axes.plot(values["real"], values["imaginary"], ".", color="C0", markersize=7 if len(values["real"]) > 1 else 14)
        axes.set_title(name.replace("cell state", "cell gate"), fontsize=10)
        axes.set(aspect="equal", xlim=(-1.3, 1.3), ylim=(-1.3, 1.3))
        axes.grid(alpha=0.3)
    figure.supxlabel("real part", fontsize=11)
    figure.supylabel("imaginary part", fontsize=11)
    save_figure(figure, path)


def draw_precision(found: dict[str, Any], path: Path) -> None:
    """Relative error of an IRNN's state over time, a panel a case."""
    figure, panels = new_figure(2, -(-len(found["precision"]) // 2), sharey=True)
    for axes, (title, case) in _pair(panels, found["precision"]):
        for number, (name, errors) in enumerate(case["errors"].items()):
            line = "--" if "float32 state" in name else "-"
            width = 4.5 if name in ("fp16", "bf16") else 1.8  # two lines may lie on each other: the one below is the wider one
            points = [(step, error) for step, error in zip(case["steps"], errors, strict=True) if error]
            alpha = 0.45 if width > 2 else 1.0
            axes.plot(*zip(*points, strict=True), line, color=f"C{number}", linewidth=width, alpha=alpha, label=name)
        axes.set(title=title, xlabel="step", yscale="log", xscale="log")
        axes.grid(alpha=0.3)
    for axes in panels[::2]:
        axes.set_ylabel("relative error of the state")
    handles = panels[0].get_legend_handles_labels()[0]
    figure.legend(handles=handles, loc="outside upper center", ncols=2, frameon=False, fontsize=11)
    save_figure(figure, path)
