"""papers.md: every table of the two papers with our results, as far as there are any, and plots.

    results/papers/*.json (tools/paper_results.py keep), language_models.json, dynamics.json --> report/papers.md, report/papers_*.png

Nothing is trained here, and nothing but those files is read. Each section is a function; the longer ones are files of their own.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from lm1b.files import atomic_file, read_json
from lm1b.markdown import markdown_table
from lm1b.sequence_tasks.config import DIVERGED_LOSS, TrainingConfig
from lm1b.sequence_tasks.papers.dynamics import render_dynamics
from lm1b.sequence_tasks.papers.kept import read_kept, shorten
from lm1b.sequence_tasks.papers.kept_result import BURST_AFTER, BURST_LOSS, KeptResult
from lm1b.sequence_tasks.papers.language_models import render_language_models
from lm1b.sequence_tasks.papers.plots import draw_accuracies, draw_losses, draw_rates
from lm1b.sequence_tasks.papers.published import LE, TALATHI, TASK_TABLES
from lm1b.sequence_tasks.papers.sensitivity import rate_sentences, rate_table
from lm1b.sequence_tasks.papers.tables import (
    OUR_COLUMNS,
    evidence,
    our_columns,
    render_published,
    render_stand_ins,
)
from lm1b.sequence_tasks.papers.verdicts import guard_sentence

ADDING, MULTIPLICATION, ACCURACY, RATES = (f"papers_{name}.png" for name in ("adding", "multiplication", "pixel_mnist", "learning_rates"))

MAX_SKIPPED = TrainingConfig.model_fields["max_skipped"].default
LOSSES_CAPTION = (
    "Thin: each seed. Thick: the median of those that did not diverge. A cross at the top: the last update of a seed that diverged. What "
    "is far above a constant answer, as an IRNN's first losses are, is cut off."
)
HOW_TO_READ = f"""\
The papers: {LE}, which proposes the IRNN, and {TALATHI}, which proposes the np-RNN.

How to read the tables:

- A paper's figure is marked *read* (seen in a public source), *read in a summary* (in a public summary of the paper) or *recalled* (from
  memory of the paper, not read again). What we do not know is said so and not filled in. What a sentence says a paper claims is recalled
  too.
- Ours: unless a table says otherwise, every cell gets the same search for its learning rate on dev and the same budget, then several seeds
  with the rate found; test is looked at once a run, with the weights that were best on dev. A cell that was tried from several
  initialisations had as many searches: a sentence that lays it beside another says so. Median, and least to greatest over the seeds;
  a seed that diverged counts as infinitely wrong. A rate at an end of the grid is marked: a better one may lie beyond.
- *diverged*: given up after {MAX_SKIPPED} updates in a row whose gradient was not finite, or at the end a loss on dev of more than
  {DIVERGED_LOSS:g} times a constant answer's. *Skipped*: updates, of all seeds together, whose gradient was not finite.
  *Bursts*: seeds that did not diverge, though after update {BURST_AFTER} the mean training loss between two looks was above
  {BURST_LOSS:g} times a constant answer's.
- Two cells are called different only where the ranges of their seeds do not overlap. One seed has no range, so it cannot tell.
- Data that are not the paper's stand in tables of their own, named *stand-in*, without any figure of the paper.
- *solve it*: squared error on test below 6 % of a constant answer's, 0.01 on adding and 0.0029 on multiplication.
- Float32 everywhere but where a table says bf16; two cores of the machine that stands with each command.

What differs from the papers' recipes in all tables of tasks: Adam, where they use SGD; the gradient's norm clipped at 1 and the LSTM's
forget bias 1, where Le et al. search 1 to 1,000 and 1 to 20 (read in a summary); 8 to 64 sequences an update, where they take 16; and
**the IRNN's input weights are Glorot's, where the paper draws them from N(0, 0.001)**: with those adding at T = 150 is learned here too,
but later (a row of its own there). *IRNN* means here: ReLU, and recurrent weights that start from the identity."""


def _read_optional(path: Path) -> dict[str, Any] | None:
    return read_json(path) if path.exists() else None


def steps_of(result: KeptResult) -> int:
    """T of generated sequences; 0 of others."""
    return getattr(result.task, "steps", 0)


def _panels(results: list[KeptResult], kind: str) -> dict[str, list[KeptResult]]:
    """Title -> results of that kind of task: short sequences first, and short titles, which are the plain task's."""
    found: dict[str, list[KeptResult]] = {}
    for result in results:
        if result.task.kind == kind and result.is_plain:
            found.setdefault(result.title, []).append(result)
    return dict(sorted(found.items(), key=lambda item: (steps_of(item[1][0]), len(item[0]), item[0])))


def _other_lengths(results: list[KeptResult], out: Path) -> list[str]:
    """Results on generated data of a length that no table of the papers has (T = 750, multiplication at other lengths)."""
    lengths = {(table.kind, table.task["steps"]) for table in TASK_TABLES if "steps" in table.task}
    others = [result for result in results if result.is_plain and steps_of(result) and (result.task.kind, steps_of(result)) not in lengths]
    if not others:
        return []
    rows = [[result.facts["name"], result.label, *our_columns(result, out)] for result in others]
    return ["### Other lengths, in neither paper", markdown_table(["task", "cell", *OUR_COLUMNS], rows), evidence(others, out)]


def _guards(results: list[KeptResult], out: Path) -> list[str]:
    """What keeps an IRNN alive: runs with a guard beside the plain ones of the same task."""
    guarded = [result for result in results if result.is_guarded]
    if not guarded:
        return ["## Guards", "Not run here: needs time (an IRNN with `model.identity_scale=0.99`, `training.norm_stabilizer`, ...)."]
    rows, said = [], []
    for task in dict.fromkeys(result.facts["name"] for result in guarded):
        of_task = [result for result in results if result.facts["name"] == task and (result.is_bare or result.is_guarded)]
        cells = {result.cell for result in guarded if result in of_task}
        shown = sorted((result for result in of_task if result.cell in cells), key=lambda one: (one.is_guarded, one.label))
        rows += [[task, result.label, *our_columns(result, out)] for result in shown]
        said += [guard_sentence(result, shown) for result in shown if result.is_guarded]
    return [
        "## Guards",
        "What may keep an IRNN alive: the same cell on the same task, with and without a guard, at the learning rate that was found for "
        "the one without; no guard was searched anew. All but those that say so clip the gradient's norm at 1.",
        markdown_table(["task", "cell", *OUR_COLUMNS], rows),
        "\n".join(f"- {sentence}" for sentence in said),
        evidence(guarded, out),
    ]


def _task_sections(results: list[KeptResult], out: Path) -> list[str]:
    """All tables of both papers but the language model's, with the curves under the kind that they show."""
    pictures: dict[str, list[str]] = {}
    for kind, file, what in (("adding", ADDING, "adding"), ("multiplication", MULTIPLICATION, "multiplication")):
        if panels := _panels(results, kind):
            draw_losses(panels, out / file)
            pictures[kind] = [f"![Loss on dev over updates, {what}]({file})", LOSSES_CAPTION]
    if panels := _panels(results, "pixel_mnist"):
        draw_accuracies(panels, out / ACCURACY)
        pictures["pixel_mnist"] = [f"![Accuracy on dev over epochs]({ACCURACY})", "Thin: each seed. Thick: their median."]
    parts: list[str] = []
    for paper, title in ((LE, "## Le, Jaitly, Hinton 2015 (IRNN)"), (TALATHI, "## Talathi, Vartak 2015 (np-RNN)")):
        tables = [table for table in TASK_TABLES if table.paper == paper]
        parts.append(title)
        for place, table in enumerate(tables):
            parts.append(render_published(table, results, out))
            is_last_of_kind = place + 1 == len(tables) or tables[place + 1].kind != table.kind
            if is_last_of_kind:
                parts += pictures.pop(table.kind, [])
                parts += render_stand_ins(tables, [result for result in results if result.task.kind == table.kind], out)
    return parts


def _rates_section(results: list[KeptResult], out: Path) -> list[str]:
    """The learning rate's effect: the np-RNN's claim."""
    parts = ["## Sensitivity to the learning rate"]
    searched = [result for result in results if result.rungs and result.is_plain]
    if not searched:
        return [*parts, "Not run here: needs time (a config with `search`)."]
    panels: dict[str, list[KeptResult]] = {}
    for result in sorted(searched, key=lambda one: (one.task.kind, steps_of(one), one.title)):
        panels.setdefault(result.title, []).append(result)
    draw_rates(panels, out / RATES)
    return [
        *parts,
        f"![Loss on dev over the learning rate]({RATES})",
        "Lines with crosses: all rates at the first share of the budget, one seed each. Dots, larger and larger: the better half, later. "
        "Each at the look with the least error so far. At the top: diverged.",
        rate_table(searched),
        "\n".join(f"- {sentence}" for sentence in rate_sentences(searched)),
    ]


def _smoke(results: list[KeptResult]) -> list[str]:
    """Runs that show nothing but that everything runs."""
    title = "## Smoke runs"
    if not results:
        return [title, "Not run: `make papers` runs them."]
    rows = []
    for result in results:
        first, last = ([run["curve"]["dev_loss"][place] or math.inf for run in result.runs] for place in (0, -1))
        shown = ["not finite" if math.inf in losses else f"{max(losses):.3g}" for losses in (first, last)]
        seconds = sum(run["cpu_seconds"] for run in result.runs)
        rows.append([f"smoke: {result.facts['name']}", result.label, *shown, f"{result.updates:,}", f"{seconds:.1f}"])
    columns = ["task", "cell", "loss on dev, first look", "last look", "updates", "seconds of CPU"]
    said = "**Smoke**: a few updates each, to show that every task and cell runs. These losses mean nothing else and compare with nothing."
    return [title, said, markdown_table(columns, rows)]


def render(folder: Path, out: Path, smoke: list[dict[str, Any]] | None = None) -> Path:
    """Write papers.md and its plots into `out`. -> the file. smoke: what experiment/smoke.py has run.

    Raises UserError for a file of the folder that is not what tools/paper_results.py writes.
    """
    folder, out = Path(folder), Path(out)
    results = read_kept(folder)
    of_smoke = [KeptResult(shorten(one, Path(one["config"]["run"]["directory"]).name)) for one in smoke or []]
    language, dynamics = folder / "language_models.json", folder / "dynamics.json"
    parts = [
        "# The papers, reproduced",
        HOW_TO_READ,
        *_task_sections(results, out),
        *_other_lengths(results, out),
        *render_language_models(_read_optional(language), language, out),
        *_rates_section(results, out),
        *_guards(results, out),
        *render_dynamics(_read_optional(dynamics), results, out),
        *_smoke(of_smoke),
    ]
    path = out / "papers.md"
    with atomic_file(path) as file:
        file.write(("\n\n".join(parts) + "\n").encode())
    return path
