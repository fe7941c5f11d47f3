"""A trained model as a folder that others can load: python launch/export.py --run runs/irnn_lm --out models/irnn_lm

The folder holds the weights (model.safetensors, sharded over 2 GB), config.json, the vocabulary and a model card (README.md) with data,
settings, perplexities and what they mean; the licence is yours to fill in. `lm1b.load(folder)`, launch/score.py and launch/sample.py take
it without the run, its tokens or DeepSpeed; `lm1b.huggingface.register()` lets `transformers` load it.
"""

from __future__ import annotations

from pathlib import Path

from lm1b.command_line import CommandParser
from lm1b.errors import run_command


def main() -> None:
    """Write the folder and say what is in it."""
    parser = CommandParser(description=__doc__)
    parser.add_run("the run's directory")
    parser.add_argument("--out", type=Path, required=True, help="folder to make; must not be there, or be empty")
    parser.add_checkpoint()
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="of the files; bf16: half the size")
    arguments = parser.parse_args()

    from lm1b.evaluation.trained.export import export_run  # after the arguments: a mistake there is answered at once
    from lm1b.files import megabytes

    done = export_run(
        arguments.run, arguments.out, checkpoint=arguments.checkpoint, weights=arguments.weights, precision=arguments.precision
    )
    facts = done.facts
    print(f"{done.path}: step {facts['step']}, {facts['weights']} weights, {facts['precision']}, {megabytes(done.num_bytes)}")
    if not facts["evaluations"]:
        print("these weights have not been scored, so the model card has no perplexity: launch/evaluate.py, then export again")


if __name__ == "__main__":
    run_command(main)
