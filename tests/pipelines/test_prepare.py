"""Files as people bring them, bad rows and all: every row is accounted for, and nothing of the
evaluation leaks.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from rayward.configs.load import PRESETS, load
from rayward.configs.schema import STAGE_SECTIONS, Config
from rayward.configs.sections.data import ToyWorld
from rayward.data.records import Conversation, Prompt, Ranking, Turn, parts_of, validate
from rayward.data.templates.tokenizer import load_tokenizer
from rayward.data.toy import toyworld
from rayward.pipelines.rows.prepared_file import Ids
from rayward.pipelines.rows.prompts import prompt_key
from rayward.pipelines.rows.reading import contents
from rayward.pipelines.rows.records import load_records
from rayward.pipelines.rows.renderer import Renderer
from rayward.pipelines.rows.splitting import FILES, Questions
from rayward.pipelines.run.errors import StageError
from rayward.pipelines.run.files import read_json
from rayward.pipelines.run.folder import Run
from rayward.pipelines.stages import prepare
from tests.data.published import CHATML, ENDLESS, PREFILLED, STRICT, WITH_TOOLS

REAL = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"
LISTS = {
    "conversations": ("conversations", "sft_heldout"),
    "preferences": ("rankings", "heldout", "judge", "labelled", "labelled_heldout"),
    "prompts": ("prompts",),
    "evaluation_prompts": ("evaluation_prompts",),
}
TRAINING = (
    "conversations",
    "sft_heldout",
    "rankings",
    "heldout",
    "judge",
    "labelled",
    "labelled_heldout",
    "prompts",
)
LONG = "very " * 300 + "long?"


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# ---- rows
# --------------------------------------------------------------------------------------------------


def chat(*said: str) -> dict[str, Any]:
    return {
        "conversations": [
            {"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(said)
        ]
    }


def alpaca(question: str, answer: Any = "An answer.") -> dict[str, Any]:
    return {"instruction": question, "input": "", "output": answer}


def hh(question: str, better: str = "good", worse: str = "bad") -> dict[str, Any]:
    start = f"\n\nHuman: {question}\n\nAssistant: "
    return {"chosen": start + better, "rejected": start + worse}


def nectar(question: str, answers: int = 3, **more: Any) -> dict[str, Any]:
    ranked = [{"answer": f"answer {rank}", "rank": rank} for rank in range(1, answers + 1)]
    return {"prompt": f"\n\nHuman: {question}\n\nAssistant: ", "answers": ranked, **more}


def label(question: str, good: Any, answer: str = "An answer.") -> dict[str, Any]:
    turns = [{"role": "user", "content": question}]
    return {"kind": "labelled", "turns": turns, "answer": answer, "good": good}


def asked(question: str, answer: str | None = None) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages if answer else messages[:1]}


EVALUATION = [f"Evaluation question {i}?" for i in range(20)]
SOURCES: dict[str, dict[str, list[Any]]] = {
    "conversations": {
        "sharegpt.jsonl": [
            *(chat(f"Chat {i}?", f"Reply {i}.", "And then?", "Then this.") for i in range(100)),
            "{broken",
            {"conversations": [{"from": "alien", "value": "x"}]},
            chat("alone"),
            chat("q", " "),
            {
                "conversations": [
                    {"from": "gpt", "value": "...so"},
                    *chat("Piece?", "Yes.")["conversations"],
                ]
            },
            # Its first question is an evaluation prompt below.
            chat("First?", "Yes.", "Second?", "No."),
            chat("Long?", "word " * 300),
            chat(f"Too {LONG}", "Too late."),
        ],
        "alpaca.json": [
            *(alpaca(f"Instruction {i}.") for i in range(60)),
            alpaca("No output", None),
            alpaca("Wrong type", 3),
            alpaca(f"  {EVALUATION[3]}\n"),
            alpaca(EVALUATION[4]),
        ],
        "openai.jsonl": [
            *(asked(f"Message {i}?", "Fine.") for i in range(20)),
            asked("No answer?"),
            asked("None?"),
        ],
    },
    "preferences": {
        "hh.jsonl": [
            *(hh(f"Human {i}?") for i in range(60)),
            hh("a") | {"rejected": hh("b")["rejected"]},
            {"chosen": "x", "rejected": "y"},
            hh(EVALUATION[5]),
            hh("Short?", "word " * 300, "b"),
        ],
        "nectar.jsonl": [
            *(nectar(f"Ranked {i}?") for i in range(60)),
            nectar("One?", 1),
            nectar("Number?", num_responses=7),
            nectar(EVALUATION[5]),
            nectar(f"Too {LONG}"),
        ],
        "labels.jsonl": [
            *(label(f"Labelled {i}?", i % 3 == 0, f"Answer {i}.") for i in range(40)),
            *(label(f"Human {i}?", False, "Rude.") for i in range(20)),
            label("No label?", "yes"),
            label(EVALUATION[5], True),
            label("Short?", True, "word " * 300),
        ],
    },
    "prompts": {
        "openai.jsonl": [
            *(asked(f"Prompt {i}?") for i in range(40)),
            asked("Prompt 0?"),
            asked(" Prompt 1? "),
            asked(f"Too {LONG}"),
            asked(EVALUATION[6]),
            asked(""),
            asked("Chat?", "Yes."),
        ],
        "hh.jsonl": [hh(f"Human {i}?") for i in range(5)],
    },
    "evaluation_prompts": {
        "alpaca_eval.json": [
            *({"instruction": text, "dataset": "own"} for text in EVALUATION),
            {"instruction": EVALUATION[0], "dataset": "own"},
            {"instruction": None, "dataset": "own"},
            {"instruction": LONG, "dataset": "own"},
            {"instruction": "First?", "dataset": "own"},
        ],
        # The second question of a chat above, asked as it is there.
        "openai.jsonl": [
            {
                "messages": [
                    *asked("Chat 5?", "Reply 5.")["messages"],
                    *asked("And then?")["messages"],
                ]
            }
        ],
    },
}


def write(
    folder: Path, sources: dict[str, dict[str, list[Any]]]
) -> dict[str, list[dict[str, str]]]:
    """Write the rows in folders by list; the lists of sources for a config."""
    for name, files in sources.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for file, rows in files.items():
            lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
            text = "[" + ",\n".join(lines) + "]" if file.endswith(".json") else "\n".join(lines)
            (folder / name / file).write_text(text, encoding="utf-8")
    return {name: [{"path": f"{name}/{file}"} for file in files] for name, files in sources.items()}


@pytest.fixture(scope="module")
def own(
    tmp_path_factory: pytest.TempPathFactory, tiny_config: Callable[..., Config]
) -> Callable[..., Config]:
    """A config that reads SOURCES; sections given are merged over it."""
    root = tmp_path_factory.mktemp("data")
    lists = write(root, SOURCES)

    def config(**overrides: Any) -> Config:
        data = {
            "toyworld": None,
            "root": str(root),
            "heldout_fraction": 0.3,
            **lists,
            **overrides.pop("data", {}),
        }
        return tiny_config(
            **{
                "model": {"context_tokens": 128, "scratch": {"vocab_size": 320}},
                "data": data,
                "evaluate": {"judge": "reward_model", "prompts": 16},
                **overrides,
            }
        )

    return config


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, own: Callable[..., Config]) -> Run:
    """A finished prepare stage on SOURCES."""
    run = Run(tmp_path_factory.mktemp("run"), own())
    assert prepare.prepare(run) is not None
    return run


def records(run: Run, name: str) -> list[Any]:
    return load_records(run.folder / "prepare" / f"{name}.jsonl")


def prompt_of(record: Conversation | Ranking | Prompt) -> str:
    """The key of a record's first prompt, whatever its kind."""
    end = next(
        (i for i, turn in enumerate(record.turns) if turn.role == "assistant" and i),
        len(record.turns),
    )
    return prompt_key(record.turns[: end if isinstance(record, Conversation) else None])


def prefixes(record: Conversation | Ranking | Prompt) -> set[str]:
    return {
        prompt_key(record.turns[: i + 1])
        for i, turn in enumerate(record.turns)
        if turn.role == "user"
    }


# ---- the account
# -------------------------------------------------------------------------------------------


def check_account(run: Run) -> dict[str, Any]:
    """Every row read is a record, or rejected, or of no use; every record is in a file, or dropped
    by a rule.
    """
    report = read_json(run.folder / "prepare" / "report.json")
    for name, files in LISTS.items():
        made = 0
        for source in getattr(run.config.data, name):
            entry = report["sources"][name][source.path]
            assert entry["read"] == entry["kept"] + sum(entry["rejected"].values()) > 0
            of_no_use = sum(count for rule, count in entry.items() if "is no use" in rule)
            assert entry["kept"] == entry["records"] + of_no_use
            made += entry["records"]
        lost = sum(
            count
            for file in files
            for rule, count in report["rules"].get(file, {}).items()
            if rule[:5] != "kept,"
        )
        further = sum(
            report["rules"].get(file, {}).get("kept, further segments", 0) for file in files
        )
        assert made + further == lost + sum(report["kept"][file] for file in files), name
    manifest = run.manifest("prepare")["metrics"]
    for file in FILES:
        assert len(records(run, file)) == report["kept"][file] == manifest[file]
    rejected = sum(
        sum(entry["rejected"].values())
        + sum(count for rule, count in entry.items() if "is no use" in rule)
        for files in report["sources"].values()
        for entry in files.values()
    )
    assert len(report["rejected_rows"]) == rejected
    return report


def test_every_row_is_accounted_for(done: Run) -> None:
    report = check_account(done)
    read = {
        name: {Path(path).name: entry["read"] for path, entry in files.items()}
        for name, files in report["sources"].items()
    }
    assert read == {
        name: {file: len(rows) for file, rows in files.items()} for name, files in SOURCES.items()
    }
    kept = report["kept"]
    # Good rows, less those that ask what the evaluation asks (four) and the one that has no room
    # for its answer.
    assert kept["conversations"] + kept["sft_heldout"] == 99 + 60 + 20 + 1 + 1
    assert kept["rankings"] + kept["heldout"] + kept["judge"] == 120, (
        "two evaluation prompts, two that do not fit"
    )
    assert kept["labelled"] + kept["labelled_heldout"] == 40 + 20
    assert kept["prompts"] == 40 + 1 + 5 and kept["evaluation_prompts"] == 20 + 2


def test_every_rule_has_its_count(done: Run) -> None:
    report = read_json(done.folder / "prepare" / "report.json")
    rules: Counter[str] = Counter()
    for name in ("conversations", "sft_heldout"):
        rules.update(report["rules"].get(name, {}))
    assert rules == {
        "also an evaluation prompt": 4,
        "no answer token within the context": 1,
        "kept, cut to the context": 1,
    }
    rules = Counter()
    for name in ("rankings", "heldout", "judge"):
        rules.update(report["rules"].get(name, {}))
    assert rules == {"also an evaluation prompt": 2, "fewer than two answers fit the context": 2}
    rules = Counter()
    for name in ("labelled", "labelled_heldout"):
        rules.update(report["rules"].get(name, {}))
    assert rules == {
        "also an evaluation prompt": 1,
        "the labelled answer does not fit the context": 1,
    }
    assert report["rules"]["prompts"] == {
        "also an evaluation prompt": 1,
        "duplicate prompt": 2,
        "prompt leaves no room for an answer": 1,
    }
    assert report["rules"]["evaluation_prompts"] == {
        "duplicate prompt": 1,
        "prompt leaves no room for an answer": 1,
    }
    conversations = report["sources"]["conversations"]
    assert (
        conversations["conversations/openai.jsonl"]["a prompt is no use for data.conversations"]
        == 2
    )
    assert conversations["conversations/sharegpt.jsonl"]["repaired"] == {
        "dropped leading assistant turn": 1
    }


def test_every_rejected_row_is_named_by_file_and_line(done: Run) -> None:
    rows = read_json(done.folder / "prepare" / "report.json")["rejected_rows"]
    places = {(Path(row["file"]).parent.name, Path(row["file"]).name, row["line"]) for row in rows}
    assert places == {
        ("conversations", "sharegpt.jsonl", 101),
        ("conversations", "sharegpt.jsonl", 102),
        ("conversations", "sharegpt.jsonl", 103),
        ("conversations", "sharegpt.jsonl", 104),
        ("conversations", "alpaca.json", 61),
        ("conversations", "alpaca.json", 62),
        # Prompts alone, which are no conversations.
        ("conversations", "openai.jsonl", 21),
        ("conversations", "openai.jsonl", 22),
        ("preferences", "hh.jsonl", 61),
        ("preferences", "hh.jsonl", 62),
        ("preferences", "nectar.jsonl", 61),
        ("preferences", "nectar.jsonl", 62),
        ("preferences", "labels.jsonl", 61),
        ("prompts", "openai.jsonl", 45),
        ("evaluation_prompts", "alpaca_eval.json", 22),
    }
    assert all(row["field"] and row["found"] and row["expected"] for row in rows)


# ---- splits
# ------------------------------------------------------------------------------------------------


def check_splits(run: Run) -> None:
    """No training row asks an evaluation prompt, at its start or after, and no two splits share a
    prompt.
    """
    evaluation = {prompt_key(prompt.turns) for prompt in records(run, "evaluation_prompts")}
    assert len(evaluation) == len(records(run, "evaluation_prompts"))
    for name in TRAINING:
        for record in records(run, name):
            validate(record)
            assert not prefixes(record) & evaluation, (name, record)
    for files in (("conversations", "sft_heldout"), ("rankings", "heldout", "judge")):
        keys = [{prompt_of(record) for record in records(run, name)} for name in files]
        assert sum(map(len, keys)) == len(set().union(*keys)), files
    # Labelled answers may ask what rankings ask, on the same side.
    trained, measured = (
        {prompt_of(record) for name in names for record in records(run, name)}
        for names in (("rankings", "judge", "labelled"), ("heldout", "labelled_heldout"))
    )
    assert not trained & measured
    prompts = [prompt_of(record) for record in records(run, "prompts")]
    assert len(set(prompts)) == len(prompts)


def test_nothing_of_the_evaluation_is_trained_on(done: Run) -> None:
    check_splits(done)
    assert {name: bool(records(done, name)) for name in FILES} == dict.fromkeys(FILES, True), (
        "all splits are used"
    )


def test_all_rows_with_one_prompt_stay_on_one_side(
    tmp_path: Path, own: Callable[..., Config]
) -> None:
    """A held-out row whose prompt is trained on with another answer would measure memory."""
    lists = write(
        tmp_path,
        {
            "conversations": {
                "a.json": [
                    alpaca(f"Question {i}?", f"Answer {j}.") for i in range(100) for j in range(4)
                ]
            },
            "preferences": {
                "a.jsonl": [hh(f"Question {i}?", f"good {j}") for i in range(30) for j in range(3)]
            },
        },
    )
    run = Run(
        tmp_path / "run",
        own(
            data={
                "root": "/",
                **{
                    name: [{"path": str(tmp_path / source["path"])} for source in sources]
                    for name, sources in lists.items()
                },
                "prompts": [{"path": str(tmp_path / "conversations/a.json")}],
                "evaluation_prompts": [{"path": str(evaluation_file(tmp_path))}],
            }
        ),
    )
    assert prepare.prepare(run) is not None
    kept = run.manifest("prepare")["metrics"]
    assert kept["conversations"] + kept["sft_heldout"] == 400 and kept["prompts"] == 100
    assert kept["rankings"] + kept["heldout"] + kept["judge"] == 90
    check_splits(run)


@pytest.mark.parametrize(
    "sections, told",
    [
        (
            {"reward": {}},
            "12 labelled answers and no ranking .*, and labels alone do not train a reward model",
        ),
        ({"dpo": {}}, "objective dpo learns from rankings; use `dpo.objective: kto`, which learns"),
        ({"dpo": {"objective": "orpo"}}, "objective orpo learns from rankings; use"),
        ({"dpo": {"objective": "kto"}}, ""),
    ],
)
def test_labels_alone_train_what_learns_from_labels(
    sections: dict[str, Any], told: str, tmp_path: Path, own: Callable[..., Config]
) -> None:
    rows = [label(f"Labelled {i}?", i % 2 == 0, f"Answer {i}.") for i in range(12)]
    lists = write(tmp_path, {"preferences": {"labels.jsonl": rows}})
    values = {"model": own().model.model_dump(), "data": {**lists, "root": str(tmp_path)}}
    stages = dict.fromkeys(STAGE_SECTIONS) | sections
    run = Run(tmp_path / "run", Config.model_validate(values | stages))
    if told:
        with pytest.raises(StageError, match=told):
            prepare.prepare(run)
        return
    assert prepare.prepare(run) is not None
    kept = run.manifest("prepare")["metrics"]
    assert kept["labelled"] + kept["labelled_heldout"] == 12 and kept["labelled_heldout"] > 0
    labels = records(run, "labelled")
    assert {record.good for record in labels} == {True, False} and all(
        record.answer == record.turns[0].content.replace("Labelled", "Answer")[:-1] + "."
        for record in labels
    )


@pytest.mark.parametrize("good", [True, False])
def test_labels_of_one_kind_are_told_before_training(
    good: bool, tmp_path: Path, own: Callable[..., Config]
) -> None:
    """KTO learns from good and bad answers; two stages later would be late to say so."""

    def prepared(name: str, dpo: dict[str, Any], *more: dict[str, Any]) -> dict[str, Any] | None:
        rows = [*(label(f"Labelled {i}?", good, f"Answer {i}.") for i in range(12)), *more]
        lists = write(tmp_path / name, {"preferences": {"labels.jsonl": rows}})
        values = {"model": own().model.model_dump()}
        values["data"] = {**lists, "root": str(tmp_path / name), "heldout_fraction": 0.01}
        stages = dict.fromkeys(STAGE_SECTIONS) | {"dpo": dpo}
        return prepare.prepare(Run(tmp_path / name / "run", Config.model_validate(values | stages)))

    found, other = ("good", "bad") if good else ("bad", "good")
    told = rf"all \d+ labelled answers to train on are {found}, .*: add {other} ones"
    with pytest.raises(StageError, match=told):
        prepared("alone", {"objective": "kto"})
    others = (label(f"Other {i}?", not good) for i in range(12))
    assert prepared("both", {"objective": "kto"}, *others) is not None


def test_what_is_set_aside_is_told(
    tmp_path: Path, own: Callable[..., Config], capsys: pytest.CaptureFixture[str]
) -> None:
    def prepared(name: str, *rows: Any) -> Run:
        lists = write(tmp_path / name, {"conversations": {"c.jsonl": list(rows)}})
        values = {"model": own().model.model_dump()}
        values["data"] = {**lists, "root": str(tmp_path / name)}
        stages = dict.fromkeys(STAGE_SECTIONS) | {"sft": {}}
        run = Run(tmp_path / name / "run", Config.model_validate(values | stages))
        prepare.prepare(run)
        return run

    good = [{**asked(f"Asked {i}?", "Yes."), "colour": "red"} for i in range(9)]
    bad = [asked("Alone?"), {"messages": [{"role": "alien", "content": "x"}]}, "{broken"]
    run = prepared("some", *good, *bad)
    assert (
        "data.conversations, conversations/c.jsonl: 12 rows read, 9 kept; set aside: unknown role "
        "(1), broken JSON (1), a prompt is no use for data.conversations (1); fields passed over: "
        "colour (9)"
    ) in capsys.readouterr().out
    rows = [json.loads(line) for line in (run.folder / "prepare" / "rejected_rows.jsonl").open()]
    assert [row["line"] for row in rows] == [10, 11, 12]
    assert (rows[0]["found"], rows[0]["expected"]) == ("a prompt", "a question and its answer")

    lost = r"unknown role \(3\), a prompt is no use for data.conversations \(2\)"
    with pytest.raises(StageError, match=f"conversations: 0 rows are left, .*{lost}"):
        prepared("none", *bad[1:2] * 3, *bad[:1] * 2)
    assert "5 rows read, 0 kept" in capsys.readouterr().out


def evaluation_file(folder: Path, count: int = 20) -> Path:
    write(folder, {"evaluation": {"e.jsonl": [asked(f"Evaluation {i}?") for i in range(count)]}})
    return folder / "evaluation" / "e.jsonl"


def test_the_toy_world_is_prepared_with_the_same_care(
    tmp_path: Path, tiny_config: Callable[..., Config]
) -> None:
    world = {
        "demonstrations": 300,
        "rankings": 100,
        "prompts": 100,
        "evaluation_prompts": 200,
        "label_noise": 0.1,
    }
    run = Run(tmp_path, tiny_config(data={"toyworld": world, "heldout_fraction": 0.4}))
    assert prepare.prepare(run) is not None
    check_splits(run)
    metrics, rules = (
        run.manifest("prepare")["metrics"],
        read_json(tmp_path / "prepare" / "report.json")["rules"],
    )
    assert metrics["judge"] == 0, "the gold judge needs no rankings"
    assert metrics["evaluation_prompts"] == 200
    # A follow-up whose first question is an evaluation prompt goes.
    also = {name: rules.get(name, {}).get("also an evaluation prompt", 0) for name in FILES}
    assert (
        metrics["conversations"] + metrics["sft_heldout"] + also["conversations"]
        == 300
        > metrics["conversations"]
    )
    assert metrics["prompts"] + also["prompts"] == 100
    assert metrics["rankings"] + metrics["heldout"] + also["rankings"] == 100
    assert metrics["label_noise"] == pytest.approx(0.1, abs=0.02)
    assert 0.7 < metrics["noise_ceiling"] < 1, "no reward model can agree more with raters who err"


@pytest.mark.parametrize("name", [path.stem for path in sorted(PRESETS.glob("*.yaml"))])
def test_the_toy_world_is_large_enough_for_presets_and_defaults(name: str) -> None:
    config = load(name)
    for world in {ToyWorld(), config.data.toyworld or ToyWorld()}:
        assert len(toyworld.prompts(world.prompts, config.seed, "train")) == world.prompts
        assert (
            len(toyworld.prompts(world.evaluation_prompts, config.seed, "evaluation"))
            == world.evaluation_prompts
        )


def test_the_second_reward_model_has_about_as_many_rankings_as_the_first(done: Run) -> None:
    kept = done.manifest("prepare")["metrics"]
    assert kept["heldout"] / 120 == pytest.approx(done.config.data.heldout_fraction, abs=0.15)
    assert 0.5 < kept["rankings"] / kept["judge"] < 2


# ---- tokenizer and model
# -----------------------------------------------------------------------------------


def test_the_tokenizer_knows_the_chat_template_and_how_to_stop(done: Run) -> None:
    renderer = Renderer.of(done.config.model, done.folder / "prepare" / "tokenizer")
    tokenizer = load_tokenizer(done.folder / "prepare" / "tokenizer")
    assert (
        tokenizer.eos_token == renderer.template.end_token
        and [tokenizer.eos_token_id] == renderer.stop_token_ids
    )
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert len(tokenizer) == done.manifest("prepare")["metrics"]["vocabulary"] <= 320
    for record in (*records(done, "evaluation_prompts"), *records(done, "prompts")):
        messages = [{"role": turn.role, "content": turn.content} for turn in record.turns]
        served = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        assert tokenizer.encode(served, add_special_tokens=False) == renderer.prompt(
            record.turns
        ), "served as trained"


def test_a_model_from_scratch_fits_the_tokenizer(done: Run) -> None:
    from rayward.actors.models.load import load_policy

    assert done.base == str(done.folder / "prepare" / "base")
    model = load_policy(done.base, "float32")
    prompt = Renderer.of(done.config.model, done.base).prompt(records(done, "prompts")[0].turns)
    assert max(prompt) < model.lm.get_input_embeddings().num_embeddings


def test_a_model_that_is_given_keeps_its_tokens_and_learns_to_stop(
    tmp_path: Path, own: Callable[..., Config], tiny_models: Any
) -> None:
    """A base model's tokenizer ends texts in its own way and has no chat template."""
    given = load_tokenizer(tiny_models.policy)
    given.eos_token, given.chat_template = "<s>", None
    given.save_pretrained(tmp_path / "base")
    AutoConfig.from_pretrained(tiny_models.policy).save_pretrained(tmp_path / "base")
    run = Run(
        tmp_path / "run",
        own(model={"path": str(tmp_path / "base"), "scratch": None, "context_tokens": 128}),
    )
    assert prepare.prepare(run) is not None
    assert (
        run.base == str(tmp_path / "base") and not (tmp_path / "run" / "prepare" / "base").exists()
    )
    tokenizer = load_tokenizer(tmp_path / "run" / "prepare" / "tokenizer")
    assert tokenizer.get_vocab() == given.get_vocab()
    assert (
        tokenizer.eos_token == "<|end_of_turn|>"
        and "GPT4 Correct Assistant:" in tokenizer.chat_template
    )


@pytest.mark.parametrize(
    ("template", "rows", "told"),
    [
        (
            "vicuna_v1.1",
            300,
            "model.template vicuna_v1.1: .* needs the token '</s>', which is not among the .* of "
            "this",
        ),
        (
            "openchat_3.5",
            2,
            "is token 2, but the model has 2 embeddings; rayward extend .* makes a model that "
            "has it",
        ),
    ],
)
def test_a_model_without_the_end_of_an_answer_is_refused(
    template: str,
    rows: int,
    told: str,
    tmp_path: Path,
    own: Callable[..., Config],
    tiny_models: Any,
) -> None:
    load_tokenizer(tiny_models.policy).save_pretrained(tmp_path / "base")
    AutoConfig.from_pretrained(tiny_models.policy, vocab_size=rows).save_pretrained(
        tmp_path / "base"
    )
    model = {
        "path": str(tmp_path / "base"),
        "scratch": None,
        "context_tokens": 128,
        "template": template,
    }
    with pytest.raises(StageError, match=told):
        prepare.prepare(Run(tmp_path / "run", own(model=model)))


def test_every_row_has_an_id_of_its_own(done: Run) -> None:
    """Alpaca rows come without one; a lookup by id would find another row."""
    for name in FILES:
        ids = [record.id for record in records(done, name)]
        assert all(ids) and len(set(ids)) == len(ids), name
    ids = Ids()
    assert [ids.of(label, "a") for label in ("", "x", "x", "")] == ["a#0", "x", "x#2", "a#3"]


def test_a_question_of_the_evaluation_is_found_wherever_it_is_asked() -> None:
    u, a, s = (lambda text, role=role: Turn(role, text) for role in ("user", "assistant", "system"))
    asked = Questions.of(
        [Prompt((u("Alone?"),)), Prompt((s("Be brief."), u("One?"), a("Yes."), u("Two?")))]
    )
    for turns in (
        [u(" Alone?\n")],
        [s("Be kind."), u("Alone?")],
        [u("Hi."), a("Hi."), u("Alone?")],
        [u("One?"), a("Yes."), u("Two?"), a("No."), u("Three?")],
    ):
        assert asked.asked_in(turns), turns
    for turns in (
        [u("Two?")],
        [u("One?"), a("No."), u("Two?")],
        [u("Alone? Or not?")],
        [u("Hi."), a("Alone?")],
    ):
        assert not asked.asked_in(turns), turns


def test_a_few_rows_still_leave_one_to_measure_on(
    tmp_path: Path, own: Callable[..., Config]
) -> None:
    few = {"path": "few.jsonl", "format": "openai"}
    for name in ("c", "d"):
        root = tmp_path / name
        lists = write(root, SOURCES)
        (root / "few.jsonl").write_text(
            "\n".join(json.dumps(asked(f"{name} {i}?", "Yes.")) for i in range(4))
        )
        run = Run(root / "run", own(data={**lists, "root": str(root), "conversations": [few]}))
        prepare.prepare(run)
        assert [len(records(run, part)) for part in ("conversations", "sft_heldout")] == [3, 1]


def test_a_changed_file_of_the_same_name_is_noticed(
    tmp_path: Path, own: Callable[..., Config]
) -> None:
    lists = write(
        tmp_path,
        {name: {"same.jsonl": next(iter(files.values()))} for name, files in SOURCES.items()},
    )
    files = contents(own(data={**lists, "root": str(tmp_path)}).data)
    assert set(files) == {f"{name}/same.jsonl" for name in SOURCES}


def test_the_same_config_gives_the_same_bytes(done: Run, tmp_path: Path) -> None:
    again = Run(tmp_path, done.config)
    prepare.prepare(again)
    files = [f"{name}.jsonl" for name in FILES] + [
        "report.json",
        "tokenizer/tokenizer.json",
        "base/model.safetensors",
    ]
    for file in files:
        assert (tmp_path / "prepare" / file).read_bytes() == (
            done.folder / "prepare" / file
        ).read_bytes(), file
    assert prepare.prepare(again) is None, "done before"


# ---- templates, classes and segments
# -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "template", ["openchat_v2", "openchat_v3.1", "ultralm", "alpaca", "llama2", "chatml"]
)
def test_every_template_is_served_as_trained(
    template: str, tmp_path: Path, own: Callable[..., Config]
) -> None:
    run = Run(
        tmp_path,
        own(model={"template": template, "context_tokens": 160, "scratch": {"vocab_size": 320}}),
    )
    assert prepare.prepare(run) is not None
    renderer = Renderer.of(run.config.model, tmp_path / "prepare" / "tokenizer")
    for record in records(run, "prompts"):
        messages = [{"role": turn.role, "content": turn.content} for turn in record.turns]
        served = renderer.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False
        )
        assert renderer.tokenizer.encode(served, add_special_tokens=False) == renderer.prompt(
            record.turns
        )


def test_the_model_s_own_template_stays_as_it_is(
    tmp_path: Path, own: Callable[..., Config], tiny_models: Any
) -> None:
    given = load_tokenizer(tiny_models.policy)
    given.eos_token = "<s>"
    given.save_pretrained(tmp_path / "base")
    AutoConfig.from_pretrained(tiny_models.policy).save_pretrained(tmp_path / "base")
    model = {
        "path": str(tmp_path / "base"),
        "scratch": None,
        "context_tokens": 128,
        "template": "tokenizer",
    }
    run = Run(tmp_path / "run", own(model=model))
    assert prepare.prepare(run) is not None
    renderer = Renderer.of(run.config.model, tmp_path / "run" / "prepare" / "tokenizer")
    assert renderer.tokenizer.chat_template == given.chat_template
    assert renderer.tokenizer.eos_token == "<|end_of_turn|>"
    assert renderer.stop_token_ids == [renderer.tokenizer.eos_token_id]


def with_own_template(folder: Path, form: str, tiny_models: Any, **settings: str) -> dict[str, Any]:
    """The tiny model with another chat template, as the section `model`."""
    tokenizer = load_tokenizer(tiny_models.policy)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = form
    tokenizer.save_pretrained(folder)
    AutoConfig.from_pretrained(tiny_models.policy, vocab_size=len(tokenizer)).save_pretrained(
        folder
    )
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return {"path": str(folder), "scratch": None, "context_tokens": 160, "template": "tokenizer"}


def test_rows_that_the_template_cannot_render_are_left_out_and_what_it_does_is_told(
    tmp_path: Path, own: Callable[..., Config], tiny_models: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    briefed = [
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                *asked(f"Briefly {i}?", "So.")["messages"],
            ]
        }
        for i in range(5)
    ]
    rows = [asked(f"Plain {i}?", "Yes.") for i in range(150)] + briefed
    write(tmp_path, {"conversations": {"mixed.jsonl": rows}})
    source = {"path": str(tmp_path / "conversations" / "mixed.jsonl"), "format": "openai"}
    model = with_own_template(tmp_path / "model", STRICT, tiny_models)
    run = Run(tmp_path / "run", own(model=model, data={"conversations": [source]}))
    assert prepare.prepare(run) is not None
    report = check_account(run)
    left = [row for row in report["left_out"] if row["reason"] == "the chat template raises"]
    assert {row["where"] for row in left} == {f"openai 'Briefly {i}?'" for i in range(5)}
    assert left[0]["found"] == "turns[0] (system): TemplateError: System role not supported"
    first = min(left, key=lambda row: row["line"])
    assert (first["file"], first["line"], first["field"]) == (
        source["path"],
        151,
        "turns[0] (system)",
    )
    assert report["template"]["name"] == "tokenizer" and report["template"]["ends"] == "<|im_end|>"
    printed = capsys.readouterr().out
    for line in report["template"]["told"]:
        assert f"chat template tokenizer: {line}" in printed
    assert any(
        line.startswith("has no system role: such rows are left out")
        for line in report["template"]["told"]
    )


TOOL_MESSAGES = [
    {"role": "user", "content": "How warm is it?"},
    {
        "role": "assistant",
        "content": "",
        "reasoning_content": "I must look.",
        "tool_calls": [{"type": "function", "function": {"name": "warm", "arguments": "{}"}}],
    },
    {"role": "tool", "content": "It is 12."},
    {"role": "assistant", "content": "12 degrees."},
]


@pytest.mark.parametrize("place", [True, False])
def test_rows_with_tools_are_rendered_or_named(
    place: bool, tmp_path: Path, own: Callable[..., Config], tiny_models: Any
) -> None:
    """With a place for them they are rows like others; a template of the table has none."""
    rows: list[dict[str, Any]] = [asked(f"Plain {i}?", "Yes.") for i in range(150)]
    tool = {"type": "function", "function": {"name": "warm", "parameters": {}}}
    rows += [asked("Offered?", "Yes.") | {"tools": [tool]}]
    rows += [{"messages": TOOL_MESSAGES}, {"messages": TOOL_MESSAGES, "tools": [tool]}]
    rows += [{"messages": [*TOOL_MESSAGES[:1], {"role": "assistant", "content": "12.",
                                                "reasoning": "It is warm."}]}]  # fmt: skip
    write(tmp_path, {"conversations": {"mixed.jsonl": rows}})
    path = str(tmp_path / "conversations" / "mixed.jsonl")
    settings: dict[str, Any] = {"data": {"conversations": [{"path": path, "format": "openai"}]}}
    if place:
        form = WITH_TOOLS["plain"]
        settings["model"] = with_own_template(tmp_path / "model", form, tiny_models)
    run = Run(tmp_path / "run", own(**settings))
    assert prepare.prepare(run) is not None
    report = check_account(run)
    left = [row for row in report["left_out"] if row.get("file") == path]
    files = [*records(run, "conversations"), *records(run, "sft_heldout")]
    kept = [record for record in files if any(parts_of(record.turns, record.tools))]
    if place:
        assert not left and len(kept) == 4
        return
    assert not kept
    expected = [
        (row["line"], row["field"], row["expected"].partition(" (ignore ")[0]) for row in left
    ]
    assert sorted(expected) == [
        (151, "tools", "a template with a place for tools"),
        (152, "turns[1].reasoning", "a template with a place for reasoning"),
        (153, "tools", "a template with a place for tools"),
        (154, "turns[1].reasoning", "a template with a place for reasoning"),
    ]


def test_a_template_for_which_no_row_works_stops_with_the_counts(
    tmp_path: Path, own: Callable[..., Config], tiny_models: Any
) -> None:
    briefed = [
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                *asked(f"Briefly {i}?", "So.")["messages"],
            ]
        }
        for i in range(40)
    ]
    write(tmp_path, {"conversations": {"briefed.jsonl": briefed}})
    source = {"path": str(tmp_path / "conversations" / "briefed.jsonl"), "format": "openai"}
    model = with_own_template(tmp_path / "model", STRICT, tiny_models)
    with pytest.raises(
        StageError,
        match=r"conversations: 0 rows are left.*left out: \d+ x the chat template raises",
    ):
        prepare.prepare(Run(tmp_path / "run", own(model=model, data={"conversations": [source]})))


def test_a_folder_whose_class_reads_it_otherwise_is_read_as_its_tokenizer_says(
    tmp_path: Path, own: Callable[..., Config], tiny_models: Any
) -> None:
    """As DeepSeek R1's distilled models are published: Llama's class beside a byte-level
    tokenizer.json.
    """
    model = with_own_template(
        tmp_path / "model", CHATML, tiny_models, tokenizer_class="LlamaTokenizer"
    )
    run = Run(tmp_path / "run", own(model=model))
    assert prepare.prepare(run) is not None
    told = json.loads((tmp_path / "run" / "prepare" / "report.json").read_text())["template"][
        "told"
    ]
    assert told[0].startswith("the tokenizer: by its class, LlamaTokenizer, 'Hello there' is ")
    assert told[0].endswith("; it is read as tokenizer.json says")
    saved = load_tokenizer(tmp_path / "run" / "prepare" / "tokenizer")
    assert (
        saved("Hello there 12").input_ids
        == load_tokenizer(tiny_models.policy)("Hello there 12").input_ids
    )


def test_an_end_token_that_is_a_word_like_others_becomes_special_in_the_run(
    tmp_path: Path, own: Callable[..., Config], tiny_models: Any
) -> None:
    """Before, a user who wrote it stopped prepare."""
    model = with_own_template(tmp_path / "model", CHATML, tiny_models)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        path = tmp_path / "model" / name
        saved = json.loads(path.read_text())
        for token in saved.get("added_tokens", []):
            token["special"] = not token["content"].startswith("<|im_")
        for token in saved.get("added_tokens_decoder", {}).values():
            token["special"] = not token["content"].startswith("<|im_")
        saved.pop("extra_special_tokens", None)
        path.write_text(json.dumps(saved))
    assert (
        load_tokenizer(tmp_path / "model")("<|im_end|>", split_special_tokens=True).input_ids[1:]
        == []
    )
    rows = [asked(f"What is <|im_end|> {i}?", "An end.") for i in range(150)]
    write(tmp_path, {"conversations": {"mixed.jsonl": rows}})
    data = {
        "conversations": [
            {"path": str(tmp_path / "conversations" / "mixed.jsonl"), "format": "openai"}
        ]
    }
    run = Run(tmp_path / "run", own(model=model | {"template": "chatml"}, data=data))
    assert prepare.prepare(run) is not None
    told = json.loads((tmp_path / "run" / "prepare" / "report.json").read_text())["template"][
        "told"
    ]
    assert told[0].startswith("'<|im_end|>', '<|im_start|>' become special in the run")
    with pytest.raises(
        StageError, match="were it special: rayward extend MODEL --token '<.im_end.>' --out DIR"
    ):
        prepare.prepare(Run(tmp_path / "other", own(model=model, data=data)))


def test_the_pad_token_ends_no_answer(
    tmp_path: Path, own: Callable[..., Config], tiny_models: Any
) -> None:
    """Nor does the end token change what the template writes of a system turn."""
    form = CHATML.replace(
        "{{ '<|im_start|>' +", "{{ (eos_token if m.role == 'system' else '') + '<|im_start|>' +", 1
    )
    assert form != CHATML
    model = with_own_template(tmp_path / "model", form, tiny_models, pad_token="<|im_end|>")
    run = Run(tmp_path / "run", own(model=model))
    assert prepare.prepare(run) is not None
    saved = load_tokenizer(tmp_path / "run" / "prepare" / "tokenizer")
    assert saved.convert_tokens_to_ids("<|im_end|>") not in (None, saved.pad_token_id)
    assert saved.eos_token == load_tokenizer(tmp_path / "model").eos_token != "<|im_end|>"


@pytest.mark.parametrize(
    ("form", "settings", "told"),
    [
        (
            PREFILLED,
            {},
            "asks for an answer elsewhere than it writes it: turns.1. .assistant.: found "
            ".*'<think>",
        ),
        (
            ENDLESS.replace("'</s>'", "'.'"),
            {},
            "no special token ends an answer: a model trained so never learns to stop",
        ),
    ],
)
def test_words_that_cannot_be_trained_are_refused(
    form: str,
    settings: dict[str, str],
    told: str,
    tmp_path: Path,
    own: Callable[..., Config],
    tiny_models: Any,
) -> None:
    model = with_own_template(tmp_path / "model", form, tiny_models, **settings)
    with pytest.raises(StageError, match=f"model.path .*model.*: .*{told}"):
        prepare.prepare(Run(tmp_path / "run", own(model=model)))


def test_segments_and_classes_are_in_the_report(tmp_path: Path, own: Callable[..., Config]) -> None:
    labelled = [
        chat(f"Label {i}?", f"Said {i}. " * 9, "More?", f"More {i}. " * 9, "End?", "Yes.")
        for i in range(150)
    ]
    rows = [
        row | {"model": "Model: GPT-4" if i % 3 else "Model: GPT-3.5"}
        for i, row in enumerate(labelled)
    ]
    write(tmp_path, {"conversations": {"labelled.jsonl": rows}})
    source = {"path": str(tmp_path / "conversations" / "labelled.jsonl")}
    quality = {"conditioning": True, "weighting": True}
    run = Run(
        tmp_path / "run",
        own(
            data={"conversations": [source]},
            sft={"long_conversations": "segment", "quality": quality},
        ),
    )
    assert prepare.prepare(run) is not None
    report = check_account(run)
    assert report["classes"] == {
        "expert": {"Model: GPT-4": 100},
        "sub_optimal": {"Model: GPT-3.5": 50},
    }
    rules = [report["rules"].get(name, {}) for name in ("conversations", "sft_heldout")]
    divided = sum(rule.get("kept, divided into segments", 0) for rule in rules)
    further = sum(rule.get("kept, further segments", 0) for rule in rules)
    kept = report["kept"]["conversations"] + report["kept"]["sft_heldout"]
    assert 100 < divided <= further and kept == 150 + further
    said = " ".join(
        turn.content for record in records(run, "conversations") for turn in record.turns
    )
    assert all(
        f"Said {i}." in said and f"More {i}." in said for i in range(150) if f"Label {i}?" in said
    )


def test_a_data_set_by_its_name_is_a_source(tmp_path: Path, own: Callable[..., Config]) -> None:
    write(
        tmp_path,
        {"conversations": {"rows.jsonl": [alpaca(f"Instruction {i}.") for i in range(40)]}},
    )
    source = {"path": f"hf:{tmp_path / 'conversations' / 'rows.jsonl'}"}
    run = Run(tmp_path / "run", own(data={"conversations": [source]}))
    assert prepare.prepare(run) is not None
    assert check_account(run)["sources"]["conversations"][source["path"]]["read"] == 40


# ---- mistakes
# ----------------------------------------------------------------------------------------------


def test_a_missing_file_names_the_list_and_the_root(
    own: Callable[..., Config], tmp_path: Path
) -> None:
    config = own(data={"preferences": [{"path": "preferences/hh.jsonl"}, {"path": "absent.jsonl"}]})
    with pytest.raises(StageError) as caught:
        prepare.prepare(Run(tmp_path, config))
    told = str(caught.value)
    assert told.startswith("data.preferences: ") and "absent.jsonl: no such file or folder" in told
    assert f"data.root is {Path(config.data.root).resolve()}" in told
    assert not (tmp_path / "prepare" / "manifest.json").exists()


@pytest.mark.parametrize(
    "source, told",
    [
        (
            {"path": "conversations/alpaca.json", "format": "alpacca"},
            "unknown format 'alpacca'; known: auto",
        ),
        ({"path": "plain.jsonl"}, "question, reply fit no known format"),
    ],
)
def test_a_format_that_is_unknown_or_cannot_be_told(
    source: dict[str, str], told: str, own: Callable[..., Config], tmp_path: Path
) -> None:
    config = own(data={"conversations": [source]})
    (Path(config.data.root) / "plain.jsonl").write_text('{"question": "q", "reply": "a"}\n')
    with pytest.raises(StageError, match="data.conversations: ") as caught:
        prepare.prepare(Run(tmp_path, config))
    assert told in str(caught.value) and "data.root is" in str(caught.value)


def test_a_folder_is_all_of_its_files(
    done: Run, own: Callable[..., Config], tmp_path: Path
) -> None:
    run = Run(tmp_path, own(data={"conversations": [{"path": "conversations"}]}))
    assert prepare.prepare(run) is not None
    assert check_account(run)["sources"]["conversations"]["conversations"]["read"] == sum(
        len(rows) for rows in SOURCES["conversations"].values()
    )
    for name in ("conversations", "sft_heldout"):
        assert {prompt_key(r.turns) for r in records(run, name)} == {
            prompt_key(r.turns) for r in records(done, name)
        }


def test_too_few_evaluation_prompts_tell_both_numbers(
    own: Callable[..., Config], tmp_path: Path
) -> None:
    run = Run(tmp_path, own(evaluate={"judge": "reward_model", "prompts": 23}))
    told = (
        r"evaluation prompts: 22 rows are left, at least 23 are needed \(evaluate.prompts\); "
        r"left out: 1 x"
    )
    with pytest.raises(StageError, match=told):
        prepare.prepare(run)
    assert not run.done("prepare")
    assert (
        read_json(tmp_path / "prepare" / "report.json")["rules"]["evaluation_prompts"][
            "duplicate prompt"
        ]
        == 1
    )


def test_no_ranking_for_the_second_reward_model_is_told_before_training(
    done: Run, own: Callable[..., Config], tmp_path: Path
) -> None:
    """Which split a prompt falls into hangs on its text alone: here are those that are not the
    judge's.
    """
    judged = {record.turns[0].content for record in records(done, "judge")}
    rows = [hh(f"Human {i}?") for i in range(60) if f"Human {i}?" not in judged]
    assert 0 < len(rows) < 60
    write(tmp_path, {"preferences": {"few.jsonl": rows}})
    config = own(data={"preferences": [{"path": str(tmp_path / "preferences" / "few.jsonl")}]})
    with pytest.raises(StageError, match="judge: 0 rows are left"):
        prepare.prepare(Run(tmp_path / "run", config))


def test_a_limit_reads_the_first_rows(own: Callable[..., Config], tmp_path: Path) -> None:
    config = own(data={"prompts": [{"path": "prompts/openai.jsonl", "limit": 7}]})
    assert prepare.prepare(Run(tmp_path, config)) is not None
    assert [record.turns[0].content for record in records(Run(tmp_path, config), "prompts")] == [
        f"Prompt {i}?" for i in range(7)
    ]
    assert (
        read_json(tmp_path / "prepare" / "report.json")["sources"]["prompts"][
            "prompts/openai.jsonl"
        ]["read"]
        == 7
    )


# ---- real files
# --------------------------------------------------------------------------------------------


@pytest.mark.skipif(
    not REAL.is_dir(), reason="no ../shared/data beside the repository: the real files are not here"
)
@pytest.mark.parametrize("template", ["vicuna_v1.1", "openchat_3.5"])
def test_real_files(template: str, tmp_path: Path, tiny_config: Callable[..., Config]) -> None:
    data = {"toyworld": None, "root": str(REAL), "heldout_fraction": 0.2}
    files = {
        "conversations": ["alpaca/alpaca_data.json.gz", "sharegpt/sharegpt_train.json.gz"],
        "preferences": ["nectar/train.jsonl.gz", "hh_rlhf/train.jsonl.gz"],
        "prompts": ["alpaca/alpaca_data.json.gz", "sharegpt/sharegpt_train.json.gz"],
        "evaluation_prompts": ["alpaca_eval/instructions.jsonl.gz"],
    }
    lists = {
        name: [{"path": path, "limit": 100 if name != "preferences" else 40} for path in paths]
        for name, paths in files.items()
    }
    config = tiny_config(
        model={"template": template, "context_tokens": 320, "scratch": {"vocab_size": 512}},
        data={**data, **lists},
        evaluate={"judge": "reward_model", "prompts": 50},
    )
    run = Run(tmp_path, config)
    assert prepare.prepare(run) is not None
    check_account(run)
    check_splits(run)
    renderer = Renderer.of(config.model, tmp_path / "prepare" / "tokenizer")
    for name in ("prompts", "evaluation_prompts"):
        for record in records(run, name):
            assert len(renderer.prompt(record.turns)) + config.rollout.max_new_tokens <= 320
    for record in records(run, "conversations")[:40]:
        prompt = renderer.prompt(record.turns[:-1])
        assert renderer.conversation(record.turns).ids[: len(prompt)] == prompt
    for record in records(run, "rankings"):
        assert len(record.answers) >= 2
