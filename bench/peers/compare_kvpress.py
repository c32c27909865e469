#!/usr/bin/env python3
"""Compares scores and kept tokens with kvpress, for every method that both have.

    pip install . kvpress
    python bench/peers/compare_kvpress.py --out docs/results/kvpress.md

Both get the same queries, keys and values: those of the shipped model over the first tokens of its held-out text
("recorded"), and those of a random Llama over random tokens ("random"). kvpress computes in float32 on the CPU. Nothing
is downloaded. A press is driven by its own `score` and `compress` on the attention modules of the model.
"""

import argparse
import importlib.metadata
import logging
import os
import platform
import subprocess
import sys
import types

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
import kvpress
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

import kvcondense as kvc

WINDOW, KERNEL, SINKS = 32, 5, 4


# ---- the data ---------------------------------------------------------------------------------------------------


class Layer:
    """What one attention module saw, as kvpress wants it and as arrays."""

    def __init__(self, module, kwargs, cache, index):
        self.module, self.index = module, index
        self.hidden = kwargs["hidden_states"]
        self.kwargs = dict(kwargs)
        self.raw_q = kvpress.utils.get_prerope_query_states(module, self.hidden)
        self.raw_k = kvpress.utils.get_prerope_key_states(module, self.hidden)
        cos, sin = kwargs["position_embeddings"]
        self.q_torch, _ = apply_rotary_pos_emb(self.raw_q, self.raw_k, cos, sin)
        self.keys, self.values = cache.layers[index].keys.clone(), cache.layers[index].values.clone()
        as_array = lambda t: np.ascontiguousarray(t[0].numpy())
        self.q, self.k, self.v = as_array(self.q_torch), as_array(self.keys), as_array(self.values)

    @property
    def tokens(self):
        return self.k.shape[1]

    def attention(self):
        """[1, q_heads, tokens, tokens]"""
        group = self.q.shape[0] // self.k.shape[0]
        logits = self.q_torch @ self.keys.repeat_interleave(group, 1).transpose(2, 3) / self.module.head_dim**0.5
        future = torch.ones(self.tokens, self.tokens, dtype=torch.bool).triu(1)
        return logits.masked_fill(future, float("-inf")).softmax(-1)


class Data:
    def __init__(self, name, model, ids):
        self.name, self.model, self.ids = name, model.eval().float(), ids
        model.config._attn_implementation = "sdpa"
        self.layers, seen = [], {}
        hooks = []
        for layer in model.model.layers:
            layer.self_attn.rotary_emb = model.model.rotary_emb
            hooks.append(layer.self_attn.register_forward_pre_hook(
                lambda m, args, kwargs: seen.__setitem__(m.layer_idx, dict(kwargs)), with_kwargs=True))
        self.cache = DynamicCache()
        model.model(input_ids=ids, past_key_values=self.cache)
        for h in hooks:
            h.remove()
        self.layers = [Layer(model.model.layers[i].self_attn, seen[i], self.cache, i) for i in range(len(seen))]
        self.output = [np.ascontiguousarray(l.module.o_proj.weight.detach().numpy()) for l in self.layers]
        c = model.config
        self.shape = kvc.Shape(layers=len(self.layers), q_heads=c.num_attention_heads, kv_heads=c.num_key_value_heads,
                               head_dim=c.head_dim, dtype="f32")
        self.rope = {"base": float(c.rope_theta)}


def recorded(folder, tokens):
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    with open(os.path.join(folder, "heldout.txt"), "rb") as f:
        ids = torch.tensor([list(f.read(tokens))])
    return Data("recorded", model, ids)


def random(tokens):
    torch.manual_seed(1)
    config = LlamaConfig(hidden_size=256, intermediate_size=256, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=2,
                         head_dim=64, vocab_size=512, max_position_embeddings=4096, initializer_range=0.15)
    return Data("random", LlamaForCausalLM._from_config(config, attn_implementation="sdpa"), torch.randint(0, 512, (1, tokens)))


# ---- kvpress ----------------------------------------------------------------------------------------------------


def press_scores(press, layer, attentions=None):
    return press.score(layer.module, layer.hidden, layer.keys.clone(), layer.values.clone(), attentions, layer.kwargs)[0].numpy()


def press_kept(press, layer, attentions=None):
    """Per KV head the tokens that stay, whether the press cuts them out or masks the others."""
    layer.module.masked_key_indices = None
    keys, values = press.compress(layer.module, layer.hidden, layer.keys.clone(), layer.values.clone(), attentions, layer.kwargs)
    heads, n = layer.k.shape[:2]
    masked, layer.module.masked_key_indices = layer.module.masked_key_indices, None
    if masked is not None:
        gone = set(zip(masked[1].tolist(), masked[2].tolist()))
        return [np.array([t for t in range(n) if (h, t) not in gone]) for h in range(heads)]
    kept = []
    for h in range(heads):
        at = {layer.k[h, t].tobytes() + layer.v[h, t].tobytes(): t for t in range(n)}
        assert len(at) == n, "two tokens with one key and value"
        kept.append(np.array(sorted(at[k.tobytes() + v.tobytes()] for k, v in zip(keys[0, h].numpy(), values[0, h].numpy()))))
    return kept


# ---- a row of the table -----------------------------------------------------------------------------------------


class Row:
    def __init__(self, press, recipe, why=""):
        self.press, self.recipe, self.why = press, recipe, why
        self.results = {}

    def take(self, data, scores, kept, ranks=None):
        """scores: pairs (ours, theirs) over candidates, or None; kept: pairs of lists of tokens; ranks: what theirs were chosen by."""
        worst = None
        if scores is not None:
            worst = 0.0
            for ours, theirs in scores:
                assert ours.shape == theirs.shape and len(ours) > 0
                worst = max(worst, float(np.abs(ours - theirs).max() / np.abs(theirs).max()))
        same = sum(len(a) == len(b) and bool((a == b).all()) for a, b in kept)
        other = sum(len(set(a.tolist()) ^ set(b.tolist())) for a, b in kept)
        tied = other > 0 and ranks is not None and all(close_to_cut(a, b, r) for (a, b), r in zip(kept, ranks))
        self.results[data] = (worst, same, len(kept), other, sum(len(b) for _, b in kept), tied)


def close_to_cut(ours, theirs, ranks):
    """Whether tokens in one set only have scores that are the same as the least that stayed, but for rounding."""
    other = sorted(set(ours.tolist()) ^ set(theirs.tolist()))
    cut = ranks[theirs].min()
    return bool((np.abs(ranks[other] - cut) <= 1e-6 * np.abs(ranks[theirs]).max()).all()) if other else True


def cell(result):
    worst, same, heads, other, total, tied = result
    score = "" if worst is None else f"{worst:.0e}"
    if same == heads:
        return score, f"all {heads}"
    return score, f"{same} of {heads}; {other} tokens in one only, of {total}" + (": ties" if tied else "")


def scorer(data, press, recipe, *, factor=1.0, map=None, candidates=slice(None), attentions=False, queries=None, scored=True, why="", shown=None, **more):
    """A row of a press with `score`, or a wrapper around one, against a policy of ours over the same arrays."""
    row = ROWS.setdefault((shown or repr_of(press(0)), ), Row(shown or repr_of(press(0)), recipe(0), why))
    scores, kept, ranks = [], [], []
    for layer in data.layers:
        p = press(layer.index)
        given = layer.attention() if attentions else None
        inputs = more["inputs"](layer) if "inputs" in more else {}
        ours = kvc.choose(recipe(layer.index), layer.k, layer.v, layer.q if queries is None else layer.q[:, -queries:],
                          layer=layer.index, layers=len(data.layers), model=more.get("model", {}), **inputs)
        theirs = press_scores(getattr(p, "press", p), layer, given) if scored is not False else None
        if scored == "ranks":
            ranks += list(theirs)
        elif theirs is not None:
            mine = ours.scores if map is None else map(ours.scores)
            for h in range(layer.k.shape[0]):
                scores.append((mine[h][candidates] * factor, theirs[h][candidates]))
                ranks.append(theirs[h])
        kept += zip(ours.kept, press_kept(p, layer, given))
    row.take(data.name, scores or None, kept, ranks or None)
    return row


def repr_of(press):
    name = type(press).__name__
    inner = getattr(press, "press", None)
    fields = {k: v for k, v in vars(press).items() if k not in ("press", "masked_key_indices") and not k.startswith("_") and v is not None
              and not isinstance(v, (dict, torch.Tensor))}
    text = ", ".join(([repr_of(inner)] if inner is not None else []) + [f"{k}={v}" for k, v in fields.items()])
    return f"{name}({text})"


ROWS = {}


def compare(data, ratio=0.5):
    """Every method that both have, over one set of arrays."""
    n, kv_heads = data.layers[0].tokens, data.shape.kv_heads
    kept = int(n * (1 - ratio))
    old = slice(0, n - WINDOW)
    P = kvpress
    snap = lambda i=0: P.SnapKVPress(ratio, WINDOW, KERNEL)
    snapkv = f"snapkv(tokens={kept}, window={WINDOW}, kernel={KERNEL}, pool=average)"
    mean = 1.0 / WINDOW  # theirs is the mean over the window's rows, ours the sum

    scorer(data, lambda i: P.KnormPress(ratio), lambda i: f"knorm(tokens={kept}, recent=0)",
           why="ties: rotation keeps a key's length, so in the first layer equal bytes have equal lengths but for rounding; ours keeps the earlier token. The defaults "
           "differ: ours also keeps the 32 newest tokens")
    scorer(data, lambda i: P.KnormPress(0.9), lambda i: f"ratio(knorm(recent=0), keep=10%)",
           why="budget: theirs is `int(n * (1 - 0.9))`, which loses one where the product lands below a whole number; ours adds 1e-6")
    scorer(data, lambda i: P.KeyDiffPress(ratio), lambda i: f"keydiff(tokens={kept}, recent=0)")
    scorer(data, snap, lambda i: snapkv, factor=mean, candidates=old, queries=WINDOW,
           why="scores: theirs is the mean over rows of the window, ours the sum, here divided by their number")
    scorer(data, lambda i: P.TOVAPress(ratio), lambda i: f"tova(tokens={kept})", candidates=slice(0, n - 1), queries=1,
           why="theirs always keeps the newest token, which the paper's code does not; for ours it is a token like others")
    scorer(data, lambda i: P.ObservedAttentionPress(ratio), lambda i: f"observed_attention(keep={1 - ratio}, recent=0)", attentions=True,
           why="the defaults differ: ours also keeps the 32 newest tokens, whose means are of few rows")
    scorer(data, lambda i: P.StreamingLLMPress(ratio, SINKS), lambda i: f"sink_window(sinks={SINKS}, recent={kept - SINKS})", scored=False,
           why="no scores: theirs are 0 and 1, ours is a rule")
    scorer(data, lambda i: P.PyramidKVPress(ratio, WINDOW, KERNEL, 20), lambda i: f"pyramid({snapkv}, beta=20, form=ratio)", factor=mean, candidates=old, queries=WINDOW,

           shown=f"PyramidKVPress(compression_ratio={ratio}, window_size={WINDOW}, kernel_size={KERNEL}, beta=20)",
           why="budget: `form=ratio` rounds as theirs does; the default here holds the sum over layers exactly")
    scorer(data, lambda i: P.ExpectedAttentionPress(ratio, n_future_positions=512, n_sink=SINKS), lambda i: f"expected_attention(keep={1 - ratio}, sinks={SINKS}, horizon=512)",
           candidates=slice(SINKS, None), inputs=moments, model={"rope": data.rope},
           why="both get the mean and covariance of the queries behind the first 4; an engine that counts those too (`prim::QueryMoments` takes what it is given) gets other scores")
    lag = 64
    scorer(data, lambda i: P.LagKVPress(ratio, SINKS, lag), lambda i: f"ratio(lagkv(sinks={SINKS}, lag={lag}), keep={1 - ratio})", scored="ranks",
           why="theirs ranks tokens inside each block, so the last places of the budget are ties between blocks; ours gives them to the first blocks")
    scorer(data, lambda i: P.LagKVPress(ratio, SINKS, lag, True), lambda i: f"ratio(lagkv(sinks={SINKS}, lag={lag}, across=true), keep={1 - ratio})", factor=0.5,
           candidates=slice(SINKS, SINKS + (n - SINKS) // lag * lag - lag), why="scores: theirs is half of the sum")
    chunk = 16
    scorer(data, lambda i: P.ChunkKVPress(P.SnapKVPress(ratio, WINDOW, 1), chunk), lambda i: f"chunkkv(tokens={kept}, window={WINDOW}, chunk={chunk}, reduce=mean)", scored=False, queries=WINDOW,
           why="budget: theirs is a part of all chunks, those of the window among them; ours counts the window by itself and fills the rest with whole chunks. With "
           "`--tokens 512`, where chunks and window end together, all are the same. Pooling (not in `chunkkv`) is off in both")
    ada = f"ada({snapkv}, floor=20%, form=safeguard)"
    scorer(data, lambda i: P.AdaKVPress(snap()), lambda i: ada, factor=mean, candidates=old, queries=WINDOW,
           why="budget: `form=safeguard` is theirs; the default here gives a head a part of its own budget and the rest by the places that its scores win")
    eps = 1e-4 * WINDOW
    scorer(data, lambda i: P.CriticalKVPress(snap()), lambda i: f"critical({snapkv}, epsilon={eps})", scored=False, queries=WINDOW, model={"output": data.output},
           why=f"epsilon: added to a mean over {WINDOW} rows there, to their sum here, so 1e-4 there is {eps} here; the default of both is 1e-4")
    scorer(data, lambda i: P.CriticalAdaKVPress(snap()), lambda i: f"critical({ada}, epsilon={eps})", scored=False, queries=WINDOW, model={"output": data.output},
           why="epsilon as above. In a head whose budget is less than twice its safeguard, theirs keeps the whole safeguard by attention alone; ours half of the head's budget, as in other heads")
    statistics(data, ratio)
    per_layer(data)
    decoding(data, ratio)
    exit_threshold(data)
    duo(data)
    think(data)
    block_prefill(data, ratio)
    rerotate(data, ratio)
    merging(data, ratio)
    spreading(data, ratio)
    kvzip(data)


def moments(layer, end=None):
    q = layer.raw_q[0, :, SINKS:end].double().numpy()
    mean = q.mean(1)
    centred = q - mean[:, None]
    return {"query_mean": mean.astype(np.float32), "query_covariance": (np.einsum("hni,hnj->hij", centred, centred) / q.shape[1]).astype(np.float32)}


# ---- presses that are more than a `score` -----------------------------------------------------------------------


def shown(press, recipe, why=""):
    return ROWS.setdefault((press,), Row(press, recipe, why))


def statistics(data, ratio):
    """Means and covariances of queries from elsewhere: here from the first half of the tokens."""
    press = kvpress.ExpectedAttentionStatsPress(ratio, n_future_positions=512, n_sink=SINKS)
    stats = [moments(l, l.tokens // 2) for l in data.layers]
    press.mu, press.cov = (torch.stack([torch.from_numpy(s[name]) for s in stats]) for name in ("query_mean", "query_covariance"))
    scorer(data, lambda i: press, lambda i: f"expected_attention(keep={1 - ratio}, sinks={SINKS}, horizon=512)", candidates=slice(SINKS, None),
           inputs=lambda layer: stats[layer.index], model={"rope": data.rope}, shown=f"ExpectedAttentionStatsPress(compression_ratio={ratio}), statistics given",
           why="theirs are downloaded; here both get those of the first half of the tokens")


def hook(press, layer, past, first, last):
    """What a press does when tokens [first, last) have passed a layer whose cache, in `past`, ends with them."""
    places = torch.arange(first, last)
    kwargs = dict(layer.kwargs, hidden_states=layer.hidden[:, first:last], past_key_values=past, cache_position=places, position_ids=places[None])
    press.forward_hook(layer.module, [], kwargs, [None, None])


def past_of(data, layer, tokens):
    past = DynamicCache()
    for other in data.layers[:layer.index + 1]:
        past.update(other.keys[:, :, :tokens].clone(), other.values[:, :, :tokens].clone(), other.index)
    return past


def tokens_of(layer, past):
    """Per head which tokens a cache of kvpress holds, ascending."""
    at = [{layer.k[h, t].tobytes(): t for t in range(layer.tokens)} for h in range(layer.k.shape[0])]
    return [np.array(sorted(at[h][row.tobytes()] for row in head)) for h, head in enumerate(past.layers[layer.index].keys[0].numpy())]


def per_layer(data):
    """Budgets per layer, as a table of shares."""
    n, heads = data.layers[0].tokens, data.shape.kv_heads
    ratios = [0.25, 0.5, 0.5, 0.75]
    kept = np.array([int(n * (1 - r)) for r in ratios], np.float64)
    shares = np.repeat((kept / (heads * kept.sum()))[:, None], heads, 1)
    recipe = f"head_table(keydiff(tokens={int(kept.mean())}, recent=0), beta=1)"
    row = shown(f"PerLayerCompressionPress(KeyDiffPress(), compression_ratios={ratios})", recipe, "theirs is a ratio per layer; `shares` has a part of all slots for every head")
    both = []
    for layer in data.layers:
        past = past_of(data, layer, n)
        hook(kvpress.PerLayerCompressionPress(kvpress.KeyDiffPress(), ratios), layer, past, 0, n)
        ours = kvc.choose(recipe, layer.k, layer.v, layer=layer.index, layers=len(data.layers), model={"shares": shares}).kept
        both += zip(ours, tokens_of(layer, past))
    row.take(data.name, None, both)


def decoding(data, ratio):
    """The last 64 tokens come one by one, and the cache is condensed at every 16th."""
    n, interval = data.layers[0].tokens, 16
    prompt = n - 64
    target = int(prompt * (1 - ratio))
    P = kvpress
    sized = lambda tokens: P.DecodingPress(P.KeyDiffPress(), interval, tokens)
    part = lambda: P.CompressionRatioDecodingPress(P.KeyDiffPress(), interval, target_compression_ratio=ratio)
    both = lambda press: P.PrefillDecodingPress(P.KeyDiffPress(ratio), press)
    kinds = [(f"DecodingPress(KeyDiffPress(), compression_interval={interval}, target_size={prompt})", lambda: sized(prompt),
              f"every(keydiff(tokens={prompt}, recent=0), tokens={interval})", "theirs leaves prompts alone, `every` condenses them too: this one fits the budget"),
             (f"PrefillDecodingPress(KeyDiffPress({ratio}), DecodingPress(KeyDiffPress(), {interval}, {target}))", lambda: both(sized(target)),
              f"every(keydiff(tokens={target}, recent=0), tokens={interval})", ""),
             (f"PrefillDecodingPress(KeyDiffPress({ratio}), CompressionRatioDecodingPress(KeyDiffPress(), {interval}, target_compression_ratio={ratio}))", lambda: both(part()),
              f"every(ratio(keydiff(recent=0), keep={1 - ratio}), tokens={interval})", "")]
    for name, make, recipe, why in kinds:
        row, kept = shown(name, recipe, why), []
        for layer in data.layers:
            press, past, cache = make(), past_of(data, layer, prompt), one_layer(data, recipe)
            hook(press, layer, past, 0, prompt)
            cache.append(0, layer.k[:, :prompt], layer.v[:, :prompt])
            cache.step(0)
            for t in range(prompt, n):
                past.update(layer.keys[:, :, t:t + 1], layer.values[:, :, t:t + 1], layer.index)
                hook(press, layer, past, t, t + 1)
                cache.append(0, layer.k[:, t:t + 1], layer.v[:, t:t + 1])
                cache.step(0, phase="decode")
            kept += zip([cache.tokens(0, h) for h in range(layer.k.shape[0])], tokens_of(layer, past))
        row.take(data.name, None, kept)


def exit_threshold(data):
    """A press that judges tokens as they leave a window; it has a hook instead of `compress`."""
    least = float(np.median([press_scores(kvpress.KnormPress(), l) for l in data.layers]))
    row = shown("DMSPress(KnormPress(), threshold=median, sliding_window_size=128)", "exit_threshold(knorm(recent=0), window=128, least=median)")
    kept = []
    for layer in data.layers:
        press = kvpress.DMSPress(kvpress.KnormPress(), threshold=least, sliding_window_size=128)
        layer.module.masked_key_indices = None
        kwargs = dict(layer.kwargs, past_key_values=data.cache, cache_position=torch.arange(layer.tokens))
        press.forward_hook(layer.module, [], kwargs, [None, None])
        gone, layer.module.masked_key_indices = layer.module.masked_key_indices, None
        gone = set(zip(gone[1].tolist(), gone[2].tolist()))
        theirs = [np.array([t for t in range(layer.tokens) if (h, t) not in gone]) for h in range(layer.k.shape[0])]
        kept += zip(kvc.choose(f"exit_threshold(knorm(recent=0), window=128, least={least!r})", layer.k, layer.v).kept, theirs)
    row.take(data.name, None, kept)


def duo(data):
    """Gates of our own: kvpress downloads those of known models."""
    gates = np.random.default_rng(3).random((len(data.layers), data.shape.kv_heads)).astype(np.float32)
    row = shown("DuoAttentionPress(head_compression_ratio=0.5), gates given", "duo_attention(sparsity=50%, sinks=16, recent=64)",
                "no scores: a rule on both sides")
    press = kvpress.DuoAttentionPress(0.5)
    press.sink_size, press.recent_size = 16, 64
    mask = np.zeros(gates.size, bool)
    mask[np.argsort(gates, axis=None)[:round(gates.size * 0.5)]] = True
    press.streaming_mask = torch.from_numpy(mask.reshape(gates.shape))
    kept = []
    for layer in data.layers:
        ours = kvc.choose("duo_attention(sparsity=50%, sinks=16, recent=64)", layer.k, layer.v, q_heads=data.shape.q_heads, layer=layer.index,
                          layers=len(data.layers), model={"gates": gates})
        kept += zip(ours.kept, press_kept(press, layer))
    row.take(data.name, None, kept)


def think(data):
    """Channels instead of tokens: which channels of the keys a head keeps."""
    row = shown("ThinKPress(key_channel_compression_ratio=0.5, window_size=32)", "think(ratio=0.5, observe=32)", "channels, not tokens")
    kept = []
    for layer in data.layers:
        press = kvpress.ThinKPress(0.5, 32)
        keys, _ = press.compress(layer.module, layer.hidden, layer.keys.clone(), layer.values.clone(), None, layer.kwargs)
        ours = kvc.encode("think(ratio=0.5, observe=32)", layer.k, "keys", q=layer.q[:, -32:]).decoded
        kept += [(np.flatnonzero(a.any(0)), np.flatnonzero(b.any(0))) for a, b in zip(ours, keys[0].numpy())]
    row.take(data.name, None, kept)


def block_prefill(data, ratio):
    """A prompt condensed block by block."""
    block, n = 64, data.layers[0].tokens
    tokens = int(n * (1 - ratio))
    recipe = f"block_prefill(keydiff(tokens={tokens}, recent=0), block={block})"
    row = shown(f"BlockPress(KeyDiffPress(compression_ratio={ratio}), block_size={block})", recipe,
                "blocks: theirs begin behind the first tokens that fit the budget; here the engine cuts the prompt, and was made to cut it there")
    kept = []
    for layer in data.layers:
        cache = one_layer(data, recipe)
        for first, last in [(0, tokens)] + [(i, min(i + block, n)) for i in range(tokens, n, block)]:
            cache.append(0, layer.k[:, first:last], layer.v[:, first:last])
            cache.step(0, phase="prefill_end" if last == n else "prefill_chunk")
        ours = [cache.tokens(0, h) for h in range(layer.k.shape[0])]
        kept += zip(ours, press_kept(kvpress.BlockPress(kvpress.KeyDiffPress(ratio), block), layer))
    row.take(data.name, None, kept)


def one_layer(data, recipe, model={}):
    shape = kvc.Shape(q_heads=data.shape.q_heads, kv_heads=data.shape.kv_heads, head_dim=data.shape.head_dim, dtype="f32")
    return kvc.Cache(shape, recipe, model)


def rerotate(data, ratio):
    """Keys turned to where they stand after an eviction: attention of one query that stands at the newest kept token's place."""
    n = data.layers[0].tokens
    tokens = int(n * (1 - ratio))
    recipe = f"sink_window(sinks={SINKS}, recent={tokens - SINKS}) + rerotate"
    row = shown(f"KeyRerotationPress(StreamingLLMPress(compression_ratio={ratio}, n_sink={SINKS}))", recipe,
                "compared instead of scores: the attention of one more query over what is kept. Turning keys by the way from the old to the new place, and "
                "raw keys to the new one, round differently")
    outputs, kept = [], []
    rng = np.random.default_rng(4)
    for layer in data.layers:
        press = kvpress.KeyRerotationPress(kvpress.StreamingLLMPress(ratio, SINKS))
        keys, values = press.compress(layer.module, layer.hidden, layer.keys.clone(), layer.values.clone(), None, layer.kwargs)
        cache = one_layer(data, recipe, {"rope": data.rope})
        cache.append(0, layer.k, layer.v)
        cache.step(0)
        raw = torch.from_numpy(rng.standard_normal((1, data.shape.q_heads, 1, data.shape.head_dim)).astype(np.float32))

        def turned(at):
            return apply_rotary_pos_emb(raw, raw, *data.model.model.rotary_emb(raw, torch.tensor([[at]])))[0]

        group = data.shape.q_heads // data.shape.kv_heads
        logits = turned(tokens - 1) @ keys.repeat_interleave(group, 1).transpose(2, 3) / data.shape.head_dim**0.5
        theirs = (logits.softmax(-1) @ values.repeat_interleave(group, 1))[0].numpy()
        outputs.append((cache.attend(0, turned(n - 1)[0].numpy()), theirs))
        kept += zip([cache.tokens(0, h) for h in range(layer.k.shape[0])], press_kept(kvpress.StreamingLLMPress(ratio, SINKS), layer))
    row.take(data.name, outputs, kept)


def merging(data, ratio):
    """Values of what leaves, folded into what stays."""
    n = data.layers[0].tokens
    recipe = f"keydiff(tokens={int(n * (1 - ratio))}, recent=0) + value_merge"
    row = shown(f"MergingPress(KeyDiffPress(compression_ratio={ratio}))", recipe, "compared instead of scores: the merged values")
    merged, kept = [], []
    for layer in data.layers:
        press = kvpress.MergingPress(kvpress.KeyDiffPress(ratio))
        _, values = press.compress(layer.module, layer.hidden, layer.keys.clone(), layer.values.clone(), None, layer.kwargs)
        cache = one_layer(data, recipe)
        cache.append(0, layer.k, layer.v)
        cache.step(0)
        sets = press_kept(press.press, layer)
        indices = torch.from_numpy(press_scores(press.press, layer)).topk(values.shape[2], dim=-1).indices.numpy()
        for h in range(layer.k.shape[0]):  # in kvpress rows stand in the order of their scores
            ours = cache.tokens(0, h)
            kept.append((ours, sets[h]))
            if len(ours) == len(sets[h]) and (ours == sets[h]).all():
                merged.append((cache.read(0, h)[1], values[0, h].numpy()[indices[h].argsort()]))
    row.take(data.name, merged, kept)


def random_bits(seed, counter):
    """As kvcondense/core/random.hpp has them."""
    most = (1 << 64) - 1
    z = (seed + (counter + 1) * 0x9E3779B97F4A7C15) & most
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & most
    z = (z ^ z >> 27) * 0x94D049BB133111EB & most
    return z ^ z >> 31


def spreading(data, ratio):
    """CaM draws at random which values are spread: theirs is given the numbers that ours draws with, and compares its own probabilities with them."""
    n, targets = data.layers[0].tokens, 8
    kept_tokens = int(n * (1 - ratio))
    recipe = f"keydiff(tokens={kept_tokens}, recent=0) + cam(targets={targets})"
    row = shown(f"CAMPress(KeyDiffPress(), target_size={kept_tokens}, merge_budget={targets})", recipe,
                "compared instead of scores: the values that others were spread over. Theirs draws from another generator, so it was given our numbers; one head at a "
                "time, since it takes one set for all heads; and it spreads as many tokens as came since the last time, here all")
    merged, kept = [], []
    for layer in data.layers:
        group = data.shape.q_heads // data.shape.kv_heads
        mass = layer.attention()[0].sum(1).reshape(data.shape.kv_heads, group, n).numpy()
        cache = one_layer(data, recipe)
        cache.append(0, layer.k, layer.v)
        cache.step(0, mass=mass.sum(1).reshape(-1), mass_rows=n)
        for h in range(data.shape.kv_heads):
            ours, values = cache.tokens(0, h), cache.read(0, h)[1]
            seed = random_bits(random_bits(0, 0), h)  # of cam's seed 0, layer 0 and the head
            numbers = [(random_bits(seed, int(t)) >> 40) / 2.0**24 for t in np.setdiff1d(np.arange(n), ours)]
            press = kvpress.CAMPress(kvpress.KeyDiffPress(), 1, kept_tokens, merge_budget=targets)
            press.layer_step_counts[layer.index] = n - len(ours)
            press._running_attn_sum[layer.index] = attention = torch.from_numpy(mass[h].mean(0))[None, None]
            draw, torch.bernoulli = torch.bernoulli, lambda chance: (torch.tensor(numbers) < chance).to(chance)
            try:
                one = slice(h, h + 1)
                keys, theirs = press.compress(layer.module, layer.hidden, layer.keys[:, one].clone(), layer.values[:, one].clone(), attention, layer.kwargs)
            finally:
                torch.bernoulli = draw
            at = {layer.k[h, t].tobytes(): t for t in range(n)}
            kept.append((ours, np.array([at[k.tobytes()] for k in keys[0, 0].numpy()])))
            if len(ours) == len(kept[-1][1]) and (ours == kept[-1][1]).all():
                assert np.abs(values - layer.v[h, ours]).max() > 0
                merged.append((values, theirs[0, 0].numpy()))
    row.take(data.name, merged, kept)


def kvzip(data):
    """A context that the model is asked to repeat, in one chunk and in two."""
    n = data.layers[0].tokens
    instruction = torch.tensor([list(b"\n\nRepeat the previous context exactly.\n")])
    for chunks in (1, 2):
        row = shown(f"KVzipPress(compression_ratio=0.5), {chunks} chunk{'s' * (chunks > 1)}", "global_top(kvzip(sinks=4), keep=50%)",
                    "both are given the same probes: kvpress makes its own with a tokenizer")
        press = kvpress.KVzipPress(0.5)
        press.context_length, press.score_val = n, torch.zeros(len(data.layers), 1, data.shape.kv_heads, n)
        cache = kvc.Cache(data.shape, "global_top(kvzip(sinks=4), keep=50%)")
        for layer in data.layers:
            cache.append(layer.index, layer.k, layer.v)
            cache.step(layer.index)
        for c in range(chunks):
            press.start_idx, press.end_idx = c * n // chunks, (c + 1) * n // chunks
            repeat = torch.cat([instruction, data.ids[:, press.start_idx:press.end_idx]], 1)
            past = DynamicCache()
            for layer in data.layers:
                past.update(layer.keys, layer.values, layer.index)
            seen, hooks = {}, []
            for l in data.model.model.layers:
                hooks.append(l.self_attn.register_forward_pre_hook(lambda m, args, kwargs: seen.__setitem__(m.layer_idx, dict(kwargs)), with_kwargs=True))
            data.model.model(input_ids=repeat, past_key_values=past)
            for h in hooks:
                h.remove()
            m = repeat.shape[1]
            for layer in data.layers:
                kwargs, keys, values = seen[layer.index], past.layers[layer.index].keys, past.layers[layer.index].values
                press.score_kvzip(layer.module, kwargs["hidden_states"], keys, values, None, kwargs)
                raw = kvpress.utils.get_prerope_query_states(layer.module, kwargs["hidden_states"])
                q, _ = apply_rotary_pos_emb(raw, raw, *kwargs["position_embeddings"])
                cache.append(layer.index, keys[0, :, -m:].numpy(), values[0, :, -m:].numpy())
                cache.step(layer.index, phase="probe", queries=q[0].numpy(), probe=(press.start_idx, press.end_idx))
            cache.truncate(n)
        cache.turn()
        press.compress_post(data.model)
        kept = []
        for layer in data.layers:
            masked, layer.module.masked_key_indices = layer.module.masked_key_indices, None
            gone = set(zip(masked[1].tolist(), masked[2].tolist()))
            for h in range(data.shape.kv_heads):
                kept.append((cache.tokens(layer.index, h), np.array([t for t in range(n) if (h, t) not in gone])))
        row.take(data.name, None, kept)


# ---- the page ---------------------------------------------------------------------------------------------------

PAGE = """# Beside kvpress

The same queries, keys and values in both, and what each makes of them: scores, and which tokens stay in each head of each layer.
`recorded`: the shipped model over the first {tokens} bytes of its held-out text, {recorded}. `random`: a random Llama over
{tokens} random tokens, {random}. Both computed in float32 on the CPU.

```
pip install . kvpress
python bench/peers/compare_kvpress.py --tokens {tokens} --out docs/results/kvpress.md
```

{versions}.

`scores`: the largest difference, over the largest score, among tokens that no rule protects. `kept`: heads with the same set of tokens,
of all heads of all layers; `ties`: tokens in one set only have the score of the last one that stayed. Settings are those in which both say the same;
where the defaults differ, the second table says so. Empty: no scores on one side, or scores that mean something else. Nothing of kvpress is part of this project.

| kvpress | here | scores, recorded | kept, recorded | scores, random | kept, random |
|---|---|--:|--:|--:|--:|
{rows}

## Why they differ

{why}

## Not compared

{others}
"""


def commit():
    """Of the project that this file stands in, where git knows it."""
    try:
        said = subprocess.run(["git", "-C", os.path.dirname(os.path.abspath(__file__)), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    except OSError:
        return ""
    return f" at {said.stdout.strip()}" if said.returncode == 0 else ""


def page(data, tokens):
    rows, why = [], []
    for row in ROWS.values():
        cells = [c for name in ("recorded", "random") for c in cell(row.results[name])]
        rows.append(f"| `{row.press}` | `{row.recipe}` | " + " | ".join(cells) + " |")
        if row.why:
            why.append(f"| `{row.press}` | {row.why} |")
    size = {d.name: f"{len(d.layers)} layers, {d.shape.q_heads} query heads, {d.shape.kv_heads} KV heads of {d.shape.head_dim}" for d in data}
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in ("kvpress", "transformers", "torch", "numpy"))
    versions = f"{versions}, Python {platform.python_version()}, kvcondense {kvc.__version__}{commit()}"
    compared = " ".join(r.press for r in ROWS.values())
    left = [n for n in sorted(dir(kvpress)) if n.endswith("Press") and n + "(" not in compared]
    unknown = [n for n in left if n not in ELSEWHERE]
    others = "| kvpress | why |\n|---|---|\n" + "\n".join(f"| `{n}` | {ELSEWHERE.get(n, 'not here')} |" for n in left)
    if unknown:
        print("without a reason:", ", ".join(unknown), file=sys.stderr)
    return PAGE.format(tokens=tokens, versions=versions, rows="\n".join(rows), why="| kvpress | difference |\n|---|---|\n" + "\n".join(why), others=others, **size)


ELSEWHERE = {
    "BasePress": "no method", "ScorerPress": "no method",
    "RandomPress": "no method: random scores",
    "ComposedPress": "a list of presses: here recipes compose",
    "FinchPress": "not here as a method. Its rotation is `rerotate`, compared above",
    "ChunkPress": "not here: a budget for each part of a prompt",
    "SimLayerKVPress": "not here; `duo_attention` and `head_table` set heads apart by tables, not by a prompt",
    "EntropyGatedChunkKVPress": "not here", "CURPress": "not here", "CapPress": "not here", "CompactorPress": "not here", "LeverageScorePress": "not here",
    "NonCausalAttnPress": "not here", "KVComposePress": "not here", "KVgradPress": "not here: it needs gradients",
    "QFilterPress": "not here: filters trained for each model", "LUKVPress": "not here: budgets trained for each model; `head_table` takes such a table",
    "KVzapPress": "not here: a network trained for each model", "FastKVzipPress": "not here: gates trained for each model",
    "RestoreKVPress": "not here: tokens trained for each model",
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
    parser.add_argument("--model", default=os.path.join(root, "examples", "models", "tinylm"), help="a Llama in Hugging Face's layout")
    parser.add_argument("--tokens", type=int, default=500)
    parser.add_argument("--out", help="the page to write; else standard output")
    options = parser.parse_args()
    logging.getLogger("kvpress").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    data = [recorded(options.model, options.tokens), random(options.tokens)]
    for d in data:
        compare(d)
    text = page(data, options.tokens)
    if options.out:
        with open(options.out, "w") as f:
            f.write(text)
    else:
        print(text)


if __name__ == "__main__":
    main()
