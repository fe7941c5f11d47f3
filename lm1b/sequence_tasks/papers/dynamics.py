"""The part of papers.md on states over time, spectra and half precision.

From `dynamics.json` (tools/paper_results.py dynamics); the last table from kept results in bf16, beside those in float32.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lm1b.errors import UserError
from lm1b.markdown import markdown_table
from lm1b.sequence_tasks.papers.kept_result import KeptResult
from lm1b.sequence_tasks.papers.plots import VANISHED, draw_norms, draw_precision, draw_spectra
from lm1b.sequence_tasks.papers.tables import OUR_COLUMNS, evidence, our_columns
from lm1b.sequence_tasks.papers.verdicts import compare

NORMS, SPECTRA, PRECISION = "papers_norms.png", "papers_spectra.png", "papers_precision.png"
EXPECTED = {"fp16": 1e-3, "bf16": 1e-2}  # relative error of the state after 784 steps at initialisation, as expected beforehand
LARGEST_FP16 = 65504.0
BF16_AGAINST_FLOAT32 = {
    "lower": "bf16 does better than float32, the seeds' ranges do not overlap.",
    "higher": "bf16 does worse than float32, the seeds' ranges do not overlap.",
    "cannot tell": "cannot tell bf16 from float32, since the seeds' ranges overlap or there is one seed only.",
}
INPUT_WEIGHTS = {
    "IRNN (W = I)": "input weights N(0, 0.001), the paper's",
    "IRNN (W = I, Glorot input)": "Glorot's, which the tasks here are trained with",
}
AT_START = "784 steps, at initialisation"


def _norm_at(found: dict[str, Any], name: str, step: int) -> tuple[int, float]:
    """Step that is kept nearest to `step`, and the norm there with no input."""
    place = min(range(len(found["steps"])), key=lambda i: abs(found["steps"][i] - step))
    return found["steps"][place], found["cells"][name]["norms"]["nothing"][place]


def norm_sentences(found: dict[str, Any]) -> list[str]:
    """What the norms say: whose state is kept, whose is gone, and how fast the np-RNN's falls against what was expected."""
    last = found["steps"][-1]
    rows = {name: cell["norms"]["nothing"][-1] for name, cell in found["cells"].items()}
    held = [name for name, value in rows.items() if value > 0.5]
    gone = [name for name, value in rows.items() if value < VANISHED]
    step, value = _norm_at(found, "np-RNN", 100)
    told = []
    if INPUT_WEIGHTS.keys() <= found["cells"].keys():
        ends = [f"{found['cells'][name]['norms']['pixels'][-1]:.3g} of its start with {what}" for name, what in INPUT_WEIGHTS.items()]
        told = [f"With input like pixels the norm comes to {' and '.join(ends)}: the tasks' networks do not start where the paper's do."]
    return [
        *told,
        f"With no input, {' and '.join(held)} keep more than half of their norm over {last} steps; below {VANISHED:g} fall "
        f"{', '.join(gone)}. A norm that stays is not memory: the tanh RNN's state moves on, the identity's stands still.",
        f"The np-RNN's norm is {value:.2g} of its start after {step} steps, although its largest eigenvalue is 1: that eigenvector has "
        "entries of both signs, and a ReLU lets only positive ones through. Expected beforehand: 1e-6 after 100 steps; it falls "
        f"{'faster' if value < 1e-7 else 'about so fast' if value < 1e-5 else 'more slowly'}.",
    ]


def precision_sentences(found: dict[str, Any]) -> list[str]:
    """What half precision does to an IRNN's state, against EXPECTED: a sentence a finding."""
    start, moved = found["precision"][AT_START]["errors"], found["precision"]["784 steps, moved weights"]["errors"]
    said = []
    for name, expected in EXPECTED.items():
        last, other = start[name][-1], moved[name][-1]
        verdict = "it agrees within a factor of 3" if expected / 3 < last < expected * 3 else "it does not agree"
        beside = "is not finite" if other is None else f"is off by {other:.2g}"
        said.append(
            f"{name}: after 784 steps the state of an IRNN at its initialisation is off by {last:.2g} (about {expected:g} was expected "
            f"beforehand: {verdict}); with moved weights it {beside}."
        )
    kept, apart = start["bf16 products, float32 state"][-1], start["bf16 products of W - I, float32 state"][-1]
    said += [
        "Keeping the state in float32 does not help by itself, since it is rounded as the product's operand at every step: "
        f"{kept:.2g} after 784 steps of bf16. With the identity taken out of the product, h + (W - I) h, it is {apart:.2g}.",
        "In the sequence trainer's bf16 runs the layers' state is bf16; weights, optimizer state and the read-out are float32.",
    ]
    short, later = (found["precision"][f"20 steps, {weights}"]["errors"] for weights in ("at initialisation", "moved weights"))
    said += [
        f"Over 20 steps from zero, as many as a gradient of the language model goes back, bf16 is off by {short['bf16'][-1]:.2g} and fp16 "
        f"by {short['fp16'][-1]:.2g}, with moved weights by {later['bf16'][-1]:.2g} and {later['fp16'][-1]:.2g}. The language model itself "
        "carries its state on beyond them, and starts from 0.5 I, which forgets what it was off by.",
        "TF32 was not tried: it needs a GPU. Its products have fp16's ten bits and float32's range, so the line of fp16 products with a "
        "float32 state is what its arithmetic lets one expect.",
        _overflow_sentence(found["overflow"]),
    ]
    return said


def _overflow_sentence(overflow: dict[str, Any]) -> str:
    """Whether a growing state leaves fp16's range within 784 steps."""
    growth, half, brain = overflow["asked_growth"], overflow["types"]["fp16"], overflow["types"]["bf16"]
    step = half["infinite_at_step"]
    outcome = "stays finite" if step is None else f"overflows at step {step}"
    verdict = "within 784 steps, as expected" if step is not None and step <= 784 else "not within the 784 steps that were expected"
    needed = LARGEST_FP16 / half["growth"] ** 784
    return (
        f"A state of 1 that is to grow by {100 * (growth - 1):.1f} % a step: fp16 rounds the growth to {half['growth']:.6g} and {outcome}, "
        f"{verdict}; one of {needed:.2g} or more at the start would do so. bf16 makes it {brain['growth']:.6g}, another network, and "
        + ("does not overflow." if brain["infinite_at_step"] is None else f"overflows at step {brain['infinite_at_step']}.")
    )


def _accuracy_table(results: list[KeptResult], out: Path) -> list[str]:
    """bf16 runs beside the float32 runs of the same cell on the same task."""
    pairs = []
    for result in results:
        precision = result.config.training.precision
        if precision != "fp32":
            same = [other for other in results if (other.task, other.model) == (result.task, result.model)]
            # The label tells guards apart, and says a precision only where it is not float32.
            beside = [other for other in same if f"{other.label}, {precision}" == result.label and other.updates == result.updates]
            pairs.append((result, beside[0] if beside else None))
    if not pairs:
        return ["Accuracy in the end: not run here: needs time (a config with `training.precision=bf16`, kept as a file named `*_bf16`)."]
    rows, said = [], []
    for result, plain in pairs:
        rows.append([result.facts["name"], result.label, *our_columns(result, out)])
        if plain is None:
            said.append(f"- {result.facts['name']}, {result.label}: no float32 run of the same settings to lay beside it.")
            continue
        rows.append([plain.facts["name"], f"{plain.label}, fp32", *our_columns(plain, out)])
        said.append(f"- {result.facts['name']}, {plain.label}: {BF16_AGAINST_FLOAT32[compare(result.errors, plain.errors)]}")
    table = markdown_table(["task", "cell", *OUR_COLUMNS], rows)
    how = "Accuracy in the end, in bf16 at the learning rate that was found in float32, not searched anew:"
    return [how, table, "\n".join(said), evidence([result for result, _ in pairs], out)]


def render_dynamics(found: dict[str, Any] | None, results: list[KeptResult], out: Path) -> list[str]:
    """The section's parts; its pictures are drawn into `out`. found: None where there is no dynamics.json. Raises UserError for another."""
    parts = ["Not measured here: `python tools/paper_results.py dynamics --json results/papers/dynamics.json`."]
    if found is not None:
        try:
            parts = _measured(found, out)
        except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
            raise UserError(f"dynamics.json: not what tools/paper_results.py dynamics writes ({error!r})") from None
    return ["## States over time, spectra, half precision", *parts, *_accuracy_table(results, out)]


def _measured(found: dict[str, Any], out: Path) -> list[str]:
    """What dynamics.json shows, with its pictures."""
    draw_norms(found, out / NORMS)
    draw_spectra(found, out / SPECTRA)
    draw_precision(found, out / PRECISION)
    facts = found["provenance"]
    return [
        f"Before any training, {found['units']} units; starts are uniform in (0, 1), the median of {found['sequences']} sequences. Input "
        f"like pixels: {found['share_of_pixels_lit']:.0%} of the steps uniform in (0, 1), the others 0. Weights from seed 1.",
        f"![Norm of the state over time]({NORMS})",
        "\n".join(f"- {sentence}" for sentence in norm_sentences(found)),
        f"![Eigenvalues of the initial recurrent matrices]({SPECTRA})",
        "The circle has radius 1. The identity's eigenvalues are one point, and so are 0.99 I's and 0.9 I's, which are not drawn. The "
        "np-RNN's are real, positive and at most 1; those of a Gaussian matrix fill a disc of about radius 1, some of them outside it.",
        "### Half precision and the IRNN",
        "Weights, state and input are rounded to the type, products are summed in float32, and the new state is rounded to the state's "
        "type. At initialisation: W = I, input weights N(0, 0.001). Moved weights: 0.99 I + N(0, 0.01/sqrt(N)) with input weights "
        "N(0, 0.1), such as training may leave.",
        f"![Relative error of an IRNN's state]({PRECISION})",
        "\n".join(f"- {sentence}" for sentence in precision_sentences(found)),
        f"Measured by `{facts['command']}`; commit {str(facts['revision'])[:12]}, torch {facts['torch']}.",
    ]
