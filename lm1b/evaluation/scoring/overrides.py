"""What an evaluation may ask for other than the run's config does. Light: the command line completes by it."""

from __future__ import annotations

from lm1b.config import Config, override_config
from lm1b.errors import UserError

CHANGEABLE = ("evaluation", "tokens")  # sections; the rest is fixed by the checkpoint


def with_overrides(config: Config, overrides: list[str], **settings: object) -> Config:
    """A run's config for an evaluation. overrides: `section.field=value`. settings: fields of `evaluation`, None for as the run has it.

    Raises UserError for what a checkpoint has fixed.
    """
    for override in overrides:
        if override.split(".")[0] not in CHANGEABLE:
            raise UserError(f"--set {override}: evaluation changes evaluation.* and tokens.* alone; the rest is as the run was trained")
    asked = [f"evaluation.{name}={value}" for name, value in settings.items() if value is not None]
    return override_config(config, [*overrides, *asked])
