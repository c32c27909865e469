"""Keys and values of large language models, kept smaller: recipes of kvcondense over numpy arrays."""


class Error(ValueError):
    """What the library refused, in one sentence.

    status    the name of the Status: 'shape_mismatch', 'missing_input', ...
    position  the byte of the recipe that is at fault, or None
    """

    def __init__(self, message, status="invalid_argument", position=None):
        super().__init__(message)
        self.status = status
        self.position = position


from ._core import (  # noqa: E402  (the compiled part raises Error)
    Cache,
    Choice,
    Coded,
    Shape,
    choose,
    encode,
    help,
    parse,
    reorder,
    version as __version__,
    words,
)
from ._files import read_arrays  # noqa: E402

__all__ = ["Cache", "Choice", "Coded", "Error", "Shape", "choose", "encode", "help", "parse", "read_arrays", "reorder", "words"]
