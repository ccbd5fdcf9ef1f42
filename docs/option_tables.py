"""Keeps the README's option tables equal to --help. In: both commands' help. Out: README.md, its tables written anew.

python3 docs/option_tables.py
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from task_offload.config import parse_cloud, parse_device

README = Path(__file__).resolve().parent.parent / "README.md"
_WIDE = "1000"  # columns: each option's help on one line
_ENTRY = re.compile(r"^  (\S.*?)(?:  +|\n +)(\S.*)$", re.MULTILINE)
_VARIABLE = re.compile(r" \[\$(\w+)\]")


def help_of(parse: Callable[..., Any]) -> str:
    """What a command prints for --help, nothing wrapped."""
    printed = io.StringIO()
    columns, os.environ["COLUMNS"] = os.environ.get("COLUMNS"), _WIDE
    try:
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            parse(["--help"], {})
    finally:
        if columns is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = columns
    return printed.getvalue()


def table(parse: Callable[..., Any]) -> str:
    """The arguments and options of a command as a table."""
    rows = ["| option | what it does | variable |", "| --- | --- | --- |"]
    entries = help_of(parse).partition("\n\n")[2]
    for option, text in _ENTRY.findall(entries):
        if option.startswith("-h"):
            continue
        variable = _VARIABLE.search(text)
        name = f"`${variable[1]}`" if variable else ""
        cells = (f"`{option}`", _VARIABLE.sub("", text), name)
        rows.append("| " + " | ".join(each.replace("|", "\\|") for each in cells) + " |")
    return "\n".join(rows)


def with_tables(text: str) -> str:
    """A text with the tables between its markers written anew."""
    for name, parse in (("device", parse_device), ("cloud", parse_cloud)):
        begin, end = f"<!-- {name} options -->\n", f"<!-- end of {name} options -->"
        before, _, rest = text.partition(begin)
        after = rest.partition(end)[2]
        text = f"{before}{begin}\n{table(parse)}\n\n{end}{after}"
    return text


if __name__ == "__main__":
    README.write_text(with_tables(README.read_text(encoding="utf-8")), encoding="utf-8")
