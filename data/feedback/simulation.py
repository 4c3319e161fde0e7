"""Conversations between two models, of which one plays the user: their seeds, what the user says.

The design is UltraChat's (arXiv:2305.14233): three modules, which ask about the world, for a text
to be written, or for something to be done with a given text; 3 to 7 rounds in the first, 2 to 4 in
the others. Its prompts and code were not published: the prompts, how thanks are recognised and what
counts as meta text are ours.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rayward.data.feedback.prompt_files import Prompts, digest, fill
from rayward.data.formats.files.containers import rows
from rayward.data.formats.readers.chat import label_of
from rayward.data.records import RowError, describe, object_of, text_of

ROUNDS = {"world": (3, 7), "writing": (2, 4), "materials": (2, 4)}
# What a seed has beside its module; the first name is that of its prompt, too.
FIELDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "world": (("topic",), ("entity",)),
    "writing": (("writing_type", "instruction"),),
    "materials": (("material",),),
}


@dataclass(frozen=True, slots=True)
class ConversationSeed:
    """What a conversation grows from. `id`: the row's, or its line."""

    id: str
    module: str
    fields: dict[str, str]

    @property
    def digest(self) -> str:
        """A hash of all of it."""
        return digest(self.id, self.module, *self.fields.items())

    def rounds(self, sampling_seed: int) -> int:
        """The number of rounds, drawn evenly from the module's range."""
        return random.Random(digest(sampling_seed, self.digest, "rounds")).randint(
            *ROUNDS[self.module]
        )


def read_seeds(path: Path) -> Iterator[tuple[int, ConversationSeed | RowError]]:
    """(line, seed) of each row of a file; a row that is none says what is wrong with it."""
    # Ids name conversations in what is drawn and in the output, so two rows must not share one.
    known: set[str] = set()
    for line, row in rows(path):
        try:
            if isinstance(row, RowError):
                raise row
            seed = _seed(row, str(line))
            if seed.id in known:
                raise RowError("id", seed.id, "an id that no other row has", "duplicate id")
            known.add(seed.id)
            yield line, seed
        except RowError as error:
            yield line, error


def _seed(value: object, line: str) -> ConversationSeed:
    row = {name: field for name, field in object_of(value, "row").items() if field is not None}
    label, module = label_of(row, "id") or line, row.pop("module", None)
    row.pop("id", None)
    if not isinstance(module, str) or module not in FIELDS:
        raise RowError("module", describe(module), "one of " + ", ".join(FIELDS), "unknown module")
    for names in FIELDS[module]:
        if names[0] in row:
            if unknown := sorted(row.keys() - {*names}):
                given, expected = describe(row[unknown[0]]), f"only {' and '.join(names)}"
                raise RowError(unknown[0], given, expected, "unknown field")
            texts = {name: text_of(row.get(name), name) for name in names}
            return ConversationSeed(label, module, texts)
    wanted = " or ".join(names[0] for names in FIELDS[module])
    raise RowError(wanted, ", ".join(sorted(row)) or "no fields", "text", "nothing to ask about")


def opening_request(seed: ConversationSeed, prompts: Prompts, sampling_seed: int) -> str:
    """What the user's model is told so that it opens the conversation."""
    name = f"opening_{next(iter(seed.fields))}"
    return fill(prompts, name, (sampling_seed, seed.digest), **seed.fields)


def opening(seed: ConversationSeed, reply: str, prompts: Prompts, sampling_seed: int) -> str:
    """The user's first message, from the model's reply, with its material. RowError if blank."""
    request = without_meta(reply)
    if not request:
        raise RowError("reply", reply, "a message of the user", "empty opening")
    if seed.module != "materials":
        return request
    # The model was told to write the request alone and not to repeat the material.
    key = (sampling_seed, seed.digest)
    return fill(prompts, "join_material", key, request=request, **seed.fields)


def folded(text: str) -> str:
    """Text without case, punctuation and spacing: openings that are equal so are duplicates."""
    return " ".join(re.findall(r"\w+", text.casefold())) or text  # of signs alone: as it is


# ---- what a model that plays the user says

SIDE = r"\**(?:user|human|assistant|ai|chatbot)\**\s*:\**"
OTHER_SIDE = re.compile(rf"\n\s*{SIDE}", re.IGNORECASE)
# Every branch matches at the start of the text only, and its free parts are bounded and stop at
# punctuation: the user's own sentence is never taken for talk about the role.
META = re.compile(
    rf"\s*(?:{SIDE}\s*"
    r"|(?:as|being|speaking as|playing) (?:a|an|the) (?:[\w-]+ ){0,2}?(?:user|human|person)\b"
    r"[^.:,!?\n]{0,60}[,:]\s*"
    r"|(?:i (?:would|will|might|could)|i'd|i'll|let me) (?:now |then |next )?"
    r"(?:say|ask|reply|respond|follow up|continue)\b[^.:,!?\n]{0,40}[:,]\s*"
    r"|(?:sure|certainly|okay|ok|of course)[,!.]? here(?:'s| is)[^.:!?\n]{0,80}:\s*"
    r"|(?:here(?:'s| is)|my|the) (?:[\w-]+ ){0,4}?(?:message|question|request|reply|response|turn)"
    r"(?: is| would be)?\s*:\s*"
    r"|[(\[][^)\]\n]*\b(?:user|human)\b[^)\]\n]*[)\]]\s*)",
    re.IGNORECASE,
)


def without_meta(text: str) -> str:
    """What the user says, without talk about the role ("As a user, I would ask: ...").

    Lines of the other side, which the model goes on to play, are cut off.
    """
    text = text.replace("’", "'").strip()
    # Several may follow each other: "Sure, here is my question: As a user, I would ask: ...".
    while match := META.match(text):
        text = text[match.end() :]
    text = OTHER_SIDE.split(text)[0].strip()
    quoted = re.fullmatch(r'"([^"]+)"|“([^“]+)”', text)  # a quotation and nothing else
    return (quoted[1] or quoted[2]).strip() if quoted else text


# Both are looked for in folded case. A text that matches REQUEST asks for more, whatever thanks it
# has.
CLOSING = re.compile(
    r"\b(?:thanks?|thx|ty|cheers|appreciate[ds]?|grateful|good ?bye|bye|farewell|see you|take care"
    r"|have a (?:\w+ )?(?:day|night|evening|weekend|one)|that(?:'s| is| was) (?:all|everything|it)"
    r"|no (?:more|further|other) questions?)\b"
)
REQUEST = re.compile(
    r"\?|\b(?:(?:can|could|would|will) you|please|(?:tell|show|give|explain|write|help) me|but|also"
    r"|(?:i'd|i would) like|i (?:want|need|wonder)|one more|next|(?:how|what) about)\b"
    r"|(?:^|[.!]\s+)(?:now|explain|write|make|list|give|compare|describe|summari[sz]e|translate|rewrite|add|change)\b"
)
CLOSING_WORDS = 40


def only_thanks(text: str) -> bool:
    """Whether the user is done: a short text of thanks or farewell that asks for nothing more."""
    text = text.casefold().replace("’", "'")
    return (
        len(text.split()) <= CLOSING_WORDS
        and bool(CLOSING.search(text))
        and not REQUEST.search(text)
    )
