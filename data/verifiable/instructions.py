"""The 25 instructions of IFEval (arXiv:2311.07911) that a program can check, in code of our own.

Names, arguments and rules are those of the paper's table and data. Some checks need data that
IFEval fetches (sentences and words by NLTK, languages by langdetect). Here sentences end at . ! or
? before white space, words in capitals are runs of letters, and languages are told by py3langid, so
these may differ from IFEval's: `APPROXIMATE`. Answers may be made to be hard to read, so patterns
that would look for an end from each of many beginnings are searched by hand.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from rayward.data.cleaning.language import language

Arguments = Mapping[str, Any]
APPROXIMATE = (
    "length_constraints:number_sentences",
    "change_case:capital_word_frequency",
    "language:response_language",
    # Both also ask whether the language is English.
    "change_case:english_capital",
    "change_case:english_lowercase",
)
ANSWERS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+")
POSTSCRIPTS = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}


def _holds(count: int, relation: str, limit: int) -> bool:
    """IFEval's two relations. ValueError for another."""
    if relation not in ("less than", "at least"):
        raise ValueError(f"found the relation {relation!r}, expected 'less than' or 'at least'")
    return count < limit if relation == "less than" else count >= limit


def _all_keywords(text: str, of: Arguments) -> bool:
    return all(re.search(word, text, re.IGNORECASE) for word in of["keywords"])


def _keyword_frequency(text: str, of: Arguments) -> bool:
    count = len(re.findall(of["keyword"], text, re.IGNORECASE))
    return _holds(count, of["relation"], of["frequency"])


def _no_forbidden_word(text: str, of: Arguments) -> bool:
    words = of["forbidden_words"]
    return not any(re.search(rf"\b{word}\b", text, re.IGNORECASE) for word in words)


def _letter_frequency(text: str, of: Arguments) -> bool:
    count = text.lower().count(of["letter"].lower())
    return _holds(count, of["let_relation"], of["let_frequency"])


def _language(text: str, of: Arguments) -> bool:
    return language([text]) == of["language"].split("-")[0]


def _sentences(text: str, of: Arguments) -> bool:
    count = len([part for part in SENTENCE_END.split(text.strip()) if part.strip()])
    return _holds(count, of["relation"], of["num_sentences"])


def _paragraphs(text: str, of: Arguments) -> bool:
    """Between lines of ***; the first and the last may be empty."""
    parts = re.split(r"\s?\*\*\*\s?", text)
    if any(not part.strip() for part in parts[1:-1]):
        return False
    return sum(bool(part.strip()) for part in parts) == of["num_paragraphs"]


def _words(text: str, of: Arguments) -> bool:
    return _holds(len(re.findall(r"\w+", text)), of["relation"], of["num_words"])


def _nth_paragraph_first_word(text: str, of: Arguments) -> bool:
    parts = re.split(r"\n\n", text)
    if sum(bool(part.strip()) for part in parts) != of["num_paragraphs"]:
        return False
    number = of["nth_paragraph"]
    if number > len(parts) or not parts[number - 1].strip():
        return False
    word = parts[number - 1].split()[0].lstrip("'\"")
    return re.split(r"[.,?!'\"]", word)[0].lower() == of["first_word"].lower()


def _placeholders(text: str, of: Arguments) -> bool:
    count = 0
    for line in text.split("\n"):
        opening = line.find("[")
        while opening >= 0 and (closing := line.find("]", opening)) >= 0:
            count += 1
            opening = line.find("[", closing)
    return bool(count >= of["num_placeholders"])


def _postscript(text: str, of: Arguments) -> bool:
    marker = of["postscript_marker"]
    return bool(re.search(POSTSCRIPTS.get(marker, re.escape(marker.lower())), text.lower()))


def _bullets(text: str, of: Arguments) -> bool:
    lines = [line.lstrip() for line in text.split("\n")]
    count = sum(re.match(r"\*[^*]|-", line) is not None for line in lines)
    return bool(count == of["num_bullets"])


def _one_of_three_answers(text: str, of: Arguments) -> bool:
    return any(answer in text for answer in ANSWERS)


def _highlights(text: str, of: Arguments) -> bool:
    single = re.findall(r"\*[^\n\*]*\*", text)
    double = re.findall(r"\*\*[^\n\*]*\*\*", text)
    marked = [part for part in (*single, *double) if part.strip("* ")]
    return len(marked) >= of["num_highlights"]


def _sections(text: str, of: Arguments) -> bool:
    splitter = re.escape(of["section_spliter"])
    return len(re.split(rf"\s?{splitter}\s?\d+\s?", text)) - 1 >= of["num_sections"]


def _json(text: str, of: Arguments) -> bool:
    inside = re.sub(r"^```(?:json)?|```$", "", text.strip(), flags=re.IGNORECASE).strip()
    try:
        json.loads(inside)
    except (ValueError, RecursionError):
        return False
    return True


def _title(text: str, of: Arguments) -> bool:
    for line in text.split("\n"):
        opening, closing = line.find("<<"), line.rfind(">>")
        if 0 <= opening < closing and line[opening:closing].strip("<> \t"):
            return True
    return False


def _two_responses(text: str, of: Arguments) -> bool:
    parts = text.split("******")
    inner = [part.strip() for n, part in enumerate(parts) if part.strip() or 0 < n < len(parts) - 1]
    return len(inner) == 2 and all(inner) and inner[0] != inner[1]


def _repeats_the_prompt(text: str, of: Arguments) -> bool:
    return text.strip().lower().startswith(of["prompt_to_repeat"].strip().lower())


def _ends_with(text: str, of: Arguments) -> bool:
    return text.strip().strip('"').lower().endswith(of["end_phrase"].strip().lower())


def _quoted(text: str, of: Arguments) -> bool:
    inside = text.strip()
    return len(inside) > 1 and inside[0] == inside[-1] == '"'


def _capital_words(text: str, of: Arguments) -> bool:
    count = sum(word.isupper() for word in re.findall(r"[^\W\d_][\w'-]*", text))
    return _holds(count, of["capital_relation"], of["capital_frequency"])


def _english_capitals(text: str, of: Arguments) -> bool:
    # In capitals the model of languages knows few words.
    return text.isupper() and language([text.lower()]) == "en"


def _english_small_letters(text: str, of: Arguments) -> bool:
    return text.islower() and language([text]) == "en"


def _no_comma(text: str, of: Arguments) -> bool:
    return "," not in text


CHECKS: dict[str, Callable[[str, Arguments], bool]] = {
    "keywords:existence": _all_keywords,
    "keywords:frequency": _keyword_frequency,
    "keywords:forbidden_words": _no_forbidden_word,
    "keywords:letter_frequency": _letter_frequency,
    "language:response_language": _language,
    "length_constraints:number_sentences": _sentences,
    "length_constraints:number_paragraphs": _paragraphs,
    "length_constraints:number_words": _words,
    "length_constraints:nth_paragraph_first_word": _nth_paragraph_first_word,
    "detectable_content:number_placeholders": _placeholders,
    "detectable_content:postscript": _postscript,
    "detectable_format:number_bullet_lists": _bullets,
    "detectable_format:constrained_response": _one_of_three_answers,
    "detectable_format:number_highlighted_sections": _highlights,
    "detectable_format:multiple_sections": _sections,
    "detectable_format:json_format": _json,
    "detectable_format:title": _title,
    "combination:two_responses": _two_responses,
    "combination:repeat_prompt": _repeats_the_prompt,
    "startend:end_checker": _ends_with,
    "startend:quotation": _quoted,
    "change_case:capital_word_frequency": _capital_words,
    "change_case:english_capital": _english_capitals,
    "change_case:english_lowercase": _english_small_letters,
    "punctuation:no_comma": _no_comma,
}
