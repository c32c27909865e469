"""Files of the evaluation tool as arrays for recipes: of `calibrate` (safetensors) and of `identify-heads` (JSON)."""

import json
import math
import os

import numpy as np

from . import Error

_STORED = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}
_MOST_AXES = 5
_BASIS_PARTS = ("encode", "decode", "mean", "energy", "ranks")
# Tensors that are a fact of the model, and their axes in a file: recipes see planes as they are, books as a row per head, others as a matrix per layer.
_FACTS = {"key.books": ("key_books", 5), "value.books": ("value_books", 5), "key.axes": ("key_axes", 4), "query.axes": ("query_axes", 4),
          "key.codes": ("key_codes", 4), "key.metric": ("key_metric", 4), "query.filters": ("query_filters", 3),
          "hash.planes": ("hash_planes", 3)}
_OF_STREAMS = ("aquakv", "kvtc")
_PER_LAYER = ("evicted", "variance")
_PER_HEAD = ("gates", "induction", "echo", "shares", "key_widths", "value_widths")
_LISTS = ("key_clusters", "value_clusters", "key_lower", "key_upper", "key_levels", "value_levels")


def read_arrays(*paths):
    """What the files hold, as the `model` of a cache: one dictionary, to which 'rope' and other arrays may be added."""
    model = {}
    for path in paths:
        with open(path, "rb") as f:
            text = f.read()
        refuse = _Refuse(os.fspath(path))
        made = _bases(text, refuse) if _has_header(text) else _heads(text, refuse)
        bases = made.pop("bases", {})
        for name in made:
            if name in model:
                refuse(f"'{name}' was in a file before it")
        for method in bases:
            if method in model.get("bases", {}):
                refuse(f"a second file of bases for {method}")
        model.update(made)
        if bases:
            model.setdefault("bases", {}).update(bases)
    return model


class _Refuse:
    def __init__(self, path):
        self.path = path

    def __call__(self, what):
        raise Error(f"{self.path}: {what}", "corrupt_data")


def _json(text, refuse):
    try:
        return json.loads(text.decode())
    except (ValueError, RecursionError) as e:
        refuse(f"not JSON: {e}")


def _has_header(text):
    """Whether the length in front of a safetensors header fits. Eight letters are a number no file is as long as."""
    return len(text) >= 8 and int.from_bytes(text[:8], "little") <= len(text) - 8


def _counts(x):
    return type(x) is list and all(type(n) is int and n >= 0 for n in x)


def _numbers(x, axes):
    """Whether lists in lists, so many of them, hold numbers; booleans and texts are none."""
    return type(x) in (int, float) if axes == 0 else type(x) is list and all(_numbers(y, axes - 1) for y in x)


def _tensors(text, refuse):
    """Metadata and arrays of a safetensors file."""
    size = int.from_bytes(text[:8], "little")
    header = _json(text[8:8 + size], refuse)
    if type(header) is not dict:
        refuse("its header is no object")
    metadata, data = header.pop("__metadata__", {}), text[8 + size:]
    if type(metadata) is not dict or not all(type(word) is str for word in metadata.values()):
        refuse("its metadata are no texts by name")
    places = []
    for name, about in header.items():
        dtype, shape, place = map(about.get, ("dtype", "shape", "data_offsets")) if type(about) is dict else (None, None, None)
        if type(dtype) is not str or dtype not in _STORED or not _counts(shape) or not 0 < len(shape) <= _MOST_AXES or not _counts(place) or len(place) != 2:
            refuse(f"tensor '{name}' has no dtype that is read here (F32, F16, BF16), shape or place")
        places.append((*place, name, dtype, shape))
    arrays, end = {}, 0
    for first, last, name, dtype, shape in sorted(places):
        count = math.prod(shape)
        if count < 1 or first != end or last > len(data) or last - first != count * _STORED[dtype].itemsize:
            refuse(f"tensor '{name}' does not lie in the file as its shape says, behind the one before it")
        end = last
        flat = np.frombuffer(data, _STORED[dtype], count, first)
        # Copied, for a file may put numbers at any byte.
        flat = (flat.astype(np.uint32) << 16).view(np.float32) if dtype == "BF16" else flat.astype(np.float32)
        if not np.isfinite(flat).all():
            refuse(f"tensor '{name}' holds something that is no number")
        arrays[name] = flat.reshape(shape)
    if end != len(data):
        refuse("it holds bytes behind its tensors")
    return metadata, arrays


def _bases(text, refuse):
    metadata, arrays = _tensors(text, refuse)
    said = metadata.get
    if said("format") != "kvcondense-bases":
        refuse("not a file of bases: its \"format\" is not \"kvcondense-bases\"")
    if said("version") != "1":
        refuse("its \"version\" is not 1")
    if not said("method") or said("keys") not in ("rotated", "raw"):
        refuse("it does not say its method, or what keys it was made of")
    if said("method") in _OF_STREAMS:
        refuse(f"what {said('method')} is made of a model is for files of a stream, and recipes do not take it")
    basis, facts = {}, {}
    for name, array in arrays.items():
        side, _, part = name.partition(".")
        if side in ("key", "value") and part in _BASIS_PARTS:
            basis[name] = array
        elif name in _FACTS:
            fact, axes = _FACTS[name]
            if array.ndim != axes:
                refuse(f"tensor '{name}' has {array.ndim} axes, expected {axes}")
            facts[fact] = array if axes == 3 else array.reshape(*array.shape[:2], -1) if axes == 5 else array.reshape(array.shape[0], -1, array.shape[3])
        else:
            refuse(f"no tensor is called '{name}'")
    if basis:
        facts["bases"] = {said("method"): {**basis, "keys": said("keys")}}
    if not facts:
        refuse("it holds no basis")
    return facts


def _heads(text, refuse):
    if text.lstrip()[:1] != b"{":
        refuse("neither a safetensors file nor JSON")
    tables = _json(text, refuse)
    if tables.get("format") != "kvcondense-heads":
        refuse("not a file of head tables: its \"format\" is not \"kvcondense-heads\"")
    if type(tables.get("version")) is not int or tables["version"] != 1:
        refuse("its \"version\" is not 1")
    layers, heads = want = [tables.get("layers"), tables.get("kv_heads")]
    if not _counts(want) or 0 in want:
        refuse("its \"layers\" and \"kv_heads\" are no counts")
    facts = {}
    for name, table in tables.items():
        if name in ("format", "version", "made", "layers", "kv_heads"):
            continue
        if name not in _PER_LAYER + _PER_HEAD + _LISTS:
            refuse(f"no table is called '{name}'")
        want = [layers] if name in _PER_LAYER else [layers, heads]
        axes = len(want) + (name in _LISTS)
        if not _numbers(table, axes):
            refuse(f"'{name}' is no table of numbers with {axes} axes")
        try:
            with np.errstate(over="ignore"):  # infinite is refused below
                array = np.asarray(table, np.float32)
        except (ValueError, OverflowError):  # lists of different lengths; an integer beyond all floats
            refuse(f"'{name}' is no table of numbers")
        if list(array.shape[:len(want)]) != want or array.ndim != axes or array.size == 0:
            refuse(f"'{name}' is {list(array.shape)}, made for {layers} layers of {heads} KV heads")
        if not np.isfinite(array).all():
            refuse(f"'{name}' holds something that is no number")
        facts[name] = array
    if not facts:
        refuse("it holds no table")
    return facts
