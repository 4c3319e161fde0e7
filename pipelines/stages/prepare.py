"""Stage prepare: read or generate the data, train or load the tokenizer, and account for every row.

Writes normalised records (conversations, rankings, held-out rankings, judge rankings, labelled
answers, prompts, evaluation prompts), the tokenizer with its chat template, a base model with
random weights where the config asks for one, and report.json.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rayward.configs.labels import no_preferences
from rayward.configs.needs import few_rows, least_rows
from rayward.configs.schema import Config
from rayward.configs.sections.data import LISTS
from rayward.data.record_json import to_json
from rayward.data.records import Ranking
from rayward.data.toy import toyworld
from rayward.pipelines.rows import mixture, quality
from rayward.pipelines.rows.contamination import evaluation_texts, without_shared
from rayward.pipelines.rows.conversations import fit_conversations
from rayward.pipelines.rows.labelled import fit_labelled
from rayward.pipelines.rows.left_out import FURTHER, LeftOut, Places
from rayward.pipelines.rows.prompts import fit_prompts
from rayward.pipelines.rows.rankings import fit_rankings
from rayward.pipelines.rows.reading import contents, generate, read_all
from rayward.pipelines.rows.renderer import Renderer
from rayward.pipelines.rows.splitting import FILES, divide
from rayward.pipelines.run.errors import StageError
from rayward.pipelines.run.files import write_json, write_jsonl
from rayward.pipelines.run.folder import Run
from rayward.pipelines.run.metrics import Metrics, table
from rayward.pipelines.run.stage import begin
from rayward.pipelines.stages.prepare_tokenizer import make_renderer


def prepare(run: Run) -> dict[str, Any] | None:
    """Do the stage; None if it was done before."""
    config = run.config
    stage = begin(run, "prepare", more={"files": contents(config.data)})
    if stage is None:
        return None
    report: dict[str, Any] = {}
    metrics: dict[str, Any] = {}
    places = Places()
    if config.data.toyworld:
        records, metrics["label_noise"] = generate(config)
    else:
        records = {name: list(read_all(config.data, name, report, places)) for name in LISTS}
    conversations = records["conversations"]
    renderer, report["template"] = make_renderer(
        config, stage.folder, conversations, records["preferences"]
    )
    if config.sft.quality.conditioning or config.sft.quality.weighting:
        report["classes"] = quality.check(config.sft.quality, renderer.template, conversations)

    # Divided before rows are fitted: what fits depends on the context, and a record must not move
    # from training to measurement, or back, with it.
    dropped = {name: LeftOut(places) for name in FILES}
    evaluated = evaluation_texts(config.data, records["evaluation_prompts"], places, report)
    split = divide(without_shared(records, evaluated, dropped), config, dropped)
    # By the kind of the source; only the records are kept here. The stages make the rows again.
    prompts = partial(fit_prompts, max_new_tokens=config.rollout.max_new_tokens)
    fit: dict[str, Callable[..., Any]] = {
        "conversations": partial(fit_conversations, sft=config.sft),
        "preferences": fit_rankings,
        "prompts": partial(prompts, seen=set()),
        "evaluation_prompts": partial(prompts, seen=set()),
    }
    # One source, two kinds of records.
    fit |= {"labelled": fit_labelled, "labelled_heldout": fit_labelled}
    sources = mixture.Sources(records, report)
    with Metrics(stage.folder, "prepare", len(FILES), "set") as progress:
        for number, (name, source) in enumerate(FILES.items()):
            given = len(split[name])
            parts = sources.parts(source, split[name])
            one = partial(fit.get(name, fit[source]), renderer=renderer, dropped=dropped[name])
            kept, split[name], account = mixture.mixed(
                config.data, name, source, parts, one, config.seed
            )
            report.setdefault("kept", {})[name] = len(kept)
            if account:
                report.setdefault("mixture", {})[name] = [part.as_dict() for part in account]
            progress.log(number, {"set": name, "rows": given, "kept": len(kept)}, ("kept",))

    for name in FILES:
        split[name] = with_ids(split[name])
        write_jsonl(stage.folder / f"{name}.jsonl", [to_json(record) for record in split[name]])
    report["rules"] = {name: dict(counts) for name, counts in dropped.items() if counts}
    report["left_out"] = [row for counts in dropped.values() for row in counts.rows]
    if not config.data.toyworld:
        _check_account(records, report)
    else:
        metrics["noise_ceiling"] = _noise_ceiling(split["heldout"])
    report["warnings"] = list(few_rows(config, {name: len(split[name]) for name in FILES}))
    # Before the check: where too few rows are left, the report says why.
    write_json(stage.folder / "report.json", report)
    _require(split, config, report["rules"])
    for line in report["warnings"]:
        print(f"   {line}", flush=True)
    if config.model.scratch:
        _base_model(config, renderer, stage.folder / "base")
    for name in FILES:
        metrics[name] = len(split[name])
    metrics["vocabulary"] = len(renderer.tokenizer)
    mixture.show(report.get("mixture", {}))
    table("prepare", {name.replace("_", " "): value for name, value in metrics.items()})
    return stage.finish(metrics)


def with_ids(records: Iterable[Any]) -> list[Any]:
    """The records, each with an id of its own.

    Rows that came without one, or with one seen before, get a number. Later stages find the prompt
    of an answer by its id.
    """
    seen: set[str] = set()
    labelled = []
    for number, record in enumerate(records):
        label = record.id
        if not label or label in seen:
            label = f"{record.id or record.source or 'row'}#{number}"
            while label in seen:  # somebody's own ids look like that
                label += "#"
        seen.add(label)
        labelled.append(replace(record, id=label))
    return labelled


def _base_model(config: Config, renderer: Renderer, folder: Path) -> None:
    from rayward.actors.models.load import build_from_scratch, save_model

    assert config.model.scratch is not None
    model = build_from_scratch(
        config.model.scratch, renderer.tokenizer, config.model.context_tokens, config.seed
    )
    save_model(model, model.state_dict(), renderer.tokenizer, folder)


def _noise_ceiling(heldout: list[Ranking]) -> float:
    """Pair accuracy of the gold judge itself on the noisy held-out rankings; ties count half."""
    right = pairs = 0.0
    for ranking in heldout:
        gold = [toyworld.judge(ranking.turns, answer) for answer in ranking.answers]
        # Answers stand best first, by the noisy labels; what the judge orders otherwise is noise,
        # which no reward model can foresee.
        for better, worse in itertools.combinations(gold, 2):
            if better >= worse:
                right += 1.0 if better > worse else 0.5
            pairs += 1
    return right / max(pairs, 1)


def _check_account(records: dict[str, list], report: dict[str, Any]) -> None:
    """Every row read is kept or dropped by a named rule; else it is a programming error."""
    kept, rules = report["kept"], report["rules"]
    for name in LISTS:
        # Further segments are rows that did not come in; rules that begin with "kept" dropped none.
        counted = sum(
            kept[file]
            - rules.get(file, {}).get(FURTHER, 0)
            + sum(n for rule, n in rules.get(file, {}).items() if not rule.startswith("kept"))
            for file, source in FILES.items()
            if source == name
        )
        if counted != len(records[name]):
            raise AssertionError(
                f"data.{name}: {len(records[name])} records came in, {counted} are accounted for"
            )


def _require(split: dict[str, list], config: Config, rules: dict[str, dict[str, int]]) -> None:
    """StageError where a later stage of this config would have too few rows."""
    for line in no_preferences(config, {name: len(rows) for name, rows in split.items()}):
        raise StageError(line)
    for name, least in least_rows(config).items():
        if len(split[name]) < least:
            lost = [
                f"{count} x {rule}"
                for rule, count in rules.get(name, {}).items()
                if not rule.startswith("kept")
            ]
            left_out = f"left out: {'; '.join(lost)}; " if lost else ""
            raise StageError(
                f"{name.replace('_', ' ')}: {len(split[name])} rows are left, at least {least} "
                f"{'are needed' if least > 1 else 'is needed'}"
                f"{' (evaluate.prompts)' if name == 'evaluation_prompts' else ''}; "
                f"{left_out}report.json in the stage's folder says what became of the others"
            )
