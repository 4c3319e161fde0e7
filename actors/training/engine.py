"""One model under DeepSpeed: gradient steps whose result does not depend on how rows are cut into
micro-batches.

Loss and gradients are sums over tokens (or rankings) divided by the global count of the optimizer
step. DeepSpeed averages gradients over ranks, so a rank's sum is multiplied by the number of ranks
before the division. Gradient accumulation is unmanaged: `backward` accumulates locally, `step`
reduces and updates, and ranks agree because the plan of micro-batches (rayward.data.packing) gives
every rank equally many.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rayward.actors.models.load import probe, save_model
from rayward.actors.models.lora import adapted_layers, merged, plain_name
from rayward.actors.models.pretrained import DTYPES
from rayward.actors.models.saved import saved_buffers
from rayward.algorithms.schedule import learning_rate_factor
from rayward.configs.sections.training import Updates

MetricSums = dict[str, float]


class TrainEngine:
    """A module, its AdamW and its schedule under DeepSpeed; every rank of the process group makes
    one.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: Updates,
        learning_rate: float,
        total_steps: int,
        dtype: str,
        device: torch.device,
    ):
        os.environ["DS_ACCELERATOR"] = device.type
        import deepspeed

        if device.type == "cpu":
            # Its collectives over shared memory serve tensor-parallel inference, and take half a
            # minute to compile.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.utils.logger.setLevel("WARNING")
        self.settings, self.learning_rate, self.total_steps = optimizer, learning_rate, total_steps
        self.device, self.dtype, self.steps_done = device, dtype, 0
        self.world_size = torch.distributed.get_world_size()
        self.rank = torch.distributed.get_rank()
        hf_model = _hf_model(module)
        if optimizer.gradient_checkpointing:
            hf_model.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs={"use_reentrant": False}
            )
        decayed = [p for p in module.parameters() if p.requires_grad and p.ndim >= 2]
        plain = [p for p in module.parameters() if p.requires_grad and p.ndim < 2]
        groups = [
            {"params": decayed, "weight_decay": optimizer.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ]
        adam = torch.optim.AdamW(
            [g for g in groups if g["params"]],
            lr=learning_rate,
            betas=optimizer.betas,
            eps=optimizer.eps,
            fused=True,
        )
        # One rank has nothing to share out, and in fp32 no master weights to keep: ZeRO-1 and 2
        # would only copy.
        alone = self.world_size == 1 and dtype == "float32" and device.type == "cpu"
        self.zero_stage = 0 if alone and optimizer.zero_stage < 3 else optimizer.zero_stage
        # Its rounding would show how rows are cut: ZeRO-2 sums and reduces gradients in fp32.
        if dtype == "bfloat16":
            self.zero_stage = max(2, self.zero_stage)
        # DeepSpeed clips in every mode but one, in which it also keeps the norm to itself: no ZeRO,
        # no bf16.
        self.clips_itself = self.zero_stage == 0 and dtype == "float32"
        self.grad_norm = 0.0
        if self.clips_itself:
            adam.register_step_pre_hook(self._clip)
        self.engine, self.adam, _, _ = deepspeed.initialize(
            model=module.to(device), optimizer=adam, config=self._deepspeed_config(dtype)
        )
        if optimizer.zero_stage == 3:
            for parameter in module.external_parameters():
                deepspeed.zero.register_external_parameter(self.engine.module, parameter)

    def _deepspeed_config(self, dtype: str) -> dict[str, Any]:
        zero: dict[str, Any] = {"stage": self.zero_stage, "overlap_comm": False}
        if self.settings.offload:
            zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
        sums = {"data_types": {"grad_accum_dtype": "fp32"}, "communication_data_type": "fp32"}
        return (sums if dtype == "bfloat16" else {}) | {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "managed_gradient_accumulation": False,
            "gradient_clipping": 0.0 if self.clips_itself else self.settings.max_grad_norm,
            "zero_optimization": zero,
            "bf16": {"enabled": DTYPES[dtype] == torch.bfloat16},
            "zero_force_ds_cpu_optimizer": False,
            "zero_allow_untested_optimizer": True,
            "steps_per_print": 2**31,
        }

    def step(
        self,
        micro_batches: Iterable[Any],
        loss: Callable[[nn.Module, Any], tuple[Tensor, MetricSums]],
        denominator: float,
    ) -> MetricSums:
        """One optimizer step. `loss` returns a sum over its micro-batch and sums to report; both
        are added up here.

        `denominator` is the count of tokens (or rankings) of the whole step over all ranks. Returns
        this rank's sums with the step's `grad_norm` (before clipping) and `learning_rate`. Raises
        FloatingPointError on a gradient that is not finite.
        """
        rate = self.learning_rate * learning_rate_factor(
            self.steps_done, self.total_steps, self.settings.warmup_fraction, self.settings.schedule
        )
        for group in self.adam.param_groups:
            group["lr"] = rate
        self.engine.train()
        factor = self.world_size / denominator
        # In bf16 the factor of a loss decides how its gradients are rounded, by up to 0.4 % and all
        # alike where they come from one number. There the sum stays as it is, and DeepSpeed divides
        # its fp32 sums of gradients.
        before, after = (1.0, 1.0 / factor) if self.dtype == "bfloat16" else (factor, 1.0)
        totals: MetricSums = {"loss_sum": 0.0}
        for micro_batch in micro_batches:
            loss_sum, sums = loss(self.engine, micro_batch)
            self.engine.backward(loss_sum * before)
            totals["loss_sum"] += float(loss_sum.detach())
            for name, value in sums.items():
                totals[name] = (
                    max(totals.get(name, value), value)
                    if name.endswith("_max")
                    else totals.get(name, 0) + value
                )
        self._divide_by(after)
        self.engine.step()
        self._divide_by(1.0)
        self.steps_done += 1
        norm = self.grad_norm if self.clips_itself else float(self.engine.get_global_grad_norm())
        if not 0 <= norm < float("inf"):
            raise FloatingPointError(
                f"gradient norm is {norm} in optimizer step {self.steps_done}; "
                "lower the learning rate or look at the batch"
            )
        return totals | {"grad_norm": norm, "learning_rate": rate}

    def _divide_by(self, divisor: float) -> None:
        """What DeepSpeed's ZeRO optimizers divide the fp32 sums of gradients by, before they
        measure and clip them.

        It is their scale of the loss, which stays 1 in bf16 and is put on the loss in `backward`:
        not while that runs.
        """
        if self.dtype == "bfloat16":
            self.engine.optimizer.loss_scale = divisor

    def _clip(self, *_: Any) -> None:
        """Between the reduction over ranks and the update."""
        self.grad_norm = float(
            nn.utils.clip_grad_norm_(self.engine.module.parameters(), self.settings.max_grad_norm)
        )

    def offload(self) -> None:
        """Move weights, gradients and optimizer state to the host's memory, so that others can use
        the GPU's.
        """
        self.engine.offload_states()
        self._move_frozen(torch.device("cpu"))
        torch.cuda.empty_cache()

    def reload(self) -> None:
        """Bring them back."""
        self._move_frozen(self.device)
        self.engine.reload_states()

    def _move_frozen(self, device: torch.device) -> None:
        """DeepSpeed moves what its optimizer knows; beside adapters there are the weights that do
        not learn.
        """
        for parameter in self.engine.module.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(device)

    @property
    def hf_model(self) -> Any:
        """The Hugging Face model inside."""
        return _hf_model(self.engine.module)

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding."""
        return int(self.hf_model.config.get_text_config().vocab_size)

    @torch.no_grad()
    def infer(self, forward: Callable[[nn.Module], Any]) -> Any:
        """Run `forward` without gradients and leave the training mode as it was."""
        training = self.engine.training
        self.engine.eval()
        try:
            return forward(self.engine)
        finally:
            self.engine.train(training)

    def state_dict(self) -> dict[str, Tensor] | None:
        """Full weights on rank 0 (gathered from all ranks under ZeRO-3), None elsewhere. Every rank
        must call it.
        """
        state = {
            name: tensor.to("cpu", copy=True) for name, tensor in self.weights() if self.rank == 0
        }
        return state if self.rank == 0 else None

    def weights(self) -> Iterable[tuple[str, Tensor]]:
        """(name, whole tensor) of every weight, adapters merged in, one at a time, and of the
        buffers that are saved.

        A collective under ZeRO-3.
        """
        model = self.hf_model
        adapted = adapted_layers(model)
        for name, parameter in model.named_parameters():
            layer = adapted.get(name.removesuffix(".base_layer.weight"))
            if layer is not None:
                with self._gathered(list(layer.parameters())):
                    yield f"{name.removesuffix('.base_layer.weight')}.weight", merged(layer)
            elif plain := plain_name(name):
                with self._gathered([parameter]):
                    yield plain, parameter.detach()
        yield from saved_buffers(model)

    def _gathered(self, parameters: list[nn.Parameter]) -> Any:
        import deepspeed

        return deepspeed.zero.GatheredParameters(parameters, enabled=self.settings.zero_stage == 3)

    def save(self, folder: str | Path, tokenizer: Any, reload: Callable[[str], nn.Module]) -> None:
        """Write a Hugging Face folder and prove it: a forward of the reloaded model, on the CPU,
        equals ours.

        Raises RuntimeError where it does not. Every rank must call it; rank 0 writes.
        """
        ours = self.infer(lambda engine: probe(engine, self.vocab_size))
        state = self.state_dict()
        if self.rank == 0 and state is not None:
            save_model(self.hf_model, state, tokenizer, folder)
            theirs = probe(reload(str(folder)).eval(), self.vocab_size)
            exact = next(iter(state.values())).dtype == torch.float32
            gaps = (ours - theirs).abs()
            # A single step of bf16 is large where logits are.
            gap = float(gaps.max() if exact else gaps.mean())
            same = self.device.type == "cpu" and not adapted_layers(self.engine.module)
            allowed = (1e-5 if same else 1e-4) if exact else 0.1
            if gap > allowed:
                raise RuntimeError(
                    f"{folder}: reloaded outputs differ by {gap:.2g} from the trained model's; the "
                    "folder is not the model"
                )
        torch.distributed.barrier()


def _hf_model(module: nn.Module) -> Any:
    return getattr(module, "lm", None) or module.classifier
