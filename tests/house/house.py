#!/usr/bin/env python3
"""The house rules, as checks of the source tree.

    house.py --list                 the rules' names
    house.py --root DIR RULE ...    check these rules (none named: all); exit 1 on a violation

Each rule is a function that yields violations, one line each, beginning with the file. What a rule
allows beyond its sentence stands in a table below, with the reason.
"""

import argparse
import re
import sys
from pathlib import Path

METHOD_ROOMS = ("evict", "merge", "quant", "lowrank", "retrieve", "budget", "position", "reuse",
                "storage", "cost")

# What a room may include besides itself.
MAY_INCLUDE = {
    "core": (),
    "prim": ("core",),
    "bitstream": ("core", "prim"),
    **{room: ("core", "prim") for room in METHOD_ROOMS},
    "cache": ("core", "prim") + METHOD_ROOMS,
    "io": ("core", "prim", "bitstream", "cache") + METHOD_ROOMS,
    "external": ("core", "prim", "cache") + METHOD_ROOMS,
    "any": ("core", "prim", "cache", "io") + METHOD_ROOMS,
    "backend": ("core", "prim"),
    "c": (),
}

# Rooms whose tests expect what another room returns.
SPOKEN_FOR = {"backend": ("prim", "cuda", "quant"), "cache": ("any", "retrieve", "cuda")}

# Headers that may include from one more room: (header, room) -> why. A header may be a folder
# ending in "/".
MAY_ALSO_INCLUDE = {
    ("budget/", "evict"): "a budget wraps the eviction policy whose scores it shares out",
    ("quant/zipcache.hpp", "evict"): "tokens are told apart by the scores of an eviction policy's source",
    ("quant/mikv.hpp", "evict"): "tokens are told apart by the scores of an eviction policy",
    ("merge/", "evict"): "what folds is told apart by the scores of an eviction policy's source",
    ("cache/", "backend"): "the store lives on the host: its columns run the CPU words",
    ("external/", "backend"): "an engine's memory on the host is read and moved by the CPU words",
}

# The umbrella headers, which may include anything.
UMBRELLAS = ("kvcondense.hpp", "cpu.hpp", "cuda.cuh", "version.hpp")

# Where conditional compilation and macros may live.
CONDITIONAL_HOMES = ("core/config.hpp", "core/huge_memory.hpp", "backend/cuda/dialect.cuh", "backend/cpu/simd/target.hpp",
                     "backend/cpu/simd/choose.hpp", "backend/cpu/simd/kernels.hpp",
                     "backend/cpu/simd/avx2.hpp",
                     "backend/cpu/simd/avx512.hpp", "backend/cpu/simd/vnni.hpp",
                     "backend/cpu/simd/neon.hpp", "backend/cpu/simd/neon_dot.hpp",
                     "backend/cpu/simd/rank_kernels.hpp", "c/kvcondense.h") + UMBRELLAS

# Headers of method rooms without a test of their own name -> why.
UNTESTED = {
}
# Folders inside a method room that hold its building blocks; the methods' tests cover these.
BLOCK_FOLDERS = ("detail", "blocks")

CARD_LINES = ("Idea", "Source", "Needs", "Shapes", "Cost", "Numbers", "Errors")

MAX_LINES = 400

TEXT_PLACES = ("include", "src", "tests", "bench", "examples", "cmake", "docs", "python", ".ci")
TEXT_FILES = ("CMakeLists.txt", "README.md", "CMakePresets.json", "pyproject.toml", "NOTICE", ".clang-format",
              ".clang-tidy", ".gitignore")
TEXT_ENDINGS = (".hpp", ".h", ".inl", ".cuh", ".cpp", ".c", ".cu", ".py", ".pyi", ".cmake", ".txt", ".md", ".sh", ".in", "run")
# Data, not our words: may hold any bytes.
DATA_PLACES = ("examples/models", "tests/oracles")

# Spelled in halves, so that this file may be checked too.
NOT_OURS = ("/wo" + "rk/", "../sha" + "red")

INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')
CONDITIONAL = re.compile(r"^\s*#\s*(if|ifdef|ifndef|elif|else|endif)\b")
DEFINE = re.compile(r"^\s*#\s*define\s+(\w+)")
# A definition: "struct Name {" or its first line; not "struct Name;".
STRUCT = re.compile(r"^\s*(?:struct|class|enum class)\s+(?:\[\[[^\]]*\]\]\s*|alignas\([^)]*\)\s*)*"
                    r"([A-Za-z_]\w*)[^;{=]*(?:\{.*)?$")
# Matched in code without comments and text.
LOUD = re.compile(r"\bthrow\b|\bcatch\s*\(|(?:std\s*::\s*|[^\w:.>]|^)(?:abort|exit|terminate|f?printf|puts)"
                  r"\s*\(|\bstd\s*::\s*(?:cout|cerr|clog)\b|#\s*include\s*<(?:iostream|cstdio)>")


def headers(root):
    """Every header, as (path, name relative to include/kvcondense)."""
    base = root / "include" / "kvcondense"
    found = sorted(p for p in base.rglob("*") if p.suffix in (".hpp", ".cuh", ".h"))
    return [(p, p.relative_to(base).as_posix()) for p in found]


def lines_of(path):
    return path.read_text(encoding="utf-8", errors="replace").splitlines()


def shown(root, path):
    return path.relative_to(root).as_posix()


def without_comments(text):
    """The code alone: comments and text in quotes blanked, lines kept."""
    token = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|(?<!\w)\'(?:\\.|[^\'\\\n])+\'', re.S)
    return token.sub(lambda m: re.sub(r"[^\n]", " ", m.group()), text)


def may_include(source, target):
    """None when header `source` may include header `target`, else the reason why not."""
    if source in UMBRELLAS:
        return None
    if target == "version.hpp":
        return None
    if "/" not in target:
        return "only a user includes an umbrella header"
    if "/" not in source:
        return "not a known umbrella header (table UMBRELLAS)"
    room, other = source.split("/")[0], target.split("/")[0]
    if room not in MAY_INCLUDE:
        return f"'{room}' is not a room (table MAY_INCLUDE)"
    if room == "backend" == other:
        mine, theirs = source.split("/")[1], target.split("/")[1]
        return None if mine == theirs else f"backend {mine} may not include backend {theirs}"
    if other == room or other in MAY_INCLUDE[room]:
        return None
    for (header, extra) in MAY_ALSO_INCLUDE:
        if other == extra and (source == header or header.endswith("/") and source.startswith(header)):
            return None
    return f"{room} may include {', '.join((room,) + MAY_INCLUDE[room])}"


def include_direction(root):
    """core <- prim <- method rooms <- cache <- any, io; backend sees core and prim."""
    base = root / "include" / "kvcondense"
    known = {name for _, name in headers(root)} | {p.relative_to(base).as_posix() for p in base.rglob("*.inl")}
    for path, name in headers(root):
        for number, line in enumerate(lines_of(path), 1):
            match = INCLUDE.match(line)
            if not match:
                continue
            where = f"{shown(root, path)}:{number}"
            if match[1] == '"':
                yield f'{where}: write #include <kvcondense/...>, not "{match[2]}"'
            elif match[2].startswith("kvcondense/"):
                target = match[2][len("kvcondense/"):]
                reason = may_include(name, target)
                if reason:
                    yield f"{where}: must not include {target}: {reason}"
                elif target not in known:
                    yield f"{where}: {target} does not exist"


def file_length(root):
    """No header is longer than 400 lines."""
    lengths = []
    for path, _ in headers(root):
        count = len(lines_of(path))
        lengths.append(count)
        if count > MAX_LINES:
            yield f"{shown(root, path)}: {count} lines, {MAX_LINES} at most"
    if lengths:
        print(f"{len(lengths)} headers, {sum(lengths) / len(lengths):.0f} lines in the mean, "
              f"{max(lengths)} in the longest")


def conditionals(root):
    """#if and #define live in a few files; every header begins with #pragma once."""
    for path, name in headers(root):
        where = shown(root, path)
        lines = lines_of(path)
        first = next((l for l in lines if l.strip() and not l.lstrip().startswith("//")), "")
        if first.strip() != "#pragma once" and path.suffix != ".h":  # C has guards
            yield f"{where}: the first line of code is not #pragma once"
        if name in CONDITIONAL_HOMES:
            continue
        for number, line in enumerate(lines, 1):
            if CONDITIONAL.match(line):
                yield f"{where}:{number}: conditional compilation belongs in core/config.hpp"
            elif DEFINE.match(line):
                yield f"{where}:{number}: macro {DEFINE.match(line)[1]} belongs in core/config.hpp"


def one_dialect(root):
    """Assembly stands in backend/cuda/dialect.cuh, and where a compiler needs it to leave registers alone."""
    for path, name in headers(root):
        if name in ("backend/cuda/dialect.cuh", "backend/cpu/simd/vnni.hpp", "backend/cpu/simd/neon_dot.hpp"):
            continue
        for number, line in enumerate(without_comments("\n".join(lines_of(path))).splitlines(), 1):
            if re.search(r"\b(?:asm|__asm__|__asm)\b|<<<", line):
                yield f"{shown(root, path)}:{number}: assembly and <<<>>> belong in backend/cuda/dialect.cuh"


def quiet(root):
    """The library never throws, aborts or prints."""
    for path, _ in headers(root):
        for number, line in enumerate(without_comments("\n".join(lines_of(path))).splitlines(), 1):
            match = LOUD.search(line)
            if match:
                yield f"{shown(root, path)}:{number}: '{match.group().strip()}': return a Status instead"


def text_files(root):
    for place in TEXT_PLACES:
        for path in sorted((root / place).rglob("*")):
            name = path.relative_to(root).as_posix()
            if any(name.startswith(data + "/") for data in DATA_PLACES) or "__pycache__" in name:
                continue
            if path.is_file() and path.name.endswith(TEXT_ENDINGS):
                yield path
    for name in TEXT_FILES:
        if (root / name).is_file():
            yield root / name


def plain_text(root):
    """ASCII, no tabs, no trailing blanks, a newline at the end."""
    for path in text_files(root):
        data = path.read_bytes()
        name = shown(root, path)
        if data and not data.endswith(b"\n"):
            yield f"{name}: no newline at the end"
        for number, line in enumerate(data.split(b"\n"), 1):
            if any(byte > 126 for byte in line):
                yield f"{name}:{number}: not ASCII"
            if b"\t" in line or b"\r" in line:
                yield f"{name}:{number}: tab or carriage return"
            if line.endswith(b" "):
                yield f"{name}:{number}: blank at the end"


def own_paths(root):
    """The project names no path outside itself."""
    for path in text_files(root):
        for number, line in enumerate(lines_of(path), 1):
            for word in NOT_OURS:
                if word in line:
                    yield f"{shown(root, path)}:{number}: names a path outside the project: {word}"


def methods(root):
    """Headers of method rooms that are not building blocks, as (path, room, name in the room)."""
    for path, name in headers(root):
        parts = name.split("/")
        if parts[0] in METHOD_ROOMS and not any(part in BLOCK_FOLDERS for part in parts[1:-1]):
            yield path, parts[0], name


def tested(root):
    """Each method has a test of its name: evict/h2o.hpp and tests/evict/h2o_test.cpp."""
    existing = set()
    for path, room, name in methods(root):
        existing.add(name)
        test = f"tests/{room}/{path.stem}_test.cpp"
        if (root / test).is_file():
            if name in UNTESTED:
                yield f"{shown(root, path)}: {test} exists; take the header out of table UNTESTED"
        elif name not in UNTESTED:
            yield f"{shown(root, path)}: {test} is missing"
    for name in UNTESTED:
        if existing and name not in existing:
            yield f"include/kvcondense/{name}: in table UNTESTED, but does not exist"


def card_above(lines, index):
    """The /// lines above line `index`, over template and requires lines between."""
    at = index - 1
    while at >= 0 and lines[at].strip() and not lines[at].lstrip().startswith("///"):
        if re.search(r"[;}]\s*$", lines[at]):
            return []
        at -= 1
    card = []
    while at >= 0 and lines[at].lstrip().startswith("///"):
        card.insert(0, lines[at].strip())
        at -= 1
    return card


def in_detail(lines, index):
    """Whether line `index` lies in a namespace detail."""
    code = without_comments("\n".join(lines[:index]))
    opened = [m for m in re.finditer(r"namespace\s+(?:[\w:]*::)?detail\s*\{", code)]
    return any(code.count("{", m.end()) - code.count("}", m.end()) >= 0 for m in opened)


def cards(root):
    """The first struct of a method room's header has a card; a method's card has all its lines."""
    for path, _, _ in methods(root):
        lines = lines_of(path)
        where = shown(root, path)
        code = without_comments("\n".join(lines)).split("\n")
        structs = [i for i, line in enumerate(code) if STRUCT.match(line) and not in_detail(lines, i)]
        if structs and not card_above(lines, structs[0]):
            yield f"{where}:{structs[0] + 1}: no /// card above {STRUCT.match(code[structs[0]])[1]}"
        for number, line in enumerate(code):
            if not re.search(r"\bDescriptor\s+about\b", line):
                continue
            owners = [i for i, l in enumerate(code[:number]) if STRUCT.match(l)]
            if not owners:
                continue
            card = card_above(lines, owners[-1])
            lacking = [w for w in CARD_LINES if not any(re.match(rf"///\s+{w}\b", c) for c in card)]
            if lacking:
                yield (f"{where}:{owners[-1] + 1}: the card of {STRUCT.match(code[owners[-1]])[1]} "
                       f"lacks {', '.join(lacking)}")


def test_names(root):
    """No semicolon in the name of a test: CTest splits the name there, and neither half exists."""
    for path in sorted((root / "tests").rglob("*_test.cpp")):
        for number, line in enumerate(path.read_text().split("\n"), 1):
            if re.search(r'TEST_CASE\w*\(\s*"[^"]*;', line):
                yield f"{shown(root, path)}:{number}: semicolon in the name of a test"


def statuses(root):
    """Each Status that the headers of a room return is expected by a test of that room, or by one that all share."""
    returned, expected = {}, {}
    for path, name in headers(root):
        for status in re.findall(r"\bStatus::(\w+)", without_comments(path.read_text())):
            returned.setdefault((name.split("/")[0], status), path)
    for path in (root / "tests").rglob("*_test.cpp") if (root / "tests").is_dir() else ():
        expected.setdefault(path.parent.name, set()).update(re.findall(r"\bStatus::(\w+)", path.read_text()))
    everywhere = set().union(*expected.values()) if expected else set()
    for (room, status), path in sorted(returned.items()):
        if room == "core" or status == "ok":  # the tests of what uses it expect what core returns
            seen = everywhere | {"ok"}
        else:
            seen = set().union(*(expected.get(r, set()) for r in (room, *SPOKEN_FOR.get(room, ()))))
        if status not in seen:
            yield f"{shown(root, path)}: no test expects Status::{status} of {room}"


def cuda_words(root):
    """docs/cuda.md has every word that CUDA has in its table, and names every other one as the CPU's alone."""
    page = root / "docs" / "cuda.md"
    if not page.is_file():
        return
    base = root / "include" / "kvcondense"
    word = re.compile(r"template <Backend B[^>]*>\s*struct (\w+) \{\s*static_assert\(detail::always_false<B")
    words = {w for path in sorted((base / "prim").rglob("*.hpp")) for w in word.findall(path.read_text())}
    on_cuda = {w for path in sorted((base / "backend" / "cuda").rglob("*.cuh"))
               for w in re.findall(r"struct (\w+)<Cuda\b", path.read_text())} & words
    text = page.read_text()
    listed = re.search(r"^Words that only the CPU has[^:]*:((?:.|\n(?!\n))*)", text, re.M)
    alone = set(re.findall(r"`(\w+)`", listed[1])) if listed else set()
    table = {w for line in text.split("\n") if line.startswith("|") for w in re.findall(r"`(\w+)`", line.split("|")[1])}
    for w in sorted(words - on_cuda - alone):
        yield f"docs/cuda.md: {w} has no form on CUDA; the list of words that only the CPU has lacks it"
    for w in sorted(alone - (words - on_cuda)):
        yield f"docs/cuda.md: {w} stands among the words that only the CPU has, but {'CUDA has it' if w in on_cuda else 'is no word'}"
    for w in sorted(on_cuda - table):
        yield f"docs/cuda.md: {w} has a form on CUDA that the table lacks"


def version(root):
    """version.hpp and CMakeLists.txt name the same version."""
    header = root / "include" / "kvcondense" / "version.hpp"
    lists = root / "CMakeLists.txt"
    if not header.is_file() or not lists.is_file():
        return
    built = re.search(r"project\(kvcondense\s+VERSION\s+([\d.]+)", lists.read_text())
    named = re.search(r'version_string\s*=\s*"([^"]*)"', header.read_text())
    if not built or not named or built[1] != named[1]:
        yield (f"include/kvcondense/version.hpp: says {named[1] if named else 'nothing'}, "
               f"CMakeLists.txt says {built[1] if built else 'nothing'}")


RULES = {rule.__name__: rule for rule in (include_direction, file_length, conditionals, one_dialect, quiet,
                                          plain_text, own_paths, tested, cards, test_names, statuses,
                                          cuda_words, version)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[2])
    parser.add_argument("--list", action="store_true")
    parser.add_argument("rules", nargs="*", metavar="RULE")
    options = parser.parse_args()
    if options.list:
        print("\n".join(RULES))
        return 0
    bad = 0
    for name in options.rules or RULES:
        if name not in RULES:
            parser.error(f"no rule '{name}'; the rules are {', '.join(RULES)}")
        for violation in RULES[name](options.root.resolve()):
            print(f"{name}: {violation}")
            bad += 1
    print(f"{bad} violations" if bad else "the house is in order")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
