"""Tables that benchmarks write into pages of the documentation."""

from __future__ import annotations

import sys
from pathlib import Path


def write_table(path: Path, name: str, text: str) -> None:
    """Put a table between the two marks that bear its name; what stands around them stays."""
    script = f"benchmarks/{Path(sys.argv[0]).name}"
    begin, end = f"<!-- {name}: written by {script} -->", f"<!-- {name} ends -->"
    before, _, rest = path.read_text().partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        sys.exit(f"{path} lacks the marks {begin} and {end}")
    path.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}")
