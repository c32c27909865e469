#!/usr/bin/env python3
"""Runs the commands of a page of results and compares what they print with the tables below them.

    remake.py PAGE --program build/release/bench/kvcondense-eval [--write]

A command is a fenced block that begins with kvcondense-eval, its table the next block if that begins with a line of column names.
Blocks of Python that begin with "# NAME.py: ..." are run in their turn, all in one new folder.
Tables of the page's own making and what its sentences say of them are for the reader to compare. --write puts the new tables in.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
PLACE = re.compile(r"\.\.\.|\bASK\b")  # where the page says below what to put there


def run(command, folder, program):
    path = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(command, shell=isinstance(command, str), cwd=folder, env=dict(os.environ, PATH=path), text=True, capture_output=True)
    if done.returncode != 0:
        sys.exit(f"{command}\nended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def table(printed):
    """The lines from the column names on, up to the first empty one."""
    found = re.search(r"^recipe .*?(?=^\s*$|\Z)", printed, re.M | re.S)
    return found[0].rstrip("\n") + "\n" if found else ""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("--program", type=Path, required=True)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    program, text = options.program.resolve(), options.page.read_text()
    blocks, differ = list(BLOCK.finditer(text)), []
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "examples").symlink_to(ROOT / "examples")
        for at, block in enumerate(blocks):
            body = block[2]
            if block[1] == "python" and re.match(r"# \w+\.py:", body):
                run([sys.executable, "-c", body], folder, program)
            if not body.startswith("kvcondense-eval ") or PLACE.search(body):
                continue
            printed = run(body, folder, program)
            if at + 1 == len(blocks) or not blocks[at + 1][2].startswith("recipe "):
                continue
            made = table(printed)
            if made != blocks[at + 1][2]:
                differ.append((blocks[at + 1].span(2), made))
                print(f"{options.page}: prints another table: {body.splitlines()[0]}\n{made}")
    for (first, last), made in reversed(differ):
        text = text[:first] + made + text[last:]
    if options.write and differ:
        options.page.write_text(text)
    return 1 if differ and not options.write else 0


if __name__ == "__main__":
    sys.exit(main())
