#!/usr/bin/env python3
"""Checks that samples in the documentation are taken from programs that are built and run as tests.

    samples.py --root DIR [--programs DIR] [--tools DIR]     exit 1 where a sample is not what it says

A comment above a block of a page says where it comes from:

    <!-- from examples/01_first_cache.cpp -->     lines of that file, as they stand there but for the indentation; a line
                                                  "// ..." or "# ..." stands for lines left out
    <!-- printed by examples/01_first_cache -->   lines that the program prints; run where --programs names its folder, those
                                                  of .cu files where nvcc was there to build them
    <!-- printed by the command above -->         lines that the command in the block above prints, run in DIR with the
                                                  program of that name in the folder that --tools names; not run without

In the pages of EVERY_BLOCK each block has one, but for commands (```sh). In other pages those that have one are checked.
"""

import argparse
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

EVERY_BLOCK = ("README.md", "docs/guide.md")
BUILT = ("examples/", "tests/")  # where programs that are tests lie
LEFT_OUT = ("// ...", "# ...")
COMMAND = "the command above"
ORIGIN = re.compile(rf"^<!-- (from|printed by) (\S+|{COMMAND}) -->$")


def blocks(text):
    """Every fenced block: line, language, origin or None, its lines."""
    lines = text.split("\n")
    at = 0
    while at < len(lines):
        if not lines[at].startswith("```"):
            at += 1
            continue
        end = next((i for i in range(at + 1, len(lines)) if lines[i].startswith("```")), len(lines))
        origin = ORIGIN.match(lines[at - 1]) if at > 0 else None
        yield at + 1, lines[at][3:].strip(), origin, lines[at + 1:end]
        at = end + 1


def pieces(lines):
    piece = []
    for line in lines + [LEFT_OUT[0]]:
        if line.strip() in LEFT_OUT:
            if any(l.strip() for l in piece):
                yield textwrap.dedent("\n".join(piece)).strip("\n").split("\n")
            piece = []
        else:
            piece.append(line)


def find(piece, lines, begin):
    """Where `piece` ends in `lines` from `begin` on, or None."""
    for at in range(begin, len(lines) - len(piece) + 1):
        if lines[at].strip() == piece[0].strip():
            if textwrap.dedent("\n".join(lines[at:at + len(piece)])).split("\n") == piece:
                return at + len(piece)
    return None


def foreign(block, lines):
    """The first line of the first piece that `lines` lack behind the pieces before it, or None."""
    at = 0
    for piece in pieces(block):
        end = find(piece, lines, at)
        if end is None:
            return piece[0]
        at = end
    return None


def command_of(block, tools):
    """The words of a command, its program in `tools`, or None where it is not built there."""
    words = shlex.split("\n".join(block).replace("\\\n", " "))
    program = tools / Path(words[0]).name if words and tools is not None else None
    return [str(program)] + words[1:] if program is not None and program.is_file() else None


def unlike(command, block, root):
    """What is wrong with a block that a command prints, or None."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=root)
    if done.returncode != 0:
        return f"ended with {done.returncode}"
    line = foreign(block, done.stdout.split("\n"))
    return None if line is None else f"does not print: {line}"


def check(root, programs, tools=None):
    checked = ran = 0
    for page in [root / "README.md"] + sorted((root / "docs").rglob("*.md")):
        name = page.relative_to(root).as_posix()
        if not page.is_file():
            continue
        above, block = [], []
        for line, language, origin, lines in blocks(page.read_text()):
            above, block = block, lines
            where = f"{name}:{line}"
            if origin is None:
                if name in EVERY_BLOCK and language != "sh":
                    yield f"{where}: says not where it comes from; a command is ```sh"
                continue
            if origin[2] == COMMAND:
                command = command_of(above, tools)
                if not above or origin[1] == "from" or not any(l.strip() for l in block):
                    yield f"{where}: no command prints it"
                elif command is not None:
                    ran += 1
                    if (wrong := unlike(command, block, root)) is not None:
                        yield f"{where}: the command above {wrong}"
                continue
            source = root / origin[2]
            if not origin[2].startswith(BUILT) or ".." in origin[2]:
                yield f"{where}: {origin[2]} is no test's"
            elif not any(l.strip() for l in block):
                yield f"{where}: is empty"
            elif origin[1] == "from":
                checked += 1
                if not source.is_file():
                    yield f"{where}: {origin[2]} does not exist"
                elif (line_of := foreign(block, source.read_text().split("\n"))) is not None:
                    yield f"{where}: not in {origin[2]}, or not there in this order: {line_of}"
            else:
                program = programs / source.name if programs is not None else None
                if not any(source.with_suffix(s).is_file() for s in (".cpp", ".c", ".cu")):
                    yield f"{where}: {origin[2]} has no source"
                elif program is not None and (program.is_file() or not source.with_suffix(".cu").is_file()):
                    ran += 1
                    if (wrong := unlike([str(program)], block, root)) is not None:
                        yield f"{where}: {origin[2]} {wrong}"
    print(f"{checked} samples compared with their programs, {ran} with what these print")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[2])
    parser.add_argument("--programs", type=Path, help="folder of the built examples")
    parser.add_argument("--tools", type=Path, help="folder of the built programs that commands name")
    options = parser.parse_args()
    wrong = list(check(*(path and path.resolve() for path in (options.root, options.programs, options.tools))))
    print("\n".join(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
