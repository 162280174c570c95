# SPDX-License-Identifier: Apache-2.0
"""Conversion: rank files hold the source bit for bit, open in any reader, and survive being killed."""
import json
import pathlib
import random
import shutil
import signal
import sys

from common import TINY, Skip, Suite, assert_same_tree, files_of, interrupt, need, tree_digest

GGUF_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head", "attn_norm": "input_layernorm",
              "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
              "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj",
              "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}


def bf16_of(values):
    """f32 → bits of bf16, to nearest even."""
    import numpy as np
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def gguf_tensors(path):
    """{Hugging Face name: f32 array}, dequantised by the Python package gguf, q/k rows in Hugging Face's order."""
    import gguf
    reader = gguf.GGUFReader(path)
    heads = int(reader.fields["llama.attention.head_count"].contents())
    kv_heads = int(reader.fields["llama.attention.head_count_kv"].contents())
    for tensor in reader.tensors:
        parts = tensor.name.split(".")
        prefix = f"model.layers.{parts[1]}." if parts[0] == "blk" else ""
        kind = parts[2] if parts[0] == "blk" else parts[0]
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if kind in ("attn_q", "attn_k"):  # stored in pairs: undo
            n = heads if kind == "attn_q" else kv_heads
            values = values.reshape(n, values.shape[0] // n // 2, 2, -1).swapaxes(1, 2).reshape(values.shape)
        yield f"{prefix}{GGUF_NAMES[kind]}.weight", values


def safetensors_tensors(path):
    """{name: (dtype, array of unsigned integers)} of a file, by the reference reader."""
    import numpy as np
    import safetensors
    width = {"BF16": np.uint16, "F16": np.uint16, "F32": np.uint32}
    for name, entry in safetensors.deserialize(pathlib.Path(path).read_bytes()):
        yield name, (entry["dtype"], np.frombuffer(entry["data"], width[entry["dtype"]]).reshape(entry["shape"]))


def read_rank(folder):
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        for name, value in safetensors_tensors(path):
            assert name not in tensors, f"{name} is in two parts"
            tensors[name] = value
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(tensors), "the index names other tensors than the parts hold"
    return tensors


def gather(slices, shape):
    """All ranks' slices of one tensor, put together to `shape`."""
    import numpy as np
    tp, first = len(slices), slices[0]
    if first.shape == shape:
        assert all(np.array_equal(s, first) for s in slices), "a replicated tensor differs between ranks"
        return first
    if first.ndim == 2 and first.shape[1] != shape[1]:
        return np.concatenate(slices, axis=1)
    if first.shape[0] * tp >= 2 * shape[0]:  # more ranks than key/value heads: heads repeat
        repeat = first.shape[0] * tp // shape[0]
        assert all(np.array_equal(slices[r], slices[r - r % repeat]) for r in range(tp)), "a repeated head differs"
        slices = slices[::repeat]
    whole = np.concatenate(slices, axis=0)
    assert not whole[shape[0]:].any(), "the vocabulary's padding is not zero"
    return whole[:shape[0]]


def assert_gathers_to(out, tp, source, dtype):
    import numpy as np
    ranks = [read_rank(out / f"tp{tp}" / f"rank-{r:02d}") for r in range(tp)]
    names = set()
    for name, expected in source:
        names.add(name)
        slices = [rank[name] for rank in ranks]
        assert all(s[0] == dtype for s in slices), f"{name}: stored as {slices[0][0]}, expected {dtype}"
        whole = gather([s[1] for s in slices], expected.shape)
        assert whole.shape == expected.shape, f"{name}: gathers to {whole.shape}, expected {expected.shape}"
        wrong = np.count_nonzero(whole != expected)
        assert wrong == 0, f"{name}: {wrong} of {expected.size} values differ at tp {tp}"
    assert all(rank.keys() == names for rank in ranks), "ranks hold other tensors than the source"
    return f"{len(names)} tensors"


def assert_finished(out):
    names = {str(p.relative_to(out)) for p in files_of(out)}
    assert {"READY", "manifest.json", "config.json"} <= names, f"missing in {sorted(names)[:20]}"
    left = [n for n in names if n.endswith(".partial") or n == "journal.jsonl"]
    assert not left, f"left over: {left}"


def smollm2(suite, dtype):
    need("numpy", "safetensors", "gguf")
    out = suite.tmp / f"smollm2-{dtype}"
    done = suite.run("shard", suite.smollm2(), "-o", out, "--tp", "1,3", "--dtype", dtype, "--memory", "256MB", timeout=300)
    limit = 256e6 + 200e6
    assert done.peak_bytes <= limit, f"peak memory {done.peak_bytes / 1e6:.0f} MB, at most {limit / 1e6:.0f} MB"
    assert_finished(out)
    suite.run("verify", out)
    import numpy as np
    bits = bf16_of if dtype == "bf16" else lambda values: np.ascontiguousarray(values, np.float32).view(np.uint32)
    for tp in (1, 3):
        note = assert_gathers_to(out, tp, ((n, bits(v)) for n, v in gguf_tensors(suite.gguf)), dtype.upper())
    if dtype == "f32":
        shutil.rmtree(out)
    return f"{note}, {done.seconds:.1f} s, peak {done.peak_bytes / 1e6:.0f} MB"


def tiny(suite, family):
    need("numpy", "safetensors")
    source = TINY / family
    heads = json.loads((source / "config.json").read_text())["num_attention_heads"]
    tps = [1, 2, 4] if heads % 4 == 0 else [1, 3, 9]
    out = suite.tmp / f"tiny-{family}"
    suite.run("shard", source, "-o", out, "--tp", ",".join(map(str, tps)))
    assert_finished(out)
    suite.run("verify", out)
    for tp in tps:
        note = assert_gathers_to(out, tp, ((n, v[1]) for n, v in safetensors_tensors(source / "model.safetensors")), "BF16")
    return note


def impossible_tp(suite):
    done = suite.run("shard", TINY / "llama3", "-o", suite.tmp / "none", "--tp", "3", code=2)
    assert "1, 2, 4" in done.err, f"the message does not name the tps that work: {done.err}"
    assert not (suite.tmp / "none" / "READY").exists()


def another_model(suite):
    out = suite.tmp / "another"
    suite.run("shard", TINY / "llama3", "-o", out, "--tp", "1")
    before = tree_digest(out)
    done = suite.run("shard", TINY / "qwen3", "-o", out, "--tp", "1", code=2)
    assert "--force" in done.err, done.err
    assert_same_tree(tree_digest(out), before, "after a refusal")
    suite.run("shard", TINY / "qwen3", "-o", out, "--tp", "1", "--force")
    suite.run("verify", out)
    assert json.loads((out / "config.json").read_text())["model_type"] == "qwen3"
    (out / "notes.txt").write_text("mine")
    before = tree_digest(out)
    done = suite.run("shard", TINY / "llama3", "-o", out, "--tp", "1", "--force", code=2)
    assert "notes.txt" in done.err, done.err
    assert_same_tree(tree_digest(out), before, "after --force was refused")


def one_tp_after_another(suite):
    out, both = suite.tmp / "added", suite.tmp / "both"
    suite.run("shard", TINY / "llama3", "-o", out, "--tp", "1")
    suite.run("shard", TINY / "llama3", "-o", out, "--tp", "2")
    suite.run("shard", TINY / "llama3", "-o", both, "--tp", "1,2")
    suite.run("verify", out)
    assert_same_tree(tree_digest(out), tree_digest(both), "tp 1, then tp 2, against both at once")


def again_is_quick(suite):
    out = suite.tmp / "smollm2-bf16"
    if not out.exists():
        raise Skip("needs the conversion before it")
    before = {p: p.stat().st_mtime_ns for p in files_of(out) if p.suffix == ".safetensors"}
    done = suite.run("shard", suite.smollm2(), "-o", out, "--tp", "1,3")
    after = {p: p.stat().st_mtime_ns for p in files_of(out) if p.suffix == ".safetensors"}
    assert before == after, "parts were written anew"
    return f"{done.seconds:.2f} s"


def killed(suite, sig, rounds):
    """Interrupts conversions at random moments until one ends; the result is that of an uninterrupted one."""
    expected_folder = suite.tmp / "smollm2-bf16"
    if not expected_folder.exists():
        raise Skip("needs the conversion before it")
    expected = tree_digest(expected_folder)
    out = suite.tmp / f"interrupted-{sig.name}"
    command = ["shard", suite.smollm2(), "-o", out, "--tp", "1,3"]
    rng = random.Random(11)
    kills = 0
    whole_s = None
    for _ in range(rounds):
        if whole_s is None:
            whole_s = suite.run("shard", suite.gguf, "-o", suite.tmp / "timing", "--tp", "1,3", timeout=300).seconds
            shutil.rmtree(suite.tmp / "timing")
        code = interrupt(suite.start(*command), rng.uniform(0.02, whole_s), sig)
        if code == 0:
            assert_same_tree(tree_digest(out), expected, f"after {kills} interruptions")
            suite.run("verify", out)
            shutil.rmtree(out)
            continue
        assert code == (130 if sig == signal.SIGINT else -sig), f"exit code {code} after {sig.name}"
        kills += 1
        if not (out / "READY").exists():
            suite.run("load", out, code={2, 3})
    suite.run(*command, timeout=300)
    assert_same_tree(tree_digest(out), expected, f"after {kills} interruptions")
    suite.run("verify", out)
    shutil.rmtree(out)
    assert kills > 0, "no conversion was interrupted in time"
    return f"{kills} interruptions"


def transformers_opens(suite):
    need("torch", "transformers")
    import transformers
    out = suite.tmp / "smollm2-bf16" / "tp1" / "rank-00"
    if not out.exists():
        raise Skip("needs the conversion before it")
    model, loading = transformers.AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(loading[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys")), loading
    return f"{sum(p.numel() for p in model.parameters()):,} parameters"


def main():
    suite = Suite()
    for family in sorted(p.name for p in TINY.iterdir() if (p / "model.safetensors").exists()):
        suite.check(f"all ranks of a tiny {family} gather to the source", tiny, suite, family)
    suite.check("a tp that cannot be is refused with those that can", impossible_tp, suite)
    suite.check("another model is refused without --force", another_model, suite)
    suite.check("a tp added later gives the same files", one_tp_after_another, suite)
    for dtype in ("f32", "bf16"):
        suite.check(f"SmolLM2 as {dtype}: all ranks gather to the dequantised source", smollm2, suite, dtype)
    suite.check("transformers opens tp1/rank-00", transformers_opens, suite)
    suite.check("shard again keeps what is there", again_is_quick, suite)
    suite.check("kill -9 at any moment, then again: the same files", killed, suite, signal.SIGKILL, 8)
    suite.check("Ctrl-C at any moment, then again: the same files", killed, suite, signal.SIGINT, 4)
    sys.exit(suite.end())


if __name__ == "__main__":
    main()
