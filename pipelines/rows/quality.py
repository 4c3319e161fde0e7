"""C-RLFT (arXiv:2309.11235): answers of every quality are learnt from, each by its class's weight.

The class of a conversation follows from its source's label, such as the model that answered.
Conditioning puts the words of the class into the role prefixes ("GPT3 User:"), so that the model
learns both and confuses neither; the weight multiplies the loss of all that is trained in it, text
and end token. Whoever asks the model, in RL and in serving, uses the template as it is: its own
words are those of the expert.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from rayward.configs.sections.training import Quality
from rayward.data.records import Conversation, Turn
from rayward.data.templates.pieces import with_condition
from rayward.data.templates.template import Template
from rayward.pipelines.run.errors import StageError

EXPERT = "expert"


def class_of(quality: Quality, conversation: Conversation) -> str:
    """The class of a conversation by its label; `quality.other` where that is not listed."""
    return quality.classes.get(conversation.quality or "", quality.other)


def conditioned(quality: Quality, template: Template, conversation: Conversation) -> Template:
    """The template in the words of a conversation's class. ValueError where it has no place."""
    name = class_of(quality, conversation)
    # The template's own words are the expert's: what is asked later, as it is, asks the expert.
    if not quality.conditioning or name == EXPERT:
        return template
    return with_condition(template, quality.conditions[name])


def weighed(quality: Quality, conversation: Conversation) -> tuple[Turn, ...]:
    """Its turns with the weight of its class, where they are trained.

    Weights of 0 and 1 say what is trained. Others are kept as they are: OpenChat's files hold those
    of the classes.
    """
    weight = quality.weights[class_of(quality, conversation)] if quality.weighting else 1.0
    # One weight beside 0 and 1 says that the file has weighed already; twice would square it.
    if weight == 1.0 or any(turn.weight not in (None, 0.0, 1.0) for turn in conversation.turns):
        return conversation.turns
    return tuple(
        replace(turn, weight=weight * turn.loss_weight) if turn.loss_weight else turn
        for turn in conversation.turns
    )


def check(
    quality: Quality, template: Template, labelled: Mapping[str | None, int]
) -> dict[str, Counter[str]]:
    """Conversations by class and label. StageError where conditions or weights cannot work.

    `labelled`: the conversations of each label.
    """
    counts: dict[str, Counter[str]] = {}
    for label, count in labelled.items():
        labels = counts.setdefault(quality.classes.get(label or "", quality.other), Counter())
        labels[label or "(no label)"] += count
    if quality.conditioning:
        try:
            for words in quality.conditions.values():
                with_condition(template, words)
        except ValueError as error:
            raise StageError(f"sft.quality.conditioning: {error}") from error
        # A class in the expert's words would be learned as the expert.
        same = [name for name, words in quality.conditions.items() if words == template.condition]
        if same:
            raise StageError(
                f"sft.quality.conditions: {same[0]} has the words {template.condition!r} of the "
                f"expert, which are those of the template {template.name}; give it other words"
            )
    # Then nothing would be trained in the words that serving uses; mostly the labels are misspelt.
    if (quality.conditioning or quality.weighting) and not counts.get(EXPERT):
        raise StageError(
            "sft.quality: no conversation is of the class expert; list the labels of expert "
            f"answers in sft.quality.classes, now {', '.join(quality.classes)} (`quality` of our "
            "records, `model` in ShareGPT)"
        )
    for name, labels in sorted(counts.items()):
        numbers = ", ".join(f"{label} ({count})" for label, count in sorted(labels.items()))
        print(f"class {name}: {numbers}")
    return dict(sorted(counts.items()))
