"""DeepSpeed around the dense core: the only file that knows it.

The core (recurrent layers, projection) is what `deepspeed.initialize` gets; the vocabulary tables are not its business.
Three things DeepSpeed leaves to its caller live here, each tried at stages 1 to 3, in fp32 and bf16:

1. A step that must be skipped everywhere: the core's gradient is made non-finite and `step()` is called all the same, so
   that DeepSpeed's own guard skips it, clears its buffers and lowers the fp16 scale.
2. Reading and setting the float32 weights and optimizer state by parameter name, whatever the stage.
3. A moving average of the weights, kept on each rank for its own partition of the float32 weights.
"""

from __future__ import annotations

import contextlib
import difflib
import gc
import importlib
import io
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import HashStore
from torch.distributed.rendezvous import rendezvous

from lm1b.config import Config
from lm1b.distributed import Ranks, current_ranks, local_rank
from lm1b.errors import UserError, exit_with
from lm1b.peers import Peers

TIME_LIMIT_VARIABLE, DEFAULT_TIME_LIMIT = "LM1B_TIMEOUT_SECONDS", "60"
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
_ENGINES: list[Engine] = []  # DeepSpeed's hooks would keep them alive anyway, until `stop_ranks` lets go of them
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def _import_deepspeed() -> Any:
    """DeepSpeed, quiet: its own log says nothing that ours does not."""
    # Deprecations inside DeepSpeed 0.19.8 under torch 2.13, nothing a user could mend: shown once a rank otherwise.
    for name in ("all_gather_into_tensor", "reduce_scatter_tensor"):
        warnings.filterwarnings("ignore", f".*torch.distributed.{name}", FutureWarning)
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    return deepspeed


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep DeepSpeed's prints of memory and built operations off the terminal."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def time_limit() -> timedelta:
    """How long a collective waits for the other ranks. Raises UserError where the environment says something else than seconds."""
    text = os.environ.get(TIME_LIMIT_VARIABLE, DEFAULT_TIME_LIMIT)
    try:
        return timedelta(seconds=max(1.0, float(text)))
    except (ValueError, OverflowError):
        raise UserError(f"{TIME_LIMIT_VARIABLE}={text}: expected a number of seconds") from None


def _without_shared_memory(deepspeed: Any) -> None:
    """Keep DeepSpeed's CPU communication operation out: it serves the inference of models cut over ranks, which nobody does here.

    It costs a compiler run at the first start, and 69 MB of memory a rank at every start, in files that stay in /dev/shm.
    """
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def _limit_its_groups(deepspeed: Any) -> None:
    """DeepSpeed makes process groups of its own without a time limit: they would wait torch's 30 minutes for a rank that hangs."""
    deepspeed.comm.comm.cdb.new_group = lambda ranks: dist.new_group(ranks, timeout=time_limit())


def _join_group(backend: str) -> Peers | None:
    """Meet the other ranks where the launcher says, or be the only one. Raises UserError where that cannot be."""
    if "WORLD_SIZE" not in os.environ:
        os.environ["LOCAL_RANK"] = "0"  # DeepSpeed asks for it
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1, timeout=time_limit())
        return None
    try:
        store, rank, size = next(rendezvous("env://", timeout=time_limit()))
        store.set_timeout(time_limit())
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=time_limit())
        return Peers(store, rank, size) if size > 1 else None
    except (dist.DistError, ValueError) as error:
        place, what = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}", " ".join(str(error).split())
        if "EADDRINUSE" in what:
            raise UserError(f"{place}: the port is taken, perhaps by another training; give another one: deepspeed --master_port") from None
        exit_with(f"rank {os.environ.get('RANK')} could not meet the other ranks at {place} ({what[:200]})", 1)


def start_ranks() -> Ranks:
    """Join the process group that the launcher describes, or be the only process where there is no launcher."""
    use_cuda = torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu"
    if not use_cuda:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    device = torch.device("cuda", local_rank()) if use_cuda else torch.device("cpu")
    if use_cuda:
        torch.cuda.set_device(device)
    backend = "nccl" if use_cuda else "gloo"
    # Before there is a process group: their functions would keep one that is there as the default of their arguments, for ever.
    importlib.import_module("torch.distributed.nn")
    deepspeed = _import_deepspeed()
    _without_shared_memory(deepspeed)
    peers = _join_group(backend)
    with _quiet():
        deepspeed.init_distributed(dist_backend=backend)
    _limit_its_groups(deepspeed)
    return current_ranks(device, peers)


def stop_ranks() -> None:
    """Leave the process group, and let go of what DeepSpeed keeps of it: threads left over would abort the exit."""
    if dist.is_initialized():
        while _ENGINES:
            _ENGINES.pop().let_go()
        gc.collect()
        _import_deepspeed().comm.destroy_process_group()


def check_deepspeed_section(config: Config) -> None:
    """Raise UserError for a pass-through key that we own, that DeepSpeed would not read, or that is no section where it must be."""
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
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    for key in zero:
        if key not in DeepSpeedZeroConfig.model_fields:
            near = difflib.get_close_matches(key, DeepSpeedZeroConfig.model_fields, n=1)
            raise UserError(f"deepspeed.zero_optimization.{key}: no such key" + (f", did you mean `{near[0]}`?" if near else ""))


def deepspeed_config(config: Config, precision: str, ranks: Ranks, core_size: int) -> dict[str, Any]:
    """DeepSpeed's own dictionary; the config's `deepspeed` section has been checked."""
    training = config.training
    lanes_per_step = config.batches.lanes // ranks.size // training.micro_batches
    zero = {"stage": training.zero_stage, "reduce_bucket_size": core_size, "allgather_bucket_size": core_size, "overlap_comm": False}
    if training.zero_stage == 3:
        zero |= {"stage3_param_persistence_threshold": 0, "stage3_prefetch_bucket_size": core_size}
    result: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": lanes_per_step,
        "gradient_accumulation_steps": training.micro_batches,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
        "gradient_clipping": config.optimizer.clip_norm or 0.0,
    }
    if precision == "bf16":
        result |= {"bf16": {"enabled": True, "check_grad_overflow": True}, "data_types": {"grad_accum_dtype": "fp32"}}
    if precision == "fp16":
        result |= {"fp16": {"enabled": True, "initial_scale_power": 16}, "data_types": {"grad_accum_dtype": "fp32"}}
    for key, value in config.deepspeed.items():
        merged = isinstance(result.get(key), dict) and isinstance(value, dict)
        result[key] = {**result[key], **value} if merged else value
    return result


def _make_optimizer(config: Config, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    settings = config.optimizer
    if settings.kind == "adagrad":
        return torch.optim.Adagrad(
            parameters, lr=settings.learning_rate, initial_accumulator_value=settings.initial_accumulator, eps=settings.epsilon
        )
    if settings.kind == "adam":
        return torch.optim.Adam(parameters, lr=settings.learning_rate, betas=(settings.beta1, settings.beta2), eps=settings.epsilon)
    return torch.optim.SGD(parameters, lr=settings.learning_rate, momentum=settings.momentum)


class Engine:
    """The dense core under DeepSpeed."""

    def __init__(self, model: nn.Module, config: Config, precision: str, ranks: Ranks):
        """model: float32, the same on every rank. See `check_deepspeed_section` for what the config may pass on."""
        deepspeed = _import_deepspeed()
        self.ranks = ranks
        self.dtype = DTYPES[precision]
        self.micro_batches = config.training.micro_batches
        self._stage = config.training.zero_stage
        self._uses_loss_scale = precision == "fp16"
        self._names = [name for name, _ in model.named_parameters()]
        weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        self.core_size = sum(weight.numel() for weight in weights.values())
        settings = deepspeed_config(config, precision, ranks, self.core_size)
        parameters = list(model.parameters())
        optimizer = _make_optimizer(config, parameters)
        with _quiet():
            self._engine, *_ = deepspeed.initialize(
                model=model.to(ranks.device), optimizer=optimizer, model_parameters=parameters, config=settings
            )
        _ENGINES.append(self)
        self._initial_weights = weights
        self._micro_batches_done = 0
        self._ema: list[Tensor] | None = None

    @property
    def module(self) -> nn.Module:
        """The module as DeepSpeed holds it (its parameters are in the computing precision)."""
        return self._engine.module

    def forward(self, *arguments: Any, **keywords: Any) -> Any:
        """The module's forward pass of one micro-batch, with DeepSpeed's hooks."""
        # DeepSpeed would count its own step() calls, one a micro-batch; ours is called once a step.
        self._engine.set_gradient_accumulation_boundary(self._micro_batches_done == self.micro_batches - 1)
        return self._engine(*arguments, **keywords)

    def backward(self, loss: Tensor) -> None:
        """Backward of one micro-batch; leaves get 1 / micro_batches of the gradient, times the loss scale."""
        self._engine.backward(loss)
        self._micro_batches_done += 1

    @property
    def loss_scale(self) -> float:
        """The factor that fp16's dynamic loss scale puts on every gradient of this step; 1 in other precisions."""
        return float(self._engine.optimizer.loss_scale) if self._uses_loss_scale else 1.0

    def step(self, *, finite: bool, learning_rate: float) -> bool:
        """Update the core, or skip where `finite` is False or its own gradient is not. True if the update was applied."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        if not finite:
            self._poison_gradient()
        assert self._micro_batches_done == self.micro_batches
        self._micro_batches_done = 0
        self._engine.step()
        return bool(self._engine.was_step_applied())

    def gradient_norm(self) -> float:
        """Global norm of the core's gradient before clipping, at the last step."""
        return float(self._engine.get_global_grad_norm() or 0.0)

    def _poison_gradient(self) -> None:
        """Make the core's gradient NaN, so that DeepSpeed's own guard skips this step on every rank."""
        from deepspeed.utils import safe_set_full_grad

        parameter = next(self._engine.module.parameters())
        accumulated = getattr(parameter, "_hp_grad", None)
        if accumulated is not None:  # bf16 at stage 1 accumulates apart from the parameter's own gradient
            accumulated.fill_(float("nan"))
            return
        shape = getattr(parameter, "ds_shape", parameter.shape)
        safe_set_full_grad(parameter, torch.full(tuple(shape), float("nan"), device=self.ranks.device, dtype=torch.float32))

    def let_go(self) -> None:
        """The end: hooks inside torch would keep DeepSpeed's engine, and with it the threads of its process groups, for ever."""
        with _quiet():
            self._engine.destroy()
        del self._engine

    # Weights and optimizer state by name -------------------------------------------------------------------------

    def prime(self, zero_loss: Callable[[], Tensor], weights: dict[str, Tensor] | None = None) -> None:
        """Set the float32 weights (a checkpoint's, or the initial ones) and make the optimizer's state exist.

        One step that changes nothing does it: DeepSpeed reaches optimizer state only after a first step, and the model's
        own weights follow the float32 ones only in a step. zero_loss: runs a small forward pass, returns its loss times 0.
        """
        self._set_full(weights or self._initial_weights, None)
        self._initial_weights = {}
        for _ in range(self.micro_batches):
            self.backward(zero_loss())
        self.step(finite=True, learning_rate=0.0)
        self._set_optimizer_steps(0)

    def core_state(self) -> dict[str, Tensor]:
        """Every rank calls it: `weights/<name>`, `ema/<name>` and `optimizer/<key>/<name>`, whole, float32, on CPU."""
        from deepspeed.utils import safe_get_full_optimizer_state

        state = {f"weights/{name}": tensor for name, tensor in self._full_weights().items()}
        if self._ema is not None:
            self._swap_ema()
            state |= {f"ema/{name}": tensor for name, tensor in self._full_weights().items()}
            self._swap_ema()
        for key in self._optimizer_keys():
            for name, parameter in self._parameters():
                state[f"optimizer/{key}/{name}"] = _copied(safe_get_full_optimizer_state(parameter, key))
        return state

    def restore(
        self, weights: dict[str, Tensor], ema: dict[str, Tensor] | None, optimizer: dict[str, dict[str, Tensor]], updates: int
    ) -> None:
        """Set what a checkpoint holds beside the weights that `prime` was given: moving average and optimizer state by key."""
        if ema is not None:
            self._set_full(ema, None)
            self.start_ema()
            self._set_full(weights, None)
        for key, tensors in optimizer.items():
            self._set_full(tensors, key)
        self._set_optimizer_steps(updates)

    def start_ema(self) -> None:
        """Begin the moving average at the present weights."""
        self._ema = [partition.clone() for partition in self._partitions()]

    def update_ema(self, decay: float) -> None:
        """ema <- decay * ema + (1 - decay) * weights, float32, each rank on its own partition."""
        assert self._ema is not None
        for average, partition in zip(self._ema, self._partitions(), strict=True):
            average.lerp_(partition, 1.0 - decay)

    def _parameters(self) -> list[tuple[str, nn.Parameter]]:
        return list(zip(self._names, self._engine.module.parameters(), strict=True))

    def _partitions(self) -> list[Tensor]:
        """This rank's own flat float32 weights: bf16 at stage 1, stages 1 and 2, stage 3."""
        optimizer = self._engine.optimizer
        for name in ("fp32_groups_flat_partition", "single_partition_of_fp32_groups", "fp32_partitioned_groups_flat"):
            if hasattr(optimizer, name):
                return [partition.detach() for partition in getattr(optimizer, name)]
        raise AssertionError(f"unknown DeepSpeed optimizer {type(optimizer).__name__}")

    def _swap_ema(self) -> None:
        assert self._ema is not None
        for average, partition in zip(self._ema, self._partitions(), strict=True):
            kept = partition.clone()
            partition.copy_(average)
            average.copy_(kept)

    def _full_weights(self) -> dict[str, Tensor]:
        from deepspeed.utils import safe_get_full_fp32_param

        return {name: _copied(safe_get_full_fp32_param(parameter)) for name, parameter in self._parameters()}

    def _set_full(self, tensors: dict[str, Tensor], key: str | None) -> None:
        """Set weights (key None) or one kind of optimizer state from whole tensors."""
        from deepspeed.utils import (
            safe_set_full_fp32_param,
            safe_set_full_optimizer_state,
            safe_set_local_fp32_param,
            safe_set_local_optimizer_state,
        )

        for name, parameter in self._parameters():
            value = tensors[name].to(self.ranks.device, torch.float32)
            if self._stage == 3:
                # Partitions are padded to equal size there, which the setters of whole tensors do not allow for.
                size = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
                padded = torch.zeros(size * self.ranks.size, device=value.device)
                padded[: value.numel()] = value.flatten()
                value = padded[size * self.ranks.rank : size * (self.ranks.rank + 1)]
                if key is None:
                    safe_set_local_fp32_param(parameter, value)
                else:
                    safe_set_local_optimizer_state(parameter, value, key)
            elif key is None:
                safe_set_full_fp32_param(parameter, value)
            else:
                safe_set_full_optimizer_state(parameter, value, key)

    def _base_optimizer_states(self) -> list[dict[str, Any]]:
        return list(self._engine.optimizer.optimizer.state.values())

    def _optimizer_keys(self) -> list[str]:
        """State that has a weight's shape: `sum`, or `exp_avg` and `exp_avg_sq`, or `momentum_buffer`."""
        states = self._base_optimizer_states()
        return sorted(key for key, value in states[0].items() if torch.is_tensor(value) and value.dim() > 0) if states else []

    def _set_optimizer_steps(self, updates: int) -> None:
        """Adam's bias correction counts updates; the priming step does not count as one."""
        for state in self._base_optimizer_states():
            if torch.is_tensor(state.get("step")):
                state["step"].fill_(updates)
            elif "step" in state:
                state["step"] = updates


def _copied(tensor: Tensor | None) -> Tensor:
    assert tensor is not None, "DeepSpeed gives None only at stage 0 and for frozen parameters"
    return tensor.cpu().clone()
