"""Chat templates: turns to text, to token ids with loss weights, and to the Jinja template of a tokenizer.

Strings: Vicuna v1.1 (FastChat `vicuna_v1.1`; Xwin-LM uses it) and OpenChat 3.5 (openchat `ochat/config`;
Starling-LM uses it), byte for byte. A template is an entry of `TEMPLATES`: one `Frame` for each role.

How turns become tokens: the text is cut into pieces, and each is encoded alone.
* Special tokens (BOS once, at the start; the end token) are emitted by id. All other text is encoded with
  special tokens split, so nothing that a user writes becomes one.
* A frame's prefix ends at its colon, and the space after it belongs to the content: "GPT4 Correct Assistant:"
  and " Hello". So the ids of a prompt are a prefix of the ids of every conversation that continues it, by
  construction and for every tokenizer: an answer is sampled in the very context that it is trained in.
* A tokenizer that puts a space of its own before every text (SentencePiece) gets pieces without their first.

Departure: FastChat encodes a Vicuna conversation as one string, finds the answers by counting tokens and
drops what it miscounts. Pieces give the same mask without counting.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from data.records import Role, Turn, check_turns


class Frame(NamedTuple):
    """What stands around a turn: `before`, then `lead` + the content as one piece, then `after`.

    `before` and `after` are the template's own text and may hold special tokens.
    """

    before: str
    lead: str
    after: str


@dataclass(frozen=True, slots=True)
class Template:
    """A chat template. `default_system` stands in where the conversation has no system turn.

    `special_tokens` are those that the tokenizer must have. The first ends an answer, so `assistant.after`
    starts with it. BOS is not among them: it is used where a tokenizer has one.
    """

    name: str
    system: Frame
    user: Frame
    assistant: Frame
    special_tokens: tuple[str, ...]
    default_system: str = ""

    @property
    def end_token(self) -> str:
        """The special token that ends an answer."""
        return self.special_tokens[0]

    def frame(self, role: Role) -> Frame:
        """The frame of `role`."""
        return {"system": self.system, "user": self.user, "assistant": self.assistant}[role]


class Piece(NamedTuple):
    """A stretch of text that is encoded alone, or a special token; `weight` is its share in the SFT loss."""

    text: str
    special: bool
    weight: float


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids, and for each its weight in the SFT loss."""

    ids: list[int]
    weights: list[float]


def _openchat(name: str, condition: str) -> Template:
    eot = "<|end_of_turn|>"
    return Template(
        name,
        system=Frame("", "", eot),
        user=Frame(f"{condition} User:", " ", eot),
        assistant=Frame(f"{condition} Assistant:", " ", eot),
        special_tokens=(eot,),
    )


TEMPLATES: dict[str, Template] = {
    template.name: template
    for template in (
        Template(
            "vicuna_v1.1",
            system=Frame("", "", " "),
            user=Frame("USER:", " ", " "),
            assistant=Frame("ASSISTANT:", " ", "</s>"),
            special_tokens=("</s>",),
            default_system=(
                "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
                "helpful, detailed, and polite answers to the user's questions."
            ),
        ),
        _openchat("openchat_3.5", "GPT4 Correct"),
        _openchat("openchat_3.5_code", "Code"),
    )
}


def find(name: str) -> Template:
    """The template `name`. ValueError lists the known ones."""
    if name not in TEMPLATES:
        raise ValueError(f"unknown chat template {name!r}; known: {', '.join(TEMPLATES)}")
    return TEMPLATES[name]


def pieces(template: Template, turns: Sequence[Turn], add_generation_prompt: bool = False) -> list[Piece]:
    """The conversation in pieces, without BOS; with `add_generation_prompt` up to where the answer starts.

    The assistant's content and end token weigh 1 and all else 0, unless a turn has a weight of its own: then
    its content and end token weigh that. RowError (a ValueError) if the turns are not valid, or if an answer
    is asked for where the user does not have the last word.
    """
    check_turns(turns, last="user" if add_generation_prompt else None)
    if turns[0].role != "system" and template.default_system:
        turns = (Turn("system", template.default_system), *turns)
    out: list[Piece] = []
    own = ""  # the template's own text: what follows a turn is one piece with what precedes the next
    for turn in turns:
        frame = template.frame(turn.role)
        weight = turn.weight if turn.weight is not None else float(turn.role == "assistant")
        out += _own_pieces(template, own + frame.before, 0.0)
        out.append(Piece(frame.lead + turn.content, False, weight))
        end = template.end_token if frame.after.startswith(template.end_token) else ""
        out += _own_pieces(template, end, weight)
        own = frame.after.removeprefix(end)
    own += template.assistant.before if add_generation_prompt else ""
    return out + _own_pieces(template, own, 0.0)


def _own_pieces(template: Template, text: str, weight: float) -> list[Piece]:
    parts = re.split("(" + "|".join(map(re.escape, template.special_tokens)) + ")", text)
    return [Piece(part, part in template.special_tokens, weight) for part in parts if part]


def text(template: Template, turns: Sequence[Turn], add_generation_prompt: bool = False) -> str:
    """The conversation as text, without BOS. Raises as `pieces`."""
    return "".join(piece.text for piece in pieces(template, turns, add_generation_prompt))


def encode(template: Template, turns: Sequence[Turn], tokenizer: Any, add_generation_prompt: bool = False) -> Encoded:
    """Token ids and weights; BOS comes first if the tokenizer has one.

    `tokenizer`: of transformers. ValueError: invalid turns (see `pieces`), a special token that the tokenizer
    lacks or finds in plain text, or a conversation (not a prompt) in which no token has weight.
    """
    parts = pieces(template, turns, add_generation_prompt)
    special_ids, adds_space = _ids_and_habit(template, tokenizer)
    plain = [part.text.removeprefix(" ") if adds_space else part.text for part in parts if not part.special]
    encoded = iter(_encode_plain(tokenizer, plain))
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    ids, weights = list(bos), [0.0] * len(bos)
    forbidden = {*special_ids.values(), *bos}
    for part in parts:
        part_ids = [special_ids[part.text]] if part.special else next(encoded)
        if not part.special and not forbidden.isdisjoint(part_ids):
            raise ValueError(
                f"the tokenizer reads a special token out of the plain text {part.text[:80]!r}: "
                "mark the token as special in the tokenizer, so that it can be told from text"
            )
        ids += part_ids
        weights += [part.weight] * len(part_ids)
    if not add_generation_prompt and not any(weights):
        raise ValueError("no token of the conversation has weight: it needs an assistant turn with weight")
    return Encoded(ids, weights)


def truncate(encoded: Encoded, max_tokens: int) -> Encoded | None:
    """The first `max_tokens` tokens, None if none of them has weight. The tail is lost: the caller counts."""
    if len(encoded.ids) <= max_tokens:
        return encoded
    cut = Encoded(encoded.ids[:max_tokens], encoded.weights[:max_tokens])
    return cut if any(cut.weights) else None


def stop_token_ids(template: Template, tokenizer: Any) -> list[int]:
    """The ids that end an answer: the template's end token. ValueError if the tokenizer lacks it."""
    return [_ids_and_habit(template, tokenizer)[0][template.end_token]]


def jinja(template: Template) -> str:
    """The same template as a Hugging Face `chat_template`, BOS included.

    `{% generation %}` marks the assistant's content and end token. Whoever applies it encodes one string, in
    which a special token that a user writes out is special: it is for serving; training uses `encode`.
    """
    system, user, assistant = template.system, template.user, template.assistant
    content = "message['content']"
    default = ""
    if template.default_system:
        whole = system.before + system.lead + template.default_system + system.after
        default = "{% if messages[0]['role'] != 'system' %}{{ " + repr(whole) + " }}{% endif %}"
    after_end = assistant.after.removeprefix(template.end_token)
    return "".join(
        (
            "{{ bos_token | default('', true) }}",
            default,
            "{% for message in messages %}",
            "{% if message['role'] == 'system' and loop.first %}",
            _output(system.before + system.lead, content, system.after),
            "{% elif message['role'] == 'user' %}",
            _output(user.before + user.lead, content, user.after),
            "{% elif message['role'] == 'assistant' %}",
            _output(assistant.before),
            "{% generation %}",
            _output(assistant.lead, content, template.end_token),
            "{% endgeneration %}",
            _output(after_end),
            "{% else %}",
            "{{ raise_exception('roles are user and assistant, and system for the first message') }}",
            "{% endif %}",
            "{% endfor %}",
            "{% if add_generation_prompt %}",
            _output(assistant.before),
            "{% endif %}",
        )
    )


def _output(before: str, content: str = "", after: str = "") -> str:
    """A Jinja expression that prints its parts, quoted, so that Jinja strips none of their white space."""
    parts = [part for part in (before and repr(before), content, after and repr(after)) if part]
    return "{{ " + " + ".join(parts) + " }}" if parts else ""


def _encode_plain(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    arguments = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
    return tokenizer(texts, return_attention_mask=False, **arguments)["input_ids"] if texts else []


@lru_cache(maxsize=64)
def _ids_and_habit(template: Template, tokenizer: Any) -> tuple[dict[str, int], bool]:
    """Ids of the template's special tokens, and whether the tokenizer puts a space before every text.

    The habit shows: "a b" is "a" and then "b", although " b" is not "b". A tokenizer that adds a space only
    where there is none (" b" is "b") needs no help, and would lose a space of the content by it.
    """
    ids = {}
    for token in template.special_tokens:
        token_id = tokenizer.convert_tokens_to_ids(token)
        if token_id is None or tokenizer.convert_ids_to_tokens(token_id) != token:
            raise ValueError(
                f"chat template {template.name} needs the token {token!r}, which is not among the "
                f"{len(tokenizer)} of this tokenizer: add it and its embedding, or choose another template"
            )
        ids[token] = token_id
    first, second, spaced, joined = _encode_plain(tokenizer, ["Hello", "world", " world", "Hello world"])
    return ids, joined == first + second and spaced != second
