"""The README's Python blocks run as they stand, in order, each seeing the names of those before; commands exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from torch_projectors.__main__ import JOBS, command_line

README = Path(__file__).parents[1] / "README.md"


def test_python_blocks_run():
    text = README.read_text(encoding="utf-8")
    blocks = list(re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    assert blocks
    names = {"__name__": "readme"}
    for block in blocks:
        # Empty lines in front make tracebacks point into the README.
        line = text.count("\n", 0, block.start(1))
        exec(compile("\n" * line + block[1], str(README), "exec"), names)


def test_commands_are_such_as_there_are():
    """Every one in the README, on the page about files, and in the examples of --help."""
    page = README.parent / "docs" / "files.md"
    texts = [README.read_text(encoding="utf-8"), page.read_text(encoding="utf-8")]
    texts += [example for _, _, example in JOBS.values()]
    command = re.compile(
        r"^ *(?:torch-projectors|torchrun .* -m torch_projectors) +((?:.*\\\n)*.*)$", re.MULTILINE
    )
    commands = [found[1] for text in texts for found in command.finditer(text)]
    assert len(commands) >= 12
    for line in commands:
        if "--help" not in line:
            command_line().parse_args(shlex.split(line.replace("\\\n", " "), comments=True))
