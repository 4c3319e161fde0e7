"""Less work for the same numbers: the last layer's position-wise parts at the positions read only.

Attention needs the keys and values of every token, but nothing looks at what the last layer makes
of a token that predicts no chosen one. In SFT these are the tokens of prompts. A model of few
layers saves most: with 4 layers and a quarter of the tokens chosen an eighth of all products. It
was made for such models on the CPU; it needs neither the CPU nor fp32, and SFT uses it everywhere.

What is left out is whole rows of products: each row that is computed is the same sum. Its last bits
may differ, since a matrix of fewer rows may be multiplied by another kernel, in another order.

Shapes: B = rows, T = longest row, R = positions read, X = width.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from rayward.actors.models.heads import TokenPolicy, body_of


def skip_unread(policy: TokenPolicy) -> bool:
    """Let the last layer's feed-forward and output projection skip what `policy` does not read.

    False, and nothing is changed, where the model does not have them as linear layers with an
    activation in between. The outputs of what is read and all gradients stay what they were, up to
    the order of summation.
    """
    body = body_of(policy.lm)
    names = {name for name, _ in body.named_modules()}
    last = f"layers.{policy.lm.config.get_text_config().num_hidden_layers - 1}"
    parts = [f"{last}.mlp", f"{last}.self_attn.o_proj"]
    if not names.issuperset(parts):
        return False
    modules = [body.get_submodule(part) for part in parts]
    if not all(_by_position(module) for module in modules):
        return False
    # Of the forward that is running. Its backward comes before the next forward, so layers that
    # gradient checkpointing runs again find theirs, too.
    read: dict[str, Tensor] = {}

    def remember(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        # Only what is passed by position is seen here, as SFT and the probe of saving do.
        chosen_BT = inputs[1]
        # The state at t predicts the token at t + 1; no state of the last column is read.
        read["positions"] = nn.functional.pad(chosen_BT[:, 1:], (0, 1)).flatten().nonzero()[:, 0]

    policy.register_forward_pre_hook(remember)
    for module in modules:
        _narrow(module, read)
    return True


def _by_position(module: nn.Module) -> bool:
    """Whether it is linear layers and an activation, and no experts, which route positions."""
    leaves = [part for part in module.modules() if not list(part.children())]
    weighted = [leaf for leaf in leaves if [*leaf.parameters(), *leaf.buffers()]]
    routed = any(isinstance(part, nn.ModuleList) for part in module.modules())
    return not routed and bool(weighted) and all(isinstance(leaf, nn.Linear) for leaf in weighted)


def _narrow(module: nn.Module, read: dict[str, Tensor]) -> None:
    """Compute `module` at the positions read; 0 elsewhere."""
    whole = module.forward

    def forward(x_BTX: Tensor) -> Tensor:
        positions_R = read["positions"]
        out_RX = whole(x_BTX.flatten(0, 1).index_select(0, positions_R))
        # The 0 elsewhere is added to the residual stream, where nobody reads it.
        out = out_RX.new_zeros(x_BTX.shape[0] * x_BTX.shape[1], out_RX.shape[-1])
        return out.index_copy(0, positions_R, out_RX).view(*x_BTX.shape[:2], -1)

    # Not a wrapper around the module: ZeRO-3's hooks and the weights' names stay as they are.
    module.forward = forward
