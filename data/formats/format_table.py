"""The formats that are known: by which fields a row of each is recognised, and its reader."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from rayward.data.formats import readers_chat as chat
from rayward.data.formats import readers_pairs as pairs
from rayward.data.formats import readers_ranked as ranked
from rayward.data.formats import token_rows
from rayward.data.formats.readers_chat import Row
from rayward.data.records import Record

Read = Callable[[Row, list[str]], list[Record]]


@dataclass(frozen=True, slots=True)
class Format:
    """A shape of rows. A row has it if it has all of one set of `keys` and none of `never`.

    `convert(row, repairs)` gives the row's records or raises RowError, and appends the names of
    repairs made. Of several formats that fit, the one with the most keys is meant. One without keys
    is used where it is named.
    """

    name: str
    keys: tuple[frozenset[str], ...]
    never: frozenset[str]
    convert: Read


def _format(name: str, convert: Read, *keys: str, never: str = "") -> Format:
    key_sets = tuple(frozenset(names.split()) for names in keys)
    return Format(name, key_sets, frozenset(never.split()), convert)


# Not in FORMATS, whose rows are objects and whose records are text.
TOKENS = _format(token_rows.NAME, lambda row, repairs: [])

# `never` names fields of other formats, known here or not, that have the same keys in another
# sense: such a row would be read wrongly. Of two entries that fit with equally many keys, the first
# one is taken.
FORMATS: dict[str, Format] = {
    form.name: form
    for form in (
        _format("rayward", chat.rayward, "kind turns"),
        _format("sharegpt", chat.sharegpt, "conversations", "items", never="chosen rejected label"),
        _format(
            "alpaca",
            chat.alpaca,
            "instruction output",
            "instruction response",
            never="generator dataset instances completions",
        ),
        _format("self_instruct", chat.self_instruct, "instruction instances"),
        _format(
            "gsm8k", chat.gsm8k, "question answer", never="ground_truth choices options context"
        ),
        _format("gsm8k_solutions", ranked.gsm8k_solutions, "question ground_truth"),
        _format("kto", chat.kto, "messages label", never="chosen rejected"),
        _format("sharegpt_pairs", pairs.sharegpt_pairs, "conversations chosen rejected"),
        _format("pandalm", pairs.pandalm, "instruction response1 response2 annotator1"),
        _format(
            "arena",
            pairs.arena,
            "prompt response_a response_b winner",
            "prompt response_a response_b",
        ),
        # Two data sets with the same fields, which differ in the place of the better answers.
        _format("starling_truthful", partial(ranked.starling, "truthful", "ac", "b")),
        _format("starling_verbose", partial(ranked.starling, "verbose", "b", "a")),
        _format(
            "alpaca_eval_annotations",
            pairs.alpaca_eval_annotation,
            "instruction output_1 output_2 preference",
        ),
        _format(
            "alpaca_eval",
            chat.alpaca_eval,
            "instruction output generator",
            "instruction dataset",
            "instruction",
            never="input instances completions response response1 output_1",
        ),
        _format(
            "hh_rlhf",
            ranked.hh_rlhf,
            "chosen rejected",
            never="prompt messages conversations instruction question",
        ),
        _format("nectar", ranked.nectar, "prompt answers", never="ranking_order model_ranking"),
        _format(
            "openai",
            pairs.openai,
            "messages",
            "prompt chosen rejected",
            "messages chosen rejected",
            never="label",
        ),
        _format("ultrachat", chat.ultrachat, "data", "id data", never="class"),
        _format("ultra_eval", chat.ultra_eval, "class data"),
        _format("crlft", chat.crlft, "items condition", "items system"),
        _format("ultrafeedback", ranked.ultrafeedback, "instruction completions"),
        _format("mt_bench_questions", chat.mt_bench_question, "question_id turns"),
        # Their rows do not hold the questions; `outcomes` puts in those of the question file.
        _format(
            "mt_bench_answers",
            partial(chat.mt_bench_answer, {}),
            "question_id choices",
            "question_id model_id text",
        ),
        _format(
            "rewardbench",
            pairs.rewardbench,
            "prompt chosen rejected subset",
            never="messages label",
        ),
    )
}
