"""What the papers' tables are made of, beside the runs of launch/sequence_task.py: measurements, a table of language models, kept files.

    python tools/paper_results.py keep runs/tasks/adding_irnn --into results/papers       # what a finished run found, as a small file
    python tools/paper_results.py dynamics --json results/papers/dynamics.json            # states over time, half precision; a minute
    python tools/paper_results.py language-models --corpus NEWS_MIX --json results/papers/language_models.json    # hours

`python launch/papers.py` then writes report/papers.md from results/papers.
"""

from __future__ import annotations

from parts.harness.uses import Use, run_use

from lm1b.errors import run_command

USES = {
    "keep": Use("parts.paper_results.keep", "keep what runs of launch/sequence_task.py have found, as small files"),
    "dynamics": Use("parts.paper_results.dynamics", "what each initialisation does to a state over time, and half precision to an IRNN's"),
    "language-models": Use("parts.paper_results.language_models", "the language-model table of Le, Jaitly and Hinton at half its widths"),
}


def main() -> int | None:
    return run_use(__doc__, USES)


if __name__ == "__main__":
    run_command(main)
