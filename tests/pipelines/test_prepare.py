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

from rayward.configs.load import PRESETS, load
from rayward.configs.schema import STAGE_SECTIONS, Config
from rayward.configs.sections.data import ToyWorld
from rayward.data.records import Prompt, Turn, validate
from rayward.data.toy import toyworld
from rayward.pipelines.rows.prepared_file import Ids
from rayward.pipelines.rows.prompts import prompt_key
from rayward.pipelines.rows.reading import contents
from rayward.pipelines.rows.renderer import Renderer
from rayward.pipelines.rows.splitting import FILES, Questions
from rayward.pipelines.run.errors import StageError
from rayward.pipelines.run.files import read_json
from rayward.pipelines.run.folder import Run
from rayward.pipelines.stages import prepare
from tests.pipelines.brought import (
    SOURCES,
    TRAINING,
    alpaca,
    asked,
    check_account,
    hh,
    label,
    prefixes,
    prompt_of,
    records,
    write,
)

REAL = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# ---- the account
# -------------------------------------------------------------------------------------------


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
