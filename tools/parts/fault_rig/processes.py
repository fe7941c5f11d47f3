"""Kills of evaluation and preprocessing: the evaluator, and preprocessing's parent and worker processes."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from lm1b.files import read_json
from lm1b.training.run_folder import RunFolder
from parts.fault_rig.compare import check_tokens, wrong_results
from parts.fault_rig.launches import EVALUATE, GONE_SECONDS, PREPROCESS, Failure, Launch
from parts.fault_rig.points import Moment, Order, moments_of
from parts.fault_rig.table import Trial
from parts.fault_rig.workplace import Workplace

KILLS_A_CHAIN = 3
EVALUATION, PREPROCESSING = "evaluation line", "preprocessing"  # phases; the first is a point too

# (point, victim, calls): what is cut in turn; with a worker as the victim two of them are at work, else the parent alone.
PREPROCESSING_KILLS = (
    ("preprocessing: numbers", "worker", (1, 2)),
    ("preprocessing: shard", "worker", (1, 4)),
    ("preprocessing: publishing", "parent", (1, 8)),
    ("preprocessing: record", "worker", (1, 2)),
    ("preprocessing: shard", "parent", (1, 8)),
    ("preprocessing: manifest", "parent", (1, 1)),
)


def kill_once(trial: Trial, order: Order, arguments: list[str], log: Path) -> None:
    """Start an entry point with an order, and see it and all that belongs to it go."""
    trial.log = str(log)
    launch = Launch(order.program, arguments, log, order)
    mark = Path(order.mark)
    struck = launch.wait_until(mark.exists)
    if not launch.wait_gone():
        trial.fail(f"processes were still there after {GONE_SECONDS:.0f} s")
    if not struck:
        trial.phase = None
        trial.fail(f"the fault did not strike, status {launch.status}: {launch.last_words()}")
    else:
        trial.seconds = time.time() - float(read_json(mark)["at"])


def kill_evaluations(place: Workplace, generator: random.Random, number: int, steps: int, on_trial: Callable[[Trial], None]) -> list[Trial]:
    """Kill the evaluator at its lines before, in the middle of and after them; start it again until all is scored."""
    if not number:
        return []
    trained = place.undisturbed("fp32", steps).directory
    expected = Path(shutil.copytree(trained, place.folder / "evaluated"))
    finish_evaluation(expected, place.logs / "evaluated.log")
    moments = moments_of(EVALUATION)
    trials: list[Trial] = []
    while len(trials) < number:
        name = place.new_name("evaluation")
        run = Path(shutil.copytree(trained, place.folder / name))
        chain = []
        for index in range(min(KILLS_A_CHAIN, number - len(trials))):
            # A kill may let a line or two pass; three checkpoints have six.
            call = generator.randint(1, 2) if index == 0 else 1
            moment: Moment = moments[(len(trials) + index) % len(moments)]
            order = Order(EVALUATE, EVALUATION, str(place.folder / f"{name}_{index}.mark"), "any", call, moment)
            chain.append(Trial("evaluator killed", f"{moment} line {call}", EVALUATION))
            kill_once(chain[-1], order, ["--run", str(run), "--watch"], place.logs / f"{name}_{index}.log")
            on_trial(chain[-1])
        _finish(chain, lambda run=run, name=name: finish_evaluation(run, place.logs / f"{name}_end.log"))
        for trial in chain:
            trial.wrong_bytes = wrong_results(RunFolder(run).evaluations, RunFolder(expected).evaluations)
        trials += chain
    return trials


def finish_evaluation(run: Path, log: Path) -> None:
    """Score what is left. Raises Failure where that does not work."""
    Launch(EVALUATE, ["--run", str(run), "--watch"], log).finish_well()


def kill_preprocessing(place: Workplace, generator: random.Random, number: int, on_trial: Callable[[Trial], None]) -> list[Trial]:
    """Kill parent or workers while they write; start again until the tokens are complete, and compare them."""
    trials: list[Trial] = []
    while len(trials) < number:
        name = place.new_name("preprocessing")
        tokens = place.folder / f"{name}_tokens"
        chain = []
        for index in range(min(KILLS_A_CHAIN, number - len(trials))):
            point, victim, calls = PREPROCESSING_KILLS[(len(trials) + index) % len(PREPROCESSING_KILLS)]
            processes = {"directory": str(tokens), "processes": 2 if victim == "worker" else 1}
            config = place.write_config(name, "fp32", 1, tokens=processes)
            moment, call = generator.choice(moments_of(point)), generator.randint(*calls)
            order = Order(PREPROCESS, point, str(place.folder / f"{name}_{index}.mark"), victim, call, moment)
            chain.append(Trial("preprocessing killed", f"{point}: {victim}, {moment} call {call}", PREPROCESSING))
            kill_once(chain[-1], order, ["--config", str(config)], place.logs / f"{name}_{index}.log")
            on_trial(chain[-1])
        config = place.folder / f"{name}.json"
        _finish(chain, lambda config=config, name=name: place.prepare(config, place.logs / f"{name}_end.log"))
        check_tokens(place, tokens, chain)
        trials += chain
    return trials


def _finish(trials: list[Trial], finish: Callable[[], None]) -> None:
    try:
        finish()
    except Failure as failure:
        for trial in trials:
            trial.fail(str(failure))
