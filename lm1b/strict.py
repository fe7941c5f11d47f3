"""Strict configs: pydantic models that take no unknown key and no loose type, and whose problems read as a user would want them to.

1. A config is a tree of `Section`s, each field with a description. It is never changed after load.
2. `load(Model, path, overrides)` reads one JSON file, applies `--set a.b=value`, and validates everything at once.
3. Every problem is reported in one UserError: its path, its value, what was expected and the nearest right name.
"""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lm1b.errors import UserError
from lm1b.files import read_json

LARGEST_CONFIG_BYTES = 1 << 20

Positive = Annotated[int, Field(gt=0)]
Probability = Annotated[float, Field(ge=0.0, lt=1.0)]
PositiveFloat = Annotated[float, Field(gt=0.0)]
NonNegativeFloat = Annotated[float, Field(ge=0.0)]
FilePath = Annotated[str, Field(min_length=1, pattern=r"^[^\x00]*$")]  # no file's name holds a NUL


class Section(BaseModel):
    """A part of a config: unknown keys and loose types are errors, and nothing changes after load."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    def as_json(self) -> dict[str, Any]:
        """Resolved, every default written out."""
        return self.model_dump(mode="json")


AnySection = TypeVar("AnySection", bound=Section)


def sections_in(annotation: Any) -> list[type[Section]]:
    """The sections that a field may hold: one, several where its `kind` decides, or none."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [section for argument in get_args(annotation) for section in sections_in(argument)]


def _follow(model: type[Section], location: tuple[Any, ...]) -> tuple[list[str], list[type[Section]]]:
    """-> (the path of a place in a config, the sections that it may hold). pydantic's location also has the `kind` of a section that
    may be of several.
    """
    path, sections = [], [model]
    for part in location:
        fields = [section.model_fields[part] for section in sections if part in section.model_fields]
        if not fields and len(sections) > 1:
            sections = [section for section in sections if part in get_args(section.model_fields["kind"].annotation)]
        else:
            path.append(str(part))
            sections = [inner for field in fields for inner in sections_in(field.annotation)]
    return path, sections


def _describe(model: type[Section], error: Any) -> str:
    """One problem that pydantic found, as a user would want to read it."""
    location = tuple(error["loc"])
    path = ".".join(_follow(model, location)[0])
    if error["type"] == "extra_forbidden":
        known = [name for section in _follow(model, location[:-1])[1] for name in section.model_fields]
        near = difflib.get_close_matches(str(location[-1]), known, n=1)
        return f"{path}: unknown key" + (f", did you mean `{near[0]}`?" if near else "")
    if error["type"] == "missing":
        return f"{path}: missing"
    message = error["msg"].removeprefix("Value error, ")
    found = "" if isinstance(error["input"], dict) else f", found {json.dumps(error['input'], default=str)}"
    return f"{path}: {message}{found}" if path else message


def parse(model: type[AnySection], value: Any, source: str = "config") -> AnySection:
    """Validate a JSON value. Raises UserError that names every problem."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise UserError(f"{source}: " + "; ".join(_describe(model, problem) for problem in error.errors())) from None


def _apply_override(value: dict[str, Any], override: str) -> None:
    """Set `a.b=value` in a JSON object; the value is JSON where it parses as such, else a string."""
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise UserError(f"--set {override}: expected a.b=value")
    try:
        new = json.loads(text)
    except (ValueError, RecursionError):
        new = text
    *sections, name = path.split(".")
    for section in sections:
        inner: Any = value.setdefault(section, {})
        if not isinstance(inner, dict):
            raise UserError(f"--set {override}: `{section}` is not a section")
        value = inner
    value[name] = new


def load(model: type[AnySection], path: str | Path, overrides: list[str] | None = None) -> AnySection:
    """Read a config file and apply `--set` overrides. Raises UserError that names every problem."""
    value = read_json(Path(path), LARGEST_CONFIG_BYTES)
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(value).__name__}")
    for override in overrides or []:
        _apply_override(value, override)
    return parse(model, value, str(path))


def override(config: AnySection, overrides: list[str]) -> AnySection:
    """A config with `a.b=value` overrides applied, validated anew. Raises UserError that names every problem."""
    value = config.as_json()
    for each in overrides:
        _apply_override(value, each)
    return parse(type(config), value, "--set")
