"""Readers: each format's example, the same rows in every container, every kind of bad row, the real files."""

from __future__ import annotations

import gzip
import json
import random
from collections import Counter
from pathlib import Path

import pytest

from data import containers
from data.formats import FORMATS, Report, detect, outcomes, read
from data.records import (
    Conversation,
    Preference,
    Prompt,
    Ranking,
    RowError,
    Turn,
    from_json,
    to_json,
    validate,
)

REAL = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"
needs_real_data = pytest.mark.skipif(
    not REAL.is_dir(), reason="the real data sets are not beside this checkout"
)

ROWS = {
    "sharegpt": {"id": "a_0", "model": "Model: GPT-4", "conversations": [
        {"from": "system", "value": "Be brief."}, {"from": "human", "value": "Hi"},
        {"from": "gpt", "value": "Hello!"}]},
    "alpaca": {"instruction": "Classify.", "input": "cat", "output": "animal"},
    "hh_rlhf": {"chosen": "\n\nHuman: q\n\nAssistant: a\n\nHuman: r\n\nAssistant: good",
                "rejected": "\n\nHuman: q\n\nAssistant: a\n\nHuman: r\n\nAssistant: bad"},
    "nectar": {"prompt": "\n\nHuman: Hi\n\nAssistant: ", "num_responses": 3, "source": ["sharegpt"],
               "answers": [{"answer": "C", "model": "x", "rank": 2.0}, {"answer": "A", "rank": 1},
                           {"answer": "B", "model": "z", "rank": 1.0}]},
    "openai": {"messages": [{"role": "user", "content": "Hi"},
                            {"role": "assistant", "content": "Hello!", "weight": 1}]},
    "alpaca_eval": {"instruction": "Why?", "output": "Because.", "generator": "m", "dataset": "helpful_base"},
    "ultrachat": {"id": "0", "data": ["q", "a", "r", "b"]},
    "ultra_eval": {"class": " Vicuna ", "data": "Why?"},
    "crlft": {"items": [{"role": "user", "content": "q", "weight": 0.0},
                        {"role": "assistant", "content": "a", "weight": 0.1}], "condition": "GPT3", "system": ""},
    "ultrafeedback": {"source": "flan", "instruction": "q", "completions": [
        {"response": "C", "annotations": {"honesty": {"Rating": "1"}, "helpfulness": {"Rating": "N/A"}}},
        {"response": "A", "annotations": {"honesty": {"Rating": "5"}, "helpfulness": {"Rating": "4"}}},
        {"response": "B", "annotations": {"honesty": {"Rating": "4"}, "helpfulness": {"Rating": "5"}}}]},
    "mt_bench_questions": {"question_id": 81, "category": "math", "turns": ["q", "r"]},
    "mt_bench_answers": {"question_id": 81, "model_id": "m", "choices": [{"index": 0, "turns": ["a", "b"]}]},
    "rewardbench": {"id": 3, "prompt": "q", "chosen": "a", "rejected": "b", "subset": "donotanswer"},
    "rayward": {"kind": "prompt", "turns": [{"role": "user", "content": "Hi"}], "id": "7"},
    "self_instruct": {"id": "t", "instruction": "Add.", "instances": [{"input": "1 2", "output": "3"}]},
    "gsm8k": {"question": "1 + 1?", "answer": "#### 2"},
    "kto": {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "label": True},
    "sharegpt_pairs": {"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "a"},
                       "rejected": {"from": "gpt", "value": "b"}},
    "pandalm": {"idx": 5, "instruction": "Add.", "input": "1 2", "response1": "4", "response2": "3",
                "annotator1": 2, "annotator2": 1, "annotator3": 2},
    "gsm8k_solutions": {"question": "1 + 1?", "ground_truth": "A: 2", "6b": {"is_correct": False, "solution": "A: 3"},
                        "175b": {"is_correct": True, "solution": "So A: 2"}},
    "starling_truthful": {"question_id": 4, "prompt": "q", "response_a": "a", "response_b": "c", "response_c": "b"},
    "starling_verbose": {"prompt": "q", "response_a": "long", "response_b": "short"},
    "arena": {"question_id": "x", "prompt": "q", "response_a": "b", "response_b": "a", "winner": "model_b"},
    "alpaca_eval_annotations": {"instruction": "q", "output_1": "a", "output_2": "b", "preference": 1.2},
}  # fmt: skip
FOUR = (Turn("user", "q"), Turn("assistant", "a"), Turn("user", "r"), Turn("assistant", "b"))
RECORDS = {
    "sharegpt": Conversation(
        (Turn("system", "Be brief."), Turn("user", "Hi"), Turn("assistant", "Hello!")),
        "sharegpt",
        "a_0",
        "Model: GPT-4",
    ),
    "alpaca": Conversation((Turn("user", "Classify.\n\n### Input:\ncat"), Turn("assistant", "animal")), "alpaca"),
    "self_instruct": Conversation(
        (Turn("user", "Add.\n\n### Input:\n1 2"), Turn("assistant", "3")), "self_instruct", "t"
    ),
    "gsm8k": Conversation((Turn("user", "1 + 1?"), Turn("assistant", "#### 2")), "gsm8k"),
    "kto": Conversation((Turn("user", "q"), Turn("assistant", "a")), "kto"),
    "sharegpt_pairs": Preference((Turn("user", "q"),), "a", "b", None, "sharegpt_pairs"),
    "pandalm": Preference((Turn("user", "Add.\n\n### Input:\n1 2"),), "3", "4", None, "pandalm", "5"),
    "gsm8k_solutions": Ranking(
        (Turn("user", "1 + 1?"),), ("A: 2", "So A: 2", "A: 3"), "gsm8k_solutions", "", (1.0, 1.0, 3.0)
    ),
    "starling_truthful": Ranking((Turn("user", "q"),), ("a", "b", "c"), "starling/truthful", "4", (1.0, 1.0, 3.0)),
    "starling_verbose": Ranking((Turn("user", "q"),), ("short", "long"), "starling/verbose", "", (1.0, 2.0)),
    "arena": Preference((Turn("user", "q"),), "a", "b", None, "arena", "x"),
    "alpaca_eval_annotations": Preference((Turn("user", "q"),), "a", "b", None, "alpaca_eval"),
    "hh_rlhf": Preference(
        (Turn("user", "q"), Turn("assistant", "a"), Turn("user", "r")), "good", "bad", None, "hh_rlhf"
    ),
    "nectar": Ranking((Turn("user", "Hi"),), ("A", "B", "C"), "sharegpt", "", (1.0, 1.0, 2.0)),
    "openai": Conversation((Turn("user", "Hi"), Turn("assistant", "Hello!", 1.0)), "openai"),
    "alpaca_eval": Conversation(
        (Turn("user", "Why?"), Turn("assistant", "Because.")), "alpaca_eval", quality="m"
    ),
    "ultrachat": Conversation(FOUR, "ultrachat", "0"),
    "ultra_eval": Prompt((Turn("user", "Why?"),), "ultra_eval/Vicuna"),
    "crlft": Conversation((Turn("user", "q", 0.0), Turn("assistant", "a", 0.1)), "crlft", "", "GPT3"),
    "ultrafeedback": Ranking((Turn("user", "q"),), ("A", "B", "C"), "ultrafeedback/flan", "", (1.0, 1.0, 3.0)),
    "mt_bench_questions": Prompt((Turn("user", "q"),), "mt_bench/math", "81", ("r",)),
    "mt_bench_answers": Conversation(FOUR, "mt_bench", "81", "m"),
    "rewardbench": Preference((Turn("user", "q"),), "a", "b", None, "rewardbench/donotanswer", "3"),
    "rayward": Prompt((Turn("user", "Hi"),), "", "7"),
}


def write_lines(path: Path, rows: list, opener=open, newline: str = "\n") -> Path:
    with opener(path, "wb") as file:
        file.write(newline.join(json.dumps(row, ensure_ascii=False) for row in rows).encode())
    return path


def write_array(path: Path, rows: list, opener=open, indent: int | None = None) -> Path:
    with opener(path, "wb") as file:
        file.write(json.dumps(rows, ensure_ascii=False, indent=indent).encode())
    return path


def run(path: Path, format: str = "auto") -> tuple[list, Report]:
    report = Report()
    records = list(read(path, format, report))
    assert report.read == report.kept + report.rejected.total()
    assert len(report.rejected_rows) == report.rejected.total()
    assert Counter(row.reason for row in report.rejected_rows) == report.rejected
    json.dumps(report.as_dict())
    return records, report


def convert(name: str, row: object) -> list:
    return FORMATS[name].convert(row, [])


# ---- formats -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_example_of_each_format(name, tmp_path):
    if name == "mt_bench_answers":
        (tmp_path / "question.jsonl").write_text(json.dumps(ROWS["mt_bench_questions"]))
    path = write_lines(tmp_path / "rows.jsonl", [ROWS[name]])
    by_keys = FORMATS[name].keys != ()
    assert detect(path) == (name if by_keys else "arena")
    for form in ("auto", name) if by_keys else (name,):
        records, report = run(path, form)
        assert records == [RECORDS[name]]
        assert (report.read, report.kept, report.repaired) == (1, 1, {})


def test_variants_of_fields():
    items = {"items": ROWS["sharegpt"]["conversations"]}
    assert convert("sharegpt", items)[0].turns == RECORDS["sharegpt"].turns
    for speaker in ("gpt", "chatgpt", "bing", "bard"):
        row = {"conversations": [{"from": "user", "value": "q"}, {"from": speaker, "value": "a"}]}
        assert convert("sharegpt", row)[0].turns == (Turn("user", "q"), Turn("assistant", "a"))
    for no_input in ({"input": ""}, {"input": None}, {"input": " "}, {}):
        row = {"instruction": "Sing.", "output": "La", **no_input}
        assert convert("alpaca", row)[0].turns[0].content == "Sing."
    assert convert("alpaca_eval", {"instruction": "Why?"}) == [Prompt((Turn("user", "Why?"),), "alpaca_eval")]
    nectar = {key: value for key, value in ROWS["nectar"].items() if key != "num_responses"}
    assert convert("nectar", nectar) == convert("nectar", nectar | {"num_response": 3}) == [RECORDS["nectar"]]


ASKED, SAID = {"role": "user", "content": "q"}, {"role": "assistant", "content": "yes"}


@pytest.mark.parametrize("chosen", ["yes", [SAID], [ASKED, SAID]])
@pytest.mark.parametrize("prompt", [{"prompt": "q"}, {"prompt": [ASKED]}, {"messages": [ASKED]}])
def test_openai_preferences(prompt, chosen):
    expected = Preference((Turn("user", "q"),), "yes", "no", 0.5, "openai")
    assert convert("openai", {**prompt, "chosen": chosen, "rejected": "no", "margin": 0.5}) == [expected]
    assert expected.as_ranking() == Ranking((Turn("user", "q"),), ("yes", "no"), "openai")


def test_openai_messages_that_end_with_the_user_are_a_prompt():
    assert convert("openai", {"messages": [{"role": "user", "content": "q"}]}) == [
        Prompt((Turn("user", "q"),), "openai")
    ]


def test_hh_splits_at_the_last_assistant_and_wants_one_prompt(tmp_path):
    start = "\n\nHuman: q\n\nAssistant:"
    rows = [
        {"chosen": f"{start} a", "rejected": f"{start} a\n\nHuman: r\n\nAssistant: b"},
        {"chosen": f"{start} a\n\nHuman: r", "rejected": f"{start} b"},
        {"chosen": "q\n\nAssistant: a", "rejected": "q\n\nAssistant: b"},
        {"chosen": start, "rejected": f"{start} b"},
        {"chosen": f"{start} a\n\nAssistant: b", "rejected": f"{start} a\n\nAssistant: c"},
    ]
    _, report = run(write_lines(tmp_path / "rows.jsonl", rows))
    assert report.kept == 0
    assert [row.reason for row in report.rejected_rows] == [
        "prompts differ", "ends with the human", "no Human/Assistant frame", "empty text",
        "does not end with the user"]  # fmt: skip


def test_nectar_of_any_k_and_its_bad_rows(tmp_path):
    def row(ranks, **more):
        answers = [{"answer": f"answer {rank}", "rank": rank} for rank in ranks]
        return {"prompt": "\n\nHuman: Hi\n\nAssistant: ", "answers": answers, **more}

    rows = [
        row([3, 1, 2]), row(range(9, 0, -1)), row([1]), row([]), row([1, 2], num_responses=7), row([1, True]),
        row([1, "2"]), row([1, 1e999]), row([1, 2]) | {"prompt": "\n\nHuman: Hi\n\nAssistant: No"},
    ]  # fmt: skip
    records, report = run(write_lines(tmp_path / "rows.jsonl", rows), "nectar")
    assert [len(record.answers) for record in records] == [3, 9]
    assert all(record.ranks == tuple(sorted(record.ranks)) for record in records)
    assert [rejected.line for rejected in report.rejected_rows] == [3, 4, 5, 6, 7, 8, 9]
    assert report.rejected["too few answers"] == 2 and report.rejected["wrong number of answers"] == 1


def test_sharegpt_pieces_of_chats_are_repaired_and_counted(tmp_path):
    def row(*speakers):
        return {"conversations": [{"from": who, "value": f"{who} {i}"} for i, who in enumerate(speakers)]}

    rows = [
        row("gpt", "human", "gpt"), row("gpt", "gpt", "human", "gpt", "human"), row("human", "gpt", "human"),
        row("system", "gpt", "human", "gpt"), row("human", "gpt"), row("gpt"), row("human"), row("system"),
        row(), row("human", "human", "gpt"), row("human", "gpt", "system", "gpt"), row("human", "alien"),
    ]  # fmt: skip
    records, report = run(write_lines(tmp_path / "rows.jsonl", rows))
    assert [len(record.turns) for record in records] == [2, 2, 2, 3, 2]
    assert report.repaired == {"dropped leading assistant turn": 3, "dropped trailing user turn": 2}
    assert report.rejected == {"no answered turn": 4, "roles do not alternate": 2, "unknown role": 1}


def test_ultrachat_wants_pairs_of_turns(tmp_path):
    rows = [{"id": "0", "data": data} for data in (["q", "a"], ["q"], ["q", "a", "r"], [], ["q", " "], "q", None)]
    _, report = run(write_lines(tmp_path / "rows.jsonl", rows), "ultrachat")
    assert report.rejected == {
        "does not end with the assistant": 2, "no turns": 1, "empty text": 1, "wrong type": 1, "missing list": 1
    }  # fmt: skip


def test_crlft_system_text_and_condition():
    row = ROWS["crlft"] | {"system": "Be brief.", "condition": ""}
    (record,) = convert("crlft", row)
    assert record.turns[0] == Turn("system", "Be brief.") and record.quality is None
    twice = row | {"items": [{"role": "system", "content": "x"}, *row["items"]]}
    with pytest.raises(RowError) as caught:
        convert("crlft", twice)
    assert caught.value.reason == "two system texts"


def test_sharegpt_with_tool_turns_is_refused(tmp_path):
    def row(speaker):
        turns = [("human", "q"), (speaker, "{}"), ("observation", "{}"), ("gpt", "a")]
        return {"conversations": [{"from": who, "value": text} for who, text in turns]}

    _, report = run(write_lines(tmp_path / "rows.jsonl", [row("function_call"), row("gpt")]))
    assert report.rejected == {"tool turn": 2}
    assert [rejected.field for rejected in report.rejected_rows] == ["conversations[1].from", "conversations[2].from"]


def feedback(*completions, **more):
    answers = [{"response": f"answer {index}", **one} for index, one in enumerate(completions)]
    return {"instruction": "q", "completions": answers, **more}


def rated(*ratings):
    return {"annotations": {f"aspect {index}": {"Rating": rating} for index, rating in enumerate(ratings)}}


@pytest.mark.parametrize("row, order, ranks, repairs", [
    (feedback(rated("3", "4"), rated("5", "N/A"), rated(4, 4.0)), (1, 2, 0), (1.0, 2.0, 3.0), []),
    (feedback(rated("2"), rated("2"), rated("5")), (2, 0, 1), (1.0, 2.0, 2.0), []),
    # Ratings of all come before scores; a score that was multiplied by ten in error does not count then.
    (feedback(rated("1") | {"overall_score": 10}, rated("4") | {"overall_score": 7}), (1, 0), (1.0, 2.0), []),
    (feedback({"fine-grained_score": 2.5}, {"fine-grained_score": "4"}), (1, 0), (1.0, 2.0), []),
    (feedback({"overall_score": 9}, {"overall_score": 8.5}), (0, 1), (1.0, 2.0), []),
    (feedback(rated("1"), rated("N/A"), rated("4")), (2, 0), (1.0, 2.0), ["left out completion without a score"]),
    (feedback(rated("1"), rated("5") | {"response": " "}, rated("4")), (2, 0), (1.0, 2.0),
     ["left out completion without text"]),
])  # fmt: skip
def test_ultrafeedback_ranks(row, order, ranks, repairs):
    made = []
    (record,) = FORMATS["ultrafeedback"].convert(row, made)
    assert record.answers == tuple(f"answer {index}" for index in order)
    assert (record.ranks, made) == (ranks, repairs)


@pytest.mark.parametrize("row, reason", [
    (feedback(rated("N/A"), rated("N/A")), "too few answers"), (feedback(rated("5")), "too few answers"),
    (feedback(rated("good"), rated("5")), "not a rating"), (feedback(rated("nan"), rated("5")), "number not finite"),
    (feedback(rated("5"), rated("4") | {"response": ""}), "too few answers"),
    (feedback(rated("5"), rated("4") | {"response": None}), "missing text"),
    (feedback({"annotations": []}, rated("5")), "wrong type")])  # fmt: skip
def test_ultrafeedback_bad_rows(row, reason):
    with pytest.raises(RowError) as caught:
        convert("ultrafeedback", row)
    assert caught.value.reason == reason


def test_openai_rows_with_their_first_question_again():
    row = {"prompt": "q", "prompt_id": "7", "messages": [ASKED, SAID]}
    assert convert("openai", row) == [Conversation((Turn("user", "q"), Turn("assistant", "yes")), "openai")]
    both = {"prompt": "q", "messages": [ASKED, SAID], "chosen": [ASKED, SAID], "rejected": "no"}
    assert convert("openai", both) == [Preference((Turn("user", "q"),), "yes", "no", None, "openai")]


def test_identical_answers(tmp_path):
    """White space around answers does not tell them apart, in whatever format and whatever their ranks."""

    def ranked(*answers, ranks=None):
        return to_json(Ranking((Turn("user", "q"),), answers, "s", "", ranks))

    pair = {"prompt": "q", "chosen": "yes", "rejected": " yes\n"}
    framed = {side: f"\n\nHuman: q\n\nAssistant: yes{end}" for side, end in (("chosen", ""), ("rejected", " "))}
    rows = {
        "openai": [pair, pair | {"rejected": "Yes"}], "rewardbench": [pair | {"subset": "x"}], "hh_rlhf": [framed],
        "rayward": [ranked("a", "b", "a ", "c", "b", ranks=(1.0, 2.0, 3.0, 3.0, 4.0)), ranked("a", "\na"),
                    ranked("a", "b", "b"), ranked("a", "b", " a", ranks=(1.0, 1.0, 1.0))],
        "ultrafeedback": [feedback(*(rated(rating) | {"response": text} for rating, text in some))
                          for some in (((2, "x"), (1, "y"), (3, " x")), ((1, "x"), (2, "x")))],
    }  # fmt: skip
    found = {name: run(write_lines(tmp_path / f"{name}.jsonl", some), name) for name, some in rows.items()}
    kept = {name: [getattr(record, "answers", None) for record in records] for name, (records, _) in found.items()}
    assert kept == {"openai": [None], "rewardbench": [], "hh_rlhf": [], "ultrafeedback": [(" x", "y")],
                    "rayward": [("a", "b", "c"), ("a", "b"), ("a", "b")]}  # fmt: skip
    assert [record.ranks for record in found["rayward"][0]] == [(1.0, 2.0, 3.0), None, (1.0, 1.0)]
    assert found["ultrafeedback"][0][0].ranks == (1.0, 3.0)
    assert all(report.rejected == {"identical answers": 1} for _, report in found.values())
    repaired = {name: report.repaired["left out identical answer"] for name, (_, report) in found.items()}
    assert repaired == {"openai": 0, "rewardbench": 0, "hh_rlhf": 0, "rayward": 3, "ultrafeedback": 1}
    assert found["openai"][1].rejected_rows[0].field == "rejected"


@needs_real_data
def test_real_identical_answers():
    """16 and 6 rows of Nectar have the same answer at two ranks."""
    for part, count in (("train", 16), ("test", 6)):
        records, report = run(REAL / f"nectar/{part}.jsonl.gz")
        assert report.repaired == {"left out identical answer": count}
        assert all(len({answer.strip() for answer in record.answers}) == len(record.answers) for record in records)


def test_answers_to_be_unlearned_are_set_aside(tmp_path):
    rows = [{"messages": [ASKED, SAID], "label": label} for label in (True, False)]
    records, report = run(write_lines(tmp_path / "rows.jsonl", rows))
    assert len(records) == 1 and report.rejected == {"answer to be unlearned": 1}
    assert run(tmp_path / "rows.jsonl", "openai")[1].rejected == {"answer with a verdict": 2}


@pytest.mark.parametrize("name, change, reason", [
    ("pandalm", {"annotator2": 0, "annotator3": 1}, "a tie"), ("pandalm", {"response1": " "}, "empty text"),
    ("arena", {"winner": "tie"}, "a tie"), ("alpaca_eval_annotations", {"preference": 0}, "a tie"),
    ("alpaca_eval_annotations", {"preference": 1.5}, "a tie"), ("self_instruct", {"instances": []}, "no instances"),
    ("sharegpt_pairs", {"chosen": {"from": "human", "value": "x"}}, "answer does not follow the prompt"),
    ("sharegpt_pairs", {"conversations": []}, "no turns"), ("starling_verbose", {"response_b": ""}, "empty text"),
    ("starling_truthful", {"response_c": None}, "missing text"),
    ("gsm8k_solutions", {"6b": {"is_correct": True, "solution": "x"}}, "a tie"),
    ("gsm8k_solutions", {"6b": {"solution": "x"}}, "no verdict")])  # fmt: skip
def test_comparisons_without_a_better_answer(name, change, reason):
    with pytest.raises(RowError) as caught:
        convert(name, ROWS[name] | change)
    assert caught.value.reason == reason


@pytest.mark.parametrize("name", ["input", "context"])
def test_answers_of_gpteacher_and_dolly(name):
    row = {"instruction": "Classify.", name: "cat", "response": "animal"}
    assert convert("alpaca", row) == [RECORDS["alpaca"]]


def test_a_comparison_without_a_winner_is_a_prompt(tmp_path):
    rows = [ROWS["starling_truthful"], ROWS["starling_verbose"]]
    records, report = run(write_lines(tmp_path / "rows.jsonl", rows))
    assert records == [Prompt((Turn("user", "q"),), "arena", "4"), Prompt((Turn("user", "q"),), "arena")]
    assert report.repaired == {"left out answers without a winner": 2}


def test_answers_of_vicuna_s_own_benchmark(tmp_path):
    (tmp_path / "question.jsonl").write_text(json.dumps({"question_id": 1, "turns": ["q"]}))
    (tmp_path / "answer").mkdir()
    row = {"answer_id": "x", "model_id": "m", "question_id": 1, "text": "a", "metadata": {}}
    records, report = run(write_lines(tmp_path / "answer" / "a.jsonl", [row, row | {"text": " "}, row | {"text": 1}]))
    assert records == [Conversation((Turn("user", "q"), Turn("assistant", "a")), "mt_bench", "1", "m")]
    assert report.rejected == {"empty text": 1, "wrong type": 1}


def test_mt_bench_references_and_unusable_questions():
    made = []
    FORMATS["mt_bench_questions"].convert(ROWS["mt_bench_questions"] | {"reference": ["a", "b"]}, made)
    assert made == ["left out reference answers"]
    for turns, reason in (([], "no turns"), (["q", ""], "empty text"), ("q", "wrong type"), (None, "missing list")):
        with pytest.raises(RowError) as caught:
            convert("mt_bench_questions", {"question_id": 1, "turns": turns})
        assert caught.value.reason == reason


def test_mt_bench_answers_and_their_questions(tmp_path):
    def row(number, *choices):
        return {"question_id": number, "model_id": "m", "choices": [{"turns": list(turns)} for turns in choices]}

    (tmp_path / "model_answer").mkdir()
    rows = [row(81, "ab", "cd"), row(82, "a"), row(83, "a"), row(81, "a"), row(81), row(81, ["a", " "])]
    path = write_lines(tmp_path / "model_answer" / "m.jsonl", rows)
    with pytest.raises(ValueError, match=r"m.jsonl: MT-Bench answers hold no questions; give the question file"):
        read(path)
    questions = [ROWS["mt_bench_questions"], {"question_id": 82, "turns": ["one"]}]
    given = write_lines(tmp_path / "elsewhere.jsonl", questions)
    found = list(outcomes(path, questions=given))
    write_lines(tmp_path / "question.jsonl.gz", questions, gzip.open)
    records, report = run(path)  # the questions of the folder above
    assert records == [record for outcome in found for record in outcome.records]
    assert [len(outcome.records) for outcome in found] == [2, 1, 0, 0, 0, 0]
    assert [record.turns[1].content for record in records] == ["a", "c", "a"]
    assert [rejected.reason for rejected in report.rejected_rows] == [
        "no question", "answers do not match the questions", "no choices", "empty text"]  # fmt: skip


@pytest.mark.parametrize("keys, found", [
    ("instruction input output", "alpaca"), ("instruction output", "alpaca"), ("instruction", "alpaca_eval"),
    ("dataset instruction", "alpaca_eval"), ("id items", "sharegpt"), ("chosen rejected", "hh_rlhf"),
    ("prompt chosen rejected subset", "rewardbench"),
    ("prompt chosen rejected", "openai"), ("messages id", "openai"), ("prompt answers", "nectar"),
    ("id data", "ultrachat"), ("class data", "ultra_eval"), ("items condition system", "crlft"), ("items", "sharegpt"),
    ("question_id turns category", "mt_bench_questions"), ("question_id choices tstamp", "mt_bench_answers"),
    ("answer_id model_id question_id text", "mt_bench_answers"),
    ("source instruction models completions", "ultrafeedback"), ("prompt prompt_id messages", "openai"),
    ("conversations chosen rejected", "sharegpt_pairs"), ("messages label", "kto"),
    ("instruction input response", "alpaca"), ("question answer", "gsm8k"), ("instruction instances", "self_instruct"),
    ("instruction response1 response2 annotator1", "pandalm"), ("prompt response_a response_b winner", "arena"),
    ("prompt response_a response_b", "arena"), ("question_id prompt response_a response_b response_c", "arena"),
    ("question ground_truth 6b", "gsm8k_solutions"), ("instruction context response", "alpaca"),
    ("question_id score text review_id", None), ("question answer choices", None), ("question answer context", None),
    ("instruction output_1 output_2 preference", "alpaca_eval_annotations"),
    ("instruction output_1 output_2", None), ("question ground truth", None)])  # fmt: skip
def test_detect_by_keys(keys, found, tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", [dict.fromkeys(keys.split(), "x")])
    if found:
        assert detect(path) == found
    else:
        with pytest.raises(ValueError, match=f"{sorted(keys.split())[0]}.*fit no known format.*sharegpt"):
            detect(path)
        with pytest.raises(ValueError, match="fit no known format"):
            read(path)  # at once, not at the first row


def test_mistakes_of_the_caller(tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", [])
    with pytest.raises(ValueError, match="unknown format 'alpacca'; known: auto, rayward"):
        read(path, "alpacca")
    with pytest.raises(ValueError, match="no row that is a JSON object"):
        detect(path)
    assert run(path)[1].read == 0
    with pytest.raises(ValueError, match=r"the fields \(none\) fit no known format"):
        read(write_lines(tmp_path / "blank.jsonl", [{}, {"instruction": None}]))
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        read(tmp_path / "absent.jsonl")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no data file"):
        read(tmp_path / "empty")


def test_strict_names_file_and_line(tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", [ROWS["alpaca"], {"instruction": 3, "output": "x"}])
    stream = read(path, strict=True)
    assert next(stream) == RECORDS["alpaca"]
    with pytest.raises(ValueError, match=r"rows.jsonl:2: instruction: found int, expected text"):
        next(stream)


# ---- containers --------------------------------------------------------------------------------------------


def many_rows(count: int) -> list[dict]:
    rng = random.Random(count)
    words = ["é", "日本語", "😀", "a", "\\", '"', "]", "}", ",", "[{", "\u2028", "\\u0041", "\n", "\t"]
    text = lambda: "x" + "".join(rng.choice(words) for _ in range(rng.randrange(40)))  # noqa: E731
    return [{"instruction": text(), "input": text(), "output": text(), "id": i} for i in range(count)]


def test_same_records_from_every_container(tmp_path, monkeypatch):
    import pyarrow
    import pyarrow.parquet

    rows = many_rows(60)
    expected, _ = run(write_lines(tmp_path / "a.jsonl", rows))
    assert len(expected) == 60
    paths = [
        write_lines(tmp_path / "b.jsonl.gz", rows, gzip.open),
        write_lines(tmp_path / "c.jsonl", rows, newline="\r\n"),
        write_lines(tmp_path / "d.txt", rows, newline="\n\n \n"),
        write_array(tmp_path / "e.json", rows),
        write_array(tmp_path / "f.json.gz", rows, gzip.open, indent=1),
        write_lines(tmp_path / "g.json", rows),
    ]
    for path in (paths[1], paths[3]):
        marked = path.with_name("bom_" + path.name)
        marked.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
        paths.append(marked)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "h.parquet", row_group_size=7)
    for path in (*paths, tmp_path / "h.parquet"):
        records, report = run(path)
        assert records == expected and not report.rejected, path
    for block_bytes in (3, 7, 100, 1000):  # borders within characters, escapes, numbers, items
        monkeypatch.setattr(containers, "BLOCK_BYTES", block_bytes)
        for path in paths:
            assert run(path)[0] == expected, (path, block_bytes)


def test_folder_reads_its_data_files_by_name(tmp_path):
    write_lines(tmp_path / "b.jsonl", [ROWS["alpaca"]])
    write_array(tmp_path / "a.json", [ROWS["openai"]])
    write_lines(tmp_path / "c.jsonl", [])
    (tmp_path / "README.md").write_text("not data")
    (tmp_path / "sub").mkdir()
    records, report = run(tmp_path)
    assert records == [RECORDS["openai"], RECORDS["alpaca"]] and report.read == 2
    assert detect(tmp_path) == "openai"


GOOD = json.dumps(ROWS["alpaca"]).encode()
BAD_ITEMS = {
    b'{"instruction": NaN, "output": "x"}': "number not finite",
    b'{"instruction": "x", "output": "x", "extra": -Infinity}': "number not finite",
    b'{"instruction": "x", "output": "x", "extra": ' + b"9" * 5000 + b"}": "number not finite",
    b'{"instruction": "\xff\xfe", "output": "x"}': "not UTF-8",
    b'{"instruction": "\xed\xa0\x80", "output": "x"}': "not UTF-8",
    b'{"instruction": "\\ud800", "output": "x"}': "invalid Unicode",
    b"17": "wrong type",
    b"null": "wrong type",
    b'"text"': "wrong type",
    b"[[1], 2]": "wrong type",
    b'{"instruction": ["x"], "output": "x"}': "wrong type",
    b'{"instruction": "x", "output": {"y": 1}}': "wrong type",
    b'{"instruction": "x", "output": null}': "missing text",
    b'{"instruction": "x"}': "missing text",
    b'{"instruction": "x", "output": " \\n"}': "empty text",
    b'{"instruction": "x", "output": "x", "input": 4}': "wrong type",
    b'{"instruction": "x", "output": "x", "id": 1.5}': "wrong type",
}


@pytest.mark.parametrize("bad, reason", BAD_ITEMS.items(), ids=lambda value: str(value)[:40])
def test_a_bad_row_costs_itself_and_nothing_else(bad, reason, tmp_path):
    (tmp_path / "lines.jsonl").write_bytes(b"\n".join((GOOD, bad, GOOD)))
    (tmp_path / "array.json").write_bytes(b"[" + b" ,\n".join((GOOD, bad, GOOD)) + b"]\n")
    for name in ("lines.jsonl", "array.json"):
        records, report = run(tmp_path / name, "alpaca")
        assert records == [RECORDS["alpaca"]] * 2
        assert report.rejected == {reason: 1}
        (rejected,) = report.rejected_rows
        assert (rejected.file, rejected.line) == (str(tmp_path / name), 2)
        assert rejected.field and rejected.found and rejected.expected
        assert run(tmp_path / name)[0] == records  # detection survives it as well


@pytest.mark.parametrize("bad, kept", [
    (b'{"instruction": bad}', 2), (b"{'instruction': 'x'}", 2), (b'{"instruction": "x" "output": "y"}', 2),
    (b'{"instruction": "\\q [{"}', 2), (b'{"a": ' + b"[" * 9000 + b"]" * 9000 + b"}", 2),
    (b"[" * 100_000, 1), (b'{"instruction": "x}', 1), (b"bad", 1), (b'"\\q"', 1)])  # fmt: skip
@pytest.mark.parametrize("times", [1, 3000])
def test_broken_syntax_costs_a_row_or_where_no_end_shows_the_rest_of_an_array(bad, kept, times, tmp_path):
    (tmp_path / "lines.jsonl").write_bytes(b"\n".join((*[GOOD] * times, bad, *[GOOD] * times)))
    (tmp_path / "array.json").write_bytes(b"[" + b",".join((*[GOOD] * times, bad, *[GOOD] * times)) + b"]")
    for name, parts in (("lines.jsonl", 2), ("array.json", kept)):
        records, report = run(tmp_path / name, "alpaca")
        assert len(records) == parts * times and report.rejected.total() == 1
        assert report.rejected_rows[0].line == times + 1
        assert report.rejected_rows[0].reason in ("broken JSON", "truncated file")


def test_an_object_over_several_lines_is_no_file_of_rows(tmp_path):
    (tmp_path / "one.json").write_text('{\n  "instruction": "x"\n}\n')
    report = run(tmp_path / "one.json", "alpaca")[1]
    assert report.rejected == {"not a file of rows": 1}


def test_files_that_our_commands_write_beside_data_are_no_data(tmp_path):
    for name in ("a.jsonl", "a.jsonl.rejected.jsonl", "a.jsonl.provenance.jsonl"):
        (tmp_path / name).write_bytes(GOOD)
    assert len(run(tmp_path, "alpaca")[0]) == 1


@pytest.mark.parametrize(
    "text, kept, reason",
    [
        (b"[%s, %s", 2, "truncated file"),
        (b"[%s, %s,", 2, "truncated file"),
        (b'[%s, %s, {"in', 2, "truncated file"),
        (b"[%s %s]", 1, "broken JSON"),
        (b"[%s, %s] x", 2, "broken JSON"),
        (b"[%s, %s]]", 2, "broken JSON"),
    ],
)
def test_ends_of_arrays(text, kept, reason, tmp_path):  # fmt: skip
    (tmp_path / "a.json").write_bytes(text % (GOOD, GOOD))
    records, report = run(tmp_path / "a.json")
    assert len(records) == kept and report.rejected == {reason: 1}


def test_numbers_in_an_array_are_not_cut_at_a_block(tmp_path, monkeypatch):
    monkeypatch.setattr(containers, "BLOCK_BYTES", 4)
    (tmp_path / "a.json").write_text("[12345678, -1.25e-3, true, 7]")
    assert list(containers.rows(tmp_path / "a.json")) == [(1, 12345678), (2, -1.25e-3), (3, True), (4, 7)]


@pytest.mark.parametrize("shape", ["lines", "array"])
def test_gzip_cut_anywhere_keeps_what_came_before(shape, tmp_path, monkeypatch):
    monkeypatch.setattr(containers, "BLOCK_BYTES", 500)
    rows = many_rows(40)
    whole = (write_lines if shape == "lines" else write_array)(tmp_path / "whole.gz", rows, gzip.open)
    expected, content = run(whole)[0], whole.read_bytes()
    counts = []
    for cut in [*range(2, len(content), 97), len(content) - 8, len(content) - 1]:
        (tmp_path / "cut.gz").write_bytes(content[:cut])
        records, report = run(tmp_path / "cut.gz", "alpaca")
        assert records == expected[: len(records)]
        assert report.rejected == {"truncated file": 1}
        counts.append(len(records))
    assert counts == sorted(counts) and counts[0] == 0
    assert counts[-1] >= 39  # only the checksum is missing; a last line without line end counts as cut off


def test_damaged_files_never_raise(tmp_path):
    rng = random.Random(0)
    lines = write_lines(tmp_path / "a.jsonl", many_rows(20)).read_bytes()
    for content in (lines, b"[" + lines.replace(b"\n", b",") + b"]", gzip.compress(lines)):
        for _ in range(60):
            damaged = bytearray(content)
            for _ in range(rng.randrange(1, 6)):
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
            (tmp_path / "damaged").write_bytes(damaged)
            run(tmp_path / "damaged", "alpaca")


def test_damaged_parquet(tmp_path):
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "a.parquet"
    table = pyarrow.table({"instruction": ["a", "b", "c"], "output": ["x", None, "z"]})
    pyarrow.parquet.write_table(table, path)
    content = path.read_bytes()
    assert run(path)[1].rejected == {"missing text": 1}
    path.write_bytes(content[:-20])
    assert run(path, "alpaca")[1].rejected == {"damaged file": 1}
    bytes_column = pyarrow.array([b"ok", b"\xff", b"ok"]).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"instruction": bytes_column, "output": ["x", "y", "z"]}), path)
    records, report = run(path)
    assert len(records) == 2 and report.rejected == {"not UTF-8": 1} and report.rejected_rows[0].line == 2


# ---- any value anywhere ------------------------------------------------------------------------------------

JUNK = [None, True, 0, -1.5, 1e999, float("nan"), 10**350, "", " ", "x", "\ud800", [], {}, [None], [[]],
        {"a": 1}, ["x"] * 3, {"role": "user"}, {"from": []}, [{"role": {}}]]  # fmt: skip


def paths_into(value: object, path: tuple = ()) -> list[tuple]:
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(deeper for key, part in inside for deeper in paths_into(part, (*path, key)))]


def replaced(value: object, path: tuple, junk: object) -> object:
    if not path:
        return junk
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(copy[path[0]], path[1:], junk)
    return copy


@pytest.mark.parametrize("name", sorted({*FORMATS} - {"mt_bench_answers"}))
def test_junk_at_any_depth_is_a_row_error_or_a_valid_record(name):
    preference = {"prompt": [{"role": "user", "content": "q"}], "chosen": "a", "rejected": "b", "margin": 1.0}
    samples = [ROWS[name], preference if name == "openai" else to_json(RECORDS["nectar"])]
    for row in samples:
        for path in paths_into(row):
            for junk in JUNK:
                changed = replaced(row, path, junk)
                if not isinstance(changed, dict):
                    continue
                try:
                    for record in convert(name, changed):
                        validate(record)
                        assert from_json(json.loads(json.dumps(to_json(record)))) == record
                except RowError as error:
                    assert error.field and error.expected and error.reason
                    str(error).encode()  # can be printed


# ---- records -----------------------------------------------------------------------------------------------

USER, ANSWER = Turn("user", "q"), Turn("assistant", "a")


@pytest.mark.parametrize("record, reason", [
    (Conversation((ANSWER, USER, ANSWER)), "assistant first"),
    (Conversation((USER, USER, ANSWER)), "roles do not alternate"),
    (Conversation((USER, ANSWER, Turn("system", "s"), ANSWER)), "roles do not alternate"),
    (Conversation((USER,)), "does not end with the assistant"),
    (Conversation(()), "no turns"),
    (Conversation((Turn("system", "s"),)), "no turns"),
    (Conversation((USER, Turn("assistant", " "))), "empty text"),
    (Conversation((USER, Turn("robot", "a"))), "unknown role"),
    (Conversation((USER, Turn("assistant", "a", -1.0))), "negative weight"),
    (Conversation((USER, Turn("assistant", "a", float("nan")))), "number not finite"),
    (Prompt((USER, ANSWER)), "does not end with the user"),
    (Prompt((USER,), follow_ups=("",)), "empty text"),
    (Preference((USER,), "a", ""), "empty text"),
    (Preference((USER, ANSWER), "a", "b"), "does not end with the user"),
    (Preference((USER,), "a", "b", float("inf")), "number not finite"),
    (Ranking((USER,), ("a",)), "too few answers"),
    (Ranking((USER,), ("a", "")), "empty text"),
    (Ranking((USER,), ("a", "b"), ranks=(1.0,)), "ranks do not match the answers"),
    (Ranking((USER,), ("a", "b"), ranks=(2.0, 1.0)), "ranks out of order"),
])  # fmt: skip
def test_validate_names_what_is_wrong(record, reason):
    with pytest.raises(RowError) as caught:
        validate(record)
    assert caught.value.reason == reason


def test_json_round_trip_of_random_records():
    rng = random.Random(1)
    text = lambda: rng.choice(["a", "日本", " x ", "\n\n", "é"]) + "."  # noqa: E731
    for _ in range(200):
        turns = (Turn("system", text()),) * rng.randrange(2)
        for _ in range(rng.randrange(1, 4)):
            turns += (Turn("user", text()), Turn("assistant", text(), rng.choice([None, 0.0, 0.5])))
        prompt, source, name = turns[:-1], rng.choice(["", "s"]), rng.choice(["", "7"])
        ranks = rng.choice([None, (1.0, 1.0, 2.5)])
        for record in (
            Conversation(turns, source, name, rng.choice([None, "gold"])),
            Prompt(prompt, source, name, rng.choice([(), (text(),)])),
            Ranking(prompt, (text(), text(), text()), source, name, ranks),
            Preference(prompt, text(), text(), rng.choice([None, 0.25]), source, name),
        ):
            validate(record)
            assert from_json(json.loads(json.dumps(to_json(record)))) == record


# ---- real files --------------------------------------------------------------------------------------------

# file: format, rows, kept. Rows are those of the data's README; what is not kept is explained below each.
REAL_FILES = {
    "alpaca/alpaca_data.json.gz": ("alpaca", 4800, 4798),  # 2 without output
    "alpaca/alpaca_test.json.gz": ("alpaca", 100, 100),
    "alpaca/alpaca_en_demo.json.gz": ("alpaca", 999, 999),
    "sharegpt/sharegpt_train.json.gz": ("sharegpt", 767, 755),  # 8 without an answered turn, 4 with an empty
    "sharegpt/sharegpt_test.json.gz": ("sharegpt", 95, 95),
    "sharegpt/glaive_toolcall_en_demo.json.gz": ("sharegpt", 300, 147),  # 153 with tool calls
    "hh_rlhf/train.jsonl.gz": ("hh_rlhf", 1291, 1283),  # 3 prompts differ, 4 empty, 1 answered twice
    "hh_rlhf/test.jsonl.gz": ("hh_rlhf", 500, 498),  # 1 prompts differ, 1 answered twice
    "nectar/train.jsonl.gz": ("nectar", 217, 217),
    "nectar/test.jsonl.gz": ("nectar", 40, 40),
    "alpaca_eval_kwise/train.jsonl.gz": ("nectar", 424, 424),
    "alpaca_eval_kwise/test.jsonl.gz": ("nectar", 64, 64),
    "alpaca_eval/instructions.jsonl.gz": ("alpaca_eval", 805, 805),
    "alpaca_eval/results/text_davinci_003/model_outputs.json.gz": ("alpaca_eval", 805, 803),  # 2 empty
    "alpaca_eval/results/gpt4/model_outputs.json.gz": ("alpaca_eval", 805, 805),
    "ultrachat/ultra_eval.json.gz": ("ultra_eval", 385, 385),
    "mt_bench/question.jsonl.gz": ("mt_bench_questions", 80, 80),
    "vicuna_bench/question.jsonl.gz": ("mt_bench_questions", 80, 80),
    "mt_bench/reference_answer/gpt-4.jsonl.gz": ("mt_bench_answers", 30, 30),
    "mt_bench/model_answer/gpt-4.jsonl.gz": ("mt_bench_answers", 80, 80),
    "mt_bench/model_answer/llama-13b.jsonl.gz": ("mt_bench_answers", 80, 79),  # 1 empty
    "vicuna_bench/answer/answer_gpt35.jsonl.gz": ("mt_bench_answers", 80, 80),
    "gsm8k/train.jsonl.gz": ("gsm8k", 500, 500),
    "gsm8k/example_model_solutions.jsonl.gz": ("gsm8k_solutions", 100, 86),  # 14 all right
    "gpteacher/codegen_instruct.json.gz": ("alpaca", 1000, 1000),
    "self_instruct/seed_tasks.jsonl.gz": ("self_instruct", 175, 175),
    "preference/dpo_en_demo.json.gz": ("sharegpt_pairs", 300, 300),
    "preference/kto_en_demo.json.gz": ("kto", 300, 150),  # 150 to be unlearned
    "preference/pandalm_testset.json.gz": ("pandalm", 500, 433),  # 46 empty, 21 ties
    "preference/starling_preference_benchmark.json.gz": ("arena", 500, 499),  # 1 empty
    "preference/starling_truthful_qa_benchmark.json.gz": ("arena", 409, 409),  # without a winner: prompts
    "preference/starling_verbose_benchmark.json.gz": ("arena", 30, 30),
    "alpaca_eval/results/Starling-LM-7B-alpha/model_outputs.json.gz": ("alpaca_eval", 805, 805),
}


@needs_real_data
@pytest.mark.parametrize("name", REAL_FILES)
def test_real_file(name):
    form, num_rows, num_kept = REAL_FILES[name]
    assert detect(REAL / name) == form
    records, report = run(REAL / name)
    assert (report.read, report.kept, len(records)) == (num_rows, num_kept, num_kept)


@needs_real_data
@pytest.mark.parametrize("name, file", [
    ("truthful", "truthful_qa"), ("verbose", "verbose")])  # fmt: skip
def test_real_benchmarks_of_starling_by_their_names(name, file):
    records, report = run(REAL / f"preference/starling_{file}_benchmark.json.gz", f"starling_{name}")
    assert all(isinstance(record, Ranking) for record in records) and len(records) == report.read
    if name == "verbose":
        assert all(len(record.answers[0]) < len(record.answers[1]) for record in records)


@needs_real_data
def test_real_sharegpt_repairs():
    _, report = run(REAL / "sharegpt/sharegpt_train.json.gz")
    assert report.rejected == {"no answered turn": 8, "empty text": 4}
    raw = json.loads(gzip.decompress((REAL / "sharegpt/sharegpt_train.json.gz").read_bytes()))
    rejected = {row.line for row in report.rejected_rows}
    kept = [row for number, row in enumerate(raw, 1) if number not in rejected]
    leading = sum(row["conversations"][0]["from"] == "gpt" for row in kept)
    assert report.repaired == {"dropped leading assistant turn": leading}


@needs_real_data
@pytest.mark.parametrize(
    "name",
    [
        "nectar/rejudged.jsonl.gz",
        "mt_bench/judge_prompts.jsonl.gz",
        "alpaca_eval/preferences_alpaca_eval_gpt4.jsonl.gz",
    ],
)
def test_real_file_of_other_data_is_refused(name):  # fmt: skip
    with pytest.raises(ValueError, match="fit no known format"):
        detect(REAL / name)
