"""A model's weights as its checkpoint has them, which is what vLLM's loaders read.

transformers keeps some weights otherwise than they are saved: the experts of a layer as one tensor,
for instance. `save_pretrained` takes them apart again for the whole model at once; here it is done
tensor by tensor, since weights under ZeRO-3 are whole one at a time only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from copy import copy

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    PrefixChange,
    WeightConverter,
    WeightRenaming,
    rename_source_key,
    revert_weight_conversion,
)

from rayward.actors.models.lora import plain_name


def saved_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of what a checkpoint holds beside parameters: DeepSeek-V3's router biases."""
    # Without the buffers that are computed, such as the frequencies of rotary embeddings.
    persistent = model.state_dict().keys()
    return ((name, buffer) for name, buffer in model.named_buffers() if name in persistent)


def as_saved(
    model: PreTrainedModel, weights: Iterable[tuple[str, Tensor]]
) -> Iterator[tuple[str, Tensor]]:
    """A Hugging Face model's weights under the names and in the parts of its checkpoint.

    `weights`: (name in the model, whole tensor), adapters merged in. A tensor that is yielded may
    be overwritten when the next one is asked for.
    """
    # Names only: the parameters themselves are shards under ZeRO-3.
    parameters = filter(None, (plain_name(name) for name, _ in model.named_parameters()))
    groups = _groups(model, [*parameters, *dict(saved_buffers(model))])
    if groups is None:
        yield from weights
        return
    members = {name: group for group in groups for name in group}
    # Weights of groups that are not complete yet.
    waiting: dict[str, Tensor] = {}
    for name, tensor in weights:
        group = members[name]
        if len(group) > 1:
            waiting[name] = tensor.clone()  # what ZeRO-3 gathered is gone when the next one comes
            if not waiting.keys() >= set(group):
                continue
            part = {member: waiting.pop(member) for member in group}
        else:
            part = {name: tensor}
        yield from revert_weight_conversion(model, part).items()


def _groups(model: PreTrainedModel, names: list[str]) -> list[list[str]] | None:
    """Names of weights that are saved together, or None where all are saved as they are."""
    # As `revert_weight_conversion` finds them: a model that was not loaded has those of its
    # architecture. Without PrefixChange, which would add a prefix that no folder gave it.
    conversions = getattr(model, "_weight_conversions", None)
    if conversions is None:
        known = get_model_conversion_mapping(model, add_legacy=False)
        conversions = [entry for entry in known if not isinstance(entry, PrefixChange)]
    if not conversions:
        return None
    # From the last to the first, as they are undone. Copies: the model still saves with its own.
    backwards = [copy(entry).reverse_transform() for entry in conversions[::-1]]
    renamings = [entry for entry in backwards if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in backwards if isinstance(entry, WeightConverter)]
    targets = {name: rename_source_key(name, renamings, converters, reverse=True) for name in names}
    # A pattern is None where no converter takes the weight.
    if all(target == name and pattern is None for name, (target, pattern) in targets.items()):
        return None
    # What goes to one target is converted together: parts of one tensor, say.
    groups: dict[str, list[str]] = {}
    for name, (target, _) in targets.items():
        groups.setdefault(target, []).append(name)
    return list(groups.values())
