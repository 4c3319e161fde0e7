"""Where output may not go: over a file that is read, or where the next reading would find it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rayward.data.formats.files.containers import STANDARD_INPUT, data_files, is_data_file
from rayward.data.formats.files.token_rows import text_path


def refuse_overwriting(outputs: Iterable[Path | None], inputs: Iterable[str | Path | None]) -> None:
    """ValueError where an output is a file that is read, lies in a folder that is read, or is named
    twice.

    `inputs`: files, folders, and "hf:NAME", where NAME may be a local file or folder. In a folder
    only names of data files count. None stands for an option that is not given.
    """
    files, folders = set[Path](), list[Path]()
    for given in inputs:
        name = str(given or "")
        path = Path(name.removeprefix("hf:").split(":")[0] if name.startswith("hf:") else name)
        if name in ("", STANDARD_INPUT) or (name.startswith("hf:") and not path.exists()):
            continue
        found = [path]
        if path.is_dir():
            folders.append(path)
            try:
                found = data_files(path)
            except FileNotFoundError:
                found = []
        # `resolve`: other spellings and links are the same file.
        files |= {file.resolve() for data in found for file in (data, text_path(data))}
    seen = set[Path]()
    for output in outputs:
        if output is None:
            continue
        target = output.resolve()
        if target in files:
            raise ValueError(f"{output} is among the files to read; choose another name or folder")
        for folder in folders:
            if is_data_file(target, folder.resolve()):
                raise ValueError(
                    f"{output} is in {folder}, which is read: it would be read with it the next "
                    "time; choose another folder"
                )
        if target in seen:
            raise ValueError(f"{output} would be written twice; give each output its own name")
        seen.add(target)
