"""The token ids that OpenChat and Starling publish, and the check that a tokenizer still gives them.

Sources: the cards of openchat_3.5 and Starling-LM-7B-alpha, and openchat's `ochat/tests/test_model_config.py`. They
hold for that tokenizer alone, with its end token at id 32000. A tokenizer that was converted anew, or is read with
other rules for spaces, writes "G" where the model learnt "▁G": nothing fails, and every answer is a little worse.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from data.records import Turn
from data.template_table import EOT, Template, find
from data.templates import encode, with_condition

EOT_ID = 32000


@dataclass(frozen=True, slots=True)
class Known:
    """Turns under a condition of OpenChat 3.5, and their ids; `prompt`: up to where the answer starts."""

    condition: str
    turns: tuple[Turn, ...]
    prompt: bool
    ids: tuple[int, ...]
    weights: tuple[float, ...] = ()


_HELLO, _HI = Turn("user", "Hello"), Turn("assistant", "Hi")
_ASKS = (32000, 420, 6316, 28781, 3198, 3123, 21631, 28747)  # <|end_of_turn|>GPT4 Correct Assistant:
_FIRST = (1, 420, 6316, 28781, 3198, 3123, 1247, 28747)  # <s>GPT4 Correct User:

KNOWN = (
    Known("GPT4 Correct", (_HELLO,), True, (*_FIRST, 22557, *_ASKS)),
    Known(
        "GPT4 Correct",
        (_HELLO, _HI, Turn("user", "How are you today?")),
        True,
        (*_FIRST, 22557, *_ASKS, 15359, 32000, *_FIRST[1:], 1602, 460, 368, 3154, 28804, *_ASKS),
    ),
    Known(
        "Code",
        (Turn("user", "Implement quicksort using C++"),),
        True,
        (1, 7596, 1247, 28747, 26256, 2936, 7653, 1413, 334, 1680, 32000, 7596, 21631, 28747),
    ),
    Known(
        "GPT4 Correct",
        (Turn("system", "You are a helpful assistant."), Turn("user", "Hi")),
        True,
        (1, 995, 460, 264, 10865, 13892, 28723, 32000, *_FIRST[1:], 15359, *_ASKS),
    ),
    Known(
        "GPT4",
        (
            Turn("user", "What's the weather like?", 0.0),
            Turn("assistant", "I'm an AI and don't have access to real-time data.", 0.1),
            Turn("user", "Oh, right. How can I know?", 0.0),
            Turn("assistant", "You can check a weather website or app for the most current information.", 1.0),
        ),
        False,
        (1, 420, 6316, 28781, 1247, 28747, 1824, 28742, 28713, 272, 8086, 737, 28804, 32000, 420, 6316, 28781, 21631,
         28747, 315, 28742, 28719, 396, 16107, 304, 949, 28742, 28707, 506, 2735, 298, 1353, 28733, 1536, 1178, 28723,
         32000, 420, 6316, 28781, 1247, 28747, 5434, 28725, 1103, 28723, 1602, 541, 315, 873, 28804, 32000, 420, 6316,
         28781, 21631, 28747, 995, 541, 1877, 264, 8086, 4400, 442, 954, 354, 272, 1080, 1868, 1871, 28723, 32000),
        (0.0,) * 19 + (0.1,) * 18 + (0.0,) * 20 + (1.0,) * 15,
    ),
)  # fmt: skip


def recognised(tokenizer: Any) -> bool:
    """Whether this is the tokenizer of OpenChat 3.5 and Starling, by its vocabulary."""
    ids = tokenizer.convert_tokens_to_ids([EOT, "▁G", "PT"])
    return ids[0] == EOT_ID and tokenizer.unk_token_id not in ids and None not in ids


def assert_known_ids(template: Template, tokenizer: Any) -> None:
    """ValueError if a template of OpenChat 3.5 meets that model's tokenizer, and it gives other ids than published.

    Nothing is checked for other templates and tokenizers.
    """
    if not template.name.startswith("openchat_3.5") or not recognised(tokenizer):
        return
    for known in KNOWN:
        found = encode(with_condition(find("openchat_3.5"), known.condition), known.turns, tokenizer, known.prompt)
        if tuple(found.ids) != known.ids or (known.weights and tuple(found.weights) != known.weights):
            first = next((i for i, (a, b) in enumerate(zip(found.ids, known.ids, strict=False)) if a != b), None)
            where = f"they differ from number {first} on" if first is not None else "their number differs"
            raise ValueError(
                f"this is the tokenizer of OpenChat 3.5, but {known.turns[-1].content!r} as {known.condition!r} gives "
                f"the ids {found.ids}, where the model learnt {list(known.ids)}; {where}. Take the tokenizer files of "
                "the model as published: a conversion that changes spaces after special tokens does this"
            )
