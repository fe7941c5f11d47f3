"""DeepSpeed's own settings: what an engine is told whatever it trains, and how the language model's config says it."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from lm1b.config import Config, OptimizerConfig
from lm1b.distributed import Ranks
from lm1b.errors import UserError, in_one_line

OWNED_KEYS = {
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "bf16",
    "fp16",
    "data_types",
    "optimizer",
    "scheduler",
    "sparse_gradients",
}
PASSED_KEYS = {
    "activation_checkpointing",
    "comms_logger",
    "communication_data_type",
    "disable_allgather",
    "dump_state",
    "flops_profiler",
    "gradient_predivide_factor",
    "memory_breakdown",
    "prescale_gradients",
    "seq_parallel_communication_data_type",
    "steps_per_print",
    "wall_clock_breakdown",
    "zero_optimization",
}


@dataclass(frozen=True)
class EngineSettings:
    """What an engine is told, whatever it trains.

    make_optimizer: torch's optimizer of the parameters, for DeepSpeed to wrap. clip_norm: of the global gradient; None: no clipping.
    micro_batch_size: sequences (lanes) in a rank's micro-batch. passed_on: DeepSpeed's own keys, laid over what is made here.
    """

    make_optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer]
    clip_norm: float | None
    micro_batch_size: int
    micro_batches: int = 1
    zero_stage: int = 1
    passed_on: dict[str, Any] = field(default_factory=dict)


def language_model_settings(config: Config, ranks: Ranks) -> EngineSettings:
    """The engine of a language model's core; the config's `deepspeed` section has been checked."""
    training = config.training
    return EngineSettings(
        make_optimizer=partial(make_optimizer, config.optimizer),
        clip_norm=config.optimizer.clip_norm,
        micro_batch_size=config.batches.lanes // ranks.size // training.micro_batches,
        micro_batches=training.micro_batches,
        zero_stage=training.zero_stage,
        passed_on=config.deepspeed,
    )


def check_deepspeed_section(config: Config) -> None:
    """Raise UserError for a pass-through key that we own or that DeepSpeed would not read, and for a value that it would not take."""
    for key in config.deepspeed:
        if key in OWNED_KEYS:
            raise UserError(f"deepspeed.{key}: is set by the config's own fields (training, optimizer, batches); remove it")
        if key not in PASSED_KEYS:
            near = difflib.get_close_matches(key, PASSED_KEYS, n=1)
            hint = f", did you mean `{near[0]}`?" if near else f"; known are {', '.join(sorted(PASSED_KEYS))}"
            raise UserError(f"deepspeed.{key}: not a DeepSpeed key that is passed through{hint}")
    zero = config.deepspeed.get("zero_optimization", {})
    if not isinstance(zero, dict):
        raise UserError(f"deepspeed.zero_optimization: expected an object, found {zero!r}")
    if "stage" in zero:
        raise UserError("deepspeed.zero_optimization.stage: is training.zero_stage; remove it")
    if not config.deepspeed:
        return
    from deepspeed.runtime.config import DeepSpeedConfig
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    for key in zero:
        if key not in DeepSpeedZeroConfig.model_fields:
            near = difflib.get_close_matches(key, DeepSpeedZeroConfig.model_fields, n=1)
            raise UserError(f"deepspeed.zero_optimization.{key}: no such key" + (f", did you mean `{near[0]}`?" if near else ""))
    zero = {**zero, "stage": config.training.zero_stage}
    try:
        DeepSpeedConfig({**config.deepspeed, "zero_optimization": zero, "train_micro_batch_size_per_gpu": 1})
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise UserError(f"deepspeed: {where} is refused by DeepSpeed: {problem['msg']}, found {problem['input']!r}") from None
    except (ValueError, TypeError, AttributeError, AssertionError) as error:  # what its readers of sections stumble over
        raise UserError(f"deepspeed: DeepSpeed does not take this section: {in_one_line(error)}") from None


def deepspeed_config(settings: EngineSettings, precision: str, core_size: int) -> dict[str, Any]:
    """DeepSpeed's own dictionary. core_size: parameters."""
    bucket = core_size + core_size % 2  # DeepSpeed takes no odd one
    zero = {"stage": settings.zero_stage, "reduce_bucket_size": bucket, "allgather_bucket_size": bucket, "overlap_comm": False}
    if settings.zero_stage == 3:
        zero |= {"stage3_param_persistence_threshold": 0, "stage3_prefetch_bucket_size": core_size}
    result: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": settings.micro_batch_size,
        "gradient_accumulation_steps": settings.micro_batches,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
        "gradient_clipping": settings.clip_norm or 0.0,
    }
    if precision == "bf16":
        result |= {"bf16": {"enabled": True, "check_grad_overflow": True}, "data_types": {"grad_accum_dtype": "fp32"}}
    if precision == "fp16":
        result |= {"fp16": {"enabled": True, "initial_scale_power": 16}, "data_types": {"grad_accum_dtype": "fp32"}}
    for key, value in settings.passed_on.items():
        merged = isinstance(result.get(key), dict) and isinstance(value, dict)
        result[key] = {**result[key], **value} if merged else value
    return result


def _make_missing_state(adagrad: torch.optim.Optimizer, *_: Any) -> None:
    """Before torch 2.12 Adagrad has state only for the parameters that it was made with, and DeepSpeed's bf16 optimizer gives it others."""
    for group in adagrad.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None and not adagrad.state[parameter]:
                accumulator = torch.full_like(parameter, group["initial_accumulator_value"])
                adagrad.state[parameter] = {"step": torch.tensor(0.0), "sum": accumulator}


def make_optimizer(settings: OptimizerConfig, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The core's optimizer, for DeepSpeed to wrap."""
    if settings.kind == "adagrad":
        adagrad = torch.optim.Adagrad(
            parameters, lr=settings.learning_rate, initial_accumulator_value=settings.initial_accumulator, eps=settings.epsilon
        )
        adagrad.register_step_pre_hook(_make_missing_state)
        return adagrad
    if settings.kind == "adam":
        return torch.optim.Adam(parameters, lr=settings.learning_rate, betas=(settings.beta1, settings.beta2), eps=settings.epsilon)
    return torch.optim.SGD(parameters, lr=settings.learning_rate, momentum=settings.momentum)
