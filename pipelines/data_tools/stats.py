"""What is in a data file: rows, turns, lengths, lexical diversity, duplicates, in one pass.

MTLD is that of algorithms/diversity.py, by answer, averaged over the answers, as UltraChat reports
it. A duplicate has the texts and roles of an earlier record; one 8-byte hash a record is held to
tell. Percentiles are exact (nearest rank). The language is that of all of a record's texts, code
blocks apart.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayward.algorithms.diversity import mtld
from rayward.data.cleaning.language import language
from rayward.data.formats.files.token_rows import TokenRow
from rayward.data.formats.registry import AS_IT_IS, Report, outcomes
from rayward.data.formats.rows.fields import ReadOptions
from rayward.data.records import Conversation, Labelled, Preference, Ranking, Record

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PERCENTILES = (5, 50, 95, 99, 100)


def stats(
    path: str | Path,
    source_format: str = "auto",
    tokenizer: PreTrainedTokenizerBase | None = None,
    questions: Path | None = None,
    options: ReadOptions = AS_IT_IS,
) -> dict[str, Any]:
    """Counts over all records of `path`. Lengths in characters, and in tokens with a `tokenizer`.

    A length is that of all texts of a record: its turns, and its answers. Tokens are those of the
    texts alone, without a chat template. Of files of token rows the ids are counted.
    """
    count_tokens = _token_counter(tokenizer)
    report, kinds, languages = Report(), Counter[str](), Counter[str]()
    # How often each length occurs: exact percentiles, in the memory of the lengths that differ.
    turns, characters, tokens, answer_characters = (Counter[int]() for _ in range(4))
    seen: set[int] = set()
    duplicates, num_answers, mtld_sum = 0, 0, 0.0
    for outcome in outcomes(path, source_format, questions, options=options):
        report.count(outcome)
        for record in outcome.records:
            kinds[type(record).__name__.lower()] += 1
            if isinstance(record, TokenRow):
                tokens[len(record.ids)] += 1
                key: Any = [record.ids, record.mask]
            else:
                answers = _answers(record)
                texts = [turn.content for turn in record.turns]
                if not isinstance(record, Conversation):  # whose answers are among its turns
                    texts += [*answers, *getattr(record, "follow_ups", ())]
                turns[len(record.turns)] += 1
                characters[sum(map(len, texts))] += 1
                languages[language(texts)] += 1
                if count_tokens:
                    tokens[count_tokens(texts)] += 1
                for answer in answers:
                    answer_characters[len(answer)] += 1
                    mtld_sum += mtld(answer)
                num_answers += len(answers)
                key = [[turn.role for turn in record.turns], texts]
            digest = _hash(key)
            duplicates += digest in seen
            seen.add(digest)
    return {
        "read": report.read,
        "rejected": dict(report.rejected),
        "repaired": dict(report.repaired),
        "passed_over": dict(report.passed_over),
        "records": dict(kinds),
        "duplicates": duplicates,
        "turns": _summary(turns),
        "characters": _summary(characters),
        "answer_characters": _summary(answer_characters),
        "tokens": _summary(tokens) if tokens else "not counted: give --tokenizer",
        "answers": num_answers,
        "mtld": mtld_sum / num_answers if num_answers else None,
        "languages": dict(languages.most_common()),
    }


def _answers(record: Record) -> list[str]:
    if isinstance(record, Conversation):
        return [turn.content for turn in record.turns if turn.role == "assistant"]
    if isinstance(record, Preference):
        return [record.chosen, record.rejected]
    if isinstance(record, Labelled):
        return [record.answer]
    return list(record.answers) if isinstance(record, Ranking) else []


def _token_counter(
    tokenizer: PreTrainedTokenizerBase | None,
) -> Callable[[list[str]], int] | None:
    if tokenizer is None:
        return None

    def count(texts: list[str]) -> int:
        return sum(map(len, tokenizer(texts, add_special_tokens=False)["input_ids"]))

    return count


def _hash(value: Any) -> int:
    """The same number for the same value in every process."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _summary(lengths: Counter[int]) -> dict[str, float]:
    """Sum, mean and percentiles of lengths, given how often each occurs."""
    number = lengths.total()
    if not number:
        return {}
    total = sum(length * times for length, times in lengths.items())
    summary = {"sum": total, "mean": total / number}
    # Nearest rank: the smallest length that so many lengths do not exceed.
    ranks = [(percent, math.ceil(number * percent / 100)) for percent in PERCENTILES]
    counted = 0
    for length, times in sorted(lengths.items()):
        counted += times
        while ranks and counted >= ranks[0][1]:
            percent, _ = ranks.pop(0)
            summary[f"p{percent}"] = length
    return summary
