#!/usr/bin/env python3
"""Makes the reference from the cards in the headers, with Doxygen; what Doxygen warns of is an error.

    build.py --root DIR --out DIR [--doxygen PROGRAM]      writes DIR/html; exit 1 where something is wrong
    build.py ... --skip-without 77                         exit 77 where there is no Doxygen

Headers and pages are copied first. In the copies the words of a card ("Idea     ...", "Errors   ...") begin paragraphs of
their own, and links and headings of the pages become Doxygen's. Nothing is changed in the tree.

Every struct and class is documented; a field or a call whose name and type say all may be without a sentence.
"""

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

# Loops of processors and kernels: what they compute is in the cards of prim/. Of the backends what users hold is in.
BACKENDS = ("backend/cpu/context.hpp", "backend/cuda/context.cuh", "backend/cuda/memory.cuh")
LABEL = re.compile(r"^(\s*///) ([A-Z][a-z]+ {2,}|[A-Z][a-z]{7} )(\S.*)$")
LABEL_WIDTH = 9


def guard(text):
    """A sentence of a comment, in which < and # mean themselves."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(p if p.startswith("`") else re.sub(r"(?<![\\/])([<#@])(?![<]?\d*\s*$)", r"\\\1", p) for p in parts)


def with_cards(text):
    """The words of cards as paragraphs, tables and signatures above them as they are laid out."""
    out, in_card, as_is = [], False, False
    before = ""
    for line in text.split("\n"):
        comment = re.match(r"^(\s*///)(?!<)(.*)$", line)
        if not comment:
            in_card = as_is = False
            trailing = re.match(r"^(.*///<)(.*)$", line)
            out.append(trailing[1] + guard(trailing[2]) if trailing else line)
            continue
        label = LABEL.match(line)
        if label and len(label[2]) == LABEL_WIDTH and (in_card or label[2].endswith("  ")):
            in_card, as_is = True, False
            out.append(f"{label[1]} @card{{{label[2].strip()}}} {guard(label[3])}")
        else:
            laid_out = not in_card and comment[2].startswith("   ")
            if laid_out and not as_is and before.strip() != "///":
                out.append(comment[1])
            as_is = laid_out
            out.append(comment[1] + ("      " + comment[2] if as_is else guard(comment[2])))
        before = line
    return "\n".join(out)


def as_doxygen(text):
    """Comments of the C header, which has only /* ones."""
    return re.sub(r"/\*(?![*!])", "/**", text)


def slug(title):
    return re.sub(r"[^\w\- ]", "", re.sub(r"[`*]|\]\([^)]*\)|\[", "", title).lower()).strip().replace(" ", "-")


def label_of(page, anchor=""):
    return re.sub(r"\W", "_", f"page_{page}" + (f"__{anchor}" if anchor else ""))


def page_for(name, text, pages):
    """A page of docs/ with Doxygen's labels and references. Links that lead out of the reference become plain text."""
    def link(match):
        shown, target = match[1], match[2]
        file, _, anchor = target.partition("#")
        if target.startswith(("http:", "https:")):
            return match[0]
        page = file[:-3] if file.endswith(".md") else name if file == "" else None
        if page in pages and (anchor == "" or anchor in pages[page]):
            plain = re.sub(r"[`\"]", "", shown).replace("\n", " ")
            return f'@ref {label_of(page, anchor)} "{plain}"' + ("\n" if "\n" in shown else "")
        return shown

    out = []
    for i, part in enumerate(re.split(r"^(```.*?^```)$", text, flags=re.M | re.S)):
        if i % 2 == 1:
            out.append(re.sub(r"^```(cpp|c)$", r"```{.\1}", part, flags=re.M))
            continue
        part = re.sub(r"!\[([^\]]*)\]\([^)]*\)", r"\1", part)
        part = re.sub(r"\[([^\[\]]+)\]\(([^()\s]+)\)", link, part)
        out.append(re.sub(r"^(#+) (.*)$", lambda m: f"{m[0]} {{#{label_of(name, '' if m[1] == '#' else slug(m[2]))}}}", part, flags=re.M))
    return "".join(out)


def copy(root, work):
    include = root / "include" / "kvcondense"
    for path in sorted(include.rglob("*")):
        name = path.relative_to(include).as_posix()
        if path.suffix not in (".hpp", ".cuh", ".h") or name.startswith("backend/") and name not in BACKENDS:
            continue
        to = work / "kvcondense" / name
        to.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_text()
        to.write_text(as_doxygen(text) if path.suffix == ".h" else with_cards(text))
    shutil.copy(root / "docs" / "reference" / "rooms.dox", work)
    texts = {path.stem: path.read_text() for path in sorted((root / "docs").glob("*.md"))}
    pages = {name: {slug(m) for m in re.findall(r"^#+ (.*)$", text, re.M)} for name, text in texts.items()}
    for name, text in texts.items():
        (work / f"{name}.md").write_text(page_for(name, text, pages))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[2])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--doxygen", default="doxygen")
    parser.add_argument("--skip-without", type=int, metavar="CODE")
    options = parser.parse_args()
    if shutil.which(options.doxygen) is None:
        print("skipped: Doxygen is not installed (Debian: apt-get install --no-install-recommends doxygen)")
        return 1 if options.skip_without is None else options.skip_without
    out = options.out.resolve()
    work = out / "sources"
    shutil.rmtree(work, ignore_errors=True)
    shutil.rmtree(out / "html", ignore_errors=True)
    work.mkdir(parents=True)
    root = options.root.resolve()
    copy(root, work)
    settings = (root / "docs" / "reference" / "Doxyfile").read_text()
    version = re.search(r"project\(kvcondense\s+VERSION\s+([\d.]+)", (root / "CMakeLists.txt").read_text())
    settings += (f'\nPROJECT_NUMBER = {version[1] if version else ""}\nINPUT = "{work}"\nOUTPUT_DIRECTORY = "{out}"\n'
                 f'STRIP_FROM_PATH = "{work}"\nSTRIP_FROM_INC_PATH = "{work}"\n')
    done = subprocess.run([options.doxygen, "-"], input=settings, capture_output=True, text=True, cwd=work)
    wrong = []
    for line in dict.fromkeys((done.stderr + done.stdout).split("\n")):
        if line.strip() and not re.search(r": Member .* is not documented\.$", line):
            wrong.append(line.replace(f"{work}/kvcondense/", "include/kvcondense/").replace(f"{work}/", "docs/"))
    print("\n".join(wrong))
    if done.returncode != 0:
        wrong.append("")
        print(f"doxygen ended with {done.returncode}")
    if not (out / "html" / "index.html").is_file():
        wrong.append("")
        print("no index.html came")
    if not wrong:
        print(f"{out}/html/index.html: {len(list((out / 'html').glob('*.html')))} pages")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
