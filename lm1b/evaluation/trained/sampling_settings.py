"""How sentences are drawn. Light: the command line has its defaults from here."""

from __future__ import annotations

from dataclasses import dataclass

from lm1b.errors import UserError


@dataclass(frozen=True)
class SamplingSettings:
    """temperature: 0 takes the likeliest word always. top_k, top_p: None keeps all. seed: of all sentences together."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 1
    longest: int = 60
    may_be_unknown: bool = False

    def __post_init__(self) -> None:
        """Raises UserError for what is out of range."""
        if not 0.0 <= self.temperature < float("inf"):
            raise UserError(f"temperature must be 0 or more, found {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top-k must be at least 1, found {self.top_k}")
        if self.top_p is not None and not 0.0 < self.top_p <= 1.0:
            raise UserError(f"top-p must be above 0 and at most 1, found {self.top_p}")
        if self.longest < 1:
            raise UserError(f"the longest sentence must have at least 1 word, found {self.longest}")
