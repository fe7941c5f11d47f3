"""What a config's fields mean, for people (`--explain model.identity_scale`) and for editors (a JSON schema).

python launch/train.py --explain                         every section, and what it is for
python launch/train.py --explain model                   its fields, with defaults
python launch/train.py --explain model.identity_scale    one field: what it takes, its default, its meaning, unit and source
python launch/train.py --explain metrics                 what the numbers of metrics.jsonl and TensorBoard mean
"""

from __future__ import annotations

import difflib
import json
import textwrap
from typing import Any, Literal, get_args, get_origin

from pydantic import WithJsonSchema
from pydantic.fields import FieldInfo

from lm1b.errors import UserError
from lm1b.metrics import describe_metrics
from lm1b.strict import Section, sections_in

WIDTH = 110


def field_paths(model: type[Section], before: str = "") -> list[str]:
    """Paths of all fields that are no sections themselves, `model.cell` and so on; those of every `kind` that a section may be."""
    found: dict[str, None] = {}
    for name, field in model.model_fields.items():
        inner = sections_in(field.annotation)
        paths = [path for section in inner for path in field_paths(section, f"{before}{name}.")] if inner else [before + name]
        found |= dict.fromkeys(paths)
    return list(found)


def values_of(model: type[Section], path: str) -> list[str]:
    """The values that a field takes where there are only some: names, true and false, null; none for a path that is not there."""
    sections, found = [model], []
    for name in path.split("."):
        fields = [section.model_fields[name] for section in sections if name in section.model_fields]
        sections = [section for field in fields for section in sections_in(field.annotation)]
        found = [] if sections else [value for field in fields for value in [*_literals(field.annotation), *_listed(field)]]
    return list(dict.fromkeys(found)) if set(found) != {"null"} else []


def _listed(field: FieldInfo) -> list[str]:
    """The values that a type with its own check tells in the schema."""
    schemas = [extra.json_schema for extra in field.metadata if isinstance(extra, WithJsonSchema) and extra.json_schema]
    return [str(value) for schema in schemas for value in schema.get("enum", [])]


def _literals(annotation: Any) -> list[str]:
    if annotation is bool:
        return ["true", "false"]
    if annotation is type(None):
        return ["null"]
    if get_origin(annotation) is Literal:
        return [str(value) for value in get_args(annotation)]
    return [value for argument in get_args(annotation) for value in _literals(argument)] if get_origin(annotation) is not list else []


def explain(model: type[Section], path: str = "") -> str:
    """The page on a section or a field. Raises UserError, with the nearest name, where there is none."""
    if path == "metrics" and "logging" in model.model_fields:  # a task's run writes no metrics.jsonl, and has no such section
        return describe_metrics()
    sections, walked = [model], ""
    for name in path.split(".") if path else []:
        holding = [section for section in sections if name in section.model_fields]
        if not holding:
            known = sorted({known for section in sections for known in section.model_fields})
            near = difflib.get_close_matches(name, known, n=1)
            hint = f", did you mean `{near[0]}`?" if near else f"; there are {', '.join(known)}" if known else ""
            raise UserError(f"--explain {path}: no `{name}` in {walked or 'the config'}{hint}")
        walked = f"{walked}.{name}" if walked else name
        sections = sections_in(holding[0].model_fields[name].annotation)
        if not sections and walked == path:
            return "\n\n".join(_field(section, name, path) for section in holding)
    return "\n\n".join(_section(section, walked) for section in sections)


def _section(section: type[Section], path: str) -> str:
    lines = [f"{path or 'the config'}: {' '.join((section.__doc__ or '').split())}"]
    schema = section.model_json_schema()
    for name, field in section.model_fields.items():
        inner = sections_in(field.annotation)
        meaning = field.description or " ".join((inner[0].__doc__ or "").split()) if inner else field.description or ""
        head = f"  {name}" if inner else f"  {name} ({_type(schema['properties'][name], schema)}; {_default(section, name)})"
        lines.append(textwrap.fill(f"{head}: {meaning}", WIDTH, subsequent_indent="      "))
    return "\n".join(lines)


def _field(section: type[Section], name: str, path: str) -> str:
    schema = section.model_json_schema()
    meaning = textwrap.fill(section.model_fields[name].description or "", WIDTH, initial_indent="  ", subsequent_indent="  ")
    return f"{path}: {_type(schema['properties'][name], schema)}; {_default(section, name)}\n{meaning}"


def _default(section: type[Section], name: str) -> str:
    field = section.model_fields[name]
    return "must be given" if field.is_required() else f"default {json.dumps(field.get_default(call_default_factory=True))}"


def _type(schema: dict[str, Any], whole: dict[str, Any]) -> str:
    """A JSON schema of one value in words."""
    if "$ref" in schema:
        return _type(whole["$defs"][schema["$ref"].rsplit("/", 1)[-1]], whole)
    if "anyOf" in schema:
        return " or ".join(_type(option, whole) for option in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return "one of " + ", ".join(str(value) for value in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        return f"list of: {_type(schema['items'], whole)}"
    words = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false", "object": "object"}
    bounds = {"exclusiveMinimum": "above", "minimum": "at least", "exclusiveMaximum": "below", "maximum": "at most"}
    limits = " and ".join(f"{word} {schema[key]:g}" for key, word in bounds.items() if key in schema)
    return " ".join(filter(None, [words.get(schema.get("type", ""), schema.get("type", "anything")), limits]))
