#!/usr/bin/env python3
"""Plants one violation of each house rule, and of what its companions check, in a small tree and demands that it is found."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
FAIL_DRIVER = HERE.parent / "fail" / "must_not_compile.py"

CARD = """/// Keeps nothing.
///
/// Idea     None.
/// Source   None.
/// Needs    nothing.
/// Shapes   none.
/// Cost     none.
/// Numbers  none.
/// Errors   none.
"""

GOOD = {
    "CMakeLists.txt": "project(kvcondense VERSION 1.2.3)\n",
    "README.md": "# kvcondense\n",
    "include/kvcondense/version.hpp": '#pragma once\ninline constexpr const char* version_string = "1.2.3";\n',
    "include/kvcondense/core/config.hpp": "#pragma once\n#if 1\n#define KVCONDENSE_X 1\n#endif\n",
    "include/kvcondense/prim/top_k.hpp": "#pragma once\n#include <kvcondense/core/config.hpp>\n",
    "include/kvcondense/prim/words.hpp": "#pragma once\n" + "".join(
        f"template <Backend B>\nstruct {w} {{\n  static_assert(detail::always_false<B>, \"no\");\n}};\n" for w in ("Here", "Gone")),
    "include/kvcondense/backend/cuda/words.cuh": "#pragma once\ntemplate <>\nstruct Here<Cuda> {};\n",
    "docs/cuda.md": "| word | x |\n|---|---|\n| `Here` | x |\n\nWords that only the CPU has: `Gone`.\n",
    "include/kvcondense/budget/ada.hpp":
        "#pragma once\n#include <kvcondense/evict/h2o.hpp>\n// never throw (a comment may say so)\n",
    "include/kvcondense/evict/h2o.hpp":
        "#pragma once\n#include <kvcondense/prim/top_k.hpp>\nstruct Forward;\nnamespace detail {\n"
        "struct Inner {};\n}\n" + CARD +
        "template <class T>\nstruct H2O {\n  static constexpr Descriptor about{1};\n};\n",
    "include/kvcondense/evict/blocks/pool.hpp": "#pragma once\n/// Pools.\nstruct Pool {};\n",
    "include/kvcondense/cache/cache.hpp": "#pragma once\n#include <kvcondense/evict/h2o.hpp>\n",
    "include/kvcondense/io/reader.hpp": "#pragma once\n#include <kvcondense/cache/cache.hpp>\n",
    "include/kvcondense/backend/cpu/top_k.hpp":
        "#pragma once\n#include <kvcondense/prim/top_k.hpp>\n#include <kvcondense/core/config.hpp>\n",
    "include/kvcondense/kvcondense.hpp": "#pragma once\n#include <kvcondense/cache/cache.hpp>\n",
    "include/kvcondense/cpu.hpp": "#pragma once\n#include <kvcondense/backend/cpu/top_k.hpp>\n",
    "tests/evict/h2o_test.cpp": "// test\n",
    "tests/budget/ada_test.cpp": "// test\n",
    "examples/models/heldout.txt": "\u00e9 data may say anything \t\n",
}

EVICT = "include/kvcondense/evict/h2o.hpp"
PRIM = "include/kvcondense/prim/top_k.hpp"
ROOT_OF_ANOTHER = "/wo" + "rk/"

# rule, file, text put at the end of it (None: the file is removed), part of the complaint.
PLANTED = [
    ("include_direction", EVICT, "#include <kvcondense/backend/cpu/top_k.hpp>\n", "evict may include"),
    ("include_direction", EVICT, "#include <kvcondense/quant/kivi.hpp>\n", "evict may include"),
    ("include_direction", EVICT, "#include <kvcondense/cpu.hpp>\n", "umbrella"),
    ("include_direction", EVICT, '#include "h2o.hpp"\n', "write #include <"),
    ("include_direction", PRIM, "  #  include <kvcondense/evict/h2o.hpp>\n", "prim may include"),
    ("include_direction", PRIM, "#include <kvcondense/prim/none.hpp>\n", "does not exist"),
    ("include_direction", "include/kvcondense/core/config.hpp", "#include <kvcondense/prim/top_k.hpp>\n",
     "core may include"),
    ("include_direction", "include/kvcondense/cache/cache.hpp", "#include <kvcondense/io/reader.hpp>\n",
     "cache may include"),
    ("include_direction", "include/kvcondense/backend/cpu/top_k.hpp",
     "#include <kvcondense/evict/h2o.hpp>\n", "backend may include"),
    ("include_direction", "include/kvcondense/backend/cpu/top_k.hpp",
     "#include <kvcondense/backend/cuda/top_k.cuh>\n", "backend cpu may not"),
    ("include_direction", "include/kvcondense/misc/x.hpp",
     "#pragma once\n#include <kvcondense/core/config.hpp>\n", "not a room"),
    ("file_length", PRIM, "\n" * 400, "400 at most"),
    ("conditionals", PRIM, "#ifdef X\n", "conditional compilation"),
    ("conditionals", PRIM, "#define X\n", "macro X"),
    ("conditionals", "include/kvcondense/prim/rope.hpp", "struct A;\n", "#pragma once"),
    ("one_dialect", PRIM, 'inline void f() { asm("nop"); }\n', "belong in backend/cuda/dialect.cuh"),
    ("one_dialect", PRIM, "inline void f() { k<<<1, 1>>>(); }\n", "belong in backend/cuda/dialect.cuh"),
    ("quiet", PRIM, "inline void f() { throw 1; }\n", "throw"),
    ("quiet", PRIM, "inline void f() { std::abort(); }\n", "abort"),
    ("quiet", PRIM, "#include <iostream>\n", "iostream"),
    ("plain_text", PRIM, "// \u00d7\n", "not ASCII"),
    ("plain_text", "README.md", "a\tb\n", "tab"),
    ("plain_text", "docs/index.md", "blank \n", "blank at the end"),
    ("plain_text", "docs/index.md", "no newline", "no newline"),
    ("own_paths", "README.md", f"see {ROOT_OF_ANOTHER}x\n", "outside the project"),
    ("tested", "tests/evict/h2o_test.cpp", None, "is missing"),
    ("cards", "include/kvcondense/quant/kivi.hpp", "#pragma once\nstruct Kivi {};\n", "no /// card"),
    ("cards", "include/kvcondense/quant/kivi.hpp",
     "#pragma once\n" + CARD.replace("/// Needs    nothing.\n", "") +
     "struct Kivi {\n  static constexpr Descriptor about{1};\n};\n", "lacks Needs"),
    ("test_names", "tests/evict/pool_test.cpp", 'TEST_CASE("pool: one; two", "[evict]") {}\n', "semicolon"),
    ("statuses", EVICT, "Status f() { return Status::io_error; }\n", "no test expects Status::io_error of evict"),
    ("cuda_words", "include/kvcondense/prim/words.hpp",
     "template <Backend B>\nstruct New {\n  static_assert(detail::always_false<B>);\n};\n", "New has no form on CUDA"),
    ("cuda_words", "include/kvcondense/backend/cuda/words.cuh", "template <>\nstruct Gone<Cuda> {};\n", "but CUDA has it"),
    ("cuda_words", "include/kvcondense/backend/cuda/words.cuh", "template <>\nstruct Gone<Cuda> {};\n", "table lacks"),
    ("version", "include/kvcondense/version.hpp", None, ""),
    ("version", "CMakeLists.txt", None, ""),
]


def run(*command):
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def lay(root, change=None):
    files = dict(GOOD)
    if change:
        name, text = change
        if text is None:
            del files[name]
        else:
            files[name] = files.get(name, "") + text
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


class Checks:
    def __init__(self):
        self.done = 0
        self.failed = 0

    def expect(self, what, code, output, want_code, want_text=""):
        self.done += 1
        if code != want_code or want_text not in output:
            self.failed += 1
            print(f"FAILED {what}: exit {code}, wanted {want_code} and '{want_text}' in:\n{output}")


def check_house(checks):
    for rule, name, text, complaint in [("", "", "", "")] + PLANTED:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            lay(root, (name, text) if rule else None)
            if rule == "version":  # both files are there in the real tree; here one says another number
                lay(root)
                (root / "CMakeLists.txt").write_text("project(kvcondense VERSION 9.9.9)\n")
                complaint = "CMakeLists.txt says 9.9.9"
            code, output = run(HERE / "house.py", "--root", root, *([rule] if rule else []))
            checks.expect(f"{rule or 'a clean tree'} {name}", code, output, 1 if rule else 0, complaint)
    planted = {rule for rule, *_ in PLANTED}
    _, output = run(HERE / "house.py", "--list")
    checks.expect("every rule has a planted violation", 0 if set(output.split()) == planted else 1,
                  f"{sorted(set(output.split()) ^ planted)}", 0)


def check_headers(checks):
    cases = [
        ("a good header", "#pragma once\n#include <vector>\ninline std::vector<int> f() { return {}; }\n", 0, "0 failed"),
        ("a missing include", "#pragma once\ninline std::vector<int> f() { return {}; }\n", 1, "FAILED"),
        ("no guard", "struct A {};\n", 1, "FAILED"),
        ("a warning", "#pragma once\ninline int f(long x) { return x; }\n", 1, "FAILED"),
    ]
    compilers = ["--compiler", os.environ.get("CXX", "g++")]
    for what, text, want, complaint in cases:
        with tempfile.TemporaryDirectory() as folder:
            header = Path(folder) / "include" / "kvcondense" / "a.hpp"
            header.parent.mkdir(parents=True)
            header.write_text(text)
            checks.expect(what, *run(HERE / "headers.py", "--root", folder, *compilers), want, complaint)
            if want == 0:
                checks.expect("a slow header", *run(HERE / "headers.py", "--root", folder, "--limit", "0",
                                                    *compilers), 1, "SLOW")


def check_fail_driver(checks):
    refuse = 'template <class T> void f() { static_assert(sizeof(T) == 0, "kvcondense: use g."); }\n'
    cases = [
        ("a refusal", "// EXPECT: kvcondense: use g.\n" + refuse +
         "int main() {\n#ifdef KVCONDENSE_EXPECT_FAIL\n  f<int>();\n#endif\n}\n", 0, ""),
        ("another sentence", "// EXPECT: kvcondense: use h.\n" + refuse +
         "int main() {\n#ifdef KVCONDENSE_EXPECT_FAIL\n  f<int>();\n#endif\n}\n", 1, "sentence"),
        ("two cases, one sentence", "// EXPECT: kvcondense: use g.\n" * 2 + refuse +
         "int main() {\n#ifdef KVCONDENSE_EXPECT_FAIL\n  f<int>();\n#endif\n}\n", 1, "sentence"),
        ("nothing refused", "// EXPECT: kvcondense: use g.\nint main() {}\n", 1, "compiles with"),
        ("never compiles", "// EXPECT: kvcondense: use g.\n" + refuse + "int main() { f<int>(); }\n", 1, "must compile"),
        ("no sentence", "int main() {}\n", 1, "EXPECT"),
    ]
    for what, text, want, complaint in cases:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "case.cpp"
            source.write_text(text)
            checks.expect(what, *run(FAIL_DRIVER, "--compiler", os.environ.get("CXX", "g++"), "--include",
                                     folder, source), want, complaint)


def check_adapter_lines(checks):
    def engine(lines, own="int x;\n"):
        return "// an engine\n// --- engine ---\n" + own + "// --- adapter ---\n" + "// no line\n}\nint y;\n" * lines + "// --- check ---\nint z;\n"

    cases = [
        ("three adapters", [engine(3)] * 3, 3, 0, ""),
        ("61 lines", [engine(3), engine(3), engine(61)], 3, 1, "60 at most"),
        ("another count on the page", [engine(3), engine(3), engine(4)], 3, 1, "does not say 4 lines"),
        ("a call in the engine's part", [engine(3), engine(3), engine(3, "kvc::f();\n")], 3, 1, "names the library"),
        ("a call in its files", [engine(3), engine(3), engine(3, "#include <small/engine.hpp>\n")], 3, 1, "engine.cpp: the engine's own section names"),
        ("files of its own", [engine(3), engine(3), engine(3, "#include <small/engine.hpp>\n")], 3, 0, ""),
        ("no check", [engine(3), engine(3), engine(3).split("// --- check")[0]], 3, 1, "no section 'check'"),
        ("one adapter too few", [engine(3)] * 2, 3, 1, "fewer than three"),
    ]
    for what, engines, stated, code, said in cases:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            (root / "docs").mkdir(), (root / "examples").mkdir()
            (root / "docs/integration.md").write_text("".join(f"| [1{i}_engine_x](there) | a hook | {stated} |\n" for i in range(3)))
            for i, text in enumerate(engines):
                (root / f"examples/1{i}_engine_x.cpp").write_text(text)
            (root / "examples/small").mkdir()
            (root / "examples/small/engine.hpp").write_text("int f();\n")
            (root / "examples/small/engine.cpp").write_text(f"#include <small/engine.hpp>\n{'int f() { return kvc::f(); }' if what == 'a call in its files' else ''}\n")
            checks.expect(f"adapter lines: {what}", *run(HERE / "adapter_lines.py", "--root", root), code, said)


def check_samples(checks):
    program = "int f() {\n  int a = 1;\n  int b = 2;\n  return a + b;\n}\n"

    def sample(block, origin="from examples/01_x.cpp", language="cpp"):
        return (f"<!-- {origin} -->\n" if origin else "") + f"```{language}\n{block}```\n"

    printed = "printed by examples/01_x"
    command = "```\nbuild/any/01_x --option \\\n  'two words'\n```\n\n"
    cases = [
        ("lines of a program", "README.md", sample("int a = 1;\n// ...\nreturn a + b;\n"), 0, "1 samples"),
        ("a line that is not there", "README.md", sample("int a = 2;\n"), 1, "not in examples/01_x.cpp"),
        ("lines that do not follow each other", "README.md", sample("int a = 1;\nreturn a + b;\n"), 1, "int a = 1;"),
        ("pieces in another order", "README.md", sample("int b = 2;\n// ...\nint a = 1;\n"), 1, "in this order"),
        ("another indentation within", "README.md", sample("int a = 1;\n  int b = 2;\n"), 1, "not in"),
        ("no origin", "docs/guide.md", sample("int x;\n", ""), 1, "guide.md:1: says not where"),
        ("a command", "docs/guide.md", sample("ls\n", "", "sh"), 0, ""),
        ("no origin on another page", "docs/other.md", sample("int x;\n", ""), 0, "0 samples"),
        ("a wrong sample on another page", "docs/other.md", sample("int x;\n"), 1, "other.md:2"),
        ("no such file", "README.md", sample("int x;\n", "from examples/02_y.cpp"), 1, "does not exist"),
        ("a source that is no test's", "README.md", sample("int x;\n", "from src/x.cpp"), 1, "is no test's"),
        ("nothing", "README.md", sample("\n"), 1, "is empty"),
        ("what is printed", "README.md", sample("2 slots\n", printed, ""), 0, "1 with what these print"),
        ("what is not printed", "README.md", sample("3 slots\n", printed, ""), 1, "does not print: 3 slots"),
        ("a program without source", "README.md", sample("2\n", "printed by examples/03_z", ""), 1, "has no source"),
        ("a program for a device", "README.md", sample("3 slots\n", "printed by examples/04_y", ""), 1, "does not print: 3 slots"),
        ("what a command prints", "docs/other.md", command + sample("2 slots\n", "printed by the command above", ""), 0, "1 with what these print"),
        ("what a command does not print", "docs/other.md", command + sample("3 slots\n", "printed by the command above", ""), 1, "the command above does not print: 3 slots"),
        ("what a command prints with other options", "docs/other.md", command.replace("two words", "two") + sample("two words\n", "printed by the command above", ""), 1, "does not print: two words"),
        ("a command that is not built", "docs/other.md", command.replace("01_x", "07_x") + sample("3 slots\n", "printed by the command above", ""), 0, "0 with what these print"),
        ("a command above that is none", "docs/other.md", sample("3 slots\n", "printed by the command above", ""), 1, "no command prints it"),
        ("such a program where nobody could build it", "README.md", sample("3 slots\n", "printed by examples/05_z", ""), 0, "0 with what these print"),
    ]
    for what, page, text, code, said in cases:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            (root / "docs").mkdir(), (root / "examples").mkdir(), (root / "built").mkdir()
            (root / "examples/01_x.cpp").write_text(program)
            for name in ("04_y", "05_z"):
                (root / f"examples/{name}.cu").write_text(program)
            for name in ("01_x", "04_y"):
                built = root / f"built/{name}"
                built.write_text("#!/bin/sh\necho first\necho 2 slots\necho $2\n")
                built.chmod(0o755)
            (root / page).write_text(text)
            checks.expect(f"samples: {what}", *run(HERE / "samples.py", "--root", root, "--programs", root / "built", "--tools", root / "built"), code, said)


def check_reference(checks):
    build = HERE.parents[1] / "docs" / "reference" / "build.py"
    header = ("#pragma once\nnamespace kvcondense {\n" + CARD + "struct A {\n  int field = 0;\n};\n}\n")
    cases = [
        ("a card", header, "# Main\n", 0, "pages"),
        ("a struct without a card", header.replace(CARD, ""), "# Main\n", 1, "A is not documented"),
        ("a card with a command that there is not", header.replace("Keeps nothing.", "Keeps \\nothing_at_all."), "# Main\n", 1,
         "nothing_at_all"),
        ("a page that does", header, "# Main\n@ref nowhere_at_all\n", 1, "docs/index.md"),
    ]
    for what, text, page, code, said in cases:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            (root / "include/kvcondense/core").mkdir(parents=True), (root / "docs/reference").mkdir(parents=True)
            (root / "CMakeLists.txt").write_text("project(kvcondense VERSION 1.2.3)\n")
            (root / "include/kvcondense/core/a.hpp").write_text(text)
            (root / "docs/index.md").write_text(page)
            (root / "docs/reference/rooms.dox").write_text("/** \\namespace kvcondense\n *  \\brief All. */\n")
            (root / "docs/reference/Doxyfile").write_text((build.parent / "Doxyfile").read_text())
            arguments = (build, "--root", root, "--out", root / "out")
            if shutil.which("doxygen"):
                code_got, output = run(*arguments)
                checks.expect(f"reference: {what}", code_got, output, code, said)
                if code == 0:
                    shown = (root / "out/html/structkvcondense_1_1A.html").read_text()
                    checks.expect("reference: the words of a card are titles", 0 if "<dt>Numbers</dt><dd>none." in shown else 1, shown, 0)
            checks.expect("reference: no Doxygen", *run(*arguments, "--doxygen", "no-doxygen-here", "--skip-without", "77"), 77, "skipped")


def main():
    checks = Checks()
    check_reference(checks)
    check_samples(checks)
    check_adapter_lines(checks)
    check_house(checks)
    check_headers(checks)
    check_fail_driver(checks)
    print(f"{checks.done} checks, {checks.failed} failed")
    return 1 if checks.failed else 0


if __name__ == "__main__":
    sys.exit(main())
