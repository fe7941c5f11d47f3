"""What a step of N ranks sends, takes and holds under three ways to lay out the vocabulary tables. The core is the same in all.

sharded: ours (lm1b/model/row_exchange.py). A rank asks the owners for its distinct rows: counts and ids of its inputs, and of its
    targets that are no samples (every rank knows the samples), go out, marks of what is touched by the step before come (a byte
    a row), rows come in the compute precision, gradients go back. float16 gradients travel as float32, the bias always does.
sparse: every rank holds both tables and gathers the ids and gradients of every rank's rows (torch's and DeepSpeed's sparse
    gradients, without their padding to the longest); every rank updates all rows that any rank touched.
dense: every rank holds both tables and a gradient as large; all of it is all-reduced and all of it updated.

Core: DeepSpeed stage 1, which at N > 1 all-reduces the gradient and gathers the weights, both in the compute precision (counted on
    a real step), and cuts weights in float32, Adagrad's state and the moving average by N. One small all-reduce of status.

Time follows the code's passes over rows. Alone, a fetch reads rows and rounds them (2 passes over each), an update takes 6
    (read, add and write the accumulator; the same of the row). Of several ranks see `_passes`. Ranks compute in step, and their cores
    do not slow each other down, except by being too few.

Overlap (the default, lm1b/training/step/rows.py): ids, marks, the rows that no rank touches in the step before, and row gradients
    travel while the step computes; they count only as far as they take longer than that. Exposed stay the rows that are late, and the
    core's collectives (overlap_comm is off). In order, with no overlap, all of it is exposed and there are no marks. That the row
    thread takes some of the step's processor time is not modelled, except on loopback: where sending is the cores' own work and all
    cores compute, nothing hides. The other two layouts overlap nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from parts.scaling_model.collectives import Collective, Network
from parts.scaling_model.measured import CONSTANT_PARTS, Measured
from parts.scaling_model.rows import TouchedRows, Words

Layout = Literal["sharded", "sparse", "dense"]
LAYOUTS: tuple[Layout, ...] = ("sharded", "sparse", "dense")
COUNT_BYTES = 8
ID_BYTES = {"sharded": 4, "sparse": 8}
FLOAT_BYTES = 4
COMPUTE_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
GRADIENT_BYTES = {"fp32": 4, "bf16": 2, "fp16": 4}
FETCH_PASSES, UPDATE_PASSES = 2, 6
# float64 values a rank in the status all-reduce: five things checked, an LSTM layer's four parameters, the largest activation, and
# four parts of waiting.
STATUS_VALUES = 14

# With overlap these travel while the step computes.
BEHIND_THE_STEP = ("counts", "ids", "marks", "early rows", "row gradients")


@dataclass(frozen=True)
class Machine:
    """Where ranks run. ranks_per_host, cores: of a host. is_loopback: whether the network is the cores' own work, as loopback is."""

    ranks_per_host: int = 1
    cores: int | None = None
    is_loopback: bool = False

    def slowdown(self, ranks: int, threads: int) -> float:
        """How many times longer computing takes because the ranks of a host share too few cores."""
        return max(1.0, min(ranks, self.ranks_per_host) * threads / self.cores) if self.cores else 1.0

    def network_of_a_rank(self, network: Network, ranks: int, threads: int) -> Network:
        """A host's wire is shared by its ranks (all traffic counts as leaving the host); loopback is as slow as its cores."""
        return network.shared_by(self.slowdown(ranks, threads) if self.is_loopback else min(ranks, self.ranks_per_host))

    def can_hide(self, ranks: int, threads: int) -> bool:
        """Whether anything can be sent while the ranks compute."""
        return not self.is_loopback or self.cores is None or min(ranks, self.ranks_per_host) * threads < self.cores


@dataclass(frozen=True)
class Prediction:
    """One layout at N ranks. Bytes are of one rank and one step, mean over ranks; memory is of one rank.

    communication_seconds: what of it the step waits for; hidden_seconds: the rest, behind the step's computing.
    """

    layout: Layout
    ranks: int
    lanes_per_rank: float
    words_per_second: float
    step_seconds: float
    communication_seconds: float
    hidden_seconds: float
    sent_bytes: float
    memory_bytes: float


def collectives(layout: Layout, entry: Measured, rows: TouchedRows, ranks: int, overlap: bool = True) -> list[Collective]:
    """All collectives of one step, in order. ranks > 1 (alone nothing is sent). overlap: of the sharded layout only."""
    there, back = COMPUTE_BYTES[entry.precision], GRADIENT_BYTES[entry.precision]
    core = [
        Collective("status", "all_reduce", 8 * (3 + ranks * STATUS_VALUES)),
        Collective("core gradient", "all_reduce", there * entry.core_parameters),
        Collective("core weights", "all_gather", there * entry.core_parameters),
    ]
    if entry.precision != "bf16":  # DeepSpeed's other optimizer, for the gradient's norm
        core.insert(1, Collective("norm", "all_reduce", FLOAT_BYTES))
    if layout == "dense":
        tables = [
            Collective("table gradient", "all_reduce", back * entry.vocabulary * width) for width in (entry.embedding, entry.output_width)
        ]
        return [*core, *tables, Collective("bias gradient", "all_reduce", FLOAT_BYTES * entry.vocabulary)]
    if layout == "sparse":
        gathered = [(COUNT_BYTES, 1.0), (ID_BYTES["sparse"], rows.inputs), (back * entry.embedding, rows.inputs)]
        gathered += [(COUNT_BYTES, 1.0), (ID_BYTES["sparse"], rows.outputs), (back * entry.output_width + FLOAT_BYTES, rows.outputs)]
        return [*core, *(Collective("row gradients", "all_gather", size * count * ranks) for size, count in gathered)]
    # The bias goes the output rows' way, in float32.
    row_bytes = [there * entry.embedding, there * entry.output_width + FLOAT_BYTES]
    gradient_bytes = [back * entry.embedding, back * entry.output_width + FLOAT_BYTES]
    asked = [
        Collective("counts", "all_to_all", 2 * COUNT_BYTES * ranks),
        Collective("ids", "all_to_all", ID_BYTES["sharded"] * (rows.inputs + rows.others), rows.busiest_input),
    ]
    wanted = [(rows.inputs, rows.busiest_input), (rows.outputs, rows.busiest_output)]
    if not overlap:
        return [*asked, _exchange("rows", row_bytes, wanted), _exchange("row gradients", gradient_bytes, wanted), *core]
    late = [(rows.late_inputs, rows.busiest_late_input), (rows.late_outputs, rows.busiest_late_output)]
    early = [(count - late_count, busiest) for (count, busiest), (late_count, _) in zip(wanted, late, strict=True)]
    asked.append(Collective("marks", "all_to_all", rows.inputs + rows.outputs, rows.busiest_input))
    gradients = [_exchange("row gradients", [size], [each]) for size, each in zip(gradient_bytes, wanted, strict=True)]
    return [*asked, _exchange("early rows", row_bytes, early), _exchange("late rows", row_bytes, late), *gradients, *core]


def _exchange(what: str, sizes: Sequence[float], rows: Sequence[tuple[float, float]]) -> Collective:
    """One all-to-all of the rows of some tables. sizes: bytes of a row of each; rows: how many, and the busiest owner's share."""
    of_each = [size * count for size, (count, _) in zip(sizes, rows, strict=True)]
    busiest = sum(part * share for part, (_, share) in zip(of_each, rows, strict=True)) / sum(of_each) if any(of_each) else 1.0
    return Collective(what, "all_to_all", sum(of_each), busiest)


def _passes(layout: Layout, entry: Measured, rows: TouchedRows, ranks: int) -> tuple[float, float]:
    """Passes over rows in a step's fetch and in its update, of one rank."""
    wanted, own_others = rows.inputs + rows.outputs, rows.inputs + rows.others
    touched = rows.all_inputs + rows.all_others
    if layout == "dense":  # a gradient as large as both tables is cleared, summed and applied
        return FETCH_PASSES * wanted, (UPDATE_PASSES + 1) * 2 * entry.vocabulary + wanted
    if ranks == 1:
        return FETCH_PASSES * wanted, UPDATE_PASSES * wanted
    if layout == "sparse":  # what has come is summed, row by row, and then applied
        return FETCH_PASSES * wanted, 2 * ranks * wanted + UPDATE_PASSES * (rows.samples + touched)
    # The samples' rows are read once and copied for each rank, the others read for each; what comes is copied to its place.
    fetch = FETCH_PASSES * (rows.samples / ranks + own_others) + rows.samples + wanted
    # Gradients are rounded to be sent; of what has come the samples' are added up, the others first converted.
    update = wanted + rows.samples + 2 * own_others + UPDATE_PASSES * (rows.samples + touched) / ranks
    return fetch, update


def _compute_seconds(layout: Layout, entry: Measured, words: Words, rows: TouchedRows, ranks: int, lanes: float) -> float:
    """Of one rank that has its cores to itself. entry: of one rank."""
    alone = words.touched(entry.lanes * entry.steps, 1)
    fetch_passes, update_passes = _passes(layout, entry, rows, ranks)
    wanted = alone.inputs + alone.outputs
    fetch = entry.part("row fetch") / (FETCH_PASSES * wanted) * fetch_passes
    update = entry.part("table update") / (UPDATE_PASSES * wanted) * update_passes
    constant = sum(entry.part(name) for name in CONSTANT_PARTS)
    return entry.seconds_at(lanes) + constant + fetch + update


def _held_bytes(layout: Layout, entry: Measured, rows: TouchedRows, ranks: int) -> float:
    """Tables, core and what is there only because there are several ranks; without a process's base."""
    size, core = COMPUTE_BYTES[entry.precision], entry.core_parameters
    table = entry.vocabulary * (entry.embedding + entry.output_width + 1)
    row_bytes = rows.inputs * entry.embedding * size + rows.outputs * (entry.output_width * size + FLOAT_BYTES)
    # Weights and gradient in the compute precision, gradient in float32; weights, Adagrad's sum and the average in float32, cut.
    held = core * (2 * size + FLOAT_BYTES + 3 * FLOAT_BYTES / ranks)
    held += 2 * FLOAT_BYTES * table / (ranks if layout == "sharded" else 1)
    if layout == "dense":
        return held + FLOAT_BYTES * table
    if ranks == 1:
        return held
    return held + row_bytes * (2 if layout == "sharded" else ranks)


def base_bytes(entry: Measured, words: Words) -> float:
    """A process's memory beside what the model counts, from the measured peak of one rank; 0 where that was not measured."""
    if entry.peak_memory_mb is None:
        return 0.0
    return max(0.0, entry.peak_memory_mb * 2**20 - _held_bytes("sharded", entry, words.touched(entry.lanes * entry.steps, 1), 1))


def predict(
    layout: Layout,
    entry: Measured,
    words: Words,
    ranks: int,
    lanes_per_rank: float,
    network: Network,
    machine: Machine,
    algorithms: Literal["gloo", "best"] = "gloo",
    overlap: bool = True,
) -> Prediction:
    """entry: a measurement of one rank, from which all compute times are taken. overlap: as `communication.overlap` of a run."""
    rows = words.touched(round(lanes_per_rank * entry.steps), ranks)
    sends = collectives(layout, entry, rows, ranks, overlap) if ranks > 1 else []
    link = machine.network_of_a_rank(network, ranks, entry.threads)
    compute = _compute_seconds(layout, entry, words, rows, ranks, lanes_per_rank) * machine.slowdown(ranks, entry.threads)
    of_each = [(each.what, each.seconds(ranks, link, algorithms)) for each in sends]
    behind = sum(seconds for what, seconds in of_each if what in BEHIND_THE_STEP)
    hides = overlap and layout == "sharded" and machine.can_hide(ranks, entry.threads)
    hidden = min(behind, compute) if hides else 0.0
    communication = sum(seconds for _, seconds in of_each) - hidden
    seconds = compute + communication
    return Prediction(
        layout,
        ranks,
        lanes_per_rank,
        ranks * lanes_per_rank * entry.steps / seconds,
        seconds,
        communication,
        hidden,
        sum(each.sent_bytes(ranks) for each in sends),
        base_bytes(entry, words) + _held_bytes(layout, entry, rows, ranks),
    )
