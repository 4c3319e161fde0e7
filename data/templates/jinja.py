"""A template of our table as a tokenizer's Jinja chat template: a model is served as trained."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from rayward.data.records import Role
from rayward.data.templates.plain_text import Habit
from rayward.data.templates.table import INPUT, Template
from rayward.data.templates.template import ids_and_habit, needs_bos

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BOS = "{{ bos_token | default('', true) }}"


def jinja(template: Template, tokenizer: PreTrainedTokenizerBase | None = None) -> str:
    """The same template as a Hugging Face `chat_template`, with BOS where `encode` puts one.

    `{% generation %}` marks the assistant's content and end token. Whoever applies it encodes one
    string, in which a special token that a user writes out is special: it is for serving; training
    uses `encode`.

    For a `tokenizer` that puts a space before every text, one is written where `encode` cuts two
    pieces without any between them, so that the string is read as the pieces are: "User: x" for
    OpenChat v2's "User:" and "x". One that puts it only where there is none gets it only there.
    """
    if template.is_tokenizers:
        raise ValueError("the tokenizer's own chat template is not written: it is the tokenizer's")
    spaces: Habit = "never" if tokenizer is None else ids_and_habit(template, tokenizer)[1]
    bos = template.bos if tokenizer is None else needs_bos(template, tokenizer)
    write = _Writer(template, spaces, bos)
    system, user, assistant = template.system, template.user, template.assistant
    content = "message['content']"
    # Jinja of: a system text that stands in for none, a system turn, what parts two pairs, and the
    # expression of what a question says.
    default, system_turn, between, question = "", "", "", content
    if template.default_system:
        opening = system.before + system.lead
        expression = repr(write.first(opening + template.default_system + system.after))
        if template.input_system:
            with_input = repr(write.first(opening + template.input_system + system.after))
            expression = f"{with_input} if {INPUT!r} in messages[0]['content'] else {expression}"
        default = "{% if messages[0]['role'] != 'system' %}{{ " + expression + " }}{% endif %}"
    if not template.folds_system:
        system_turn = write.turn("system", content)
    else:
        parts = (repr(system.before + system.lead), "messages[0]['content']", repr(system.after))
        first = "loop.index0 == 1 and messages[0]['role'] == 'system'"
        question = f"(({' + '.join(parts)} if {first} else '') + {content})"
    if template.between_pairs:
        follows = "not loop.first and loop.previtem['role'] == 'assistant'"
        between = "{% if " + follows + " %}{{ " + repr(write.between()) + " }}{% endif %}"
    inside, end, after_end = assistant.after.partition(template.end_token)
    return "".join(
        (
            BOS if bos else "",
            _output(write.head()),
            default,
            "{% for message in messages %}",
            "{% if message['role'] == 'system' and loop.first %}",
            system_turn,
            "{% elif message['role'] == 'user' %}",
            between,
            write.turn("user", question),
            "{% elif message['role'] == 'assistant' %}",
            write.opening("assistant"),
            "{% generation %}",
            _output("", write.said("assistant", content), inside + end),
            "{% endgeneration %}",
            _output(write.follows(end, after_end)),
            "{% else %}",
            "{{ raise_exception('roles are user and assistant, and system for the first "
            "message') }}",
            "{% endif %}",
            "{% endfor %}",
            "{% if add_generation_prompt %}",
            _output(write.follows(user.after, assistant.before)),
            "{% endif %}",
        )
    )


class _Writer:
    """The template's own words with the spaces that a string needs to be read as the pieces are.

    A tokenizer with the habit "missing" puts a space before each piece that has none. Of a string
    some (Llama's with `legacy: false`) do so at its very beginning only, so behind each special
    token that space is written.
    """

    def __init__(self, template: Template, spaces: Habit, bos: bool):
        self.template, self.spaces = template, spaces
        self.special = template.special_tokens
        # Whether the first turn stands behind a special token.
        self.begins = template.head.endswith(self.special) if template.head else bos
        self.bos = bos

    def whole(self, text: str) -> str:
        """A text of the template, with a space behind each special token within it."""
        if self.spaces != "missing":
            return text
        tokens = "|".join(map(re.escape, self.special))
        # Not before a space, the end of the text, or the next special token: no piece begins there.
        return re.sub(f"({tokens})(?! |\\Z|{tokens})", r"\1 ", text)

    def follows(self, before: str, text: str) -> str:
        """The same of a text that stands after another."""
        return self._behind(text) if before.endswith(self.special) else self.whole(text)

    def head(self) -> str:
        return self._behind(self.template.head) if self.bos else self.whole(self.template.head)

    def first(self, text: str) -> str:
        """The same of a text that nothing but head and BOS stand before."""
        return self._behind(text) if self.begins else self.whole(text)

    def between(self) -> str:
        return self.follows(self.template.assistant.after, self.template.between_pairs)

    def turn(self, role: Role, content: str) -> str:
        """What is written of a turn: its opening, what is said, what follows."""
        return self.opening(role) + _output(
            "", self.said(role, content), self.whole(self.template.frame(role).after)
        )

    def opening(self, role: Role) -> str:
        """The words before what is said."""
        before = self.template.frame(role).before
        edge = self._edge(role) if self._lacks_space(before) else ""
        return ("{{ ' ' if " + edge + " }}" if edge else "") + _output(self.whole(before))

    def said(self, role: Role, content: str) -> str:
        """The expression of what is said, with the frame's lead or the tokenizer's space before."""
        frame = self.template.frame(role)
        if frame.lead:
            lead = self._behind(frame.lead) if frame.before.endswith(self.special) else frame.lead
            return f"{lead!r} + {content}"
        missing = f"({content} if {content}.startswith(' ') else ' ' + {content})"
        if not frame.before:
            # Without words before it the content begins the piece, behind whatever came last.
            edge = self._edge(role)
            return f"({missing} if {edge} else {content})" if edge else content
        if self.spaces == "never" or (
            frame.before.endswith(self.special) and self.spaces == "always"
        ):
            return content
        return f"' ' + {content}" if self.spaces == "always" else missing

    def _behind(self, text: str) -> str:
        """A text that stands behind a special token."""
        return " " * self._lacks_space(text) + self.whole(text)

    def _lacks_space(self, text: str) -> bool:
        """Whether the tokenizer would put a space before the piece that begins so."""
        return self.spaces == "missing" and text != "" and not text.startswith((" ", *self.special))

    def _edge(self, role: Role) -> str:
        """When a turn of this role is behind a special token, as a Jinja expression; "" if
        never."""
        if self.spaces != "missing":
            return ""
        template = self.template
        begins = self.begins and not (template.default_system and role != "system")
        # The text that stands last before a turn, by the role of the turn before.
        last = {
            "system": template.system.after,
            "user": template.user.after,
            "assistant": template.assistant.after,
        }
        if template.between_pairs and role == "user":
            last["assistant"] = template.between_pairs
        ends = {before: text.endswith(self.special) for before, text in last.items()}
        if template.folds_system:
            # Its system turn writes nothing by itself: the first question stands at the beginning.
            ends["system"] = begins
        behind = [
            f"(not loop.first and loop.previtem['role'] == {before!r})"
            for before, at_special in ends.items()
            if at_special
        ]
        return " or ".join(["loop.first"] * begins + behind)


def _output(before: str, content: str = "", after: str = "") -> str:
    """A Jinja expression that prints its parts; quoted, so that no white space is stripped."""
    parts = [part for part in (before and repr(before), content, after and repr(after)) if part]
    return "{{ " + " + ".join(parts) + " }}" if parts else ""
