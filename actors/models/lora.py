"""Low-rank adapters in the linear layers of a model (peft): where they are, the model without them,
and merged in.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rayward.configs.sections.rl import Lora


def add_adapters(model: Any, settings: Lora, seed: int) -> None:
    """Put adapters, drawn with `seed`, into a causal language model; from now on only they are
    trained.

    ValueError where the model has no layer of the names that are asked for, or where one is not a
    linear layer.
    """
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora.layer import ParamWrapper

    targets = settings.targets if isinstance(settings.targets, str) else list(settings.targets)
    torch.manual_seed(seed)
    wanted = LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, target_modules=targets, task_type="CAUSAL_LM"
    )
    try:
        inject_adapter_in_model(wanted, model)
    except ValueError as error:
        raise ValueError(f"rl.lora.targets {settings.targets!r}: {error}") from None
    if fused := [name for name, layer in model.named_modules() if isinstance(layer, ParamWrapper)]:
        raise ValueError(
            f"rl.lora.targets {settings.targets!r} takes in {fused[0]}, experts that stand as one "
            "tensor, whose adapters cannot be merged for the engines; name linear layers, for "
            "instance [q_proj, v_proj]"
        )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)


def adapted_layers(model: nn.Module) -> dict[str, Any]:
    """Layers with an adapter, by their names in the model."""
    return {name: layer for name, layer in model.named_modules() if hasattr(layer, "lora_A")}


def plain_name(name: str) -> str | None:
    """A parameter's name in the model without adapters; None for one of an adapter."""
    return None if "lora_" in name else name.replace(".base_layer.", ".")


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """The model that the adapters were added to."""
    layers = adapted_layers(model).values()
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def merged(layer: Any) -> Tensor:
    """The weight of an adapted layer with its adapter added, summed in fp32, in the weight's own
    dtype.
    """
    weight = layer.base_layer.weight.detach()
    low, high = layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach()
    return (weight.float() + layer.scaling["default"] * (high.float() @ low.float())).to(
        weight.dtype
    )
