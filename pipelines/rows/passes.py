"""The passes of the prepare stage over its data, each a stream: the driver holds a few bytes a row.

First all sources are read into spools, and the file of each record is decided; then each list's
chunks are fitted, here or in processes of this machine, and written in their order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rayward.configs.schema import Config
from rayward.configs.sections.data import LISTS
from rayward.data.decontaminate import EvaluationTexts
from rayward.data.records import Conversation
from rayward.pipelines.rows.contamination import evaluation_texts, left_out_row
from rayward.pipelines.rows.fitting import Fitted, Fitter
from rayward.pipelines.rows.left_out import Listing
from rayward.pipelines.rows.mixture import Mixture
from rayward.pipelines.rows.prepared_file import PreparedFile
from rayward.pipelines.rows.processes import Processes
from rayward.pipelines.rows.reading import local_bytes
from rayward.pipelines.rows.renderer import Renderer
from rayward.pipelines.rows.splitting import FILES, Division, Questions, first_file
from rayward.pipelines.rows.spool import Entry, Spool
from rayward.pipelines.run.machine import own_cores

PARALLEL_BYTES = 32 << 20
"""Text of a list from which on processes of their own pay: each takes seconds to start."""
IMPORTED = ("rayward.pipelines.rows.fitting", "transformers.models.auto.tokenization_auto")
"""What such a process needs, and takes longest to import."""


@dataclass
class Records:
    """All that was read: by list, with the file of each record.

    `labels`: conversations of each label of quality. `decontaminated`: the account of the
    evaluation sets that training rows were compared with. `pool`: processes to fit them, started as
    soon as there is enough to do for some.
    """

    spools: dict[str, Spool] = field(default_factory=dict)
    divisions: dict[str, Division] = field(default_factory=dict)
    labels: Counter[str | None] = field(default_factory=Counter)
    decontaminated: dict[str, Any] | None = None
    pool: Processes | None = None

    @classmethod
    def read(
        cls,
        entries: Mapping[str, Iterable[Entry]],
        config: Config,
        dropped: Mapping[str, Counter[str]],
        left_out: Mapping[str, Listing],
        folder: Path,
        opened: ExitStack,
    ) -> Records:
        """Read the lists of `entries`. What is in no file is counted in `dropped`, and what shares
        words with evaluation sets also listed in `left_out`. `opened` ends the processes.
        """
        records = cls()
        processes = config.data.processes or own_cores()

        def start_pool() -> None:
            if processes > 1 and not records.pool:
                records.pool = opened.enter_context(Processes(processes, IMPORTED))

        # So that they import beside the reading.
        if local_bytes(config.data) > PARALLEL_BYTES:
            start_pool()
        # First what no other list may ask.
        evaluation = Questions.of(())
        compared: EvaluationTexts | None = None
        for name in ("evaluation_prompts", *LISTS[:-1]):
            spool, division = Spool(folder), Division(name, config, evaluation, dropped)
            for entry in entries[name]:
                spool.add(entry)
                if compared and (row := left_out_row(entry, compared)):
                    division.leave_out()
                    file = first_file(name, entry.record)
                    dropped[file][row["reason"]] += 1
                    left_out[file].add(row)
                else:
                    division.add(entry.record)
                if isinstance(entry.record, Conversation):
                    records.labels[entry.record.quality] += 1
                if spool.size_bytes > PARALLEL_BYTES:
                    start_pool()
            spool.close()
            division.end()
            records.spools[name], records.divisions[name] = spool, division
            if name == "evaluation_prompts":
                evaluation = Questions.of(spool.records())
                if asked := evaluation_texts(config.data, spool.entries()):
                    compared, records.decontaminated = asked
        return records

    def rows(self, file: str) -> int:
        """Records of a file before they are fitted."""
        return self.divisions[FILES[file]].rows_of(file)


def write_files(
    records: Records,
    renderer: Renderer,
    config: Config,
    folder: Path,
    dropped: Mapping[str, Counter[str]],
    left_out: Mapping[str, Listing],
) -> Iterator[PreparedFile]:
    """Fit the records and write all files into `folder`; yields each when it is written.

    Records are gone then.
    """
    room = renderer.context_tokens - config.rollout.max_new_tokens
    if records.pool:
        records.pool.make(Fitter.of, config.model, folder / "tokenizer", config.sft)
    for name in LISTS:
        files = [file for file, source in FILES.items() if source == name]
        with ExitStack() as opened:
            written = {
                file: opened.enter_context(
                    PreparedFile(
                        folder,
                        file,
                        room,
                        dropped[file],
                        left_out[file],
                        Mixture(config.data, file, name, config.seed),
                    )
                )
                for file in files
            }
            for chunk in _fitted(records, name, renderer, config):
                for fitted in chunk:
                    written[fitted.file].add(fitted)
            for prepared in written.values():
                prepared.draw()
        records.spools[name].drop()
        yield from written.values()


def _fitted(
    records: Records, name: str, renderer: Renderer, config: Config
) -> Iterator[list[Fitted]]:
    """What each chunk of a list gives, in order."""
    spool, files = records.spools[name], bytes(records.divisions[name].files)
    calls = (
        (chunk, files[start : start + count]) for chunk, start, count in spool.numbered_chunks()
    )
    if records.pool and spool.size_bytes > PARALLEL_BYTES:
        yield from records.pool.map(calls)
        return
    fit = Fitter(renderer, config.sft)
    for chunk, chunk_files in calls:
        yield fit(chunk, chunk_files)
