"""A template of our table as the Jinja chat template of a tokenizer: a model folder is served as it was trained."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from data.template_table import INPUT, Frame, Template
from data.templates import ids_and_habit


def jinja(template: Template, tokenizer: Any = None) -> str:
    """The same template as a Hugging Face `chat_template`, BOS included.

    `{% generation %}` marks the assistant's content and end token. Whoever applies it encodes one string, in
    which a special token that a user writes out is special: it is for serving; training uses `encode`.

    For a `tokenizer` that puts a space before every text, one is written where `encode` cuts two pieces without
    any between them, so that the string is read as the pieces are: "User: x" for OpenChat v2's "User:" and "x".
    """
    if template.own:
        raise ValueError("the tokenizer's own chat template is not written: it is the tokenizer's")
    if tokenizer is not None and ids_and_habit(template, tokenizer)[1] != "never":
        template = _spaced(template)
    system, user, assistant = template.system, template.user, template.assistant
    content = "message['content']"
    default, between, question = "", "", content
    if template.default_system:
        said = repr(system.before + system.lead + template.default_system + system.after)
        if template.input_system:
            with_input = repr(system.before + system.lead + template.input_system + system.after)
            said = f"{with_input} if {INPUT!r} in messages[0]['content'] else {said}"
        default = "{% if messages[0]['role'] != 'system' %}{{ " + said + " }}{% endif %}"
    if template.folds_system:
        parts = (repr(system.before + system.lead), "messages[0]['content']", repr(system.after))
        first = "loop.index0 == 1 and messages[0]['role'] == 'system'"
        question = f"({' + '.join(parts)} if {first} else '') + {content}"
    if template.between_pairs:
        follows = "not loop.first and loop.previtem['role'] == 'assistant'"
        between = "{% if " + follows + " %}{{ " + repr(template.between_pairs) + " }}{% endif %}"
    inside, end, after_end = assistant.after.partition(template.end_token)
    return "".join(
        (
            "{{ bos_token | default('', true) }}" if template.bos else "",
            _output(template.head),
            default,
            "{% for message in messages %}",
            "{% if message['role'] == 'system' and loop.first %}",
            "" if template.folds_system else _output(system.before + system.lead, content, system.after),
            "{% elif message['role'] == 'user' %}",
            between,
            _output(user.before + user.lead, question, user.after),
            "{% elif message['role'] == 'assistant' %}",
            _output(assistant.before),
            "{% generation %}",
            _output(assistant.lead, content, inside + end),
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


def _spaced(template: Template) -> Template:
    def spaced(frame: Frame) -> Frame:
        follows_text = frame.before and not frame.before.endswith(template.special_tokens)
        return frame._replace(lead=" ") if follows_text and not frame.lead else frame

    if template.folds_system:
        return template
    return replace(
        template,
        system=spaced(template.system),
        user=spaced(template.user),
        assistant=spaced(template.assistant),
    )


def _output(before: str, content: str = "", after: str = "") -> str:
    """A Jinja expression that prints its parts, quoted, so that Jinja strips none of their white space."""
    parts = [part for part in (before and repr(before), content, after and repr(after)) if part]
    return "{{ " + " + ".join(parts) + " }}" if parts else ""
