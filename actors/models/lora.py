"""Low-rank adapters in linear layers (peft): where they are, the model without them, merged in.

With adapters a layer is `base_layer.weight + scaling * lora_B @ lora_A` (arXiv:2106.09685); B
starts at 0, so training starts at the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from rayward.configs.sections.rl import Lora

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer
    from transformers import PreTrainedModel


def add_adapters(model: PreTrainedModel, settings: Lora, seed: int) -> None:
    """Put adapters, drawn with `seed`, into a causal language model; only they are then trained.

    ValueError where the model has no layer of the names in `settings.targets`, or where one is not
    a linear layer.
    """
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora.layer import ParamWrapper

    targets = settings.targets if isinstance(settings.targets, str) else list(settings.targets)
    # peft draws from the global generator; with the same seed every rank has the same adapters.
    torch.manual_seed(seed)
    lora_config = LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, target_modules=targets, task_type="CAUSAL_LM"
    )
    try:
        # Injected and not wrapped in a PeftModel: the model keeps its class and its names, but for
        # `.base_layer`.
        inject_adapter_in_model(lora_config, model)
    except ValueError as error:
        raise ValueError(f"rl.lora.targets {settings.targets!r}: {error}") from None
    wrapped = [name for name, layer in model.named_modules() if isinstance(layer, ParamWrapper)]
    if wrapped:
        raise ValueError(
            f"rl.lora.targets {settings.targets!r} takes in {wrapped[0]}, experts that stand as "
            "one tensor, whose adapters cannot be merged for the engines; name linear layers, for "
            "instance [q_proj, v_proj]"
        )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)


def adapted_layers(model: nn.Module) -> dict[str, LoraLayer]:
    """Layers with an adapter, by their names in the model."""
    return {name: layer for name, layer in model.named_modules() if hasattr(layer, "lora_A")}


def plain_name(name: str) -> str | None:
    """A parameter's name in the model without adapters; None for one of an adapter."""
    return None if "lora_" in name else name.replace(".base_layer.", ".")


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """Within it the model computes what it did before `add_adapters`: the reference of a run."""
    layers = adapted_layers(model).values()
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        # Also after an error: a policy whose adapters stay off would train nothing.
        for layer in layers:
            layer.enable_adapters(True)


def merged(layer: LoraLayer) -> Tensor:
    """[out, in] weight of an adapted layer with its adapter added, in the weight's dtype."""
    weight = layer.base_layer.weight.detach()
    a_RI = layer.lora_A["default"].weight.detach().float()
    b_OR = layer.lora_B["default"].weight.detach().float()
    # Product and sum in fp32, rounded once: that is what engines and folders get.
    return (weight.float() + layer.scaling["default"] * (b_OR @ a_RI)).to(weight.dtype)
