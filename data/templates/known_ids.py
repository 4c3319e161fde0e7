"""The token ids that OpenChat and Starling publish, and a check that a tokenizer still gives them.

The ids are in data/templates/known_ids.toml, with their sources. They hold for that tokenizer
alone, with its end token at id 32000. A tokenizer that was converted anew, or is read with other
rules for spaces, writes "G" where the model learnt "▁G": nothing fails, and every answer is a
little worse.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayward.data.records import Turn
from rayward.data.templates.pieces import with_condition
from rayward.data.templates.table import Template, find
from rayward.data.templates.template import encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EOT_ID = 32000


@dataclass(frozen=True, slots=True)
class KnownIds:
    """Turns under a condition of OpenChat 3.5, and their ids.

    `prompt`: up to where the answer starts.
    """

    condition: str
    turns: tuple[Turn, ...]
    prompt: bool
    ids: tuple[int, ...]
    weights: tuple[float, ...] = ()


def _known(entry: dict[str, Any]) -> KnownIds:
    turns = tuple(Turn(*turn) for turn in entry["turns"])
    return KnownIds(
        entry["condition"],
        turns,
        entry["prompt"],
        tuple(entry["ids"]),
        tuple(entry.get("weights", ())),
    )


_TABLE = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
KNOWN = tuple(map(_known, _TABLE["known"]))


def recognised(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether this is the tokenizer of OpenChat 3.5 and Starling, by its vocabulary."""
    ids = tokenizer.convert_tokens_to_ids([find("openchat_3.5").end_token, "▁G", "PT"])
    return ids[0] == EOT_ID and tokenizer.unk_token_id not in ids and None not in ids


def assert_known_ids(template: Template, tokenizer: PreTrainedTokenizerBase) -> None:
    """ValueError if OpenChat 3.5's template and tokenizer give other ids than published.

    Nothing is checked for other templates and tokenizers.
    """
    if not template.name.startswith("openchat_3.5") or not recognised(tokenizer):
        return
    for known in KNOWN:
        conditioned = with_condition(find("openchat_3.5"), known.condition)
        encoded = encode(conditioned, known.turns, tokenizer, known.prompt)
        same_weights = not known.weights or tuple(encoded.weights) == known.weights
        if tuple(encoded.ids) != known.ids or not same_weights:
            pairs = zip(encoded.ids, known.ids, strict=False)
            first = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
            where = "their number differs"
            if first is not None:
                where = f"they differ from number {first} on"
            raise ValueError(
                f"this is the tokenizer of OpenChat 3.5, but {known.turns[-1].content!r} as "
                f"{known.condition!r} gives the ids {encoded.ids}, where the model learnt "
                f"{list(known.ids)}; {where}. Take the tokenizer files of the model as published: "
                "a conversion that changes spaces after special tokens does this"
            )
