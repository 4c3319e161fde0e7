"""A tokenizer in a folder, read back as a server reads it: its ids must be those that are trained.

transformers reads a folder by the class in tokenizer_config.json and the model type in config.json,
and builds some classes anew: Llama's is saved without `legacy`, and read without the space that it
puts before every stretch of text. vLLM reads with the same `AutoTokenizer` call
(vllm/tokenizers/hf.py, 0.29), which finds config.json by itself; so one reading stands for both.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayward.data.model_files.hub_models import read_tokenizer
from rayward.data.records import Role, RowError, Turn
from rayward.data.templates.jinja import jinja
from rayward.data.templates.plain_text import TEXTS, encode_plain
from rayward.data.templates.published.program import clock
from rayward.data.templates.table import Template
from rayward.data.templates.template import encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MENDS: tuple[dict[str, Any], ...] = ({}, {"legacy": True}, {"tokenizer_class": "TokenizersBackend"})
"""What is tried in tokenizer_config.json until the folder reads as the tokenizer does."""


def _chat(*contents: str, system: str = "") -> tuple[Turn, ...]:
    roles: tuple[Role, Role] = ("user", "assistant")
    turns = [Turn(roles[number % 2], text) for number, text in enumerate(contents)]
    return (Turn("system", system), *turns) if system else tuple(turns)


PLAIN = (
    _chat("Hello there", "Hi, you.", "And now?", "Yes."),
    _chat("Hello there", "Hi, you.", system="Be brief."),
)
AWKWARD = (
    _chat(" Hello ", "  Hi ", "x ", " y", system=" Be brief. "),
    _chat("\nHello\n\n", "Hi\n", "a\n\tb", "\n\n1. x\n2. y\n"),
    _chat("日本語 é", "«ok» 😀", "🏳️‍🌈?", "한국어\u00a0x"),
    _chat("12345", "7", "3.14", "- 1"),
    _chat("What?", ".", "def f():\n    pass", "```\nx\n```"),
)


def assert_keeps_text(tokenizer: PreTrainedTokenizerBase) -> None:
    """ValueError where decode(encode(x)) is not x.

    A space that the tokenizer puts before a text, or takes away there (SentencePiece), is no loss,
    nor would a normal form of Unicode be (Qwen writes NFC): what is asked is the same in all of
    them.
    """
    for text, ids in zip(TEXTS, encode_plain(tokenizer, TEXTS), strict=True):
        decoded = tokenizer.decode(ids)
        if decoded not in (text, " " + text) and " " + decoded != text:
            raise ValueError(
                f"the tokenizer loses text: {text!r} becomes {decoded!r}. Its files are of another "
                "kind than they are read as: model_type in config.json and tokenizer_class in "
                "tokenizer_config.json decide that (TokenizersBackend reads tokenizer.json as it "
                "is)"
            )


def save_tokenizer(
    tokenizer: PreTrainedTokenizerBase, folder: str | Path, config: Any = None
) -> None:
    """Save it so that it reads back as it is, with a model's `config` also in that model's folder.

    ValueError where no way to save it does, with the first tokens that differ.
    """
    tokenizer.save_pretrained(folder)
    path = Path(folder) / "tokenizer_config.json"
    saved, first = json.loads(path.read_text(encoding="utf-8")), ""
    for change in MENDS:
        changed = json.dumps(saved | change, indent=2, ensure_ascii=False) + "\n"
        path.write_text(changed, encoding="utf-8")
        differences = (_unlike(tokenizer, read) for read in _readings(folder, config))
        difference = next(filter(None, differences), "")
        if not difference:
            return
        # The error tells of the folder as it was saved: the other changes are only tries.
        first = first or difference
    raise ValueError(f"{folder}: the tokenizer does not read back as it was saved: {first}")


def _readings(folder: str | Path, config: Any) -> Iterator[Any]:
    yield read_tokenizer(folder)
    if config is not None:
        yield read_tokenizer(folder, config=config)


def _unlike(tokenizer: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> str:
    """The first thing that another tokenizer does otherwise; "" where there is none."""
    if tokenizer.get_vocab() != other.get_vocab():
        return f"{len(tokenizer)} tokens became {len(other)}, or other ones"
    if tokenizer.special_tokens_map != other.special_tokens_map:
        return (
            f"its special tokens {tokenizer.special_tokens_map} became {other.special_tokens_map}"
        )
    special_tokens = [str(token) for token in tokenizer.special_tokens_map.values()]
    for text in (*TEXTS, *(special + text for special in special_tokens[:1] for text in TEXTS)):
        ids, other_ids = _ids(tokenizer, text), _ids(other, text)
        if ids != other_ids:
            return f"of {text!r} {_first(tokenizer, ids, other_ids)}"
        decoded, other_decoded = tokenizer.decode(ids), other.decode(ids)
        if decoded != other_decoded:
            return f"the ids {ids} were {decoded!r}, now {other_decoded!r}"
    if tokenizer.chat_template != other.chat_template:
        return "its chat template became another"
    for turns in (*PLAIN, *AWKWARD) if tokenizer.chat_template else ():
        try:
            ids = _served(tokenizer, turns, False)
        # A template is a foreign program: it raises what it likes, on system turns for instance.
        except Exception:
            continue
        other_ids = _served(other, turns, False)
        if ids != other_ids:
            difference = _first(tokenizer, ids, other_ids)
            return f"of {turns[0].content!r}, ... in its chat template {difference}"
    return ""


def assert_served_as_trained(template: Template, tokenizer: PreTrainedTokenizerBase) -> None:
    """ValueError where the tokenizer's chat template, as a string, gives other ids than `encode`.

    Except where the whole string joins what is said with what stands beside it, so that no pieces
    could be the same: an answer that begins with white space, for instance. Of plain words only
    answers may join.
    """
    for turns in (*PLAIN, *AWKWARD):
        for end in [number + 1 for number, turn in enumerate(turns) if turn.role != "system"]:
            asks = turns[end - 1].role == "user"
            try:
                trained = encode(template, turns[:end], tokenizer, asks)
            except RowError:
                continue  # such rows are left out
            served = _served(tokenizer, turns[:end], asks)
            # A tokenizer's own template says so itself; of ours it is found out.
            if template.is_tokenizers:
                excused = trained.apart
            else:
                excused = _joins(tokenizer, turns[:end], asks, turns in PLAIN)
            if trained.ids != served and not excused:
                raise ValueError(
                    f"chat template {template.name} with this tokenizer trains other tokens than "
                    f"a server gives: in {turns[0].content!r}, ..., {turns[end - 1].content!r} "
                    f"{_first(tokenizer, trained.ids, served)}"
                )


def mend(template: Template, folder: str | Path) -> str:
    """Mend a folder saved without `save_tokenizer`; "", or why it is not served as it is
    trained."""
    path, first = Path(folder) / "tokenizer_config.json", ""
    saved = path.read_text(encoding="utf-8")
    for change in MENDS:
        if change:
            changed = json.dumps(json.loads(saved) | change, indent=2, ensure_ascii=False)
            path.write_text(changed, encoding="utf-8")
        tokenizer = read_tokenizer(folder)
        before = tokenizer.chat_template
        try:
            if not template.is_tokenizers:
                tokenizer.chat_template = jinja(template, tokenizer)
            assert_served_as_trained(template, tokenizer)
        except ValueError as error:
            first = first or str(error)
            continue
        if tokenizer.chat_template != before:
            (Path(folder) / "chat_template.jinja").write_text(
                tokenizer.chat_template, encoding="utf-8"
            )
        return ""
    path.write_text(saved, encoding="utf-8")  # none of the changes did: it is left as it was
    return first


def _messages(turns: Sequence[Turn]) -> list[dict[str, str]]:
    return [{"role": turn.role, "content": turn.content} for turn in turns]


def _served(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn], asks: bool) -> list[int]:
    """The ids that a server gives: of the rendered string, whose special tokens are all read."""
    arguments = {
        "add_generation_prompt": asks,
        "strftime_now": clock(tokenizer),
        "return_dict": False,
    }
    return list(tokenizer.apply_chat_template(_messages(turns), **arguments))


def _joins(
    tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn], asks: bool, answers_only: bool
) -> bool:
    """Whether a token of the whole string lies across the beginning or the end of what is said."""
    text = tokenizer.apply_chat_template(
        _messages(turns), tokenize=False, add_generation_prompt=asks
    )
    whole, end = _ids(tokenizer, text), 0
    for turn in turns:
        begin = text.find(turn.content, end)
        if begin < 0:
            return False  # it is not there as it was said, which excuses nothing
        end = begin + len(turn.content)
        # A space that the template writes for the tokenizer's sake.
        lead = begin - (text[:begin].endswith(" "))
        edges = [] if answers_only and turn.role != "assistant" else [lead, begin, end]
        # No token lies across an edge where the ids up to it begin those of the whole.
        for edge in edges:
            edge_ids = _ids(tokenizer, text[:edge])
            if whole[: len(edge_ids)] != edge_ids:
                return True
    return False


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _first(tokenizer: PreTrainedTokenizerBase, one: Sequence[int], other: Sequence[int]) -> str:
    """Where two rows of ids part, for people."""
    pairs = zip(one, other, strict=False)
    same = min(len(one), len(other))
    place = next((place for place, (a, b) in enumerate(pairs) if a != b), same)
    shown = [
        " ".join(map(repr, tokenizer.convert_ids_to_tokens(list(ids[place : place + 4]))))
        for ids in (one, other)
    ]
    return f"token {place} on is {shown[0] or 'the end'}, not {shown[1] or 'the end'}"
