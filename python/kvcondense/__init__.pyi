import os
from typing import Any, Dict, Literal, Mapping, Optional, Sequence, Tuple, TypedDict, Union, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

__version__: str

# float32 or float16, [heads, tokens, dim]; float16 queries are widened.
Rows = NDArray[Union[np.float32, np.float16]]
Floats = NDArray[np.float32]
# What is known of the model, by name: arrays, "rope" as a dictionary, and "bases", per method a dictionary of arrays and "keys": "rotated", also when left out,
# or "raw". What read_arrays gives.
Model = Mapping[str, Any]
Phase = Literal["automatic", "prefill_chunk", "prefill_end", "decode", "turn", "probe"]
DType = Literal["f32", "f16", "bf16"]
Room = Literal["evict", "budget", "merge", "lowrank", "quant", "position", "retrieve"]

class Error(ValueError):
    status: str
    position: Optional[int]
    def __init__(self, message: str, status: str = ..., position: Optional[int] = ...) -> None: ...

class Shape:
    layers: int
    q_heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    dtype: DType
    page_slots: int
    softmax_scale: float
    def __init__(self, *, layers: int = 1, q_heads: int = 1, kv_heads: int = 1, head_dim: int = 64, value_dim: int = 0, dtype: DType = "f16",
                 page_slots: int = 64, softmax_scale: float = 0.0) -> None: ...

class Report(TypedDict):
    exact_bytes: int
    coded_bytes: int
    side_bytes: int
    index_bytes: int
    fixed_bytes: int
    dead_bytes: int
    shared_bytes: int
    dense_bytes: int
    tokens: int
    slots: int
    budget_asked: int
    budget_met: int
    evictions: int
    evicted_slots: int
    merged_slots: int
    across_rows: int
    nan_scores: int
    repaired_numbers: int
    coded_again: int
    kernel: str
    bytes: int
    ratio: float

class Capabilities(TypedDict):
    changes_length: bool
    probes: bool
    raw_keys: bool
    rotated_input: bool
    lossy_slots: bool
    reads_part: bool
    joins_tokens: bool
    turns_keys: bool
    found_maps: bool
    rollback_exact: bool
    prefix_exact: bool
    needs: Sequence[str]

class Cache:
    text: str
    shape: Shape
    def __init__(self, shape: Shape, recipe: str = "keep_all", model: Model = ...) -> None: ...
    def forward(self, layer: int, q: Rows, k: Rows, v: Rows, *, positions: Optional[ArrayLike] = None, phase: Phase = "automatic",
                raw_queries: Optional[Rows] = ..., raw_keys: Optional[Rows] = ..., values: Optional[Rows] = ..., query_mean: Optional[ArrayLike] = ...,
                query_covariance: Optional[ArrayLike] = ..., gates: Optional[ArrayLike] = ..., surprise: Optional[ArrayLike] = ...,
                classes: Optional[ArrayLike] = ..., hidden_norms: Optional[ArrayLike] = ...) -> Floats: ...
    def append(self, layer: int, k: Rows, v: Rows, *, positions: Optional[ArrayLike] = None, queries: Optional[Rows] = None) -> None: ...
    @overload
    def attend(self, layer: int, q: Rows) -> Floats: ...
    @overload
    def attend(self, layer: int, q: Rows, *, mass: bool = False, lse: bool = False) -> Union[Floats, Tuple[Floats, ...]]: ...
    def step(self, layer: int, *, phase: Phase = "automatic", mass: Optional[ArrayLike] = None, mass_rows: Optional[int] = None, queries: Optional[Rows] = ...,
             raw_queries: Optional[Rows] = ..., raw_keys: Optional[Rows] = ..., values: Optional[Rows] = ..., query_mean: Optional[ArrayLike] = ...,
             query_covariance: Optional[ArrayLike] = ..., gates: Optional[ArrayLike] = ..., surprise: Optional[ArrayLike] = ...,
             classes: Optional[ArrayLike] = ..., hidden_norms: Optional[ArrayLike] = ..., incoming: int = ..., probe: Tuple[int, int] = ...) -> None: ...
    def turn(self, incoming: int = 0) -> None: ...
    def truncate(self, tokens: int) -> None: ...
    def remove(self, first: int, last: int) -> None: ...
    def fork(self) -> Cache: ...
    def reset(self) -> None: ...
    def save(self) -> bytes: ...
    def load(self, file: Union[bytes, bytearray, memoryview, NDArray[np.uint8]]) -> None: ...
    def read(self, layer: int, head: int, first: int = 0, count: Optional[int] = None) -> Tuple[Floats, Floats]: ...
    def tokens(self, layer: int, head: int) -> NDArray[np.int64]: ...
    def slots(self, layer: int, head: int) -> int: ...
    def length(self, layer: int = 0) -> int: ...
    def pending(self, layer: int = 0) -> int: ...
    def next_position(self, layer: int = 0) -> int: ...
    def wants_mass(self, layer: int, phase: Phase = "automatic") -> bool: ...
    def report(self) -> Report: ...
    def capabilities(self) -> Capabilities: ...

class Choice:
    fired: bool
    text: str
    scores: Floats
    kept: Sequence[NDArray[np.int32]]
    budget: NDArray[np.int64]

class Coded:
    pages: Sequence[NDArray[np.uint8]]
    decoded: Floats
    page_slots: int
    group_slots: int
    repaired: int
    bits: float

def choose(recipe: str, k: Rows, v: Rows, q: Optional[Rows] = None, *, q_heads: int = 0, layer: int = 0, layers: int = 1, softmax_scale: float = 0.0,
           model: Model = ..., raw_queries: Optional[Rows] = ..., raw_keys: Optional[Rows] = ..., values: Optional[Rows] = ...,
           query_mean: Optional[ArrayLike] = ..., query_covariance: Optional[ArrayLike] = ..., gates: Optional[ArrayLike] = ...,
           surprise: Optional[ArrayLike] = ..., classes: Optional[ArrayLike] = ...) -> Choice: ...
def encode(recipe: str, rows: Rows, part: Literal["keys", "values"] = "keys", *, layer: int = 0, layers: int = 1, page_slots: int = 64,
           q: Optional[Rows] = None, saliency: Optional[ArrayLike] = None, model: Model = ...) -> Coded: ...
def parse(recipe: str) -> str: ...
def read_arrays(*paths: Union[str, os.PathLike[str]]) -> Dict[str, Any]: ...
def words(room: Optional[Room] = None) -> Sequence[str]: ...
def help(word: str) -> str: ...
def reorder(caches: Sequence[Cache], map: Sequence[int]) -> None: ...
