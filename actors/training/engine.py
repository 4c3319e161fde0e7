"""One model under DeepSpeed: gradient steps whose result does not depend on how rows are cut into
micro-batches.

Loss and gradients are sums over tokens (or rankings) divided by the global count of the optimizer
step. DeepSpeed averages gradients over ranks, so a rank's sum is multiplied by the number of ranks
before the division. Gradient accumulation is unmanaged: the caller decides when a step ends.

Collectives: `step` reduces gradients; under ZeRO-2 and 3 every backward does so too, and under
ZeRO-3 every forward gathers weights. Every rank must therefore run equally many micro-batches, an
empty one with a loss of 0 where it has no rows; the plans of rayward.data.packing see to that.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rayward.actors.beside import beside, done, memory_allows
from rayward.actors.models.heads import TokenPolicy, TokenScalar
from rayward.actors.models.load import probe, save_model
from rayward.actors.models.lora import adapted_layers, merged, plain_name
from rayward.actors.models.pretrained import DTYPES
from rayward.actors.models.saved import saved_buffers
from rayward.actors.pulse import tick
from rayward.actors.training.random_state import random_file, read_random
from rayward.actors.training.state import Held
from rayward.actors.training.state_files import LAYOUT, OPTIMIZER, read_layout, write
from rayward.algorithms.schedule import learning_rate_factor
from rayward.configs.last_bits import zero_stage_of
from rayward.configs.sections.training import Updates

MetricSums = dict[str, float]
"""Name -> sum over tokens (or rankings), or the largest value where the name ends in `_max`."""
Batch = TypeVar("Batch")
Result = TypeVar("Result")
Trained = TokenPolicy | TokenScalar


class TrainEngine:
    """A module, its AdamW and its schedule under DeepSpeed; every rank of the group makes one."""

    def __init__(
        self,
        module: Trained,
        optimizer: Updates,
        learning_rate: float,
        total_steps: int,
        dtype: str,
        device: torch.device,
    ):
        # DeepSpeed chooses its accelerator when it is imported, so the variable comes first.
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
        self.rank, self.ranks_here = torch.distributed.get_rank(), _ranks_here()
        hf_model = _hf_model(module)
        if optimizer.gradient_checkpointing:
            hf_model.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs={"use_reentrant": False}
            )
        # Weight decay is for matrices; norms and biases would be pulled to 0 for nothing.
        decayed = [p for p in module.parameters() if p.requires_grad and p.ndim >= 2]
        plain = [p for p in module.parameters() if p.requires_grad and p.ndim < 2]
        groups = [
            {"params": decayed, "weight_decay": optimizer.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ]
        adam = torch.optim.AdamW(
            # Adapters are all matrices: the second group may be empty.
            [group for group in groups if group["params"]],
            lr=learning_rate,
            betas=optimizer.betas,
            eps=optimizer.eps,
            fused=True,
        )
        self.zero_stage = zero_stage_of(
            optimizer.zero_stage, self.world_size, dtype, device.type == "cpu"
        )
        # DeepSpeed clips in every mode but one, in which it also keeps the norm to itself: no ZeRO,
        # no bf16.
        self.clips_itself = self.zero_stage == 0 and dtype == "float32"
        self.grad_norm = 0.0
        if self.clips_itself:
            # The hook runs inside DeepSpeed's step, after gradients are averaged over ranks.
            adam.register_step_pre_hook(self._clip)
        self.own_adam = adam
        self.engine, self.adam, _, _ = deepspeed.initialize(
            model=module.to(device), optimizer=adam, config=self._deepspeed_config(dtype)
        )
        if optimizer.zero_stage == 3:
            # The head is read in the forward of the module around it. Unregistered, it would be an
            # empty tensor there, since ZeRO-3 gathers a weight for its own module only.
            for parameter in module.external_parameters():
                deepspeed.zero.register_external_parameter(self.engine.module, parameter)

    def _deepspeed_config(self, dtype: str) -> dict[str, Any]:
        # With accumulation unmanaged DeepSpeed can overlap the reduction in ZeRO-2 only.
        zero: dict[str, Any] = {"stage": self.zero_stage, "overlap_comm": False}
        if self.settings.offload:
            zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
        config = {
            # For its counters only, since micro-batches are cut by tokens here.
            "train_micro_batch_size_per_gpu": 1,
            # `backward` divides each loss by it: 1 leaves our sums as they are.
            "gradient_accumulation_steps": 1,
            "managed_gradient_accumulation": False,
            "gradient_clipping": 0.0 if self.clips_itself else self.settings.max_grad_norm,
            "zero_optimization": zero,
            "bf16": {"enabled": DTYPES[dtype] == torch.bfloat16},
            # With `offload` it would otherwise refuse torch's AdamW for its own, which it compiles.
            "zero_force_ds_cpu_optimizer": False,
            "zero_allow_untested_optimizer": True,
            "steps_per_print": 2**31,
        }
        if dtype == "bfloat16":
            # Summed in bf16, small gradients would vanish beside a large sum (see `zero_stage`).
            config["data_types"] = {"grad_accum_dtype": "fp32"}
            config["communication_data_type"] = "fp32"
        return config

    def step(
        self,
        micro_batches: Iterable[Batch],
        loss: Callable[[nn.Module, Batch], tuple[Tensor, MetricSums]],
        denominator: float,
    ) -> MetricSums:
        """One optimizer step. `loss`: (engine, micro-batch) -> (sum over it, sums to report).

        `denominator` is the count of tokens (or rankings) of the whole step over all ranks. Returns
        this rank's sums with the step's `grad_norm` (before clipping) and `learning_rate`. Raises
        FloatingPointError on a gradient that is not finite. A collective.
        """
        rate = self.learning_rate * learning_rate_factor(
            self.steps_done, self.total_steps, self.settings.warmup_fraction, self.settings.schedule
        )
        # Set here and not by DeepSpeed's scheduler, so that the rate is that of our step count.
        for group in self.adam.param_groups:
            group["lr"] = rate
        self.engine.train()
        factor = self.world_size / denominator
        # In bf16 the factor of a loss decides how its gradients are rounded, by up to 0.4 % and all
        # alike where they come from one number. There the sum stays as it is, and DeepSpeed divides
        # its fp32 sums of gradients.
        if self.dtype == "bfloat16":
            loss_factor, gradient_divisor = 1.0, 1.0 / factor
        else:
            loss_factor, gradient_divisor = factor, 1.0
        totals: MetricSums = {"loss_sum": 0.0}
        for micro_batch in micro_batches:
            loss_sum, sums = loss(self.engine, micro_batch)
            # Also for an empty micro-batch: its backward takes part in the others' reduction.
            self.engine.backward(loss_sum * loss_factor)
            totals["loss_sum"] += float(loss_sum.detach())
            tick()
            for name, value in sums.items():
                if name.endswith("_max"):
                    totals[name] = max(totals.get(name, value), value)
                else:
                    totals[name] = totals.get(name, 0) + value
        self._divide_gradients_by(gradient_divisor)
        self.engine.step()
        # `backward` multiplies the loss by the same number: it must be 1 again before the next.
        self._divide_gradients_by(1.0)
        self.steps_done += 1
        norm = self.grad_norm if self.clips_itself else float(self.engine.get_global_grad_norm())
        # NaN fails both comparisons; -1 is what DeepSpeed makes of a norm that is not finite. The
        # norm is of all ranks' gradients, so all ranks raise together.
        if not 0 <= norm < float("inf"):
            raise FloatingPointError(
                f"gradient norm is {norm} in optimizer step {self.steps_done}; "
                "lower the learning rate or look at the batch"
            )
        return totals | {"grad_norm": norm, "learning_rate": rate}

    def _divide_gradients_by(self, divisor: float) -> None:
        """Let ZeRO divide its fp32 sums of gradients in bf16, before it measures and clips them.

        The divisor is its scale of the loss, which `backward` would put on the loss.
        """
        if self.dtype == "bfloat16":
            self.engine.optimizer.loss_scale = divisor

    def _clip(self, *_: Any) -> None:
        """Clip, and keep the norm; runs between the reduction over ranks and the update."""
        self.grad_norm = float(
            nn.utils.clip_grad_norm_(self.engine.module.parameters(), self.settings.max_grad_norm)
        )

    def offload(self) -> None:
        """Move weights, gradients and optimizer state to the host's memory."""
        self.engine.offload_states()
        self._move_frozen(torch.device("cpu"))
        # Without it torch keeps the freed blocks, and the engine on the same GPU cannot have them.
        torch.cuda.empty_cache()

    def reload(self) -> None:
        """Bring them back."""
        self._move_frozen(self.device)
        self.engine.reload_states()

    def _move_frozen(self, device: torch.device) -> None:
        """Move the weights beside adapters: DeepSpeed moves only what its optimizer knows."""
        for parameter in self.engine.module.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(device)

    @property
    def hf_model(self) -> PreTrainedModel:
        """The Hugging Face model inside."""
        return _hf_model(self.engine.module)

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding."""
        return int(self.hf_model.config.get_text_config().vocab_size)

    @torch.no_grad()
    def infer(self, forward: Callable[[Any], Result]) -> Result:
        """What `forward` gives for the module under DeepSpeed, without gradients.

        A collective under ZeRO-3, whose forward gathers weights. The training mode stays as it was.
        """
        training = self.engine.training
        self.engine.eval()
        try:
            return forward(self.engine)
        finally:
            self.engine.train(training)

    def state_dict(self) -> dict[str, Tensor] | None:
        """Full weights on the CPU of rank 0, None elsewhere. Every rank must call it."""
        state: dict[str, Tensor] = {}
        # Every rank walks through all weights: each is a gather under ZeRO-3.
        for name, tensor in self.weights():
            if self.rank == 0:
                # A copy, for what is gathered is freed when the next weight comes.
                state[name] = tensor.to("cpu", copy=True)
        return state if self.rank == 0 else None

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """(name, whole tensor) of every weight, adapters merged in, and of the buffers saved.

        A collective under ZeRO-3: every rank must take all of them, in this order. A tensor is
        whole only until the next one is asked for.
        """
        model = self.hf_model
        adapted = adapted_layers(model)
        for name, parameter in model.named_parameters():
            tick()
            layer_name = name.removesuffix(".base_layer.weight")
            layer = adapted.get(layer_name)
            if layer is not None:
                # Merging reads the weight and both adapter matrices, so all three are gathered.
                with self._gathered(list(layer.parameters())):
                    yield f"{layer_name}.weight", merged(layer)
            elif (plain := plain_name(name)) is not None:  # None: an adapter's, merged above
                with self._gathered([parameter]):
                    yield plain, parameter.detach()
        yield from saved_buffers(model)

    def save_state(self, folder: Path, copies: int = 0) -> Future[None]:
        """Write what training goes on from: weights, optimizer, count of steps, random numbers.

        Every rank must call it, and writes its own part: what it holds, and no more. With `copies`,
        a thread writes a copy of it where this machine has memory for so many of each of its ranks
        (other groups copy too), and the result is there when it has: OSError where it could not.
        Else what it could not is raised here.
        """
        held = self._held()
        aside = copies > 0 and memory_allows(held.bytes, copies * self.ranks_here)
        files = held.files(copied=aside) | random_file(self.device)
        if self.rank == 0:
            layout = {"ranks": self.world_size, "zero_stage": self.zero_stage, "dtype": self.dtype}
            files[LAYOUT] = layout | {"steps_done": self.steps_done, "weights": held.shapes}
        if aside:
            return beside(partial(write, files, folder))
        write(files, folder)
        return done()

    def load_state(self, folder: Path, anew: Collection[str] = ()) -> None:
        """Go on from what `save_state` wrote, with any number of ranks and at any ZeRO stage; to
        the bit with the same. `anew`: parts that begin anew, OPTIMIZER and RANDOM.

        Every rank must call it. ValueError where it is of other weights, or a file is missing.
        """
        layout = read_layout(folder)
        if layout["dtype"] != self.dtype:
            raise ValueError(
                f"{folder} is of {layout['dtype']}, and model.dtype is {self.dtype}: give it the "
                "same again, or start the stage over with --redo"
            )
        self._held().read(folder, OPTIMIZER not in anew)
        self.steps_done = int(layout["steps_done"])
        read_random(folder, self.device, anew)

    def _held(self) -> Held:
        return Held(self.engine, self.own_adam, self.zero_stage)

    def _gathered(self, parameters: list[nn.Parameter]) -> AbstractContextManager[None]:
        import deepspeed

        return deepspeed.zero.GatheredParameters(parameters, enabled=self.settings.zero_stage == 3)

    def save(
        self,
        folder: str | Path,
        tokenizer: PreTrainedTokenizerBase,
        reload: Callable[[str], Trained],
    ) -> None:
        """Write a Hugging Face folder and prove it: a forward of what `reload` makes of it equals
        that of the trained model.

        Raises RuntimeError where it does not. Every rank must call it; rank 0 writes.
        """
        # Both are collectives under ZeRO-3, so they stand outside of what only rank 0 does.
        ours = self.infer(lambda engine: probe(engine, self.vocab_size))
        state = self.state_dict()
        if state is not None:
            save_model(self.hf_model, state, tokenizer, folder)
            reloaded = probe(reload(str(folder)).eval(), self.vocab_size)
            exact = next(iter(state.values())).dtype == torch.float32
            gaps = (ours - reloaded).abs()
            # A single step of bf16 is large where logits are.
            gap = float(gaps.max() if exact else gaps.mean())
            # The same kernels on the same weights: on GPUs the reloaded model may run on the CPU,
            # and merged adapters are summed in another order than adapters beside their layer.
            same = self.device.type == "cpu" and not adapted_layers(self.engine.module)
            # Rounding grows with the outputs: log-probs of tokens that a large vocabulary makes
            # unlikely are -20 and below.
            scale = max(1.0, float(ours.abs().max()) / 10)
            allowed = (1e-5 if same else 1e-4) * scale if exact else 0.1
            if gap > allowed:
                raise RuntimeError(
                    f"{folder}: reloaded outputs differ by {gap:.2g} from the trained model's; the "
                    "folder is not the model"
                )
        # Nobody goes on, or ends its process, before the folder is there.
        torch.distributed.barrier()


def _hf_model(module: Trained) -> PreTrainedModel:
    return module.lm if isinstance(module, TokenPolicy) else module.classifier


def _ranks_here() -> int:
    """Of the group, on the host of this rank. A collective."""
    hosts: list[str] = [""] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(hosts, own := socket.gethostname())
    return hosts.count(own)
