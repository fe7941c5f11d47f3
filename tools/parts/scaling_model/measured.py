"""What tools/benchmark.py measured, as the scaling model reads it: one entry of `training` in its JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from lm1b.errors import UserError
from lm1b.files import read_json

# Parts of a step that do not change with lanes, and those that follow the rows; all else follows a rank's lanes.
CONSTANT_PARTS = ("sampler", "core update", "status", "other")
ROW_PARTS = ("row fetch", "table update")
COMMUNICATION = "communication"


class Measured(BaseModel):
    """One measured training step. Keys that the model does not need are left alone."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)

    shape: str = "unnamed"
    precision: Literal["fp32", "bf16", "fp16"]
    vocabulary: int = Field(gt=1)
    ranks: int = Field(gt=0)
    threads: int = Field(default=1, gt=0)
    lanes: int = Field(gt=0, description="of all ranks together")
    steps: int = Field(gt=0, description="tokens of a lane in one step")
    samples: int = Field(gt=0)
    embedding: int = Field(gt=0)
    output_width: int = Field(gt=0)
    core_parameters: int = Field(gt=0)
    step_seconds: float = Field(gt=0)
    parts_seconds: dict[str, float] = {}
    peak_memory_mb: float | None = Field(default=None, gt=0, description="MiB, of one rank")

    fixed_seconds: float = Field(default=0.0, ge=0, description="of `seconds_by_lanes`, what `with_fixed_seconds` found")

    @field_validator("parts_seconds", mode="before")
    @classmethod
    def _known_parts(cls, parts: Any) -> Any:
        """A part that was not measured may be null."""
        return {name: value for name, value in parts.items() if value is not None} if isinstance(parts, dict) else parts

    @property
    def words_per_second(self) -> float:
        return self.lanes * self.steps / self.step_seconds

    @property
    def name(self) -> str:
        return f"{self.shape} {self.precision} V={self.vocabulary:,}"

    def same_work(self, other: Measured) -> bool:
        """Whether only ranks and lanes differ."""
        keys = ("shape", "precision", "vocabulary", "threads", "steps", "samples", "embedding", "output_width", "core_parameters")
        return all(getattr(self, key) == getattr(other, key) for key in keys)

    def part(self, name: str) -> float:
        """Seconds of a part, 0 where it was not measured. Parts that add up to more than the step (a profiler's cost) shrink to fit."""
        total = sum(self.parts_seconds.values())
        return self.parts_seconds.get(name, 0.0) * min(1.0, self.step_seconds / total if total else 1.0)

    def seconds_by_lanes(self) -> float:
        """Seconds of this measurement that follow the rank's lanes: batch, recurrent layers, softmax, backward, and what no part names."""
        return self.step_seconds - sum(self.part(name) for name in (*CONSTANT_PARTS, *ROW_PARTS, COMMUNICATION))

    def seconds_at(self, lanes: float) -> float:
        """What `seconds_by_lanes` comes to with other lanes a rank."""
        return self.fixed_seconds + (self.seconds_by_lanes() - self.fixed_seconds) * lanes / self.lanes

    def with_fixed_seconds(self, measured: list[Measured]) -> Measured:
        """self (of one rank), with what a second measurement of one rank with other lanes says does not follow them.

        The gradient of the samples' rows and the reading of the core's weights are such costs. Without a second measurement: 0.
        """
        for other in measured:
            if other.ranks == 1 and other.lanes != self.lanes and other.same_work(self):
                slope = (self.seconds_by_lanes() - other.seconds_by_lanes()) / (self.lanes - other.lanes)
                fixed = self.seconds_by_lanes() - slope * self.lanes
                return self.model_copy(update={"fixed_seconds": min(max(fixed, 0.0), self.seconds_by_lanes())})
        return self

    def missing_parts(self) -> list[str]:
        """Parts without which the model must guess: their time counts as following the lanes."""
        return [name for name in (*ROW_PARTS, *CONSTANT_PARTS[:2]) if name not in self.parts_seconds]


def read_measured(path: Path) -> list[Measured]:
    """The entries of `training`. Raises UserError that names the entry and the key."""
    value = read_json(path)
    entries = value.get("training") if isinstance(value, dict) else None
    if not isinstance(entries, list) or not entries:
        raise UserError(f'{path}: expected {{"training": [...]}} as tools/benchmark.py --json writes it')
    measured = []
    for number, entry in enumerate(entries):
        try:
            measured.append(Measured.model_validate(entry))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise UserError(f"{path}: training[{number}].{place}: {first['msg']}") from None
    return measured


def choose(measured: list[Measured], shape: str | None, precision: str | None, vocabulary: int | None) -> Measured:
    """The first entry of one rank with what was asked for. Raises UserError where there is none."""
    fitting = [
        entry
        for entry in measured
        if entry.ranks == 1
        and shape in (None, entry.shape)
        and precision in (None, entry.precision)
        and vocabulary in (None, entry.vocabulary)
    ]
    if not fitting:
        known = "; ".join(entry.name for entry in measured if entry.ranks == 1) or "none"
        raise UserError(f"no measurement of one rank fits --shape, --precision and --vocabulary; there are: {known}")
    return fitting[0].with_fixed_seconds(measured)
