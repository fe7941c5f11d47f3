"""Tables and curves of one or more runs, beside n-gram baselines on the same text and the published figures.

1. A run is read from its folder alone: config.json, evaluations.jsonl, metrics.jsonl.
2. Baselines are counted on the run's own token directory, where it is there, and kept in report/baselines.json.
3. The table goes to stdout and, with the published figures and the curves, to report/report.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lm1b.data.official import VOCABULARY_SIZE
from lm1b.data.remote_tokens import open_tokens
from lm1b.data.shards import TokenDirectory
from lm1b.errors import UserError, describe_os_error
from lm1b.evaluation.curves import RunRecord, draw_curves
from lm1b.evaluation.details import render_details
from lm1b.evaluation.ngram import fit_baselines
from lm1b.evaluation.published import PUBLISHED
from lm1b.evaluation.texts import TEST_FILE, ScoredText, count_test_looks, text_of_files, text_of_split
from lm1b.files import atomic_file, read_json, write_json
from lm1b.markdown import markdown_table

COLUMNS = (
    "run", "step", "epochs", "tokens seen", "split", "files", "state", "weights", "precision", "predictions", "unknown", "perplexity",
    "/ unigram", "/ trigram",
)  # fmt: skip
LEFT_ALIGNED = {"run", "split", "files", "state", "weights", "precision"}
Baselines = dict[str, dict[str, Any]]


def baseline_key(line: dict[str, Any]) -> str:
    """Names the text and the vocabulary that a result is on."""
    return f"{line['vocabulary']} {line['split']} {' '.join(line['files'])} {line['predictions']} {line['unknown']}"


def find_baselines(run: RunRecord, cache: Path) -> tuple[Baselines, list[str]]:
    """Baselines of every text that the run was scored on, by `baseline_key`, and what could not be computed.

    Counted on the run's training tokens at the first call and kept in `cache`; the token directory may be gone later.
    """
    known: Baselines = read_json(cache) if cache.exists() else {}
    missing = {baseline_key(line): line for line in run.evaluations if baseline_key(line) not in known}
    if not missing:
        return known, []
    try:
        tokens = open_tokens(run.config.tokens)
    except (UserError, OSError) as error:
        problem = describe_os_error(error) if isinstance(error, OSError) else str(error)
        return known, [f"{run.name}: no baselines, since its token directory cannot be read ({problem})"]
    notes, texts = [], {}
    for key, line in missing.items():
        try:
            texts[key] = _text_of_line(tokens, line)
        except UserError as error:
            notes.append(f"{run.name}: no baselines on {line['split']} {' '.join(line['files'])} ({error})")
    if texts:
        known |= _count_baselines(tokens, texts)
        write_json(cache, known)
    return known, notes


def _text_of_line(tokens: TokenDirectory, line: dict[str, Any]) -> ScoredText:
    """The text that a result is on. Raises UserError where it is not the same any more."""
    if line["vocabulary"] != tokens.fingerprint:
        raise UserError("the token directory has another vocabulary now")
    if line["split"] == "files":
        text = text_of_files(tokens.vocabulary, [Path(file) for file in line["files"]])
    else:
        text = text_of_split(tokens, line["split"])
    if (text.predictions, text.unknown) != (line["predictions"], line["unknown"]):
        raise UserError("the text has changed since")
    return text


def _count_baselines(tokens: TokenDirectory, texts: dict[str, ScoredText]) -> Baselines:
    train = tokens.split("train")
    unigram, trigram = fit_baselines(
        lambda: (train.tokens(i)[:] for i in range(len(train.shards))), train.num_tokens, tokens.vocabulary.size, tokens.vocabulary.end_id
    )
    return {
        key: {
            "unigram": float(np.exp(unigram.nats(text.tokens_N).sum() / text.predictions)),
            "trigram": None if trigram is None else float(np.exp(trigram.nats(text.tokens_N).sum() / text.predictions)),
            "training_tokens": train.num_tokens,
        }
        for key, text in texts.items()
    }


def table_rows(run: RunRecord, baselines: Baselines) -> list[list[str]]:
    """One row of COLUMNS a result; the best on validation is marked with a star."""
    best, rows = run.best(), []
    for line in run.evaluations:
        beside = baselines.get(baseline_key(line), {})
        perplexity = line["word_perplexity"]
        files = line.get("official") or ", ".join(Path(file).name for file in line["files"][:1])
        more = f" + {len(line['files']) - 1}" if len(line["files"]) > 1 else ""
        epoch = line.get("epoch")
        rows.append([
            run.name,
            str(line["step"]),
            "" if epoch is None else f"{epoch:.2f}" if isinstance(epoch, float) else str(epoch),
            f"{run.tokens_at(line['step']):,}",
            line["split"],
            files + more,
            line["state"],
            line["weights"],
            line["precision"],
            f"{line['predictions']:,}",
            f"{100 * line['unknown'] / line['predictions']:.2f} %",
            "not finite" if perplexity is None else f"{perplexity:.2f}" + (" *" if line is best else "  "),
            *(_ratio(perplexity, beside.get(name)) for name in ("unigram", "trigram")),
        ])  # fmt: skip
    return rows


def baseline_rows(run: RunRecord, baselines: Baselines) -> list[list[str]]:
    """A row of COLUMNS for each baseline on each text that the run was scored on."""
    rows = []
    for key, line in {baseline_key(line): line for line in run.evaluations}.items():
        beside = baselines.get(key, {})
        for name, label in (("unigram", "unigram, add one"), ("trigram", "trigram, Kneser-Ney")):
            if beside.get(name) is not None:
                unknown = f"{100 * line['unknown'] / line['predictions']:.2f} %"
                files = line.get("official") or Path(line["files"][0]).name
                more = f" + {len(line['files']) - 1}" if len(line["files"]) > 1 else ""
                counts = [f"{line['predictions']:,}", unknown, f"{beside[name]:.2f}  "]
                ratios = [_ratio(beside[name], beside["unigram"]), _ratio(beside[name], beside["trigram"])]
                seen = f"{beside['training_tokens']:,}"
                rows.append([f"{run.name}: {label}", "", "1", seen, line["split"], files + more, "", "", "", *counts, *ratios])
    return rows


def _ratio(perplexity: float | None, baseline: float | None) -> str:
    return "" if perplexity is None or baseline is None else f"{perplexity / baseline:.2f}"


def as_text(rows: list[list[str]]) -> str:
    """A plain table with aligned columns."""
    widths = [max(len(row[k]) for row in [list(COLUMNS), *rows]) for k in range(len(COLUMNS))]

    def line(row: list[str]) -> str:
        cells = (c.ljust(w) if name in LEFT_ALIGNED else c.rjust(w) for c, w, name in zip(row, widths, COLUMNS, strict=True))
        return "  ".join(cells).rstrip()

    return "\n".join([line(list(COLUMNS)), line(["-" * width for width in widths]), *(line(row) for row in rows)])


def is_comparable(run: RunRecord) -> bool:
    """Whether the run was trained on the full benchmark and scored on its test file with the official vocabulary."""
    return any(
        line.get("trained_on_official") and line.get("official") == TEST_FILE and line.get("vocabulary_size") == VOCABULARY_SIZE
        for line in run.evaluations
    )


def as_markdown(runs: list[RunRecord], rows: list[list[str]], notes: list[str]) -> str:
    """The whole report. Raises UserError for kept nats that are damaged."""
    published = [[figure.model, str(figure.perplexity), figure.source, figure.protocol] for figure in PUBLISHED]
    others = [run.name for run in runs if not is_comparable(run)]
    warning = ""
    if others:
        warning = (
            f"**These do not compare with {', '.join(others)}**, which did not train on the full benchmark with its 793,471 words and get "
            "scored on heldout-00000: another corpus, another vocabulary or another test text gives another perplexity. "
        )
    tests = sum(count_test_looks(run.evaluations) for run in runs)
    parts = [
        "# Report: " + ", ".join(run.name for run in runs),
        "Exact word perplexities over the whole vocabulary (closed: `<UNK>` is a word; predictions = words + sentences, each `</S>` is "
        "predicted). `*`: best on validation. The last two columns divide by the baselines on the same text and vocabulary. "
        f"Looks at a test text: {tests}.",
        markdown_table(list(COLUMNS), rows) if rows else "Nothing has been scored yet.",
        *(f"Note: {note}" for note in notes),
        "![Training loss and validation perplexity against training tokens](curves.png)",
        *render_details(runs),
        "## Published figures on the 1 Billion Word benchmark (test file heldout-00000)",
        warning + "Figures marked as recalled come from memory of the paper and were not read again.",
        markdown_table(["model", "perplexity", "source", "protocol"], published),
    ]
    return "\n\n".join(parts) + "\n"


def _levels(run: RunRecord, baselines: Baselines) -> dict[str, float]:
    """The trigram's perplexity on validation, to draw beside the run's: labelled by its text, so that runs share it."""
    lines = [line for line in run.evaluations if line["split"] == "validation"]
    found = {baseline_key(line): baselines[baseline_key(line)] for line in lines if baseline_key(line) in baselines}
    return {
        f"Kneser-Ney trigram, {int(key.split()[-2]):,} predictions": entry["trigram"]
        for key, entry in found.items()
        if entry["trigram"] is not None
    }


def report(run_directories: list[Path], out: Path | None = None) -> str:
    """Write report.md and curves.png into `out` (default: the first run's report/). Returns the table as text."""
    runs = [RunRecord.read(directory) for directory in run_directories]
    out = out or runs[0].directory / "report"
    rows: list[list[str]] = []
    notes: list[str] = []
    levels: dict[str, float] = {}
    seen: set[str] = set()
    for run in runs:
        baselines, problems = find_baselines(run, run.directory / "report" / "baselines.json")
        notes += problems
        levels |= _levels(run, baselines)
        rows += table_rows(run, baselines)
        # Runs on the same text share its baselines: shown once.
        rows += [row for row in baseline_rows(run, baselines) if row[0].split(": ")[1] + "".join(row[1:]) not in seen]
        seen |= {row[0].split(": ")[1] + "".join(row[1:]) for row in rows if ": " in row[0]}
    draw_curves(runs, levels, out / "curves.png")
    with atomic_file(out / "report.md") as file:
        file.write(as_markdown(runs, rows, notes).encode())
    return "\n".join([as_text(rows) if rows else "nothing has been scored yet", *(f"note: {note}" for note in notes)])
