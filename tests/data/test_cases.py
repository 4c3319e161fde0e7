"""Small inputs that people have, each as the records that it means."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rayward.data.formats.registry import Report, outcomes
from rayward.data.formats.rows.fields import ReadOptions
from rayward.data.records import (
    Conversation,
    Labelled,
    Preference,
    Prompt,
    Ranking,
    Record,
    ToolCall,
    Turn,
)
from tests.data.examples import write_lines

CASES = Path(__file__).resolve().parents[2] / ".." / "shared" / "cases" / "data"


def ask(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def say(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def sharegpt(*turns: tuple, **more: Any) -> dict[str, Any]:
    entries = [
        {"from": who, "value": text, **(rest[0] if rest else {})} for who, text, *rest in turns
    ]
    return {"conversations": entries, **more}


def user(text: str) -> Turn:
    return Turn("user", text)


def answer(text: str, weight: float | None = None) -> Turn:
    return Turn("assistant", text, weight)


def system(text: str) -> Turn:
    return Turn("system", text)


def refused(*fields: str) -> list[str]:
    return list(fields)


HI = [ask("Hi"), say("Hello")]
HI_TURNS = (user("Hi"), answer("Hello"))
HI_CHAT = Conversation(HI_TURNS)
THOUGHT = Conversation((HI_TURNS[0], replace(HI_TURNS[1], reasoning="A greeting.")))


def tools_of_name(name: str) -> str:
    """The tools of a record with one that has nothing but a name."""
    return json.dumps([{"type": "function", "function": {"name": name}}])


PAIR = {"chosen": [*HI[:1], say("Yes")], "rejected": [*HI[:1], say("No")]}
YES_NO = Preference((user("Hi"),), "Yes", "No")
IMAGE_PART = [{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {"url": "x"}}]

# name: rows, what they are (records without their source, or the fields that set a row aside),
# repairs, what is passed over.
ROWS: dict[str, tuple[list[dict], list, dict[str, int], dict[str, int]]] = {
    "kto_tag_false": (
        [{"messages": HI, "kto_tag": False}, {"messages": HI, "kto_tag": True}],
        [Labelled(HI_TURNS[:1], "Hello", False), Labelled(HI_TURNS[:1], "Hello", True)],
        {},
        {},
    ),
    "kto_label_int": (
        [
            {"messages": HI, "label": label}
            for label in (1, 0, "true", "False", 1.0, "0", "harmless")
        ],
        [
            *(Labelled(HI_TURNS[:1], "Hello", good) for good in (True, False) * 3),
            *refused("label"),
        ],
        {},
        {},
    ),
    "kto_prompt_completion": (
        [
            {"prompt": "Hi", "completion": "Hello", "label": True},
            {"prompt": HI[:1], "completion": HI[1:], "label": False},
        ],
        [Labelled(HI_TURNS[:1], "Hello", True), Labelled(HI_TURNS[:1], "Hello", False)],
        {},
        {},
    ),
    "labels_in_any_format": (
        [
            sharegpt(("human", "Hi"), ("gpt", "Hello"), kto_tag="false", model="m"),
            sharegpt(("human", "Hi"), ("gpt", "Hello", {"weight": 0}), label=1),
        ],
        [Labelled(HI_TURNS[:1], "Hello", False), *refused("turns")],
        {"left out quality": 1},
        {},
    ),
    "sharegpt_weight0": (
        [
            sharegpt(
                ("human", "Hi"), ("gpt", "x", {"weight": 0}), ("human", "Hi"), ("gpt", "Hello")
            ),
            {"messages": [ask("Hi"), say("Hello", loss=False)]},
            {"messages": [ask("Hi"), say("Hello", train=True)]},
            {"messages": [ask("Hi"), say("Hello", loss_weight=0.5, weight=None)]},
            {"messages": [ask("Hi"), say("Hello", loss_mask=0, weight=1)]},
            {"messages": [ask("Hi"), say("Hello", weight="much")]},
            {"messages": HI, "weight": 2},
        ],
        [
            Conversation((user("Hi"), answer("x", 0.0), *HI_TURNS)),
            Conversation((user("Hi"), answer("Hello", 0.0))),
            Conversation((user("Hi"), answer("Hello", 1.0))),
            Conversation((user("Hi"), answer("Hello", 0.5))),
            *refused("messages[1].loss_mask", "messages[1].weight", "weight"),
        ],
        {},
        {},
    ),
    "sys_column": (
        [
            sharegpt(("human", "Hi"), ("gpt", "Hello"), system="Be brief."),
            {"instruction": "Hi", "output": "Hello", "system_prompt": "Be brief."},
            {"messages": HI, "system_message": " \n"},
            {"messages": HI[:1], "system": "Be brief."},
            {"prompt": "Hi", "chosen": "Yes", "rejected": "No", "system": "Be brief."},
            {"messages": [{"role": "system", "content": "x"}, *HI], "system": "Be brief."},
        ],
        [
            *[Conversation((system("Be brief."), *HI_TURNS))] * 2,
            HI_CHAT,
            Prompt((system("Be brief."), user("Hi"))),
            Preference((system("Be brief."), user("Hi")), "Yes", "No"),
            *refused("system"),
        ],
        {"left out empty system turn": 1},
        {},
    ),
    "tools_column": (
        [
            sharegpt(("human", "Hi"), ("gpt", "Hello"), tools='[{"name": "tide"}]'),
            sharegpt(("human", "Hi"), ("gpt", "Hello"), tools="[]"),
            {"messages": [ask("Hi"), say("Hello", tool_calls=[{"id": "1"}])]},
            {"messages": [ask("Hi"), say("Hello", tool_calls=[{"name": "f", "arguments": {}}])]},
            {"messages": [ask("Hi"), say("Hello", tool_calls=None)]},
            {"messages": HI, "functions": [{"name": "f"}]},
            {"instruction": "Hi", "output": "Hello", "tools": [{"name": "f"}]},
            {"messages": HI, "functions": [{"f": "name"}]},
            {"messages": [ask("Hi"), {"role": "tool", "content": "1"}, say("Hello")]},
        ],
        [
            replace(HI_CHAT, tools=tools_of_name("tide")),
            HI_CHAT,
            *refused("messages[1].tool_calls[0].name"),
            Conversation((user("Hi"), replace(answer("Hello"), tool_calls=(ToolCall("f", "{}"),)))),
            HI_CHAT,
            replace(HI_CHAT, tools=tools_of_name("f")),
            replace(HI_CHAT, tools=tools_of_name("f")),
            *refused("functions[0].function.name", "messages[1].role"),
        ],
        {},
        {},
    ),
    "reasoning_content": (
        [
            {"messages": [ask("Hi"), say("Hello", reasoning_content="A greeting.")]},
            {"messages": [ask("Hi"), say("Hello", thinking="A greeting.")]},
            {"messages": [ask("Hi"), say("Hello", reasoning="")]},
            {"messages": [ask("Hi"), say("Hello", reasoning="A greeting.", thinking="No.")]},
            {"instruction": "Hi", "output": "Hello", "reasoning": "A greeting."},
            # Of which answer?
            {"prompt": "Hi", "chosen": "Hello", "rejected": "No", "reasoning": "A greeting."},
        ],
        [
            THOUGHT,
            THOUGHT,
            HI_CHAT,
            *refused("messages[1].thinking"),
            THOUGHT,
            *refused("reasoning"),
        ],
        {},
        {},
    ),
    "images_column": (
        [
            {"messages": HI, "images": ["cat.png"]},
            {"messages": HI, "images": []},
            {"messages": [{"role": "user", "content": IMAGE_PART}, *HI[1:]]},
            {"instruction": "What?", "output": "A cat.", "audio": {"path": "x.wav"}},
        ],
        [*refused("images"), HI_CHAT, *refused("messages[0].content[1].type", "audio")],
        {},
        {},
    ),
    "alpaca_history": (
        [
            {
                "instruction": "Hi",
                "output": "Hello",
                "history": history,
                "system": "Be brief.",
            }
            for history in ([["q", "a"]], [ask("q"), say("a")], '[["q", "a"]]', [], [["q"]])
        ],
        [
            *[Conversation((system("Be brief."), user("q"), answer("a"), *HI_TURNS))] * 3,
            Conversation((system("Be brief."), *HI_TURNS)),
            *refused("history[0]"),
        ],
        {},
        {},
    ),
    "alpaca_empty_instruction": (
        [{"instruction": "", "input": "Hi", "output": "Hello"}],
        [HI_CHAT],
        {},
        {},
    ),
    "messages_groundtruth_rl": (
        [
            {"messages": HI[:1], "ground_truth": "2", "dataset": "gsm"},
            {"messages": HI[:1], "ground_truth": ["2"]},
            {"messages": HI[:1], "answer": 2, "solution": "1 + 1 is 2."},
            {"messages": HI, "solution": "2"},
            {"messages": HI[:1], "ground_truth": ["2", "3"]},
        ],
        [
            *[Prompt((user("Hi"),), reference="2")] * 3,
            HI_CHAT,
            *refused("ground_truth"),
        ],
        {},
        {"dataset": 1, "solution": 2},
    ),
    "verl_rl": (
        [
            {
                "data_source": "gsm8k",
                "prompt": HI[:1],
                "reward_model": {"style": "rule", "ground_truth": "2"},
                "extra_info": {"index": 0},
            },
            {"prompt": "Hi", "answer": "2"},
        ],
        [Prompt((user("Hi"),), reference="2")] * 2,
        {},
        {"reward_model.style": 1, "extra_info": 1},
    ),
    "messages_json_string": (
        [
            {"messages": json.dumps([{"role": "system", "content": "Be brief."}, *HI])},
            {"messages": "[not JSON"},
            {"messages": '["Hi", "Hello"]'},
        ],
        [Conversation((system("Be brief."), *HI_TURNS)), *refused("messages", "messages")],
        {},
        {},
    ),
    "prompt_json_string": (
        [
            {"prompt": json.dumps(HI[:1])},
            {"prompt": str(HI[:1])},
            {"prompt": "[1, 2] has how many items?"},
            {"prompt": json.dumps(HI[:1])[:-4]},
        ],
        [
            *[Prompt((user("Hi"),))] * 2,
            Prompt((user("[1, 2] has how many items?"),)),
            *refused("prompt"),
        ],
        {},
        {},
    ),
    "hh_prompt_col": (
        [
            {"prompt": "\n\nHuman: Hi\n\nAssistant:", "chosen": " Yes", "rejected": " No"},
            {
                "prompt": "Human: q\n\nAssistant: a\n\nHuman: Hi\n\nAssistant: ",
                "chosen": "Yes",
                "rejected": "No",
            },
            {"prompt": "Human: is that a word?", "chosen": " Yes", "rejected": " No"},
        ],
        [
            YES_NO,
            Preference((user("q"), answer("a"), user("Hi")), "Yes", "No"),
            Preference((user("Human: is that a word?"),), " Yes", " No"),
        ],
        {},
        {},
    ),
    "content_empty_system": (
        [
            {"messages": [{"role": "system", "content": ""}, *HI]},
            sharegpt(("system", " "), ("human", "Hi"), ("gpt", "Hello")),
        ],
        [HI_CHAT, HI_CHAT],
        {"left out empty system turn": 2},
        {},
    ),
    "pref_implicit_lists": (
        [
            PAIR,
            {"chosen": [ask("q"), *HI], "rejected": [ask("q"), ask("Hi"), say("No")]},
            {"chosen": [*HI, ask("q"), say("a")], "rejected": [*HI, ask("q"), say("b")]},
            {"chosen": [*HI, ask("q"), say("a")], "rejected": [ask("Hi"), say("No")]},
        ],
        [
            YES_NO,
            *refused("chosen[1].role"),
            Preference((*HI_TURNS, user("q")), "a", "b"),
            *refused("chosen"),
        ],
        {},
        {},
    ),
    "orca": (
        [{"id": "7", "system_prompt": "Be brief.", "question": "Hi", "response": "Hello"}],
        [Conversation((system("Be brief."), *HI_TURNS), id="7")],
        {},
        {},
    ),
    "pref_orca_dpo": (
        [
            {"system": "", "question": "Hi", "chosen": "Yes", "rejected": "No"},
            {"instruction": "Hi", "input": "", "chosen": "Yes", "rejected": "No"},
            {"question": "Hi", "chosen": say("Yes"), "rejected": say("No")},
        ],
        [YES_NO] * 3,
        {},
        {},
    ),
    "rewardbench2": (
        [
            {
                "id": "1",
                "prompt": "Hi",
                "chosen": ["Yes", "Aye"],
                "rejected": ["No", "Nay", "Tile."],
                "subset": "Ties",
                "models": ["a"] * 5,
            }
        ],
        [
            Ranking(
                (user("Hi"),),
                ("Yes", "Aye", "No", "Nay", "Tile."),
                id="1",
                ranks=(1.0, 1.0, 3.0, 3.0, 3.0),
            )
        ],
        {},
        {"models": 1},
    ),
    "capybara": (
        [
            {
                "source": "x",
                "conversation": [
                    {"input": "Hi", "output": "Hello"},
                    {"input": "q", "output": "a"},
                ],
            },
            {"conversation": HI},
        ],
        [Conversation((*HI_TURNS, user("q"), answer("a"))), HI_CHAT],
        {},
        {},
    ),
    "roles": (
        [
            {"conversations": HI},
            {"messages": [ask("Hi"), {"role": "model", "content": "Hello"}]},
            sharegpt(("Human", "Hi"), ("GPT", "Hello")),
            sharegpt(("prompter", "Hi"), ("Bot", "Hello")),
            {"messages": [{"role": "developer", "content": "Be brief."}, *HI]},
            sharegpt(("human", "Hi"), ("alien", "Hello")),
        ],
        [
            *[HI_CHAT] * 4,
            Conversation((system("Be brief."), *HI_TURNS)),
            *refused("conversations[1].from"),
        ],
        {},
        {},
    ),
    "content_parts_text": (
        [
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}],
                    },
                    {"role": "assistant", "content": [{"type": "text", "text": "Hello"}]},
                ]
            }
        ],
        [HI_CHAT],
        {},
        {},
    ),
    "zero_width_answer": (
        [
            {"instruction": "Hi", "output": "\u200b \ufeff"},
            {"instruction": "Hi", "output": "Hello"},
        ],
        [*refused("output"), HI_CHAT],
        {},
        {},
    ),
    "ids": (
        [
            {"id": label, "instruction": "Hi", "output": "Hello"}
            for label in (None, " ", 1.0, float("nan"), "x")
        ],
        [HI_CHAT, HI_CHAT, Conversation(HI_TURNS, id="1"), *refused("line")],
        {},
        {},
    ),
    "passed_over": (
        [
            {"messages": HI, "annotator": "Ada", "scores": [], "at": 0},
            {"messages": [ask("Hi"), say("Hello", name="Bo")], "annotator": "Ada"},
            {"messages": HI, "annotator": ""},
        ],
        [HI_CHAT] * 3,
        {},
        {"annotator": 2, "at": 1, "messages.name": 1},
    ),
}
# NaN is no JSON: its row is bad, and the one behind it good.
ROWS["ids"][1].append(Conversation(HI_TURNS, id="x"))


def without_source(record: Record) -> Record:
    return replace(record, source="")


def read_all(path: Path, **asked: Any) -> tuple[list[Record | str], Report]:
    """The records without their source, or the field of the error; and the account."""
    report, found = Report(), []
    for outcome in outcomes(path, options=ReadOptions(**asked)):
        report.count(outcome)
        if outcome.error is not None:
            assert outcome.error.found and outcome.error.expected and outcome.error.reason
            found.append(outcome.error.field)
        found += [without_source(record) for record in outcome.records]
    return found, report


@pytest.mark.parametrize("name", ROWS)
def test_rows_as_people_have_them(name: str, tmp_path: Path) -> None:
    rows, expected, repairs, passed_over = ROWS[name]
    # Each in a file of its own: the first row of a file says which format it has.
    for number, row in enumerate(rows):
        write_lines(tmp_path / f"{number:02}.jsonl", [row])
    found, report = read_all(tmp_path)
    assert found == expected
    assert (report.repaired, report.passed_over) == (repairs, passed_over)
    assert report.read == len(rows) == report.kept + report.rejected.total()


# What is in the files of the cases: records without their source, or the fields of the errors.
FRUIT = (user("Name a fruit."),)
LABELS = [Labelled(FRUIT, "Fig.", True), Labelled(FRUIT, "Brick.", False)]
FIG_BRICK = Preference(FRUIT, "Fig.", "Brick.")
FILES: dict[str, list[Record | str]] = {
    "alpaca_empty_instruction": [Conversation((user("What is tar?"), answer("A black goo.")))],
    "alpaca_history": [
        Conversation(
            (
                system("You teach French."),
                user("Blue in French?"),
                answer("Bleu."),
                user("And red?"),
                answer("Rouge."),
            )
        )
    ],
    "capybara": [Conversation((*HI_TURNS, user("Bye"), answer("Ciao")))],
    "content_empty_system": [HI_CHAT],
    "content_parts_text": [Conversation((user("Hi there"), answer("Hello")))],
    "conversations_role_content": [HI_CHAT],
    "gemma_system_row": [
        Conversation((user("Hi there"), answer("Hello!"))),
        Conversation((system("Be brief."), user("Hi there"), answer("Hello!"))),
        Conversation((user("Bye"), answer("Ciao!"))),
    ],
    "hh_prompt_col": [YES_NO],
    "images_column": ["images"],
    "kto_label_int": LABELS,
    "kto_prompt_completion": LABELS,
    "kto_tag_false": LABELS[::-1],
    "messages_groundtruth_rl": [Prompt((user("1+1?"),), reference="2")],
    "messages_json_string": [Conversation((system("Be brief."), *HI_TURNS))],
    "messages_model_role": [HI_CHAT],
    "orca": [Conversation((system("Be terse."), *FRUIT, answer("Fig.")), id="niv")],
    "pq_float_id": [
        Conversation((user("a"), answer("x")), id="1"),
        Conversation((user("b"), answer("y"))),
    ],
    "pq_ts_bad": [Conversation((user(q), answer(a))) for q, a in ("ax", "by")],
    "pref_implicit_lists": [FIG_BRICK],
    "pref_orca_dpo": [Preference((system("Be terse."), *FRUIT), "Fig.", "Brick.")],
    "reasoning_content": [
        Conversation((user("2+2?"), replace(answer("4"), reasoning="Two and two make four.")))
    ],
    "rewardbench2": [
        Ranking(FRUIT, ("Fig.", "Brick.", "Tile.", "Sand."), "", "1", (1.0, 2.0, 2.0, 2.0))
    ],
    "sharegpt_Human_caps": [HI_CHAT],
    "sharegpt_weight0": [
        Conversation((user("2+2?"), answer("5", 0.0), user("Check."), answer("4", 1.0)))
    ],
    "single_object_pretty": [HI_CHAT],
    "sys_column_sharegpt": [
        Conversation(
            (system("Answer like a pirate."), user("Where is port?"), answer("Arr, left."))
        )
    ],
    "tools_column_sharegpt": [
        Conversation(
            (user("Is it high tide?"), answer("I cannot know.")), tools=tools_of_name("tide")
        )
    ],
    "verl_rl": [Prompt(FRUIT, reference="fig")],
}


@pytest.mark.skipif(not CASES.is_dir(), reason="the cases are not beside this checkout")
def test_the_files_of_the_cases() -> None:
    assert {path.stem for path in CASES.iterdir()} <= {*FILES}
    found = {path.stem: read_all(path)[0] for path in CASES.iterdir()}
    assert found == {name: FILES[name] for name in found}
