"""Stage prepare: read or generate the data, train or load the tokenizer, and account for every row.

Writes normalised records (conversations, rankings, held-out rankings, judge rankings, labelled
answers, prompts, evaluation prompts), the tokenizer with its chat template, a base model with
random weights where the config asks for one, and report.json.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rayward.configs.labels import no_preferences, one_kind_of_labels
from rayward.configs.needs import few_rows, least_rows
from rayward.configs.schema import Config
from rayward.configs.sections.data import LISTS
from rayward.data.records import Ranking
from rayward.data.toy import toyworld
from rayward.pipelines.rows import mixture, quality, set_aside
from rayward.pipelines.rows.contamination import not_compared
from rayward.pipelines.rows.labelled import good_and_bad
from rayward.pipelines.rows.left_out import FURTHER, Listing
from rayward.pipelines.rows.passes import Records, write_files
from rayward.pipelines.rows.prepared_file import PreparedFile
from rayward.pipelines.rows.reading import contents, generate, paths, read_all
from rayward.pipelines.rows.records import load_records
from rayward.pipelines.rows.renderer import Renderer
from rayward.pipelines.rows.splitting import FILES
from rayward.pipelines.rows.spool import Entry
from rayward.pipelines.run import kept as kept_stages
from rayward.pipelines.run.errors import StageError
from rayward.pipelines.run.files import write_json
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
    # What a data set on the hub holds is not known without reading it.
    on_hub = any(path.startswith("hf:") for path in paths(config.data))
    if not on_hub and (metrics := kept_stages.take(stage)) is not None:
        print(f"   prepare: taken from {os.environ[kept_stages.VARIABLE]}", flush=True)
        return stage.finish(metrics)
    report: dict[str, Any] = {}
    metrics = {}
    dropped: dict[str, Counter[str]] = {name: Counter() for name in FILES}
    with ExitStack() as opened:
        rejected, left_out = (
            _listings(opened, stage.folder / f"{file}.jsonl", names)
            for file, names in (("rejected_rows", LISTS), ("left_out", tuple(FILES)))
        )
        entries: dict[str, Iterator[Entry]]
        if config.data.toyworld:
            generated, metrics["label_noise"] = generate(config)
            entries = {name: map(Entry, generated[name]) for name in LISTS}
        else:
            entries = {name: read_all(config.data, name, report, rejected[name]) for name in LISTS}
        # Divided before rows are fitted: what fits depends on the context, and a record must not
        # move from training to measurement, or back, with it.
        records = Records.read(entries, config, dropped, left_out, stage.folder, opened)
        spools = records.spools
        renderer, report["template"] = make_renderer(
            config,
            stage.folder,
            spools["conversations"].records(),
            spools["preferences"].records(),
        )
        if config.sft.quality.conditioning or config.sft.quality.weighting:
            report["classes"] = quality.check(config.sft.quality, renderer.template, records.labels)
        if records.decontaminated:
            report["decontaminate"] = records.decontaminated
        written = write_files(records, renderer, config, stage.folder, dropped, left_out)
        with Metrics(stage.folder, "prepare", len(FILES), "set") as progress:
            drawn = _watched(written, records, progress, report)

    report["rules"] = {name: dict(counts) for name, counts in dropped.items() if counts}
    report["left_out"] = [row for listing in left_out.values() for row in listing.first]
    if not config.data.toyworld:
        if "sources" in report:
            report["rejected_rows"] = [row for name in LISTS for row in rejected[name].first]
        _check_account({name: spools[name].rows for name in LISTS}, report)
    else:
        heldout = load_records(stage.folder / "heldout.jsonl")
        metrics["noise_ceiling"] = _noise_ceiling(heldout)
    compared = report.get("decontaminate", {}).get("against", {})
    report["warnings"] = [
        *few_rows(config, drawn),
        *not_compared(compared),
        *mixture.unmixed(config.data, report.get("mixture", {}), FILES),
        *_not_listed(rejected, left_out),
    ]
    # Before the check: where too few rows are left, the report says why.
    write_json(stage.folder / "report.json", report)
    sources = report.get("sources", {})
    for line in set_aside.told(sources):
        print(f"   {line}", flush=True)
    _require(drawn, config, report["rules"], sources, good_and_bad(run, "labelled_heldout")[0])
    for line in one_kind_of_labels(config, drawn, *good_and_bad(run, "labelled")):
        raise StageError(line)
    for line in report["warnings"]:
        print(f"   {line}", flush=True)
    if config.model.scratch:
        _base_model(config, renderer, stage.folder / "base")
    for name in FILES:
        metrics[name] = drawn[name]
    metrics["vocabulary"] = len(renderer.tokenizer)
    mixture.show(report.get("mixture", {}))
    table("prepare", {name.replace("_", " "): value for name, value in metrics.items()})
    if not on_hub:
        kept_stages.keep(stage, metrics)
    return stage.finish(metrics)


def _watched(
    files: Iterator[PreparedFile], records: Records, progress: Metrics, report: dict[str, Any]
) -> dict[str, int]:
    """Log the files as they are written, and report what each kept; the rows that each has."""
    rows: dict[str, int] = {}
    report["kept"] = {}
    for number, file in enumerate(files):
        name, given = file.name, records.rows(file.name)
        progress.log(number, {"set": name, "rows": given, "kept": file.kept}, ("kept",))
        report["kept"][name], rows[name] = file.kept, file.rows
        if parts := file.mixture.parts():
            report.setdefault("mixture", {})[name] = [part.as_dict() for part in parts]
    return rows


def _listings(opened: ExitStack, path: Path, names: tuple[str, ...]) -> dict[str, Listing]:
    """A listing for each name, which all write into one file."""

    def drop_empty() -> None:
        if not path.stat().st_size:
            path.unlink()

    opened.callback(drop_empty)  # after the file is closed
    file = opened.enter_context(path.open("w", encoding="utf-8"))
    return {name: Listing(file) for name in names}


def _not_listed(*listings: Mapping[str, Listing]) -> Iterator[str]:
    """Where report.json has the first rows only."""
    for name, all_rows in zip(("rejected_rows", "left_out"), listings, strict=True):
        if any(listing.count > len(listing.first) for listing in all_rows.values()):
            count = sum(listing.count for listing in all_rows.values())
            yield f"report.json lists the first of {count} rows only; {name}.jsonl has all of them"


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


def _check_account(records: dict[str, int], report: dict[str, Any]) -> None:
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
        if counted != records[name]:
            raise AssertionError(
                f"data.{name}: {records[name]} records came in, {counted} are accounted for"
            )


def _require(
    rows: dict[str, int],
    config: Config,
    rules: dict[str, dict[str, int]],
    sources: set_aside.Sources,
    good_heldout: int,
) -> None:
    """StageError where a later stage of this config would have too few rows."""
    for line in no_preferences(config, rows, good_heldout):
        aside = set_aside.reasons(sources, "preferences")
        raise StageError(line + f"; set aside of data.preferences: {aside}" * bool(aside))
    for name, least in least_rows(config).items():
        if rows[name] < least:
            lost = [
                f"{count} x {rule}"
                for rule, count in rules.get(name, {}).items()
                if not rule.startswith("kept")
            ]
            left_out = f"left out: {'; '.join(lost)}; " if lost else ""
            if unread := set_aside.reasons(sources, FILES[name]):
                left_out += f"set aside of data.{FILES[name]}: {unread}; "
            raise StageError(
                f"{name.replace('_', ' ')}: {rows[name]} rows are left, at least {least} "
                f"{'are needed' if least > 1 else 'is needed'}"
                f"{' (evaluate.prompts)' if name == 'evaluation_prompts' else ''}; "
                f"{left_out}report.json in the stage's folder says what became of the others"
            )
