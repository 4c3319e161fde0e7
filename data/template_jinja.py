"""A template of our table as the Jinja chat template of a tokenizer: a model folder is served as it was trained."""

from __future__ import annotations

from typing import Any

from data.plain_text import Habit
from data.template_table import INPUT, Frame, Template
from data.templates import ids_and_habit, needs_bos

BOS = "{{ bos_token | default('', true) }}"


def jinja(template: Template, tokenizer: Any = None) -> str:
    """The same template as a Hugging Face `chat_template`, BOS included where `encode` puts one for the `tokenizer`.

    `{% generation %}` marks the assistant's content and end token. Whoever applies it encodes one string, in
    which a special token that a user writes out is special: it is for serving; training uses `encode`.

    For a `tokenizer` that puts a space before every text, one is written where `encode` cuts two pieces without
    any between them, so that the string is read as the pieces are: "User: x" for OpenChat v2's "User:" and "x". One
    that puts it only where there is none gets it only there.
    """
    if template.own:
        raise ValueError("the tokenizer's own chat template is not written: it is the tokenizer's")
    spaces: Habit = "never" if tokenizer is None else ids_and_habit(template, tokenizer)[1]
    bos = template.bos if tokenizer is None else needs_bos(template, tokenizer)
    system, user, assistant = template.system, template.user, template.assistant
    content, told = "message['content']", ""
    default, between, question = "", "", content
    if template.default_system:
        said = repr(system.before + system.lead + template.default_system + system.after)
        if template.input_system:
            with_input = repr(system.before + system.lead + template.input_system + system.after)
            said = f"{with_input} if {INPUT!r} in messages[0]['content'] else {said}"
        default = "{% if messages[0]['role'] != 'system' %}{{ " + said + " }}{% endif %}"
    if not template.folds_system:
        told = _output(system.before, _said(template, system, content, spaces), system.after)
    else:
        parts = (repr(system.before + system.lead), "messages[0]['content']", repr(system.after))
        first = "loop.index0 == 1 and messages[0]['role'] == 'system'"
        question = f"(({' + '.join(parts)} if {first} else '') + {content})"
    if template.between_pairs:
        follows = "not loop.first and loop.previtem['role'] == 'assistant'"
        between = "{% if " + follows + " %}{{ " + repr(template.between_pairs) + " }}{% endif %}"
    inside, end, after_end = assistant.after.partition(template.end_token)
    return "".join(
        (
            BOS if bos else "",
            _output(template.head),
            default,
            "{% for message in messages %}",
            "{% if message['role'] == 'system' and loop.first %}",
            told,
            "{% elif message['role'] == 'user' %}",
            between,
            _output(user.before, _said(template, user, question, spaces), user.after),
            "{% elif message['role'] == 'assistant' %}",
            _output(assistant.before),
            "{% generation %}",
            _output("", _said(template, assistant, content, spaces), inside + end),
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


def _said(template: Template, frame: Frame, content: str, spaces: Habit) -> str:
    """The expression of what is said, with the frame's lead or the space that the tokenizer puts before a piece."""
    if frame.lead:
        return f"{frame.lead!r} + {content}"
    if spaces == "never" or not frame.before or frame.before.endswith(template.special_tokens):
        return content
    if spaces == "always":
        return f"' ' + {content}"
    return f"({content} if {content}.startswith(' ') else ' ' + {content})"


def _output(before: str, content: str = "", after: str = "") -> str:
    """A Jinja expression that prints its parts, quoted, so that Jinja strips none of their white space."""
    parts = [part for part in (before and repr(before), content, after and repr(after)) if part]
    return "{{ " + " + ".join(parts) + " }}" if parts else ""
