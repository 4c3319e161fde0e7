"""Where a scored conversation ends: training rows, judged answers and rollouts are the same ids,
for every template.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from rayward.data.records import Turn
from rayward.data.templates.jinja import jinja
from rayward.data.templates.scored import scored
from rayward.data.templates.template import TEMPLATES, Template, encode, find, stop_token_ids
from rayward.data.templates.tokenizer import train_tokenizer

SPECIAL = (
    "</s>",
    *(token for entry in TEMPLATES.values() for token in entry.special_tokens if token != "</s>"),
)
CORPUS = [
    "Hello there, how are you today? I am fine.",
    "USER: What is 12 + 345? ASSISTANT: It is 357.",
    "[INST] x",
]
# A template may write after the end token, or between the answer and it, inside of the trained span
# or not.
OWN = {
    "newline after": "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}",
    "trained newline after": "{% generation %}{{ m.content + '<|im_end|>\\n' }}{% endgeneration %}",
    "newline between": "{% generation %}{{ m.content + '\\n<|im_end|>' }}{% endgeneration %}",
    "trims": "{% generation %}{{ m.content | trim + ' <|im_end|>' }}{% endgeneration %}{{ '\\n' }}",
    "a token after": "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}"
    "{{ '<|eot_id|>' }}",
}
FORM = (
    "{%% for m in messages %%}{{ '<|im_start|>' + m.role + '\\n' }}{%% if m.role == 'assistant' "
    "%%}%s{%% else %%}{{ m.content + '<|im_end|>\\n' }}{%% endif %%}{%% endfor %%}{%% if "
    "add_generation_prompt %%}{{ '<|im_start|>assistant\\n' }}{%% endif %%}"
)
NAMED = [name for name, template in TEMPLATES.items() if not template.is_tokenizers]
ASKED = (
    (Turn("user", "What is 12 + 345?"),),
    (Turn("system", "Be brief."), Turn("user", "Hello there <|im_end|> </s>")),
    (
        Turn("user", "12?"),
        Turn("assistant", "It is <|im_end|> 345."),
        Turn("user", "How are you today?"),
    ),
    (Turn("system", "x"), Turn("user", "a"), Turn("assistant", "Hello"), Turn("user", "Hello")),
)
ANSWERS = (
    "I am fine.",
    "Hello",
    "12\n\n345",
    "It is </s> <|im_end|> x",
    "Fine!  ",
    "  two spaces",
    "日本\n",
)
WITH_TAIL = ("llama2", "jinja of llama2", "newline between", "trims")
WRITTEN = ("jinja of chatml", "jinja of llama2", *OWN)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer(CORPUS, 400, SPECIAL, 512)


def of(name: str, tokenizer: Any) -> Template:
    """The template, and the tokenizer made ready for it."""
    if name in TEMPLATES:
        return TEMPLATES[name]
    named = name.removeprefix("jinja of ")
    tokenizer.chat_template = jinja(TEMPLATES[named]) if named != name else FORM % OWN[name]
    return find("tokenizer")


def sampled(template: Template, turns: tuple[Turn, ...], tokenizer: Any) -> list[int]:
    """What a model that has learned this answer samples after the prompt, from the pieces of the
    template.
    """
    prompt = encode(template, turns[:-1], tokenizer, add_generation_prompt=True).ids
    (stop,) = stop_token_ids(template, tokenizer)
    trained = encode(template, turns, tokenizer).ids
    assert trained[: len(prompt)] == prompt
    answer = trained[len(prompt) :]
    return prompt + answer[: answer.index(stop) + 1]


@pytest.mark.parametrize("name", [*NAMED, *WRITTEN])
def test_a_row_ends_at_the_end_token_exactly_if_the_answer_ended(name: str, tokenizer: Any) -> None:
    template = of(name, tokenizer)
    (stop,) = stop_token_ids(template, tokenizer)
    for asked, said in itertools.product(ASKED, (*ANSWERS, "", " \n")):
        turns = (*asked, Turn("assistant", said))
        prompt = encode(template, asked, tokenizer, add_generation_prompt=True).ids
        whole, cut = (
            scored(template, turns, tokenizer),
            scored(template, turns, tokenizer, finished=False),
        )
        for row in (whole, cut):
            assert row.ids[: len(prompt)] == prompt and len(row.ids) == len(row.weights)
        answer = whole.ids[len(prompt) :]
        assert answer.count(stop) == 1 and answer[-1] == stop, (
            "the end token ends it, and nothing follows"
        )
        assert stop not in cut.ids[len(prompt) :], "a cut answer looks finished nowhere"
        kept = tokenizer.decode(cut.ids[len(prompt) :])
        assert kept.strip() == said.strip()
        if said.strip():
            assert whole.weights[-1] == 1, "what is scored is what SFT trains as the end"
            assert whole.ids == sampled(template, turns, tokenizer), (
                "a rollout of the same text is the same row"
            )
        else:
            assert (answer, cut.ids) == ([stop], prompt)


@pytest.mark.parametrize("name", [*NAMED, *WRITTEN])
def test_what_the_template_writes_after_an_answer_is_not_in_a_cut_one(
    name: str, tokenizer: Any
) -> None:
    template = of(name, tokenizer)
    for asked in ASKED:
        turns = (*asked, Turn("assistant", "It is 357"))
        prompt = encode(template, asked, tokenizer, add_generation_prompt=True).ids
        whole, cut = (
            scored(template, turns, tokenizer),
            scored(template, turns, tokenizer, finished=False),
        )
        # Nothing but the space that belongs to an answer may stand before it: after it there is
        # nothing.
        assert tokenizer.decode(cut.ids[len(prompt) :]).lstrip(" ") == "It is 357"
        assert cut.ids == whole.ids[: len(cut.ids)] and cut.weights == whole.weights[: len(cut.ids)]
        assert (len(whole.ids) - len(cut.ids) == 1) == (name not in WITH_TAIL)


def test_a_turn_without_weight_is_scored_like_any_other(tokenizer: Any) -> None:
    turns = (Turn("user", "a"), Turn("assistant", "b", 0.0))
    (stop,) = stop_token_ids(find("chatml"), tokenizer)
    for said in ("b", " "):
        row = scored(find("chatml"), (turns[0], Turn("assistant", said, 0.0)), tokenizer)
        assert row.ids[-1] == stop and row.weights[-1] == 1
