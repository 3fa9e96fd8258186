"""Tables, heads first, as text and in pages."""

from __future__ import annotations

import re
from pathlib import Path


def aligned(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = [[row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in rows]
    return "\n".join("  ".join(line).rstrip() for line in lines)


def markdown(rows: list[list[str]]) -> str:
    head, *body = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([head, f"| --- |{' ---: |' * (len(rows[0]) - 1)}", *body])


def rewrite(page: Path, texts: dict[str, str]) -> None:
    """Put every text into the page, between `<!-- name -->` and `<!-- end -->`."""
    content = page.read_text(encoding="utf-8")
    for name, text in texts.items():
        block = f"\n{text}\n\n" if text else ""
        pattern = rf"(<!-- {name} -->\n).*?(<!-- end -->)"
        content, found = re.subn(
            pattern, lambda m, block=block: m[1] + block + m[2], content, flags=re.DOTALL
        )
        if found != 1:
            raise ValueError(
                f"{page}: expected <!-- {name} --> and <!-- end --> once, found them {found} times"
            )
    page.write_text(content, encoding="utf-8")
