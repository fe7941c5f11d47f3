"""Score sentences: python launch/score.py --run runs/irnn_lm < sentences.txt

One tokenized sentence a line in, one line of JSON out, in the same order: nats, words, unknown, perplexity, and with --words the natural
log-probability of each word and of the sentence's end. Each sentence stands alone, from zero state: the nats add up to those of
launch/evaluate.py --state reset. An empty line has no words, no nats and no perplexity.
"""

from __future__ import annotations

import json
import sys

from lm1b.command_line import CommandParser
from lm1b.errors import run_command


def main() -> None:
    """Score standard input, line by line."""
    parser = CommandParser(description=__doc__)
    parser.add_run("a run's directory or an exported model")
    parser.add_checkpoint()
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="of the model; nats are summed in float64")
    parser.add_device()
    parser.add_argument("--words", action="store_true", help="also each word's log-probability")
    arguments = parser.parse_args()

    from lm1b.evaluation.trained.exported import load_model  # after the arguments: a mistake there is answered at once

    model = load_model(
        arguments.run, checkpoint=arguments.checkpoint, weights=arguments.weights, precision=arguments.precision, device=arguments.device
    )
    together = 1 if sys.stdin.isatty() else 4096
    for score in model.score_stream(iter(sys.stdin.buffer), together):
        print(json.dumps(score.as_json(with_words=arguments.words)), flush=together == 1)


if __name__ == "__main__":
    run_command(main)
