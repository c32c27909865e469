#!/usr/bin/env python3
"""Several test files as one, so that what they include is parsed, and what they instantiate compiled, once.

    together.py OUT.cpp a_test.cpp b_test.cpp ...

What the files include comes first, then each in a namespace of its own. Diagnostics and tests keep the names of their own files.
"""

import sys
from pathlib import Path


def together(tests):
    includes, bodies = [], []
    for number, test in enumerate(map(Path, tests)):
        text = test.read_text().splitlines()
        body = ["" if line.startswith("#include") else line for line in text]
        includes += [line for line in text if line.startswith("#include") and line not in includes]
        bodies += [f"namespace together_{number} {{", f'#line 1 "{test}"', *body, f"}}  // namespace together_{number}"]
    return "\n".join(includes + bodies) + "\n"


def main():
    out, *tests = sys.argv[1:]
    Path(out).write_text(together(tests))


if __name__ == "__main__":
    main()
