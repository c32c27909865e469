#!/usr/bin/env python3
"""Counts the lines that an engine needs to use the library: those of the adapter sections of the example engines.

    adapter_lines.py --root DIR     exit 1 where a count is above 60, where an engine's own section names the library, or
                                    where docs/integration.md states another count

An example engine has three sections, each begun by a comment: engine (what it was before), adapter (what is added), check
(the proof, which an engine does not need). Blank lines, comments and lines of a lone brace do not count; lines of the engine's
section that name the library would, and are refused.
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
        for line in counted(parts.get("before", []) + parts.get("engine", [])):
            if re.search(r"\bkvc\b|kvcondense", line):
                wrong(f"{path.name}: the engine's own section names the library: {line.strip()}")
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
