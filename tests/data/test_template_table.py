"""The strings of every template, written out from their sources."""

from __future__ import annotations

import pytest

from rayward.data.formats.readers.chat import alpaca
from rayward.data.formats.writers.table import WRITERS
from rayward.data.records import Turn
from rayward.data.templates.pieces import text, with_condition
from rayward.data.templates.table import TEMPLATES, find

EOT = "<|end_of_turn|>"
SYSTEM, U1, A1, U2, A2 = (
    Turn("system", "S."),
    Turn("user", "u1"),
    Turn("assistant", "a1"),
    Turn("user", "u2"),
    Turn("assistant", "a2"),
)
CHAT = (U1, A1, U2, A2)
ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately "
    "completes the request.\n\n### Instruction:\nu1\n\n### Response:"
)
ALPACA_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request."
)

# name: (question with generation prompt, two rounds, question after a system message)
STRINGS = {
    "openchat_3.5_math": (
        f"Math Correct User: u1{EOT}Math Correct Assistant:",
        f"Math Correct User: u1{EOT}Math Correct Assistant: a1{EOT}Math Correct User: u2{EOT}"
        f"Math Correct Assistant: a2{EOT}",
        f"S.{EOT}Math Correct User: u1{EOT}Math Correct Assistant:",
    ),
    "openchat_v1": (
        f"Human: u1{EOT}Assistant: ",
        f"Human: u1{EOT}Assistant: a1{EOT}Human: u2{EOT}Assistant: a2{EOT}",
        f"S.{EOT}Human: u1{EOT}Assistant: ",
    ),
    "opencoder": (
        f"User:u1{EOT}Assistant:",
        f"User:u1{EOT}Assistant:a1{EOT}User:u2{EOT}Assistant:a2{EOT}",
        f"S.{EOT}User:u1{EOT}Assistant:",
    ),
    "openchat_v2": (
        f"User:u1{EOT}Assistant GPT4:",
        f"User:u1{EOT}Assistant GPT4:a1{EOT}User:u2{EOT}Assistant GPT4:a2{EOT}",
        f"S.{EOT}User:u1{EOT}Assistant GPT4:",
    ),
    "openchat_v3.1": (
        f"Assistant is GPT4{EOT}User:u1{EOT}Assistant:",
        f"Assistant is GPT4{EOT}User:u1{EOT}Assistant:a1{EOT}User:u2{EOT}Assistant:a2{EOT}",
        f"Assistant is GPT4{EOT}S.{EOT}User:u1{EOT}Assistant:",
    ),
    "openchat_v3.2": (
        f"GPT4 User:u1{EOT}GPT4 Assistant:",
        f"GPT4 User:u1{EOT}GPT4 Assistant:a1{EOT}GPT4 User:u2{EOT}GPT4 Assistant:a2{EOT}",
        f"S.{EOT}GPT4 User:u1{EOT}GPT4 Assistant:",
    ),
    "openchat_3.6": (
        "<|start_header_id|>GPT4 Correct User<|end_header_id|>\n\nu1<|eot_id|>"
        "<|start_header_id|>GPT4 Correct Assistant<|end_header_id|>\n\n",
        "<|start_header_id|>GPT4 Correct User<|end_header_id|>\n\nu1<|eot_id|>"
        "<|start_header_id|>GPT4 Correct Assistant<|end_header_id|>\n\na1<|eot_id|>"
        "<|start_header_id|>GPT4 Correct User<|end_header_id|>\n\nu2<|eot_id|>"
        "<|start_header_id|>GPT4 Correct Assistant<|end_header_id|>\n\na2<|eot_id|>",
        "<|start_header_id|>System<|end_header_id|>\n\nS.<|eot_id|>"
        "<|start_header_id|>GPT4 Correct User<|end_header_id|>\n\nu1<|eot_id|>"
        "<|start_header_id|>GPT4 Correct Assistant<|end_header_id|>\n\n",
    ),
    "ultralm": (
        "User: u1</s>\nAssistant: ",
        "User: u1</s>\nAssistant: a1</s>\nUser: u2</s>\nAssistant: a2</s>",
        "User: S.</s>\nUser: u1</s>\nAssistant: ",
    ),
    "alpaca": (
        ALPACA,
        f"{ALPACA}a1</s>\n\n### Instruction:\nu2\n\n### Response:a2</s>",
        "S.\n\n### Instruction:\nu1\n\n### Response:",
    ),
    "llama2": (
        "[INST] u1 [/INST]",
        "[INST] u1 [/INST] a1 </s><s>[INST] u2 [/INST] a2 </s>",
        "[INST] <<SYS>>\nS.\n<</SYS>>\n\nu1 [/INST]",
    ),
    "chatml": (
        "<|im_start|>user\nu1<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>user\nu1<|im_end|>\n<|im_start|>assistant\na1<|im_end|>\n"
        "<|im_start|>user\nu2<|im_end|>\n<|im_start|>assistant\na2<|im_end|>\n",
        "<|im_start|>system\nS.<|im_end|>\n<|im_start|>user\nu1<|im_end|>\n<|im_start|>assistant\n",
    ),
}


@pytest.mark.parametrize("name", STRINGS)
def test_strings(name: str) -> None:
    template = find(name)
    asked, chat, with_system = STRINGS[name]
    assert text(template, (U1,), True) == asked
    assert text(template, CHAT) == chat
    assert text(template, (SYSTEM, U1), True) == with_system


def test_every_template_is_written_out_somewhere() -> None:
    elsewhere = {
        "vicuna_v1.1",
        "openchat_3.5",
        "openchat_3.5_code",
        "tokenizer",
    }  # test_templates, test_own_template
    assert set(STRINGS) | elsewhere == set(TEMPLATES)


def test_alpaca_with_an_input() -> None:
    """From a row of a file to the string of Alpaca's own trainer, and back to the row."""
    row = {"instruction": "Add.", "input": "1 2", "output": "3"}
    (record,) = alpaca(row, [])
    turns, template = record.turns, find("alpaca")
    prompt = f"{ALPACA_INPUT}\n\n### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:"
    assert text(template, turns) == f"{prompt}3</s>"
    assert text(template, turns[:1], True) == prompt
    assert WRITERS["alpaca"].rows(record, []) == [row]
    # The introduction is that of the first question, and a system message stands in its place.
    assert text(template, (U1, A1, *turns)).startswith(
        f"{ALPACA}a1</s>\n\n### Instruction:\nAdd.\n\n### Input:\n"
    )
    assert text(template, (SYSTEM, *turns)) == f"S.{prompt}3</s>".replace(ALPACA_INPUT, "")
    assert (
        text(find("chatml"), turns[:1]) == "<|im_start|>user\nAdd.\n\n### Input:\n1 2<|im_end|>\n"
    )


def test_ultralm_asked_as_in_its_evaluation() -> None:
    system = "A chat between a curious user and an artificial intelligence assistant."
    turns = (Turn("system", system), *CHAT[:3])
    assert text(find("ultralm"), turns, True) == (
        f"User: {system}</s>\nUser: u1</s>\nAssistant: a1</s>\nUser: u2</s>\nAssistant: "
    )


@pytest.mark.parametrize(
    "name, expected",
    [
        ("openchat_v2", f"User:u1{EOT}Assistant GPT3:a1{EOT}"),
        ("openchat_v3.1", f"Assistant is GPT3{EOT}User:u1{EOT}Assistant:a1{EOT}"),
        ("openchat_v3.2", f"GPT3 User:u1{EOT}GPT3 Assistant:a1{EOT}"),
        ("openchat_3.5", f"GPT3 User: u1{EOT}GPT3 Assistant: a1{EOT}"),
        (
            "openchat_3.6",
            "<|start_header_id|>GPT3 User<|end_header_id|>\n\nu1<|eot_id|>"
            "<|start_header_id|>GPT3 Assistant<|end_header_id|>\n\na1<|eot_id|>",
        ),
    ],
)
def test_the_words_of_another_class(name: str, expected: str) -> None:
    other = with_condition(find(name), "GPT3")
    assert text(other, (U1, A1)) == expected
    assert with_condition(other, find(name).condition) == find(name)


def test_the_other_modes_of_openchat_are_conditions_of_the_first() -> None:
    for name, words in (("openchat_3.5_code", "Code"), ("openchat_3.5_math", "Math Correct")):
        assert text(with_condition(find("openchat_3.5"), words), CHAT) == text(find(name), CHAT)


@pytest.mark.parametrize(
    "name", ["vicuna_v1.1", "openchat_v1", "opencoder", "ultralm", "tokenizer"]
)
def test_a_template_without_a_place_for_the_class_says_so(name: str) -> None:
    with pytest.raises(
        ValueError, match=f"chat template {name} cannot say 'GPT3'.*those that can: openchat_3.5"
    ):
        with_condition(find(name), "GPT3")
