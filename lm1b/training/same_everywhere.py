"""Before ranks begin their work: do all ranks run the same program, with the same settings, on the same data, in the same run directory?

Each check gathers a few hundred bytes of every rank and raises the same AgreedError on all of them, which names what differs and where.
"""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

from lm1b.config import Config
from lm1b.data.tokens.directory import TokenDirectory
from lm1b.distributed import Ranks, agree, all_gather_objects, from_first
from lm1b.errors import AgreedError, UserError, listed
from lm1b.host_facts import package_folder, program_facts, source_digests
from lm1b.peers import ANSWER_SECONDS, TIME_LIMIT_VARIABLE, time_limit
from lm1b.processes import host_name
from lm1b.remote import is_url
from lm1b.remote_errors import PATIENCE_VARIABLE, patience_seconds
from lm1b.strict import Section
from lm1b.training.checkpoints.checkpoint import list_checkpoints
from lm1b.training.run_folder import RunFolder

SEEN_SECONDS = 10.0  # a file system that hosts share may show what another host has just written a little later
NAMED = 4  # places, files or settings that a message names
INSTALL = "install the same on every host: pip install -c constraints.txt -e ."
# May be another on each host: places of files, whose contents are compared instead, and shares of the host's cores.
LOCAL_SETTINGS = {
    "corpus": ("path",),
    "task": ("path",),
    "tokens": ("directory", "processes", "cache_directory", "cache_bytes"),
    "run": ("directory",),
    "training": ("threads",),
}


def check_program(ranks: Ranks, config: Section) -> list[str]:
    """Compare versions, source and config over all ranks -> what differs and does no harm. Raises AgreedError."""
    if ranks.size == 1:
        return []
    settings = _shared_settings(config)
    facts = program_facts() | {"host": host_name(), "config": _digest(settings)}
    everyone = all_gather_objects(facts, ranks)
    problems = []
    for name in ("torch", "deepspeed"):
        problems += _difference(everyone, name, lambda rank, name=name: _public(rank[name]), INSTALL)
    problems += _difference(everyone, "python", lambda rank: rank["python"].rpartition(".")[0], "use the same Python on every host")
    if len({rank["lm1b"] for rank in everyone}) > 1:
        folder = package_folder()
        files = _named_keys(all_gather_objects(source_digests(folder) if folder else {}, ranks))
        problems += _difference(everyone, "lm1b's source", lambda rank: rank["lm1b"], f"bring the same code to every host; see {files}")
    if len({rank["config"] for rank in everyone}) > 1:
        fields = _named_keys(all_gather_objects(settings, ranks))
        problems += _difference(
            everyone, "the config", lambda rank: rank["config"], f"give every rank the same --config and --set; see {fields}"
        )
    if problems:
        raise AgreedError("; and ".join(problems))
    exact = [name for name in facts if name not in ("host", "config", "lm1b")]
    return [note for name in exact for note in _difference(everyone, name, lambda rank, name=name: rank[name], "which should do no harm")]


def check_tokens(ranks: Ranks, tokens: TokenDirectory) -> None:
    """Compare what the token shards hold over all ranks. Raises AgreedError."""
    if ranks.size == 1:
        return
    facts = {"host": host_name(), "vocabulary": tokens.fingerprint[:12], "tokens": tokens.manifest.tokens_sha256[:12]}
    everyone = all_gather_objects(facts, ranks)
    hint = "copy one host's tokens.directory to the others, or preprocess the same corpus with the same config on each"
    problems = []
    for name, words in (("vocabulary", "the tokens' vocabulary"), ("tokens", "what the token shards hold")):
        problems += _difference(everyone, words, lambda rank, name=name: rank[name], hint)
    if problems:
        raise AgreedError(problems[0])


def check_run_folder(ranks: Ranks, directory: Path) -> None:
    """Whether all ranks see the run directory that the first has locked, with its checkpoints. Raises AgreedError."""
    if ranks.size == 1:
        return
    view = from_first(ranks, lambda: {"host": host_name(), **_view(directory)})
    agree(ranks, lambda: _wait_for_view(directory, view))


def check_patience(config: Config, ranks: Ranks) -> None:
    """Raise UserError where the other ranks would give this one up before it has given the store up, and nobody would say why."""
    if ranks.size == 1 or not is_url(config.tokens.directory):
        return
    patience, limit = patience_seconds(), time_limit().total_seconds()
    if patience + ANSWER_SECONDS >= limit:
        raise UserError(
            f"{PATIENCE_VARIABLE}={patience:g} and {ANSWER_SECONDS:g} s must be less than {TIME_LIMIT_VARIABLE}={limit:g}, after which "
            "ranks give up one that waits for the store; lower the one or raise the other"
        )


def _view(directory: Path) -> dict[str, Any]:
    """What identifies a run directory: the lock's text names one start of one process."""
    lock = RunFolder(directory).lock
    text = lock.read_text(errors="replace") if lock.exists() else ""
    return {"lock": text, "checkpoints": [checkpoint.step for checkpoint in list_checkpoints(directory, damaged_too=True)]}


def _wait_for_view(directory: Path, expected: dict[str, Any]) -> None:
    give_up_at = time.monotonic() + SEEN_SECONDS
    while (found := _view(directory)) != {name: expected[name] for name in found}:
        if time.monotonic() > give_up_at:
            name = RunFolder(directory).lock.name
            what = f"the {name} that {expected['host']} has just written is not there" if found["lock"] != expected["lock"] else ""
            what = what or f"its newest checkpoints are {found['checkpoints'][-3:]} here and {expected['checkpoints'][-3:]} there"
            raise UserError(
                f"run.directory {directory} on {host_name()} is not the folder that it is on {expected['host']}: {what}; "
                "put it on a file system that all hosts share"
            )
        time.sleep(0.1)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def _shared_settings(config: Section) -> dict[str, Any]:
    """The resolved config's fields that must be equal everywhere, by `section.key`."""
    fields = {(section, key): value for section, keys in config.as_json().items() for key, value in _items(keys)}
    return {".".join(filter(None, place)): value for place, value in fields.items() if place[1] not in LOCAL_SETTINGS.get(place[0], ())}


def _items(section: Any) -> list[tuple[str, Any]]:
    return list(section.items()) if isinstance(section, dict) else [("", section)]


def _public(version: str) -> str:
    """A version without what says how it was built: 2.13.0+cpu and 2.13.0+cu126 work together."""
    return version.partition("+")[0]


def _named_keys(everyone: list[dict[str, Any]]) -> str:
    """Keys whose values are not the same everywhere."""
    keys = {key for rank in everyone for key in rank}
    return listed(sorted(key for key in keys if any(rank.get(key) != everyone[0].get(key) for rank in everyone)), NAMED)


def _difference(everyone: list[dict[str, Any]], what: str, value_of: Any, hint: str) -> list[str]:
    """One sentence where `value_of` is not the same for every rank, else nothing."""
    values = [value_of(rank) for rank in everyone]
    others = sorted({value for value in values if value != values[0]})
    if not others:
        return []
    found = [f"{value} on {listed(_places(everyone, values, value), NAMED)}" for value in others]
    return [f"{what} differs: {values[0]} on {listed(_places(everyone, values, values[0]), NAMED)}, but {', '.join(found)}; {hint}"]


def _places(everyone: list[dict[str, Any]], values: list[str], value: str) -> list[str]:
    """Hosts all of whose ranks have a value, and ranks of the others."""
    at: dict[str, list[int]] = {}
    for number, rank in enumerate(everyone):
        at.setdefault(rank["host"], []).append(number)
    places = []
    for host, numbers in at.items():
        having = [number for number in numbers if values[number] == value]
        places += [host] if having == numbers else [f"rank {number} on {host}" for number in having]
    return places
