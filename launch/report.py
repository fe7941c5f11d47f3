"""Tables and curves of runs: `python launch/report.py runs/irnn_lm runs/lstm_lm`."""

from __future__ import annotations

from pathlib import Path

from lm1b.command_line import CommandParser, completes, folders
from lm1b.errors import run_command


def main() -> None:
    """Write the report and print its table."""
    parser = CommandParser(description=__doc__)
    completes(parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directories"), folders)
    parser.add_argument("--out", type=Path, help="folder for report.html, report.md and curves.png (default: report/ of the first run)")
    arguments = parser.parse_args()
    from lm1b.evaluation.report.report import report
    from lm1b.training.run_folder import RunFolder

    out = arguments.out or RunFolder(arguments.runs[0]).report
    print(report(arguments.runs, out))
    print(f"\nwritten: {out / 'report.html'}, {out / 'report.md'}, {out / 'curves.png'}")


if __name__ == "__main__":
    run_command(main)
