"""Sentences drawn from a model: python launch/sample.py --run runs/irnn_lm --prompt "The president"

Words are printed as they are drawn, one sentence a line. The same seed gives the same sentences.
"""

from __future__ import annotations

import itertools

from lm1b.command_line import CommandParser
from lm1b.errors import run_command
from lm1b.evaluation.trained.sampling_settings import SamplingSettings

DEFAULTS = SamplingSettings()


def main() -> None:
    """Print the sentences, each word as it is drawn."""
    parser = CommandParser(description=__doc__)
    parser.add_run("a run's directory or an exported model")
    parser.add_argument("--prompt", default="", help="tokenized beginning of every sentence, words parted by spaces")
    parser.add_argument("--count", type=int, default=1, help="how many sentences")
    parser.add_argument(
        "--temperature", type=float, default=DEFAULTS.temperature, help="below 1 the likely words become likelier; 0: always the likeliest"
    )
    parser.add_argument("--top-k", type=int, help="draw from the so many likeliest words alone")
    parser.add_argument("--top-p", type=float, help="draw from the fewest words that hold this share of the probability")
    parser.add_argument("--seed", type=int, default=DEFAULTS.seed, help="of all sentences together")
    parser.add_argument("--longest", type=int, default=DEFAULTS.longest, metavar="WORDS", help="end a sentence here")
    parser.add_argument("--allow-unknown", action="store_true", help="<UNK> may be drawn")
    parser.add_checkpoint()
    parser.add_device()
    arguments = parser.parse_args()

    from lm1b.evaluation.trained.exported import load_model  # after the arguments: a mistake there is answered at once
    from lm1b.evaluation.trained.sampling import sample_sentence

    settings = SamplingSettings(
        arguments.temperature, arguments.top_k, arguments.top_p, arguments.seed, arguments.longest, arguments.allow_unknown
    )
    model = load_model(arguments.run, checkpoint=arguments.checkpoint, weights=arguments.weights, device=arguments.device)
    for number in range(arguments.count):
        text = itertools.chain([arguments.prompt] if arguments.prompt else [], sample_sentence(model, arguments.prompt, settings, number))
        for place, word in enumerate(text):
            print(f" {word}" if place else word, end="", flush=True)
        print(flush=True)


if __name__ == "__main__":
    run_command(main)
