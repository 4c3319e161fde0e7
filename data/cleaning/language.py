"""The language of a text, by py3langid (langid.py's model of 97 languages)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from typing import Any

FENCED = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
MAX_CHARACTERS = 10_000


@cache  # the model takes seconds to load
def _identifier() -> tuple[Any, float]:
    import py3langid.langid as langid

    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE), langid.RAW_FLOOR


def languages() -> set[str]:
    """The codes that `language` can give, "und" apart."""
    return set(_identifier()[0].nb_classes)


def language(texts: Iterable[str]) -> str:
    """Code of two or three letters of the texts' language, code blocks apart; "und" if untold."""
    identifier, raw_floor = _identifier()
    prose = FENCED.sub(" ", "\n".join(texts))[:MAX_CHARACTERS]
    code, score = identifier.classify(prose)
    # The score of a text without any feature that the model knows, such as a blank one.
    return "und" if score == raw_floor else code
