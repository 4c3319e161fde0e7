"""Stage 1: read or generate the data, train or load the tokenizer, and account for every row.

Writes normalised records (conversations, rankings, held-out rankings, judge rankings, prompts, evaluation prompts),
the tokenizer with its chat template, a base model with random weights where the config asks for one, and report.json.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from configs.data import Data, Source
from configs.model import Model
from configs.schema import Config
from data import toyworld
from data.formats import Report, read
from data.records import Conversation, Preference, Prompt, Ranking, Turn, to_json
from data.template_jinja import jinja
from data.templates import Template, end_token, find, stop_token_ids, text
from pipelines import quality
from pipelines.rows import FURTHER, LeftOut, Renderer, fit_conversations, fit_prompts, fit_rankings, prompt_key
from pipelines.stage import Metrics, Run, StageError, begin, table, write_json, write_jsonl

FILES = ("conversations", "sft_heldout", "rankings", "heldout", "judge", "prompts", "evaluation_prompts")
SOURCES = ("conversations", "preferences", "prompts", "evaluation_prompts")
SFT_HELDOUT_FRACTION = 0.02


def run(run: Run) -> dict[str, Any] | None:
    """Do the stage; None if it was done before."""
    config = run.config
    stage = begin(run, "prepare", more={"files": _contents(config.data)})
    if stage is None:
        return None
    report: dict[str, Any] = {}
    metrics: dict[str, Any] = {}
    if config.data.toyworld:
        records, metrics["label_noise"] = generate(config)
    else:
        records = {name: list(_read_all(config.data, name, report)) for name in SOURCES}
    conversations = [record for record in records["conversations"] if isinstance(record, Conversation)]
    renderer = _renderer(config, stage.folder, conversations, records["preferences"])
    if config.sft.quality.conditioning or config.sft.quality.weighting:
        report["classes"] = quality.check(config.sft.quality, renderer.template, conversations)

    split: dict[str, list] = {name: [] for name in FILES}
    dropped = {name: LeftOut() for name in FILES}
    evaluation = Questions.of(records["evaluation_prompts"])
    for record in _without(conversations, evaluation, dropped["conversations"]):
        heldout = _share(prompt_key(_to_first_answer(record.turns))) < SFT_HELDOUT_FRACTION
        split["sft_heldout" if heldout else "conversations"].append(record)
    for record in _without(records["preferences"], evaluation, dropped["rankings"]):
        split[_preference_split(record, config)].append(record)
    if conversations and not split["sft_heldout"] and len(split["conversations"]) > 1:
        split["sft_heldout"].append(split["conversations"].pop())  # few rows: one of them is measured on
    split["prompts"] = list(_without(records["prompts"], evaluation, dropped["prompts"]))
    split["evaluation_prompts"] = records["evaluation_prompts"]

    chats = partial(fit_conversations, sft=config.sft)
    fit: dict[str, Callable[..., Any]] = {
        "conversations": chats,
        "sft_heldout": chats,
        "rankings": fit_rankings,
        "heldout": fit_rankings,
        "judge": fit_rankings,
    }
    with Metrics(stage.folder, "prepare", len(FILES), "set") as progress:
        for number, name in enumerate(FILES):
            given = len(split[name])
            if name in fit:
                split[name] = fit[name](split[name], renderer, dropped[name])[0]
            else:
                split[name] = fit_prompts(split[name], renderer, config.rollout.max_new_tokens, dropped[name])[0]
            progress.log(number, {"set": name, "rows": given, "kept": len(split[name])}, ("kept",))

    for name in FILES:
        split[name] = with_ids(split[name])
        write_jsonl(stage.folder / f"{name}.jsonl", [to_json(record) for record in split[name]])
    report["kept"] = {name: len(split[name]) for name in FILES}
    report["rules"] = {name: dict(counts) for name, counts in dropped.items() if counts}
    report["left_out"] = [row for counts in dropped.values() for row in counts.rows]
    if not config.data.toyworld:
        _check_account(records, report)
    else:
        metrics["noise_ceiling"] = _noise_ceiling(split["heldout"])
    write_json(stage.folder / "report.json", report)
    _require(split, config)
    if config.model.scratch:
        _base_model(config, renderer, stage.folder / "base")
    for name in FILES:
        metrics[name] = len(split[name])
    metrics["vocabulary"] = len(renderer.tokenizer)
    table("prepare", {name.replace("_", " "): value for name, value in metrics.items()})
    return stage.finish(metrics)


def base_model(run: Run) -> str:
    """Folder or hub name of the base model."""
    return run.config.model.path or str(run.folder / "prepare" / "base")


def generate(config: Config) -> tuple[dict[str, list], float]:
    """The toy world's records, and the share of ranked pairs that contradict its gold judge."""
    world, seed = config.data.toyworld, config.seed
    assert world is not None
    rankings, noise = toyworld.rankings(world.rankings, world.answers_per_ranking, world.label_noise, seed)
    return {
        "conversations": toyworld.demonstrations(world.demonstrations, seed),
        "preferences": rankings,
        "prompts": toyworld.prompts(world.prompts, seed, "train"),
        "evaluation_prompts": toyworld.prompts(world.evaluation_prompts, seed, "evaluation"),
    }, noise


def _read_all(data: Data, name: str, report: dict[str, Any]) -> Iterator[Any]:
    """The records of a list of sources, brought to the kind that the list needs."""
    for source in getattr(data, name):
        rows = Report()
        made: Counter[str] = Counter()
        for record in itertools.islice(_open(data, name, source, rows), source.limit):
            converted = _as_kind(record, name)
            made["records" if converted else f"a {type(record).__name__.lower()} is no use for data.{name}"] += 1
            if converted:
                yield converted
        entry = {
            "read": rows.read,
            "kept": rows.kept,
            "rejected": dict(rows.rejected),
            "repaired": dict(rows.repaired),
            **{key: made[key] for key in made},
        }
        files = report.setdefault("sources", {}).setdefault(name, {})
        files[source.path if source.path not in files else f"{source.path} ({len(files) + 1})"] = entry
        report.setdefault("rejected_rows", []).extend(
            {"file": r.file, "line": r.line, "field": r.field, "found": r.found, "expected": r.expected}
            for r in rows.rejected_rows
        )


def with_ids(records: Iterable[Any]) -> list[Any]:
    """The records, each with an id of its own: rows that came without one, or with one seen before, get a number."""
    seen: set[str] = set()
    made = []
    for number, record in enumerate(records):
        label = record.id
        if not label or label in seen:
            label = f"{record.id or record.source or 'row'}#{number}"
        seen.add(label)
        made.append(replace(record, id=label))
    return made


def _contents(data: Data) -> dict[str, str]:
    """A hash of every source file, so that a changed file is not taken for the old one."""
    sources = {source.path for name in SOURCES for source in getattr(data, name)}
    found: dict[str, str] = {}
    for path in sorted(Path(data.root) / source for source in sources if not source.startswith("hf:")):
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            if file.is_file():
                with file.open("rb") as opened:
                    digest = hashlib.file_digest(opened, "sha256").hexdigest()[:16]
                found[os.path.relpath(file, data.root)] = digest
    return found


def _open(data: Data, name: str, source: Source, rows: Report) -> Iterator[Any]:
    path = source.path if source.path.startswith("hf:") else Path(data.root) / source.path
    try:
        return iter(read(path, source.format, rows))
    except (FileNotFoundError, ValueError) as error:
        raise StageError(f"data.{name}: {error}; data.root is {Path(data.root).resolve()}") from error


def _as_kind(record: Any, name: str) -> Any:
    if name == "conversations":
        return record if isinstance(record, Conversation) else None
    if name == "preferences":
        return (
            record.as_ranking() if isinstance(record, Preference) else record if isinstance(record, Ranking) else None
        )
    if isinstance(record, Conversation):
        asked = _to_first_answer(record.turns)
        return Prompt(asked, record.source, record.id, reference=record.turns[len(asked)].content)
    reference = record.reference if isinstance(record, Prompt) else None
    return Prompt(record.turns, record.source, record.id, reference=reference)


def _to_first_answer(turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
    first = next(index for index, turn in enumerate(turns) if turn.role == "assistant")
    return turns[:first]


@dataclass(frozen=True)
class Questions:
    """Evaluation prompts: whole ones by their key, and those of a single turn by what the user says in it."""

    keys: frozenset[str]
    single: frozenset[str]

    @classmethod
    def of(cls, prompts: Iterable[Prompt]) -> Questions:
        asked = [tuple(turn for turn in prompt.turns if turn.role != "system") for prompt in prompts]
        return cls(
            frozenset(prompt_key(turns) for turns in asked),
            frozenset(turns[0].content.strip() for turns in asked if len(turns) == 1),
        )

    def asked_in(self, turns: Sequence[Turn]) -> bool:
        """Whether a conversation asks one of them, at its start or in a later turn, under any system message."""
        said = [turn for turn in turns if turn.role != "system"]
        return any(
            turn.content.strip() in self.single or prompt_key(said[: index + 1]) in self.keys
            for index, turn in enumerate(said)
            if turn.role == "user"
        )


def _without(records: Iterable[Any], evaluation: Questions, dropped: Counter[str]) -> Iterator[Any]:
    """Records that ask no evaluation prompt."""
    for record in records:
        if evaluation.asked_in(record.turns):
            dropped["also an evaluation prompt"] += 1
        else:
            yield record


def _share(key: str) -> float:
    """A number in [0, 1) that depends on the text alone, to split rows the same way in every run."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:6], "big") / 2**48


def _preference_split(record: Ranking, config: Config) -> str:
    """Training, held-out measurement, or the second reward model that judges."""
    share = _share(prompt_key(record.turns))
    if share < config.data.heldout_fraction:
        return "heldout"
    judged = config.evaluate.judge == "reward_model" and share > (1 + config.data.heldout_fraction) / 2
    return "judge" if judged else "rankings"


def _renderer(config: Config, folder: Path, conversations: list[Conversation], rankings: list[Ranking]) -> Renderer:
    """Train or load the tokenizer, give it the chat template and its end token, and save it."""
    from data.tokenizer import load_tokenizer, train_tokenizer

    template = find(config.model.template)
    if config.model.scratch:
        texts = itertools.chain(
            (text(template, c.turns) for c in conversations),
            (text(template, (*r.turns, Turn("assistant", a))) for r in rankings for a in r.answers),
        )
        tokenizer = train_tokenizer(
            texts, config.model.scratch.vocab_size, template.special_tokens, config.model.context_tokens
        )
    else:
        assert config.model.path is not None
        tokenizer = load_tokenizer(config.model.path)
        _require_end_token(config.model, template, tokenizer)
        tokenizer.eos_token = end_token(template, tokenizer)
    if not template.own:
        tokenizer.chat_template = jinja(template, tokenizer)
    tokenizer.save_pretrained(folder / "tokenizer")
    return Renderer.of(config.model, folder / "tokenizer")


def _require_end_token(model: Model, template: Template, tokenizer: Any) -> None:
    """Raise StageError where the model of a folder has no embedding for a token that the template needs."""
    from transformers import AutoConfig

    try:
        (end,) = stop_token_ids(template, tokenizer)
    except ValueError as error:
        raise StageError(f"model.path {model.path}, model.template {model.template}: {error}") from error
    rows = AutoConfig.from_pretrained(model.path).get_text_config().vocab_size
    if end >= rows:
        raise StageError(
            f"model.path {model.path}: {template.end_token!r}, which ends an answer of {model.template}, is token "
            f"{end}, but the model has {rows} embeddings; "
            f"rayward extend {model.path} --template {model.template} --out DIR makes a model that has it"
        )


def _base_model(config: Config, renderer: Renderer, folder: Path) -> None:
    from actors.models import build_from_scratch, save_model

    assert config.model.scratch is not None
    model = build_from_scratch(config.model.scratch, renderer.tokenizer, config.model.context_tokens, config.seed)
    save_model(model, model.state_dict(), renderer.tokenizer, folder)


def _noise_ceiling(heldout: list[Ranking]) -> float:
    """Pair accuracy of the gold judge itself on the noisy held-out rankings; its ties count half."""
    right = pairs = 0.0
    for ranking in heldout:
        gold = [toyworld.judge(ranking.turns, answer) for answer in ranking.answers]
        for better, worse in itertools.combinations(gold, 2):
            right += 1.0 if better > worse else 0.5 if better == worse else 0.0
            pairs += 1
    return right / max(pairs, 1)


def _check_account(records: dict[str, list], report: dict[str, Any]) -> None:
    """Every row read is kept or dropped by a named rule; a programming error shows here, not in the data."""
    kept, rules = report["kept"], report["rules"]
    groups = {
        "conversations": ("conversations", "sft_heldout"),
        "preferences": ("rankings", "heldout", "judge"),
        "prompts": ("prompts",),
        "evaluation_prompts": ("evaluation_prompts",),
    }
    for name, files in groups.items():
        counted = sum(
            kept[file]
            - rules.get(file, {}).get(FURTHER, 0)
            + sum(n for rule, n in rules.get(file, {}).items() if not rule.startswith("kept"))
            for file in files
        )
        if counted != len(records[name]):
            raise AssertionError(f"data.{name}: {len(records[name])} records came in, {counted} are accounted for")


def _require(split: dict[str, list], config: Config) -> None:
    for name, least in (
        ("conversations", 1),
        ("sft_heldout", 1),
        ("rankings", 1),
        ("heldout", 1),
        ("prompts", 1),
        ("judge", int(config.evaluate.judge == "reward_model")),
        ("evaluation_prompts", config.evaluate.prompts),
    ):
        if len(split[name]) < least:
            raise StageError(
                f"{name.replace('_', ' ')}: {len(split[name])} rows are left, at least {least} "
                f"{'are needed' if least > 1 else 'is needed'}"
                f"{' (evaluate.prompts)' if name == 'evaluation_prompts' else ''}; "
                "report.json in the stage's folder says what became of the others"
            )
