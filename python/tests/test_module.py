import ast
import gc
import json
import os
import struct
import tempfile
import threading
import time
import unittest

import numpy as np

import kvcondense as kvc

ROOT = os.environ.get("KVCONDENSE_SOURCE_DIR", os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))


def normal(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def shape(q_heads=4, kv_heads=2, head_dim=64, **more):
    return kvc.Shape(q_heads=q_heads, kv_heads=kv_heads, head_dim=head_dim, **{"dtype": "f32", **more})


def attention(q, k, v):
    """The newest queries over all keys, in double: outputs, probabilities, log-sum-exp."""
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    group, n, m = q.shape[0] // k.shape[0], k.shape[1], q.shape[1]
    logits = np.einsum("hqd,hnd->hqn", q, np.repeat(k, group, 0)) / np.sqrt(q.shape[2])
    logits = np.where(np.arange(n)[None, :] > np.arange(n - m, n)[:, None], -np.inf, logits)
    top = logits.max(-1, keepdims=True)
    weight = np.exp(logits - top)
    total = weight.sum(-1, keepdims=True)
    return np.einsum("hqn,hnd->hqd", weight / total, np.repeat(v, group, 0)), weight / total, (top + np.log(total))[..., 0]


class TheCache(unittest.TestCase):
    def setUp(self):
        self.q, self.k, self.v = normal(4, 100, 64), normal(2, 100, 64, seed=1), normal(2, 100, 64, seed=2)

    def filled(self, recipe="keep_all", **more):
        cache = kvc.Cache(shape(**more), recipe)
        self.out = cache.forward(0, self.q, self.k, self.v)
        return cache

    def refused(self, status, call, *args, **named):
        with self.assertRaises(kvc.Error) as caught:
            call(*args, **named)
        self.assertEqual(caught.exception.status, status)
        self.assertTrue(str(caught.exception))
        return caught.exception

    def test_forward_is_attention(self):
        self.filled()
        np.testing.assert_allclose(self.out, attention(self.q, self.k, self.v)[0], atol=2e-5)
        self.assertEqual((self.out.dtype, self.out.shape), (np.float32, (4, 100, 64)))

    def test_append_attend_step_is_forward(self):
        cache = kvc.Cache(shape(), "h2o(heavy=20, recent=20)")
        cache.append(0, self.k, self.v)
        self.assertEqual((cache.length(), cache.pending()), (100, 100))
        self.assertTrue(cache.wants_mass(0))
        out, mass, lse = cache.attend(0, self.q, mass=True, lse=True)
        want, p, want_lse = attention(self.q, self.k, self.v)
        np.testing.assert_allclose(out, want, atol=2e-5)
        np.testing.assert_allclose(lse, want_lse, atol=2e-5)
        np.testing.assert_allclose(mass.reshape(2, 100), p.reshape(2, 2, 100, 100).sum((1, 2)), atol=1e-4)
        self.assertEqual(self.refused("missing_input", cache.step, 0).args[0], "step: missing_input: the recipe needs 'attention'")
        self.refused("shape_mismatch", cache.step, 0, mass=mass[:-1])
        cache.step(0, mass=mass)
        other = self.filled("h2o(heavy=20, recent=20)")
        for h in range(2):
            np.testing.assert_array_equal(cache.tokens(0, h), other.tokens(0, h))
            self.assertEqual(cache.slots(0, h), 40)
        only = cache.attend(0, self.q[:, -1:])
        self.assertEqual(only.shape, (4, 1, 64))

    def test_every_layout_and_type(self):
        want = self.filled().save()
        by_token = [np.ascontiguousarray(x.transpose(1, 0, 2)).transpose(1, 0, 2) for x in (self.q, self.k, self.v)]
        wide = [np.repeat(x, 2, axis=2)[:, :, ::2] for x in (self.q, self.k, self.v)]
        backwards = [np.ascontiguousarray(x[:, ::-1])[:, ::-1] for x in (self.q, self.k, self.v)]
        swapped = [x.astype(">f4") for x in (self.q, self.k, self.v)]
        for q, k, v in (by_token, wide, backwards, swapped):
            cache = kvc.Cache(shape())
            np.testing.assert_array_equal(cache.forward(0, q, k, v), self.out)
            self.assertEqual(cache.save(), want)
        half = [x.astype(np.float16) for x in (self.q, self.k, self.v)]
        cache, mixed = kvc.Cache(shape()), kvc.Cache(shape())
        np.testing.assert_allclose(cache.forward(0, *half), attention(*half)[0], atol=2e-5)
        mixed.forward(0, half[0].astype(np.float32), half[1], half[2].astype(np.float32))
        np.testing.assert_array_equal(mixed.attend(0, half[0][:, -1:]), cache.attend(0, half[0][:, -1:]))
        small = self.filled(dtype="f16")
        keys, values = small.read(0, 1)
        np.testing.assert_array_equal(keys, self.k[1].astype(np.float16).astype(np.float32))
        np.testing.assert_array_equal(values, self.v[1].astype(np.float16).astype(np.float32))

    def test_arrays_are_not_changed_and_outputs_are_new(self):
        before = [x.copy() for x in (self.q, self.k, self.v)]
        for x in (self.q, self.k, self.v):
            x.flags.writeable = False
        self.filled("hadamard(int4) + sink_window(sinks=2, recent=30)")
        for x, y in zip((self.q, self.k, self.v), before):
            np.testing.assert_array_equal(x, y)
        self.assertTrue(self.out.flags.owndata and self.out.flags.writeable)

    def test_budgets_and_reports(self):
        few, many = self.filled("snapkv(tokens=20, window=8)"), self.filled("snapkv(tokens=60, window=8)")
        self.assertEqual([few.slots(0, h) for h in range(2)], [20, 20])
        self.assertLess(few.report()["bytes"], many.report()["bytes"])
        self.assertEqual(few.report()["evicted_slots"], 160)
        self.assertEqual(few.report()["tokens"], 100)
        self.assertTrue(few.capabilities()["changes_length"])
        self.assertEqual(few.capabilities()["needs"], ["attention"])
        self.assertEqual(few.text, "snapkv(tokens=20, window=8)")
        self.assertEqual(few.shape.kv_heads, 2)
        self.assertIn("snapkv", repr(few))

    def test_truncate_takes_drafts_back_bit_for_bit(self):
        cache = self.filled("kivi4(group=32, residual=32)")
        before = cache.attend(0, self.q[:, -1:])
        cache.append(0, self.k[:, :3], self.v[:, :3])
        self.assertFalse(np.array_equal(cache.attend(0, self.q[:, :3])[:, -1:], before))
        cache.truncate(100)
        self.assertEqual((cache.length(), cache.pending()), (100, 0))
        np.testing.assert_array_equal(cache.attend(0, self.q[:, -1:]), before)
        self.refused("out_of_range", cache.truncate, 101)
        self.refused("out_of_range", cache.truncate, -1)

    def test_fork_reorder_remove_reset(self):
        cache = self.filled()
        other = cache.fork()
        other.forward(0, self.q[:, :1], self.k[:, :1], self.v[:, :1])
        self.assertEqual((cache.length(), other.length()), (100, 101))
        third = cache.fork()
        third.remove(10, 20)
        np.testing.assert_array_equal(third.tokens(0, 0), np.r_[0:10, 20:100])
        beams = [cache, other, third]
        want = [c.attend(0, self.q[:, -1:]) for c in beams]
        kvc.reorder(beams, [2, 0, 0])
        for cache_now, was in zip(beams, (2, 0, 0)):
            np.testing.assert_array_equal(cache_now.attend(0, self.q[:, -1:]), want[was])
        self.refused("shape_mismatch", kvc.reorder, beams, [0, 1])
        self.refused("out_of_range", kvc.reorder, beams, [0, 1, 3])
        self.refused("invalid_argument", kvc.reorder, [cache, cache], [0, 1])
        self.refused("incompatible", kvc.reorder, [cache, kvc.Cache(shape(head_dim=32))], [0, 1])
        cache.reset()
        self.assertEqual(cache.length(), 0)
        del cache, beams
        gc.collect()
        self.assertEqual(other.attend(0, self.q[:, -1:]).shape, (4, 1, 64))

    def test_snapshots(self):
        cache = self.filled("kivi2")
        file = cache.save()
        self.assertIsInstance(file, bytes)
        for form in (file, bytearray(file), memoryview(file), np.frombuffer(file, np.uint8)):
            other = kvc.Cache(shape(), "kivi2")
            other.load(form)
            np.testing.assert_array_equal(other.attend(0, self.q[:, -1:]), cache.attend(0, self.q[:, -1:]))
        before = cache.attend(0, self.q[:, -1:])
        self.refused("incompatible", cache.load, self.filled("kivi4").save())
        self.refused("corrupt_data", cache.load, file[:-1])
        self.refused("corrupt_data", cache.load, b"")
        self.refused("invalid_argument", cache.load, np.frombuffer(file * 2, np.uint8)[::2])
        np.testing.assert_array_equal(cache.attend(0, self.q[:, -1:]), before)

    def test_facts_live_as_long_as_the_cache(self):
        recipe = "duo_attention(sparsity=50%, sinks=2, recent=10)"
        self.assertIn("gates", str(self.refused("missing_input", kvc.Cache, shape(), recipe)))
        cache = kvc.Cache(shape(), recipe, {"gates": np.array([[0.9, 0.1]])})  # double: copied
        fork = cache.fork()
        del cache
        gc.collect()
        junk = [np.zeros((1, 2), np.float32) for _ in range(100)]
        fork.forward(0, self.q, self.k, self.v)
        self.assertEqual([fork.slots(0, h) for h in range(2)], [100, 12])
        self.assertEqual(len(junk), 100)
        other = kvc.Cache(shape(), recipe, model={"gates": [[0.1, 0.9]]})
        other.forward(0, self.q, self.k, self.v)
        self.assertEqual([other.slots(0, h) for h in range(2)], [12, 100])
        self.refused("shape_mismatch", kvc.Cache, shape(), recipe, {"gates": np.zeros(2)})
        self.refused("shape_mismatch", kvc.Cache, shape(), recipe, {"gates": np.zeros((2, 2))})
        self.refused("invalid_argument", kvc.Cache, shape(), recipe, {"gaits": np.zeros((1, 2))})

    def test_output_projections_and_rope(self):
        w = normal(32, 256, seed=5)
        recipe = "critical(snapkv(tokens=20, window=8))"
        kept = []
        for output in ([w], w[None], [w.astype(np.float64)], [0.0 * w]):
            cache = kvc.Cache(shape(), recipe, {"output": output})
            cache.forward(0, self.q, self.k, self.v)
            kept.append(cache.tokens(0, 0))
        np.testing.assert_array_equal(kept[0], kept[1])
        np.testing.assert_array_equal(kept[0], kept[2])
        self.assertFalse(np.array_equal(kept[0], kept[3]))
        out = []
        for rope in ({}, {"base": 10000.0}, {"base": 500.0}, {"scaling": "linear", "factor": 4.0}, {"pairing": "interleaved"}, {"rotary_dim": 32}):
            cache = kvc.Cache(shape(), "sink_window(sinks=2, recent=10) + reindex", {"rope": rope})
            out.append(cache.forward(0, self.q, self.k, self.v))
        np.testing.assert_array_equal(out[0], out[1])
        for other in out[2:]:
            self.assertFalse(np.array_equal(out[0], other))
        self.refused("invalid_argument", kvc.Cache, shape(), "reindex", {"rope": {"bass": 1.0}})
        self.refused("invalid_argument", kvc.Cache, shape(), "reindex", {"rope": {"scaling": "big"}})

    def test_inputs_of_a_step(self):
        cache = kvc.Cache(shape(), "sirllm")
        error = self.refused("missing_input", cache.forward, 0, self.q, self.k, self.v)
        self.assertIn("'surprise'", str(error))
        self.assertEqual(cache.length(), 0)
        self.refused("shape_mismatch", cache.forward, 0, self.q, self.k, self.v, surprise=np.zeros(3))
        cache.forward(0, self.q, self.k, self.v, surprise=np.ones(100))
        self.assertEqual(cache.length(), 100)
        self.refused("invalid_argument", cache.forward, 0, self.q, self.k, self.v, surprised=1)
        self.refused("invalid_argument", cache.forward, 0, self.q, self.k, self.v, classes=np.full(100, 3))
        kvzip = kvc.Cache(shape(), "kvzip(keep=50%, sinks=4)")
        kvzip.forward(0, self.q, self.k, self.v)
        kvzip.append(0, self.k[:, :7], self.v[:, :7])
        kvzip.step(0, phase="probe", queries=self.q[:, :7], probe=(0, 100))
        kvzip.truncate(100)
        kvzip.turn()
        self.assertEqual([kvzip.slots(0, h) for h in range(2)], [52, 52])
        output = [np.random.default_rng(8).standard_normal((40, 4 * self.v.shape[2]), dtype=np.float32)]
        self.refused("missing_input", kvc.Cache, shape(), "kvzip(weighted=true)")
        plus = kvc.Cache(shape(), "kvzip(keep=50%, sinks=4, weighted=true)", {"output": output})
        self.assertEqual(plus.capabilities()["needs"], ["hidden_norms"])
        plus.forward(0, self.q, self.k, self.v)
        plus.append(0, self.k[:, :7], self.v[:, :7])
        error = self.refused("missing_input", plus.step, 0, phase="probe", queries=self.q[:, :7], probe=(0, 100))
        self.assertIn("'hidden_norms'", str(error))
        plus.step(0, phase="probe", queries=self.q[:, :7], probe=(0, 100), hidden_norms=np.ones(7))
        plus.truncate(100)
        plus.turn()
        self.assertNotEqual(plus.tokens(0, 0), kvzip.tokens(0, 0))

    def test_positions(self):
        cache = kvc.Cache(shape(), "rerotate")
        cache.append(0, self.k[:, :3], self.v[:, :3], positions=[5, 6, 9])
        self.assertEqual(cache.next_position(), 10)
        self.refused("shape_mismatch", cache.append, 0, self.k[:, :3], self.v[:, :3], positions=[1])

    def test_refusals(self):
        error = self.refused("invalid_argument", kvc.Cache, shape(), "h2o(hevy=256) + kivi2")
        self.assertEqual(error.position, 4)
        self.assertIn("did you mean 'heavy'?", str(error))
        self.assertIsInstance(error, ValueError)
        self.assertIsNone(self.refused("invalid_argument", kvc.Shape, q_heads=3, kv_heads=2).position)
        self.refused("invalid_argument", kvc.Shape, dtype="f64")
        cache = self.filled()
        before = [cache.attend(0, self.q[:, -1:]), *cache.read(0, 0)]
        for bad in (self.k[0], self.k.astype(np.float64), self.k.astype(np.int32), "text", None, [["a"]]):
            with self.assertRaises(ValueError):
                cache.append(0, bad, self.v)
        self.refused("shape_mismatch", cache.append, 0, self.k[:, :, :32], self.v)
        self.refused("shape_mismatch", cache.append, 0, self.k[:, :5], self.v)
        self.refused("out_of_range", cache.append, 1, self.k, self.v)
        self.refused("out_of_range", cache.attend, -1, self.q)
        self.refused("out_of_range", cache.forward, 7, self.q, self.k, self.v)
        self.refused("shape_mismatch", cache.forward, 0, self.q[:3], self.k, self.v)
        self.refused("order_violation", cache.step, 0)
        self.refused("invalid_argument", cache.step, 0, phase="later")
        self.refused("out_of_range", cache.tokens, 0, 2)
        self.refused("out_of_range", cache.read, 0, 0, 90, 20)
        self.refused("out_of_range", cache.read, 0, 0, -1)
        self.assertEqual((cache.length(), cache.pending()), (100, 0))
        for now, was in zip([cache.attend(0, self.q[:, -1:]), *cache.read(0, 0)], before):
            np.testing.assert_array_equal(now, was)
        self.refused("invalid_argument", cache.append, 0, self.k[:, :1], self.v[:, :1], positions=[1.5])
        for wrong in (lambda: kvc.Cache(shape(), 3), lambda: cache.step(0, incoming="a"), lambda: cache.step(0, probe=3),
                      lambda: kvc.Cache(shape(), "reindex", {"rope": 3}), lambda: kvc.Cache(shape(), "reindex", {"rope": {"base": "a"}}),
                      lambda: kvc.Cache(shape(), "reindex", {3: 3})):
            with self.assertRaises(TypeError):
                wrong()

    def test_nothing_and_one(self):
        cache = kvc.Cache(shape())
        out = cache.forward(0, self.q[:, :1], self.k[:, :1], self.v[:, :1])
        np.testing.assert_allclose(out, np.repeat(self.v[:, :1], 2, 0), atol=1e-6)
        keys, values = kvc.Cache(shape()).read(0, 0)
        self.assertEqual((keys.shape, values.shape), ((0, 64), (0, 64)))
        for q_heads in (1, 2, 3, 8, 16):
            for dim in (64, 80, 96, 112, 128, 256):
                q, k, v = normal(q_heads, 9, dim), normal(1, 9, dim, seed=1), normal(1, 9, 32, seed=2)
                cache = kvc.Cache(shape(q_heads, 1, dim, value_dim=32))
                np.testing.assert_allclose(cache.forward(0, q, k, v), attention(q, k, v)[0], atol=2e-5)

    def test_threads_have_caches_of_their_own_or_take_turns(self):
        recipe = "h2o(heavy=20, recent=20) + kivi4(group=32, residual=32)"
        want = self.filled(recipe).save()
        files = [None] * 4

        def one(i):
            cache = kvc.Cache(shape(), recipe)
            cache.forward(0, self.q, self.k, self.v)
            files[i] = cache.save()

        threads = [threading.Thread(target=one, args=(i,)) for i in range(4)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        self.assertEqual(files, [want] * 4)

        shared, failed = kvc.Cache(shape()), []

        def some():
            try:
                for _ in range(50):
                    shared.forward(0, self.q[:, :1], self.k[:, :1], self.v[:, :1])
                    shared.report(), shared.tokens(0, 1), shared.attend(0, self.q[:, :1])
            except Exception as e:  # noqa: BLE001
                failed.append(e)

        threads = [threading.Thread(target=some) for _ in range(4)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        self.assertEqual((failed, shared.length()), ([], 200))

    def test_python_goes_on_while_it_computes(self):
        q, k, v = normal(4, 2000, 64), normal(2, 2000, 64, seed=1), normal(2, 2000, 64, seed=2)
        ticks, running = [], threading.Event()

        def tick():
            while not running.is_set():
                ticks.append(time.perf_counter())
                time.sleep(0.0005)

        thread = threading.Thread(target=tick)
        thread.start()
        begin = time.perf_counter()
        kvc.Cache(shape()).forward(0, q, k, v)
        end = time.perf_counter()
        running.set()
        thread.join()
        middle = [t for t in ticks if begin + (end - begin) * 0.25 < t < begin + (end - begin) * 0.75]
        self.assertGreater(len(middle), 0)


def safetensors(arrays, **metadata):
    """A file as `kvcondense-eval calibrate` writes it."""
    header, data = {"__metadata__": metadata}, b""
    for name, (dtype, numbers) in arrays.items():
        header[name] = {"dtype": dtype, "shape": list(numbers.shape), "data_offsets": [len(data), len(data) + numbers.nbytes]}
        data += numbers.tobytes()
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


class ModelArrays(unittest.TestCase):
    """What recipes know of a model: arrays by name, and files that hold them."""

    LAYERS, HEADS, DIM = 2, 2, 64

    def setUp(self):
        self.shape = kvc.Shape(layers=2, q_heads=4, kv_heads=2, head_dim=64, dtype="f32")
        self.q, self.k, self.v = (normal(h, 100, 64, seed=s) for h, s in ((4, 0), (2, 1), (2, 2)))
        rng = np.random.default_rng(7)
        self.encode = np.linalg.qr(rng.standard_normal((2, 2, 64, 64)))[0].astype(np.float32)
        self.mean = rng.standard_normal((2, 2, 64)).astype(np.float32)
        self.energy = np.tile(np.arange(64, 0, -1, dtype=np.float32), (2, 2, 1))
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)

    refused = TheCache.refused

    def file(self, name, content):
        path = os.path.join(self.folder.name, name)
        with open(path, "wb") as f:
            f.write(content)
        return path

    def bases(self, keys="rotated", **more):
        ranks = np.full((2, 2), 24, np.float32)
        one = {f"{s}.{p}": a for s in ("key", "value") for p, a in (("encode", self.encode), ("energy", self.energy), ("ranks", ranks))}
        return {**one, "keys": keys, **more}

    def filled(self, recipe, model, layer=1):
        cache = kvc.Cache(self.shape, recipe, model)
        cache.forward(layer, self.q, self.k, self.v)
        return cache

    def test_bases_are_what_rows_are_stored_in(self):
        recipe = "pca(keep=50%, value_keep=25%, window=8)"
        mine = self.bases(**{"key.mean": self.mean})
        cache = self.filled(recipe, {"bases": {"pca": mine}})
        e = self.encode[1].astype(np.float64)
        for h in range(2):
            keys, values = cache.read(1, h)
            m, a, b = self.mean[1, h], e[h][:, :32], e[h][:, :16]
            np.testing.assert_allclose(keys[:92], (self.k[h, :92] - m) @ a @ a.T + m, atol=2e-5)
            np.testing.assert_allclose(values[:92], self.v[h, :92] @ b @ b.T, atol=2e-5)
            np.testing.assert_array_equal(keys[92:], self.k[h, 92:])
        self.assertLess(cache.report()["bytes"], 0.65 * self.filled("keep_all", {}).report()["bytes"])
        twice = self.filled(recipe, {"bases": {"pca": {**mine, "key.encode": 2 * self.encode, "key.decode": self.encode / 2}}})
        np.testing.assert_allclose(twice.read(1, 0)[0], cache.read(1, 0)[0], atol=2e-5)
        # Doubles and other orders in memory are copied; a fork holds them when all else is gone.
        other = kvc.Cache(self.shape, recipe, {"bases": {"pca": {n: a if n == "keys" else np.asfortranarray(a.astype(np.float64)) for n, a in mine.items()}}})
        fork = other.fork()
        del other
        gc.collect()
        junk = [np.zeros((2, 2, 64, 64), np.float32) for _ in range(20)]
        fork.forward(1, self.q, self.k, self.v)
        np.testing.assert_array_equal(fork.read(1, 1)[0], cache.read(1, 1)[0])
        self.assertEqual(len(junk), 20)
        rows = kvc.encode("pca(keep=50%) + int8", self.k[:, :64], layer=1, layers=2, model={"bases": {"pca": mine}})
        self.assertLess(rows.bits, 0.6 * kvc.encode("int8", self.k[:, :64]).bits)

    def test_reorder_lets_arrays_go_that_no_cache_needs(self):
        recipe, caches, gone = "pca(keep=50%, window=8)", [], []
        for scale in (1.0, 0.5):  # doubles: the module's own copies, which nothing else holds
            arrays = {n: a if n == "keys" else scale * a.astype(np.float64) for n, a in self.bases().items()}
            caches.append(kvc.Cache(self.shape, recipe, {"bases": {"pca": arrays}}))
        for cache in caches:
            cache.forward(1, self.q, self.k, self.v)
        want = caches[0].read(1, 0)[0]
        self.assertFalse(np.array_equal(caches[1].read(1, 0)[0], want))
        own = type("Watched", (np.ndarray,), {"__del__": lambda x: gone.append(threading.get_ident())})((2, 2), np.float32)
        own.fill(1)
        other = kvc.Cache(self.shape, "duo_attention(sinks=2, recent=10)", {"gates": own})
        del own
        gc.collect()
        self.assertEqual(gone, [])
        kvc.reorder([caches[0], other], [0, 0])
        gc.collect()
        self.assertEqual(gone, [threading.get_ident()])
        kvc.reorder(caches, [0, 0])
        gc.collect()
        junk = [np.zeros((2, 2, 64, 64), np.float32) for _ in range(20)]
        for cache in (*caches, other):
            np.testing.assert_array_equal(cache.read(1, 0)[0], want)
            cache.reset()
            cache.forward(1, self.q, self.k, self.v)
            np.testing.assert_array_equal(cache.read(1, 0)[0], want)
        self.assertEqual(len(junk), 20)

    def test_arrays_may_begin_at_any_byte(self):
        def shifted(a):
            room = np.zeros(a.nbytes + 1, np.uint8)
            room[1:] = np.frombuffer(a.tobytes(), np.uint8)
            return np.frombuffer(room.data, a.dtype, a.size, 1).reshape(a.shape)

        recipe, good = "pca(keep=50%)", self.bases()
        moved = {n: a if n == "keys" else shifted(a) for n, a in good.items()}
        self.assertFalse(moved["key.encode"].flags.aligned)
        want = self.filled(recipe, {"bases": {"pca": good}})
        cache = kvc.Cache(self.shape, recipe, {"bases": {"pca": moved}})
        for name in set(moved) - {"keys"}:
            moved[name].fill(0)  # they were copied
        cache.forward(1, self.q, self.k, self.v)
        self.assertEqual(cache.save(), want.save())
        for c, at in ((cache, shifted(np.arange(200, 203))), (want, np.arange(200, 203))):
            c.append(0, self.k[:, :3], self.v[:, :3], positions=at)
            self.assertEqual(c.next_position(0), 203)
        # So may tensors of a file: what is read lies as numpy's own arrays do.
        arrays = {"value.ranks": ("F16", np.full((1, 1), 3, np.float16)), "key.encode": ("F32", self.encode[:1, :1]), "value.encode": ("F32", self.encode[:1, :1])}
        about = dict(format="kvcondense-bases", version="1", method="pca", keys="rotated")
        read = kvc.read_arrays(self.file("odd.safetensors", safetensors(arrays, **about)))["bases"]["pca"]
        for name, (_, numbers) in arrays.items():
            np.testing.assert_array_equal(read[name], numbers.astype(np.float32))
            self.assertTrue(read[name].flags.aligned and read[name].dtype == np.float32, name)

    def test_every_low_rank_word_runs(self):
        raw = {"palu", "weight_svd", "lorc", "recalkv"}
        joint = np.linalg.qr(np.random.default_rng(9).standard_normal((2, 1, 128, 128)))[0].astype(np.float32)
        model = {"rope": {"base": 10000.0},
                 "bases": {**{w: self.bases("raw" if w in raw else "rotated") for w in kvc.words("lowrank")},
                           "kv_heads_svd": {"key.encode": joint, "value.encode": joint, "keys": "rotated"}}}
        lacking = set()
        for word in kvc.words("lowrank"):
            recipe = word + " + reindex" if word in raw | {"shadowkv"} else word
            cache = kvc.Cache(self.shape, recipe, model)
            for layer in range(2):
                cache.forward(layer, self.q, self.k, self.v)
            self.assertTrue(np.isfinite(cache.attend(1, self.q[:, -1:])).all(), word)
            try:
                kvc.Cache(self.shape, recipe)
            except kvc.Error as e:
                self.assertIn("bases", str(e))
                lacking.add(word)
        self.assertLessEqual(raw | {"pca", "matryoshka", "cskv", "eigen_attention", "joint_heads"}, lacking)

    def test_bases_that_do_not_fit_are_refused(self):
        make = lambda bases, recipe="pca": kvc.Cache(self.shape, recipe, {"bases": {"pca": bases}})
        good = self.bases()
        make(good)
        part = lambda **names: {**good, **{n.replace("_", ".", 1): a for n, a in names.items()}}
        self.assertIn("bases", str(self.refused("missing_input", kvc.Cache, self.shape, "pca", {"bases": {"palu": good}})))
        self.refused("incompatible", make, self.bases("raw"))
        bare = {n: a for n, a in good.items() if n != "keys"}
        make(bare)  # of rotated keys, then
        self.refused("incompatible", make, bare, "pca + reindex")
        self.refused("invalid_argument", make, self.bases("turned"))
        self.refused("invalid_argument", make, part(key_decoder=self.encode))
        self.refused("shape_mismatch", make, part(key_encode=self.encode[0]))
        self.refused("shape_mismatch", make, part(key_mean=self.mean[:, :, :32]))
        self.refused("shape_mismatch", make, {n: a if n == "keys" else a[:1] for n, a in good.items()})
        self.refused("missing_input", make, {n: a for n, a in good.items() if n != "value.encode"})
        self.refused("invalid_argument", make, part(key_encode=np.full_like(self.encode, np.nan)))
        for wrong in (lambda: make(3), lambda: make(self.bases(3)), lambda: kvc.Cache(self.shape, "pca", {"bases": 3})):
            self.assertRaises(TypeError, wrong)

    def test_files_of_calibrate(self):
        named = {n: ("F32", a) for n, a in self.bases().items() if n != "keys"}
        about = dict(format="kvcondense-bases", version="1", method="pca", keys="rotated")
        path = self.file("pca.safetensors", safetensors(named, **about))
        recipe = "pca(keep=50%)"
        want = self.filled(recipe, {"bases": {"pca": self.bases()}}).save()
        self.assertEqual(self.filled(recipe, kvc.read_arrays(path)).save(), want)
        axes = normal(2, 2, 64, 16, seed=4)
        loki = self.file("loki.safetensors", safetensors({"key.axes": ("F32", axes)}, **{**about, "method": "loki"}))
        heads = self.file("heads.json", json.dumps({"format": "kvcondense-heads", "version": 1, "made": {}, "layers": 2, "kv_heads": 2,
                                                    "gates": [[1, 0], [0, 1]], "evicted": [0.5, 0.25],
                                                    "key_levels": [[[-1, 0, 1]] * 2] * 2}).encode())
        model = kvc.read_arrays(path, loki, heads)
        self.assertEqual(set(model), {"bases", "key_axes", "gates", "evicted", "key_levels"})
        np.testing.assert_array_equal(model["key_axes"], axes.reshape(2, 128, 16))
        self.assertEqual((model["key_levels"].shape, model["evicted"].shape), ((2, 2, 3), (2,)))
        cache = self.filled("duo_attention(sinks=2, recent=10) + loki(columns=16)", model)
        self.assertEqual([cache.slots(1, h) for h in range(2)], [12, 100])
        self.assertEqual(kvc.read_arrays(), {})
        # Numbers of 16 bits are widened; books become a row per head, codes a matrix per layer, planes stay.
        half = {n: ("F16", a.astype(np.float16)) for n, (_, a) in named.items()}
        brain = {n: ("BF16", (a.view(np.uint32) >> 16).astype(np.uint16)) for n, (_, a) in named.items()}
        for arrays, bits in ((half, 2.0**-10), (brain, 2.0**-7)):
            read = kvc.read_arrays(self.file("small.safetensors", safetensors(arrays, **about)))["bases"]["pca"]["key.encode"]
            self.assertEqual(read.dtype, np.float32)
            np.testing.assert_allclose(read, self.encode, rtol=bits, atol=1e-6)
        more = {"key.books": ("F32", normal(2, 2, 3, 4, 64)), "key.codes": ("F32", normal(2, 2, 8, 64)), "hash.planes": ("F32", normal(5, 3, 64))}
        read = kvc.read_arrays(self.file("more.safetensors", safetensors(more, **about)))
        self.assertEqual({n: a.shape for n, a in read.items()}, {"key_books": (2, 2, 768), "key_codes": (2, 16, 64), "hash_planes": (5, 3, 64)})

        # A header of any length is one, also where the length begins with the byte of '{'.
        size = len(safetensors({"key.axes": ("F32", axes)}, **about)) - 8 - axes.nbytes
        padded = safetensors({"key.axes": ("F32", axes)}, **about, made=" " * ((123 - size - len(', "made": ""')) % 256))
        self.assertEqual(padded[:1], b"{")
        np.testing.assert_array_equal(kvc.read_arrays(self.file("padded.safetensors", padded))["key_axes"], axes.reshape(2, 128, 16))

        whole = safetensors(named, **about)

        def axes_file(shape=(1, 1, 1, 4), place=(0, 16), dtype="F32", data=bytes(16), **other):
            tensor = {"dtype": dtype, "shape": shape, "data_offsets": place}
            text = json.dumps({"__metadata__": {**about, "method": "loki"}, "key.axes": tensor, **other}).encode()
            return struct.pack("<Q", len(text)) + text + data

        def heads_file(layers=1, heads=1, version=1, **tables):
            return json.dumps({"format": "kvcondense-heads", "version": version, "layers": layers, "kv_heads": heads, **tables}).encode()

        kvc.read_arrays(self.file("good.bin", axes_file()))
        kvc.read_arrays(self.file("good.bin", heads_file(gates=[[1]])))
        second = lambda first, last, count: {"query.axes": {"dtype": "F32", "shape": [1, 1, 1, count], "data_offsets": [first, last]}}
        kvc.read_arrays(self.file("good.bin", axes_file(data=bytes(24), **second(16, 24, 2))))
        hostile = [axes_file(place=p) for p in (["0", "16"], [None, 16], [0.0, 16.0], [0, 16.0], [False, 16], [0], [0, 16, 16], "01", None, {}, [-16, 0], [16, 0], [0, 10**30])]
        hostile += [axes_file(shape=s) for s in ([float("inf")], [float("nan")], [0, 10**20], [10**20] * 5, [1] * 65, [1] * 6, [2.9], [4.0], "22", ["4"], [True, 1, 1, 4], [-1, -4], [], 4, None)]
        hostile += [axes_file(shape=[1, 1, 0, 4], place=[0, 0], data=b""), axes_file(dtype=["F32"]), axes_file(dtype=None), axes_file(dtype={}), axes_file(dtype="f32")]
        hostile += [axes_file(**{"query.axes": t}) for t in (None, [], "F32", 3, {})]
        hostile += [axes_file(place=[4, 20], data=bytes(20)), axes_file(data=bytes(17)), axes_file(data=bytes(15)), axes_file(**second(8, 16, 2)), axes_file(**second(0, 16, 4)),
                    axes_file(data=bytes(28), **second(20, 28, 2)), axes_file(data=bytes(28), **second(16, 24, 2))]
        hostile += [axes_file(__metadata__=m) for m in (None, [], "pca", 3)] + [safetensors(named, **{**about, n: x}) for n in ("method", "made") for x in ([1], 3, None, {})]
        hostile += [safetensors(named, **{**about, "method": m}) for m in ("", "kvtc", "aquakv")]
        hostile += [heads_file(gates=g) for g in ([[10**400]], [[1e39]], [[True]], [["1"]], [[None]], [[{}]], [[[1]]], [1], [], [[]], "1", 1, {}, [[1], 1])]
        hostile += [heads_file(key_levels=t) for t in ([[[]]], [[[1, "2"]]], [[1]])]
        hostile += [heads_file(version=v, gates=[[1]]) for v in (True, 1.0, "1", None, [1])]
        hostile += [heads_file(layers=n, gates=[[1]]) for n in (True, 1.0, "1", None, 0)] + [heads_file(heads=n, gates=[[1]]) for n in (True, 1.0, None)]
        hostile += [b'{"format": "kvcondense-heads", "a": ' + b"[" * 100000, b'{"format": "\xff"}', b"{" + bytes(20), heads_file(gates=[[1]]).decode().encode("utf-16-le")]
        for bad in hostile:
            self.assertIn("bad.bin: ", str(self.refused("corrupt_data", kvc.read_arrays, self.file("bad.bin", bad))))
        for bad in (b"", b"x", whole[:100], whole[:-1], struct.pack("<Q", 1 << 62) + whole[8:], safetensors(named), safetensors(named, **{**about, "version": "2"}),
                    safetensors(named, **{**about, "keys": ""}), safetensors({}, **about), safetensors({"key.encoder": ("F32", self.encode)}, **about),
                    safetensors({"key.encode": ("F64", self.encode)}, **about), safetensors({"key.first": ("F32", self.mean)}, **about),
                    safetensors({"key.axes": ("F32", self.mean)}, **about), safetensors({"key.encode": ("F32", np.inf * self.encode)}, **about),
                    struct.pack("<Q", 2) + b"[]", b"{", b"{}", b'{"format": "kvcondense-heads", "version": 2}',
                    b'{"format": "kvcondense-heads", "version": 1, "layers": 2, "kv_heads": 2}',
                    b'{"format": "kvcondense-heads", "version": 1, "layers": 2, "kv_heads": 2, "gaits": [[1, 1], [1, 1]]}',
                    b'{"format": "kvcondense-heads", "version": 1, "layers": 2, "kv_heads": 2, "gates": [[1, 1], [1]]}',
                    b'{"format": "kvcondense-heads", "version": 1, "layers": 2, "kv_heads": 3, "gates": [[1, 1], [1, 1]]}',
                    b'{"format": "kvcondense-heads", "version": 1, "layers": 1, "kv_heads": 1, "gates": [[NaN]]}'):
            self.assertIn("bad.bin: ", str(self.refused("corrupt_data", kvc.read_arrays, self.file("bad.bin", bad))))
        self.refused("corrupt_data", kvc.read_arrays, path, path)
        self.refused("corrupt_data", kvc.read_arrays, heads, heads)
        self.assertRaises(FileNotFoundError, kvc.read_arrays, os.path.join(self.folder.name, "none"))


class Choosing(unittest.TestCase):
    def test_worked_cases(self):
        with open(os.path.join(ROOT, "tests", "oracles", "eviction.json")) as f:
            oracles = json.load(f)["oracles"]
        fixture = oracles["fixture_FX1"]
        q, k, v = (np.array(fixture[x], np.float32)[:, :8] for x in "QKV")
        case = oracles["observed_attention"]
        c = kvc.choose("observed_attention(keep=50%, recent=0)", k, v, q)
        np.testing.assert_allclose(c.scores, case["scores"], atol=2e-5)
        self.assertEqual([x.tolist() for x in c.kept], case["kept"])
        case = oracles["knorm"]
        c = kvc.choose("knorm(tokens=4, recent=0)", k, v)
        np.testing.assert_allclose(-c.scores, case["norms"], atol=2e-5)
        self.assertEqual([x.tolist() for x in c.kept], case["kept"])
        case = oracles["keydiff"]["heads"]
        c = kvc.choose("keydiff(tokens=4, recent=0)", k, v)
        np.testing.assert_allclose(c.scores, [h["neg_cos_to_anchor"] for h in case], atol=2e-5)
        self.assertEqual([x.tolist() for x in c.kept], [h["kept"] for h in case])
        case = oracles["tova"]
        c = kvc.choose("tova(tokens=5)", k, v, q[:, -1:])
        np.testing.assert_allclose(c.scores[1], case["prefill_last_row_mean"], atol=2e-5)
        self.assertEqual([x.tolist() for x in c.kept], [case["prefill_kept"]] * 2)

    def test_it_is_what_a_cache_does(self):
        q, k, v = normal(6, 300, 80), normal(2, 300, 80, seed=1), normal(2, 300, 80, seed=2)
        recipes = ["knorm(tokens=100)", "snapkv(tokens=100, window=16)", "h2o(heavy=50, recent=50)", "tova(tokens=99)", "keydiff(tokens=77)",
                   "observed_attention(keep=40%)", "sink_window(sinks=4, recent=60)", "sliding_window(window=33)", "rkv(tokens=100)",
                   "keyformer", "scissorhands(tokens=120)", "alisa", "chunkkv(tokens=100, window=16)", "lagkv(sinks=4, lag=32)",
                   "ratio(lagkv(sinks=4, lag=32), keep=50%)", "ada(snapkv(tokens=100, window=16))", "pyramid(snapkv(tokens=100, window=16))",
                   "chunked(snapkv(tokens=100, window=16))", "exit_threshold(knorm, least=-9)", "keep_all", "ratio(h2o, keep=20%)"]
        for recipe in recipes:
            for dtype in (np.float32, np.float16):
                arrays = [x.astype(dtype) for x in (k, v)]
                choice = kvc.choose(recipe, *arrays, q.astype(dtype))
                cache = kvc.Cache(shape(6, 2, 80, dtype="f32" if dtype is np.float32 else "f16"), recipe)
                cache.forward(0, q.astype(dtype), *arrays)
                for h in range(2):
                    np.testing.assert_array_equal(choice.kept[h], cache.tokens(0, h), recipe)
                self.assertEqual(choice.text, cache.text)
                self.assertEqual(choice.scores.shape, (2, 300))

    def test_layers_heads_and_strides(self):
        q, k, v = normal(4, 200, 64), normal(2, 200, 64, seed=1), normal(2, 200, 64, seed=2)
        counts = [len(kvc.choose("pyramid(snapkv(tokens=60, window=8))", k, v, q, layer=i, layers=4).kept[0]) for i in range(4)]
        self.assertEqual(counts, sorted(counts, reverse=True))
        self.assertGreater(counts[0], counts[3])
        want = kvc.choose("snapkv(tokens=60, window=8)", k, v, q)
        by_token = [np.ascontiguousarray(x.transpose(1, 0, 2)).transpose(1, 0, 2) for x in (k, v, q)]
        np.testing.assert_array_equal(kvc.choose("snapkv(tokens=60, window=8)", *by_token).scores, want.scores)
        np.testing.assert_array_equal(kvc.choose("snapkv(tokens=60, window=8)", k, v, q[:, -8:]).scores, want.scores)
        gates = {"gates": [[0.9, 0.1], [0.2, 0.8]]}
        counts = [[len(x) for x in kvc.choose("duo_attention(sinks=1, recent=9)", k, v, q_heads=4, layer=i, layers=2, model=gates).kept] for i in range(2)]
        self.assertEqual(counts, [[200, 10], [10, 200]])
        wide = kvc.choose("snapkv(tokens=60, window=8)", k, v, q, softmax_scale=1.0)
        self.assertFalse(np.allclose(wide.scores, want.scores))

    def test_moments(self):
        k, v, raw = normal(2, 200, 64), normal(2, 200, 64, seed=1), normal(4, 200, 64, seed=2)
        moments = {"query_mean": raw.mean(1), "query_covariance": np.stack([np.cov(x.T, bias=True) for x in raw])}
        with self.assertRaises(kvc.Error) as caught:
            kvc.choose("expected_attention(keep=50%)", k, v, q_heads=4)
        self.assertIn("'moments'", str(caught.exception))
        c = kvc.choose("expected_attention(keep=50%)", k, v, q_heads=4, **moments)
        self.assertEqual([len(x) for x in c.kept], [100, 100])
        self.assertTrue((c.scores[:, 4:] > 0).all())
        d = kvc.choose("expected_attention(keep=50%)", k, v, q_heads=4, query_mean=moments["query_mean"], query_covariance=0 * moments["query_covariance"])
        self.assertFalse(np.allclose(c.scores, d.scores))

    def test_refusals(self):
        q, k, v = normal(4, 50, 64), normal(2, 50, 64, seed=1), normal(2, 50, 64, seed=2)

        def status(*args, **named):
            with self.assertRaises(kvc.Error) as caught:
                kvc.choose(*args, **named)
            return caught.exception.status

        self.assertEqual(status("snapkv", k, v), "missing_input")
        self.assertEqual(status("snapkv(window=32)", k, v, q[:, -31:]), "missing_input")
        self.assertEqual(status("h2o", k, v, q[:, -49:]), "missing_input")
        self.assertEqual(status("snapkv", k, v[:, :49], q), "shape_mismatch")
        self.assertEqual(status("snapkv", k, v, q[:, :, :32]), "shape_mismatch")
        self.assertEqual(status("snapkv", k, v, q[:3]), "invalid_argument")
        self.assertEqual(status("knorm", k, v, layer=1), "out_of_range")
        self.assertEqual(status("global_top(knorm)", k, v), "not_supported")
        self.assertEqual(status("critical(snapkv)", k, v, q), "missing_input")
        self.assertEqual(status("snapkv(tokens=8, window=8)", k, v, q), "invalid_argument")
        self.assertEqual(status("no_such_method", k, v, q), "invalid_argument")
        bad = k.copy()
        bad[0, 7] = np.nan
        c = kvc.choose("knorm(tokens=49, recent=0)", bad, v)
        self.assertNotIn(7, c.kept[0])
        empty = kvc.choose("knorm", k[:, :0], v[:, :0])
        self.assertEqual([len(x) for x in empty.kept], [0, 0])


class Coding(unittest.TestCase):
    def test_bits_and_errors(self):
        rows = normal(3, 128, 64)
        errors, bits = [], []
        for recipe in ("int8", "int4", "kivi2"):
            c = kvc.encode(recipe, rows, "values")
            errors.append(float(np.abs(c.decoded - rows).max()))
            bits.append(c.bits)
            self.assertEqual((c.decoded.shape, len(c.pages), c.pages[0].dtype, c.pages[0].shape[0]), (rows.shape, 3, np.uint8, 2))
            self.assertGreater(len({page.tobytes() for page in c.pages}), 2)
        self.assertEqual(errors, sorted(errors))
        self.assertEqual(bits, sorted(bits, reverse=True))
        self.assertLess(errors[0], 0.03)

    def test_it_is_what_a_cache_stores(self):
        k, v, q = normal(2, 128, 64), normal(2, 128, 64, seed=1), normal(4, 128, 64, seed=2)
        for recipe in ("int8", "kivi4(residual=32)", "hadamard(int4)", "fp8", "nvfp4", "mx", "q4_0", "turboquant"):
            cache = kvc.Cache(shape(), recipe)
            cache.forward(0, q, k, v)
            for part, rows, at in (("keys", k, 0), ("values", v, 1)):
                mine = kvc.encode(recipe, rows, part).decoded
                kept = [cache.read(0, h)[at] for h in range(2)]
                exact = [(kept[h] == rows[h]).all(1) for h in range(2)]  # sinks and window
                coded = 0
                for h in range(2):
                    np.testing.assert_array_equal(kept[h][~exact[h]], mine[h][~exact[h]], recipe)
                    coded += int((~exact[h]).sum())
                self.assertGreater(coded, 0, recipe)

    def test_more_inputs(self):
        k, q = normal(2, 64, 64), normal(4, 64, 64, seed=2)
        a = kvc.encode("think(ratio=0.5, observe=0)", k, "keys", q=q)
        gone = [np.flatnonzero(~x.any(0)) for x in a.decoded]
        self.assertEqual([len(x) for x in gone], [32, 32])
        saliency = np.tile(np.arange(64, dtype=np.float32), (2, 1))
        b = kvc.encode("zipcache", k, "keys", saliency=saliency)
        c = kvc.encode("zipcache", k, "keys", saliency=saliency[:, ::-1])
        self.assertFalse(np.array_equal(b.decoded, c.decoded))
        bad = k.copy()
        bad[1, 3, 5] = np.inf
        self.assertEqual(kvc.encode("int8", bad).repaired, 1)
        self.assertEqual(kvc.encode("int8", k.astype(np.float16)).decoded.shape, k.shape)
        self.assertEqual(kvc.encode("int8", k[:, :0]).decoded.shape, (2, 0, 64))

    def test_refusals(self):
        k = normal(2, 64, 64)

        def status(*args, **named):
            with self.assertRaises(kvc.Error) as caught:
                kvc.encode(*args, **named)
            return caught.exception.status

        self.assertEqual(status("kivi2", k[:, :63]), "shape_mismatch")
        self.assertEqual(status("zipcache", k), "missing_input")
        self.assertEqual(status("zipcache", k, saliency=np.zeros((2, 63))), "shape_mismatch")
        self.assertEqual(status("kvquant", k), "missing_input")
        self.assertEqual(status("int4", k, "queries"), "invalid_argument")
        self.assertEqual(status("int4", k, layer=1), "out_of_range")
        self.assertEqual(status("int4(group=48)", k), "invalid_argument")
        self.assertEqual(status("think", k, q=normal(4, 64, 32)), "shape_mismatch")


class Words(unittest.TestCase):
    def test_every_word_has_help(self):
        self.assertGreater(len(kvc.words()), 100)
        for word in kvc.words():
            text = kvc.help(word)
            self.assertTrue(text.startswith(word + ": "))
            self.assertIn("needs: ", text)
        self.assertEqual(set(kvc.words("budget")) & set(kvc.words("evict")), set())
        self.assertIn("ada", kvc.words("budget"))
        self.assertRaises(kvc.Error, kvc.words, "cellar")
        self.assertIn("beside a cache", kvc.help("prefix_index"))
        self.assertRaises(kvc.Error, kvc.help, "nothing")

    def test_parse(self):
        text = kvc.parse("kivi2 + ada(snapkv(window = 16),floor=0.3)")
        self.assertEqual(text, "ada(snapkv(window=16), floor=0.3) + kivi")
        self.assertEqual(kvc.parse(text), text)
        with self.assertRaises(kvc.Error) as caught:
            kvc.parse("snapkv +")
        self.assertIsNotNone(caught.exception.position)

    def test_stubs_name_what_is_there(self):
        package = os.path.dirname(kvc.__file__)
        with open(os.path.join(package, "__init__.pyi")) as f:
            tree = ast.parse(f.read())
        functions = {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}
        classes = {n.name: n for n in tree.body if isinstance(n, ast.ClassDef)}
        typed = {"Report", "Capabilities"}
        self.assertEqual(functions | (set(classes) - typed), set(kvc.__all__))
        self.assertTrue(os.path.exists(os.path.join(package, "py.typed")))
        for name in set(classes) - typed - {"Error"}:
            members = {n.name for n in classes[name].body if isinstance(n, ast.FunctionDef)} - {"__init__"}
            members |= {n.target.id for n in classes[name].body if isinstance(n, ast.AnnAssign)}
            self.assertEqual(members, {m for m in dir(getattr(kvc, name)) if not m.startswith("_")}, name)
        fields = lambda name: {n.target.id for n in classes[name].body if isinstance(n, ast.AnnAssign)}
        cache = kvc.Cache(kvc.Shape())
        self.assertEqual(fields("Report"), set(cache.report()))
        self.assertEqual(fields("Capabilities"), set(cache.capabilities()))
        for name in kvc.__all__:
            self.assertTrue(getattr(kvc, name).__doc__, name)


if __name__ == "__main__":
    unittest.main()
