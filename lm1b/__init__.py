"""lm1b: recurrent language models on the 1 Billion Word benchmark.

The layers, each imports only from those before it (tests/test_layers.py sees to it):

0. what all layers share, and none of it knows another layer:
   errors.py          what a user's mistake looks like: one line, exit status 2
   files.py           files that are whole or not there; hashes; JSON
   neutral_path.py    paths as anyone may read them, without this machine's folders
   randomness.py      counter-based random numbers: no state, equal on every device and for any number of ranks
   console.py         what a command says, as text or JSON
   progress.py        how far something is
   command_line.py    the parser that all commands share, and completion in the shell
   strict.py          configs that take no unknown key and no loose type, all problems told at once
   explain.py         what a config's fields mean, for people and for editors
   markdown.py        tables for reports
   metrics.py         what every number of a run means
   launchers.py       a process's place among the ranks, whichever launcher started it
   distributed.py     what this process is among the ranks, and the few collectives used outside the engine
   peers.py           one line that names the rank at fault, on every survivor
   processes.py       processes by host and id: whether they are alive
   host_facts.py      versions, and a digest of this package's source
   workers.py         processes side by side on one machine
   remote.py          a folder at a URL
   remote_errors.py   what goes wrong with one, and whether asking again may help
   pinned_wheel.py    data that a package registry carries
   devices.py         which device computes, and tensors on their way to it
   processor.py       which processor this is, as the kernel tells it
   precision.py       computing precisions, and which a device can train in
   memory.py          memory that is kept rather than given back
   profiling.py       names for a step's parts in the profiler's trace
1. config/            the config of an experiment: one JSON file, strict, described, never changed after load
2. data/              from text to the batches of a step
3. model/             from the rows of a step's words to its loss
4. training/          from batches to checkpoints
5. evaluation/        perplexities, trained models to ask, reports
6. sequence_tasks/    the two papers' other tasks, with a small trainer of their own, and papers.md
   huggingface.py     exported models in `transformers`
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lm1b.evaluation.trained.loading import LoadedModel

__version__ = "0.2.0.dev0"


def load(path: str | Path, **options: Any) -> LoadedModel:
    """A trained model to ask: `lm1b.load("runs/irnn_lm").score(["The president said ."])`.

    path: a run directory or an exported model. options: of `lm1b.evaluation.trained.exported.load_model` (checkpoint, weights, precision,
    device). Raises UserError where there is nothing to load.
    """
    from lm1b.evaluation.trained.exported import load_model  # importing the package alone loads no torch

    return load_model(Path(path), **options)
