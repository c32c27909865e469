"""Runs the samples of docs/python.md, one after another, and compares what they print with what is shown."""

import contextlib
import io
import os
import re
import unittest

ROOT = os.environ.get("KVCONDENSE_SOURCE_DIR", os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))


class Samples(unittest.TestCase):
    def test_samples_print_what_is_shown(self):
        with open(os.path.join(ROOT, "docs", "python.md"), encoding="utf-8") as f:
            text = f.read()
        samples = re.findall(r"```python\n(.*?)```\n(?:\n```\n(.*?)```\n)?", text, re.DOTALL)
        self.assertGreater(len(samples), 8)
        self.assertEqual(len(samples), text.count("```python"))
        names = {}
        for code, shown in samples:
            self.assertTrue(shown, "a sample shows what it prints: " + code)
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(code, "docs/python.md", "exec"), names)  # noqa: S102
            self.assertEqual(printed.getvalue().rstrip(), shown.rstrip(), code)


if __name__ == "__main__":
    unittest.main()
