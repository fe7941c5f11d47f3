"""DeepSpeed around a module; beside it only process_group.py and settings.py import DeepSpeed.

The module is the language model's dense core (recurrent layers, projection), or the network of a paper's task; the vocabulary tables are
not its business.
Four things DeepSpeed leaves to its caller live here, each tried at stages 1 to 3, in fp32 and bf16:

1. A step that must be skipped everywhere: the core's gradient is made non-finite and `step()` is called all the same, so
   that DeepSpeed's own guard skips it, clears its buffers and lowers the fp16 scale.
2. Reading and setting the float32 weights and optimizer state by parameter name, whatever the stage.
3. A moving average of the weights, kept on each rank for its own partition of the float32 weights.
4. The norm of each parameter's gradient on this rank alone, before any reduction mixes the ranks: who sent the NaN, and where.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lm1b.distributed import Ranks
from lm1b.errors import UserError
from lm1b.precision import DTYPES
from lm1b.training.engine.process_group import at_the_end, before_the_end, import_deepspeed, quiet, without_inductor
from lm1b.training.engine.settings import EngineSettings, deepspeed_config
from lm1b.training.timing import Waiting


class Engine:
    """A module under DeepSpeed: the language model's dense core, or a network of its own."""

    def __init__(self, model: nn.Module, settings: EngineSettings, precision: str, ranks: Ranks):
        """model: float32, the same on every rank."""
        deepspeed = import_deepspeed()
        self.ranks = ranks
        self.dtype = DTYPES[precision]
        self.micro_batches = settings.micro_batches
        self._stage = settings.zero_stage
        self._uses_loss_scale = precision == "fp16"
        self.names = [name for name, _ in model.named_parameters()]
        weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        self.core_size = sum(weight.numel() for weight in weights.values())
        parameters = list(model.parameters())
        with quiet(), without_inductor():
            self._engine, *_ = deepspeed.initialize(
                model=model.to(ranks.device),
                optimizer=settings.make_optimizer(parameters),
                model_parameters=parameters,
                config=deepspeed_config(settings, precision, self.core_size),
            )
        at_the_end(self._let_go)
        self._initial_weights = weights
        self._micro_batches_done = 0
        self._ema: list[Tensor] | None = None
        self._norms = self._watch_gradients()
        self.waiting = Waiting(ranks.device)
        self._time_reduction()

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

    def _watch_gradients(self) -> list[list[Tensor]]:
        """From now on each parameter's gradient leaves its norm here, one a micro-batch, in the order of `names`."""
        norms: list[list[Tensor]] = [[] for _ in self.names]
        for kept, (_, parameter) in zip(norms, self._parameters(), strict=True):
            # The lambda must not hold the engine: a parameter that does would keep its process groups alive.
            parameter.register_hook(lambda gradient, kept=kept: kept.append(_norm(gradient)))
        return norms

    def _time_reduction(self) -> None:
        """From now on the time in DeepSpeed's reduction of gradients counts as waiting."""
        # Nothing may hold this object from within the engine: see `_watch_gradients`.
        here, reduce_gradients = weakref.ref(self), self._engine.allreduce_gradients

        def timed(*arguments: Any, **keywords: Any) -> Any:
            engine = here()
            with engine.waiting.on("core gradient") if engine else contextlib.nullcontext():
                return reduce_gradients(*arguments, **keywords)

        self._engine.allreduce_gradients = timed

    def own_gradient_norms(self) -> Tensor:
        """Of each parameter in `names`: the norm of this rank's own gradient, before reduction and clipping, float32.

        The largest over the micro-batches so far, NaN if one is; as DeepSpeed has scaled it. Nothing waits for the device.
        Raises UserError for a parameter that no gradient has come to, which a cell of one's own may have.
        """
        without = [name for name, kept in zip(self.names, self._norms, strict=True) if not kept]
        if without:
            raise UserError(f"{', '.join(without)}: no gradient; every parameter must have a part in what the forward pass puts out")
        return torch.stack([torch.stack(kept).amax() for kept in self._norms])

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
        for kept in self._norms:
            kept.clear()
        self._engine.step()
        return bool(self._engine.was_step_applied())

    def gradient_norm(self) -> Tensor | float:
        """Global norm of the core's gradient before clipping, at the last step; a float() of it waits for the device."""
        norm = self._engine.get_global_grad_norm()
        return 0.0 if norm is None else norm

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

    def close(self) -> None:
        """Let go of DeepSpeed's engine before the ranks part, where one process trains one model after another."""
        before_the_end(self._let_go)

    def _let_go(self) -> None:
        """Hooks inside torch would keep DeepSpeed's engine, and with it the threads of its process groups, for ever."""
        with quiet():
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

    def core_state(self, *, is_kept: bool = True) -> dict[str, Tensor]:
        """Every rank calls it: `weights/<name>`, `ema/<name>` and `optimizer/<key>/<name>`, whole, float32, on CPU.

        is_kept: by this rank; on one that only helps the others get it nothing is kept, and the answer is empty.
        """
        state = {}
        for name, tensor in self._core_tensors():
            assert tensor is not None, "DeepSpeed gives None only at stage 0 and for frozen parameters"
            if is_kept:
                state[name] = tensor.cpu().clone()
        return state

    def _core_tensors(self) -> Iterator[tuple[str, Tensor | None]]:
        """One after the other; every rank takes them all."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        for name, parameter in self._parameters():
            yield f"weights/{name}", safe_get_full_fp32_param(parameter)
        if self._ema is not None:
            self._swap_ema()
            for name, parameter in self._parameters():
                yield f"ema/{name}", safe_get_full_fp32_param(parameter)
            self._swap_ema()
        for key in self._optimizer_keys():
            for name, parameter in self._parameters():
                yield f"optimizer/{key}/{name}", safe_get_full_optimizer_state(parameter, key)

    def restore(
        self, weights: dict[str, Tensor], ema: dict[str, Tensor] | None, optimizer: dict[str, dict[str, Tensor]], updates: int
    ) -> None:
        """Set what a checkpoint holds beside the weights that `prime` was given: moving average and optimizer state by key.

        All by parameter name, whole, float32; ema None: no average is kept. updates: applied so far.
        """
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
        return list(zip(self.names, self._engine.module.parameters(), strict=True))

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


def _norm(gradient: Tensor) -> Tensor:
    """Float32; infinite where the sum of squares is beyond float32."""
    dtype = torch.float32 if gradient.dtype == torch.float16 else None  # bf16 has float32's range, and its own norm is cheaper
    return torch.linalg.vector_norm(gradient, dtype=dtype).float()
