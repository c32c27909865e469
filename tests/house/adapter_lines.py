#!/usr/bin/env python3
"""Counts the lines that an engine needs to use the library: those of the adapter sections of the example engines.

    adapter_lines.py --root DIR     exit 1 where a count is above 60, where an engine's own section names the library, or
                                    where docs/integration.md states another count

An example engine has three sections, each begun by a comment: engine (what it was before), adapter (what is added), check
(the proof, which an engine does not need). Blank lines, comments and lines of a lone brace do not count; lines of the engine's
section that name the library would, and are refused: also in files under examples/ that it includes, and in sources beside them
(those of the same folder that include one of them).
"""

import argparse
import re
import sys
from pathlib import Path

MOST = 60
SECTION = re.compile(r"^// --- (\w+) ---$")


def sections(path):
    found = {}
    name = "before"
    for line in path.read_text().splitlines():
        match = SECTION.match(line)
        if match:
            name = match[1]
        else:
            found.setdefault(name, []).append(line)
    return found


def counted(lines):
    return [l for l in lines if l.strip() and not l.strip().startswith("//") and not re.fullmatch(r"[\s{}();]*", l)]


def included(examples, lines):
    """The engine's own files: what its section includes from examples/, and the sources that implement it."""
    names = {m[1] for m in (re.match(r'#include [<"]([^">]+)[">]', l) for l in lines) if m}
    headers = [examples / n for n in sorted(names) if (examples / n).is_file()]
    sources = {p for h in headers for p in h.parent.glob("*.cpp") if f"{h.parent.name}/{h.name}" in p.read_text()}
    return headers + sorted(sources)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[2])
    root = parser.parse_args().root
    page = (root / "docs" / "integration.md").read_text()
    bad = 0

    def wrong(text):
        nonlocal bad
        bad += 1
        print(text)

    engines = sorted((root / "examples").glob("[0-9][0-9]_engine_*.cpp"))
    if len(engines) < 3:
        wrong("fewer than three example engines")
    for path in engines:
        parts = sections(path)
        for name in ("engine", "adapter", "check"):
            if not counted(parts.get(name, [])):
                wrong(f"{path.name}: no section '{name}'")
        own = parts.get("before", []) + parts.get("engine", [])
        for file in [path] + included(root / "examples", own):
            for line in counted(own if file == path else file.read_text().splitlines()):
                if re.search(r"\bkvc\b|kvcondense|#include [<\"]engine/", line):
                    wrong(f"{file.name}: the engine's own section names the library: {line.strip()}")
        n = len(counted(parts.get("adapter", [])))
        print(f"{path.name}: {n} lines")
        if n > MOST:
            wrong(f"{path.name}: {n} lines, {MOST} at most")
        stated = re.search(rf"\[{path.stem}\]\([^)]*\) \|[^|]*\| (\d+) \|", page)
        if not stated or int(stated[1]) != n:
            wrong(f"docs/integration.md: does not say {n} lines for {path.stem}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
