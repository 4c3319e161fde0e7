"""Readers: each format's example, bad rows, any value anywhere, the real files."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from rayward.data.formats.known.formats import FORMATS
from rayward.data.formats.registry import outcomes, read
from rayward.data.record_json import from_json, to_json
from rayward.data.records import Conversation, Preference, Prompt, Ranking, RowError, Turn, validate
from tests.data.examples import RECORDS, ROWS, detect, run, write_lines
from tests.data.layout_examples import NAMED

REAL = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"
needs_real_data = pytest.mark.skipif(
    not REAL.is_dir(), reason="the real data sets are not beside this checkout"
)


def convert(name: str, row: object) -> list:
    return FORMATS[name].convert(row, [])


# ---- formats
# -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_example_of_each_format(name, tmp_path):
    if name == "mt_bench_answers":
        (tmp_path / "question.jsonl").write_text(json.dumps(ROWS["mt_bench_questions"]))
    path = write_lines(tmp_path / "rows.jsonl", [ROWS[name]])
    by_keys = FORMATS[name].keys != ()
    assert detect(path) == (name if by_keys else NAMED[name])
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
    assert convert("alpaca_eval", {"instruction": "Why?"}) == [
        Prompt((Turn("user", "Why?"),), "alpaca_eval")
    ]
    nectar = {key: value for key, value in ROWS["nectar"].items() if key != "num_responses"}
    assert (
        convert("nectar", nectar)
        == convert("nectar", nectar | {"num_response": 3})
        == [RECORDS["nectar"]]
    )


ASKED, SAID = {"role": "user", "content": "q"}, {"role": "assistant", "content": "yes"}


@pytest.mark.parametrize("chosen", ["yes", [SAID], [ASKED, SAID]])
@pytest.mark.parametrize("prompt", [{"prompt": "q"}, {"prompt": [ASKED]}, {"messages": [ASKED]}])
def test_openai_preferences(prompt, chosen):
    expected = Preference((Turn("user", "q"),), "yes", "no", 0.5, "openai")
    assert convert("openai", {**prompt, "chosen": chosen, "rejected": "no", "margin": 0.5}) == [
        expected
    ]
    assert expected.as_ranking() == Ranking(
        (Turn("user", "q"),), ("yes", "no"), "openai", "", (1.0, 1.5)
    )


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
        "prompts differ",
        "ends with the human",
        "no Human/Assistant frame",
        "empty text",
        "does not end with the user",
    ]


def test_nectar_of_any_k_and_its_bad_rows(tmp_path):
    def row(ranks, **more):
        answers = [{"answer": f"answer {rank}", "rank": rank} for rank in ranks]
        return {"prompt": "\n\nHuman: Hi\n\nAssistant: ", "answers": answers, **more}

    rows = [
        row([3, 1, 2]),
        row(range(9, 0, -1)),
        row([1]),
        row([]),
        row([1, 2], num_responses=7),
        row([1, True]),
        row([1, "2"]),
        row([1, 1e999]),
        row([1, 2]) | {"prompt": "\n\nHuman: Hi\n\nAssistant: No"},
    ]
    records, report = run(write_lines(tmp_path / "rows.jsonl", rows), "nectar")
    assert [len(record.answers) for record in records] == [3, 9]
    assert all(record.ranks == tuple(sorted(record.ranks)) for record in records)
    assert [rejected.line for rejected in report.rejected_rows] == [3, 4, 5, 6, 7, 8, 9]
    assert (
        report.rejected["too few answers"] == 2 and report.rejected["wrong number of answers"] == 1
    )


def test_sharegpt_pieces_of_chats_are_repaired_and_counted(tmp_path):
    def row(*speakers):
        return {
            "conversations": [
                {"from": who, "value": f"{who} {i}"} for i, who in enumerate(speakers)
            ]
        }

    rows = [
        row("gpt", "human", "gpt"),
        row("gpt", "gpt", "human", "gpt", "human"),
        row("human", "gpt", "human"),
        row("system", "gpt", "human", "gpt"),
        row("human", "gpt"),
        row("gpt"),
        row("human"),
        row("system"),
        row(),
        row("human", "human", "gpt"),
        row("human", "gpt", "system", "gpt"),
        row("human", "alien"),
    ]
    records, report = run(write_lines(tmp_path / "rows.jsonl", rows))
    assert [len(record.turns) for record in records] == [2, 2, 2, 3, 2]
    assert report.repaired == {"dropped leading assistant turn": 3, "dropped trailing user turn": 2}
    assert report.rejected == {
        "no answered turn": 4,
        "roles do not alternate": 2,
        "unknown role": 1,
    }


def test_ultrachat_wants_pairs_of_turns(tmp_path):
    rows = [
        {"id": "0", "data": data}
        for data in (["q", "a"], ["q"], ["q", "a", "r"], [], ["q", " "], "q", None)
    ]
    _, report = run(write_lines(tmp_path / "rows.jsonl", rows), "ultrachat")
    assert report.rejected == {
        "does not end with the assistant": 2,
        "no turns": 1,
        "empty text": 1,
        "wrong type": 1,
        "missing list": 1,
    }


def test_crlft_system_text_and_condition():
    row = ROWS["crlft"] | {"system": "Be brief.", "condition": ""}
    (record,) = convert("crlft", row)
    assert record.turns[0] == Turn("system", "Be brief.") and record.quality is None
    twice = row | {"items": [{"role": "system", "content": "x"}, *row["items"]]}
    with pytest.raises(RowError) as caught:
        convert("crlft", twice)
    assert caught.value.reason == "two system texts"


def test_sharegpt_with_tool_turns_that_are_none_is_refused(tmp_path):
    def row(speaker):
        turns = [("human", "q"), (speaker, "{}"), ("observation", "{}"), ("gpt", "a")]
        return {"conversations": [{"from": who, "value": text} for who, text in turns]}

    _, report = run(write_lines(tmp_path / "rows.jsonl", [row("function_call"), row("gpt")]))
    assert report.rejected == {"missing text": 1, "a tool's result without a call": 1}
    assert [rejected.field for rejected in report.rejected_rows] == [
        "conversations[1].value.name",
        "turns[2].role",
    ]


def feedback(*completions, **more):
    answers = [{"response": f"answer {index}", **one} for index, one in enumerate(completions)]
    return {"instruction": "q", "completions": answers, **more}


def rated(*ratings):
    return {
        "annotations": {
            f"aspect {index}": {"Rating": rating} for index, rating in enumerate(ratings)
        }
    }


@pytest.mark.parametrize(
    "row, order, ranks, repairs",
    [
        (
            feedback(rated("3", "4"), rated("5", "N/A"), rated(4, 4.0)),
            (1, 2, 0),
            (1.0, 2.0, 3.0),
            [],
        ),
        (feedback(rated("2"), rated("2"), rated("5")), (2, 0, 1), (1.0, 2.0, 2.0), []),
        # Ratings of all come before scores; a score that was multiplied by ten in error does not
        # count then.
        (
            feedback(rated("1") | {"overall_score": 10}, rated("4") | {"overall_score": 7}),
            (1, 0),
            (1.0, 2.0),
            [],
        ),
        (
            feedback({"fine-grained_score": 2.5}, {"fine-grained_score": "4"}),
            (1, 0),
            (1.0, 2.0),
            [],
        ),
        (feedback({"overall_score": 9}, {"overall_score": 8.5}), (0, 1), (1.0, 2.0), []),
        (
            feedback(rated("1"), rated("N/A"), rated("4")),
            (2, 0),
            (1.0, 2.0),
            ["left out completion without a score"],
        ),
        (
            feedback(rated("1"), rated("5") | {"response": " "}, rated("4")),
            (2, 0),
            (1.0, 2.0),
            ["left out completion without text"],
        ),
    ],
)
def test_ultrafeedback_ranks(row, order, ranks, repairs):
    made = []
    (record,) = FORMATS["ultrafeedback"].convert(row, made)
    assert record.answers == tuple(f"answer {index}" for index in order)
    assert (record.ranks, made) == (ranks, repairs)


@pytest.mark.parametrize(
    "row, reason",
    [
        (feedback(rated("N/A"), rated("N/A")), "too few answers"),
        (feedback(rated("5")), "too few answers"),
        (feedback(rated("good"), rated("5")), "not a rating"),
        (feedback(rated("nan"), rated("5")), "number not finite"),
        (feedback(rated("5"), rated("4") | {"response": ""}), "too few answers"),
        (feedback(rated("5"), rated("4") | {"response": None}), "missing text"),
        (feedback({"annotations": []}, rated("5")), "wrong type"),
    ],
)
def test_ultrafeedback_bad_rows(row, reason):
    with pytest.raises(RowError) as caught:
        convert("ultrafeedback", row)
    assert caught.value.reason == reason


def test_openai_rows_with_their_first_question_again():
    row = {"prompt": "q", "prompt_id": "7", "messages": [ASKED, SAID]}
    assert convert("openai", row) == [
        Conversation((Turn("user", "q"), Turn("assistant", "yes")), "openai")
    ]
    both = {"prompt": "q", "messages": [ASKED, SAID], "chosen": [ASKED, SAID], "rejected": "no"}
    assert convert("openai", both) == [
        Preference((Turn("user", "q"),), "yes", "no", None, "openai")
    ]


def test_identical_answers(tmp_path):
    """White space around answers does not tell them apart, in whatever format and whatever their
    ranks.
    """

    def ranked(*answers, ranks=None):
        return to_json(Ranking((Turn("user", "q"),), answers, "s", "", ranks))

    pair = {"prompt": "q", "chosen": "yes", "rejected": " yes\n"}
    framed = {
        side: f"\n\nHuman: q\n\nAssistant: yes{end}"
        for side, end in (("chosen", ""), ("rejected", " "))
    }
    rows = {
        "openai": [pair, pair | {"rejected": "Yes"}],
        "rewardbench": [pair | {"subset": "x"}],
        "hh_rlhf": [framed],
        "rayward": [
            ranked("a", "b", "a ", "c", "b", ranks=(1.0, 2.0, 3.0, 3.0, 4.0)),
            ranked("a", "\na"),
            ranked("a", "b", "b"),
            ranked("a", "b", " a", ranks=(1.0, 1.0, 1.0)),
        ],
        "ultrafeedback": [
            feedback(*(rated(rating) | {"response": text} for rating, text in some))
            for some in (((2, "x"), (1, "y"), (3, " x")), ((1, "x"), (2, "x")))
        ],
    }
    found = {
        name: run(write_lines(tmp_path / f"{name}.jsonl", some), name)
        for name, some in rows.items()
    }
    kept = {
        name: [getattr(record, "answers", None) for record in records]
        for name, (records, _) in found.items()
    }
    assert kept == {
        "openai": [None],
        "rewardbench": [],
        "hh_rlhf": [],
        "ultrafeedback": [(" x", "y")],
        "rayward": [("a", "b", "c"), ("a", "b"), ("a", "b")],
    }
    assert [record.ranks for record in found["rayward"][0]] == [(1.0, 2.0, 3.0), None, (1.0, 1.0)]
    assert found["ultrafeedback"][0][0].ranks == (1.0, 3.0)
    assert all(report.rejected == {"identical answers": 1} for _, report in found.values())
    repaired = {
        name: report.repaired["left out identical answer"] for name, (_, report) in found.items()
    }
    assert repaired == {
        "openai": 0,
        "rewardbench": 0,
        "hh_rlhf": 0,
        "rayward": 3,
        "ultrafeedback": 1,
    }
    assert found["openai"][1].rejected_rows[0].field == "rejected"


@needs_real_data
def test_real_identical_answers():
    """16 and 6 rows of Nectar have the same answer at two ranks."""
    for part, count in (("train", 16), ("test", 6)):
        records, report = run(REAL / f"nectar/{part}.jsonl.gz")
        assert report.repaired == {"left out identical answer": count}
        assert all(
            len({answer.strip() for answer in record.answers}) == len(record.answers)
            for record in records
        )


@pytest.mark.parametrize(
    "name, change, reason",
    [
        ("pandalm", {"annotator2": 0, "annotator3": 1}, "a tie"),
        ("pandalm", {"response1": " "}, "empty text"),
        ("arena", {"winner": "tie"}, "a tie"),
        ("alpaca_eval_annotations", {"preference": 0}, "a tie"),
        ("alpaca_eval_annotations", {"preference": 1.5}, "a tie"),
        ("self_instruct", {"instances": []}, "no instances"),
        (
            "sharegpt_pairs",
            {"chosen": {"from": "human", "value": "x"}},
            "answer does not follow the prompt",
        ),
        ("sharegpt_pairs", {"conversations": []}, "no turns"),
        ("starling_verbose", {"response_b": ""}, "empty text"),
        ("starling_truthful", {"response_c": None}, "missing text"),
        ("gsm8k_solutions", {"6b": {"is_correct": True, "solution": "x"}}, "a tie"),
        ("gsm8k_solutions", {"6b": {"solution": "x"}}, "no verdict"),
    ],
)
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
    assert records == [
        Prompt((Turn("user", "q"),), "arena", "4"),
        Prompt((Turn("user", "q"),), "arena"),
    ]
    assert report.repaired == {"left out answers without a winner": 2}


def test_answers_of_vicuna_s_own_benchmark(tmp_path):
    (tmp_path / "question.jsonl").write_text(json.dumps({"question_id": 1, "turns": ["q"]}))
    (tmp_path / "answer").mkdir()
    row = {"answer_id": "x", "model_id": "m", "question_id": 1, "text": "a", "metadata": {}}
    records, report = run(
        write_lines(tmp_path / "answer" / "a.jsonl", [row, row | {"text": " "}, row | {"text": 1}])
    )
    assert records == [
        Conversation((Turn("user", "q"), Turn("assistant", "a")), "mt_bench", "1", "m")
    ]
    assert report.rejected == {"empty text": 1, "wrong type": 1}


def test_mt_bench_references_and_unusable_questions():
    made = []
    FORMATS["mt_bench_questions"].convert(
        ROWS["mt_bench_questions"] | {"reference": ["a", "b"]}, made
    )
    assert made == ["left out reference answers"]
    for turns, reason in (
        ([], "no turns"),
        (["q", ""], "empty text"),
        ("q", "wrong type"),
        (None, "missing list"),
    ):
        with pytest.raises(RowError) as caught:
            convert("mt_bench_questions", {"question_id": 1, "turns": turns})
        assert caught.value.reason == reason


def test_mt_bench_answers_and_their_questions(tmp_path):
    def row(number, *choices):
        return {
            "question_id": number,
            "model_id": "m",
            "choices": [{"turns": list(turns)} for turns in choices],
        }

    (tmp_path / "model_answer").mkdir()
    rows = [
        row(81, "ab", "cd"),
        row(82, "a"),
        row(83, "a"),
        row(81, "a"),
        row(81),
        row(81, ["a", " "]),
    ]
    path = write_lines(tmp_path / "model_answer" / "m.jsonl", rows)
    with pytest.raises(
        ValueError, match=r"m.jsonl: MT-Bench answers hold no questions; give the question file"
    ):
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
        "no question",
        "answers do not match the questions",
        "no choices",
        "empty text",
    ]


@pytest.mark.parametrize(
    "keys, found",
    [
        ("instruction input output", "alpaca"),
        ("instruction output", "alpaca"),
        ("instruction", "alpaca_eval"),
        ("dataset instruction", "alpaca_eval"),
        ("id items", "sharegpt"),
        ("chosen rejected", "hh_rlhf"),
        ("prompt chosen rejected subset", "rewardbench"),
        ("prompt chosen rejected domain", "rm_bench"),
        ("prompt chosen rejected domain subset", "rewardbench"),
        ("prompt chosen rejected", "openai"),
        ("messages id", "openai"),
        ("prompt answers", "nectar"),
        ("id data", "ultrachat"),
        ("class data", "ultra_eval"),
        ("items condition system", "crlft"),
        ("items", "sharegpt"),
        ("question_id turns category", "mt_bench_questions"),
        ("question_id choices tstamp", "mt_bench_answers"),
        ("answer_id model_id question_id text", "mt_bench_answers"),
        ("source instruction models completions", "ultrafeedback"),
        ("prompt prompt_id messages", "openai"),
        ("conversations chosen rejected", "sharegpt_pairs"),
        ("messages label", "kto"),
        ("prompt completion label", "kto"),
        ("prompt completion", "prompt_completion"),
        ("prompt response", "prompt_completion"),
        ("prompt response score", None),
        ("prompt", "prompts"),
        ("data_source prompt reward_model", "prompts"),
        ("question response system_prompt", "orca"),
        ("question chosen rejected", "question_pairs"),
        ("instruction input chosen rejected", "question_pairs"),
        ("conversation source", "conversation"),
        ("instruction input response", "alpaca"),
        ("question answer", "gsm8k"),
        ("instruction instances", "self_instruct"),
        ("instruction response1 response2 annotator1", "pandalm"),
        ("prompt response_a response_b winner", "arena"),
        ("prompt response_a response_b", "arena"),
        ("question_id prompt response_a response_b response_c", "arena"),
        ("question ground_truth 6b", "gsm8k_solutions"),
        ("instruction context response", "alpaca"),
        ("question_id score text review_id", None),
        ("question answer choices", None),
        ("question answer context", None),
        ("instruction output_1 output_2 preference", "alpaca_eval_annotations"),
        ("instruction output_1 output_2", None),
        ("question ground truth", None),
    ],
)
def test_detect_by_keys(keys, found, tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", [dict.fromkeys(keys.split(), "x")])
    if found:
        assert detect(path) == found
    else:
        with pytest.raises(
            ValueError, match=f"{sorted(keys.split())[0]}.*fit no known format.*sharegpt"
        ):
            detect(path)
        with pytest.raises(ValueError, match="fit no known format"):
            read(path)  # at once, not at the first row


def test_mistakes_of_the_caller(tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", [])
    with pytest.raises(ValueError, match="unknown format 'alpacca'; known: auto, rayward"):
        read(path, "alpacca")
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


# ---- any value anywhere
# ------------------------------------------------------------------------------------

JUNK = [
    None,
    True,
    0,
    -1.5,
    1e999,
    float("nan"),
    10**350,
    "",
    " ",
    "x",
    "\ud800",
    [],
    {},
    [None],
    [[]],
    {"a": 1},
    ["x"] * 3,
    {"role": "user"},
    {"from": []},
    [{"role": {}}],
]


def paths_into(value: object, path: tuple = ()) -> list[tuple]:
    inside = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    return [path, *(deeper for key, part in inside for deeper in paths_into(part, (*path, key)))]


def replaced(value: object, path: tuple, junk: object) -> object:
    if not path:
        return junk
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(copy[path[0]], path[1:], junk)
    return copy


@pytest.mark.parametrize("name", sorted({*FORMATS} - {"mt_bench_answers"}))
def test_junk_at_any_depth_is_a_row_error_or_a_valid_record(name):
    preference = {
        "prompt": [{"role": "user", "content": "q"}],
        "chosen": "a",
        "rejected": "b",
        "margin": 1.0,
    }
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


# ---- real files
# --------------------------------------------------------------------------------------------

# file: format, rows, kept. Rows are those of the data's README; what is not kept is explained below
# each.
REAL_FILES = {
    "alpaca/alpaca_data.json.gz": ("alpaca", 4800, 4798),  # 2 without output
    "alpaca/alpaca_test.json.gz": ("alpaca", 100, 100),
    "alpaca/alpaca_en_demo.json.gz": ("alpaca", 999, 999),
    # 8 without an answered turn, 4 with an empty one, 10 with one of zero-width spaces.
    "sharegpt/sharegpt_train.json.gz": ("sharegpt", 767, 745),
    "sharegpt/sharegpt_test.json.gz": ("sharegpt", 95, 95),
    "sharegpt/glaive_toolcall_en_demo.json.gz": ("sharegpt", 300, 300),  # 153 with tool calls
    # 3 prompts differ, 4 empty, 1 answered twice.
    "hh_rlhf/train.jsonl.gz": ("hh_rlhf", 1291, 1283),
    "hh_rlhf/test.jsonl.gz": ("hh_rlhf", 500, 498),  # 1 prompts differ, 1 answered twice
    "nectar/train.jsonl.gz": ("nectar", 217, 217),
    "nectar/test.jsonl.gz": ("nectar", 40, 40),
    "alpaca_eval_kwise/train.jsonl.gz": ("nectar", 424, 424),
    "alpaca_eval_kwise/test.jsonl.gz": ("nectar", 64, 64),
    "alpaca_eval/instructions.jsonl.gz": ("alpaca_eval", 805, 805),
    # 2 empty.
    "alpaca_eval/results/text_davinci_003/model_outputs.json.gz": ("alpaca_eval", 805, 803),
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
    "preference/kto_en_demo.json.gz": ("kto", 300, 300),  # 150 are bad answers
    "preference/pandalm_testset.json.gz": ("pandalm", 500, 433),  # 46 empty, 21 ties
    "preference/starling_preference_benchmark.json.gz": ("arena", 500, 499),  # 1 empty
    # Without a winner: prompts.
    "preference/starling_truthful_qa_benchmark.json.gz": ("arena", 409, 409),
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
@pytest.mark.parametrize("name, file", [("truthful", "truthful_qa"), ("verbose", "verbose")])
def test_real_benchmarks_of_starling_by_their_names(name, file):
    records, report = run(
        REAL / f"preference/starling_{file}_benchmark.json.gz", f"starling_{name}"
    )
    assert all(isinstance(record, Ranking) for record in records) and len(records) == report.read
    if name == "verbose":
        assert all(len(record.answers[0]) < len(record.answers[1]) for record in records)


@needs_real_data
def test_real_sharegpt_repairs():
    _, report = run(REAL / "sharegpt/sharegpt_train.json.gz")
    assert report.rejected == {"no answered turn": 8, "empty text": 14}
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
def test_real_file_of_other_data_is_refused(name):
    with pytest.raises(ValueError, match="fit no known format"):
        detect(REAL / name)
