# SPDX-License-Identifier: Apache-2.0
"""Answers: log-probabilities against transformers' (tests/data/golden), greedy text, and the JSON that run gives."""
import json
import math
import random
import sys

from common import ROOT, TINY, Skip, Suite, need

GOLDEN = ROOT / "tests" / "data" / "golden" / "smollm2.json"
TOLERANCE = 2e-3  # nats, f32 against fp32
MAX_KLD = 2e-3    # nats, mean, bf16 against f32


def sharded(suite, dtype):
    """SmolLM2 for tp 1 and 3, converted once a script."""
    out = suite.tmp / f"smollm2-{dtype}"
    if not (out / "READY").exists():
        suite.run("shard", suite.smollm2(), "-o", out, "--tp", "1,3", "--dtype", dtype, timeout=300)
    return out


def score(suite, model, ids, *options):
    path = suite.tmp / "ids.json"
    path.write_text(json.dumps(ids))
    got = suite.run("score", model, "--ids", path, "--json", *options, timeout=300).json()
    assert got["n_tokens"] == len(ids) and len(got["logprobs"]) == len(ids)
    known = [x for x in got["logprobs"] if x is not None]
    if known:
        mean = -sum(known) / len(known)
        assert math.isclose(got["nll_mean"], mean, rel_tol=1e-6), f"nll_mean {got['nll_mean']}, its logprobs give {mean}"
        assert math.isclose(got["perplexity"], math.exp(mean), rel_tol=1e-6)
    return got


def worst_difference(got, sequence):
    worst = 0.0
    for mine, theirs in zip(got["logprobs"], sequence["logprobs"], strict=True):
        assert (mine is None) == (theirs is None), "null stands elsewhere"
        if mine is not None:
            worst = max(worst, abs(mine - theirs))
    for position, top in sequence["top"].items():
        mine = {t["id"]: t["logprob"] for t in got["top"][int(position)]}
        for token, theirs in top[: len(top) // 2]:  # the last ones may change places
            assert token in mine, f"token {token} is not among the likeliest after position {position}"
            worst = max(worst, abs(mine[token] - theirs))
    return worst


def golden(suite, model, path, tp):
    if not path.exists():
        raise Skip(f"no {path.relative_to(ROOT)}")
    sequences = json.loads(path.read_text())["sequences"]
    worst = max(worst_difference(score(suite, model, s["ids"], "--tp", tp, "--top", 16), s) for s in sequences)
    assert worst <= TOLERANCE, f"worst difference {worst:.2e}, at most {TOLERANCE}"
    return f"worst difference {worst:.1e} over {sum(len(s['ids']) for s in sequences)} tokens"


def smollm2_golden(suite, tp):
    if not GOLDEN.exists():
        raise Skip(f"no {GOLDEN.relative_to(ROOT)}")
    return golden(suite, sharded(suite, "f32"), GOLDEN, tp)


def windows(suite):
    """A window is a sequence of its own."""
    model = sharded(suite, "f32")
    ids = [i * 37 % 4000 + 100 for i in range(150)]
    whole = score(suite, model, ids, "--window", 60)["logprobs"]
    apart = [x for begin in (0, 60, 120) for x in score(suite, model, ids[begin:begin + 60])["logprobs"]]
    assert [x is None for x in whole] == [i % 60 == 0 for i in range(150)]
    worst = max(abs(a - b) for a, b in zip(whole, apart) if a is not None)
    assert worst <= 1e-4, f"worst difference {worst}"


def divergence(reference, other):
    """Σ p ln(p/q) over the likeliest tokens, all others as one."""
    q = {t["id"]: t["logprob"] for t in other}
    total = p_rest = q_rest = 0.0
    for token in reference:
        if token["id"] in q:
            p = math.exp(token["logprob"])
            total += p * (token["logprob"] - q[token["id"]])
            p_rest, q_rest = p_rest + p, q_rest + math.exp(q[token["id"]])
    p_rest, q_rest = max(1e-9, 1 - p_rest), max(1e-9, 1 - q_rest)
    return total + p_rest * math.log(p_rest / q_rest)


def bf16_divergence(suite):
    if not GOLDEN.exists():
        raise Skip(f"no {GOLDEN.relative_to(ROOT)}")
    ids = json.loads(GOLDEN.read_text())["sequences"][-1]["ids"][:1024]
    exact = score(suite, sharded(suite, "f32"), ids, "--top", 200)["top"]
    notes = []
    for tp in (1, 3):
        rounded = score(suite, sharded(suite, "bf16"), ids, "--top", 200, "--tp", tp)["top"]
        mean = sum(map(divergence, exact, rounded)) / len(ids)
        assert mean <= MAX_KLD, f"mean divergence {mean:.2e} at tp {tp}, at most {MAX_KLD}"
        notes.append(f"{mean:.1e} at tp {tp}")
    return ", ".join(notes)


def near_tie(suite, model, prompt_ids, ids, other):
    """Whether two greedy continuations part where the two best tokens are about equally likely."""
    same = next((i for i, (a, b) in enumerate(zip(ids, other)) if a != b), None)
    if same is None:
        return True
    top = score(suite, model, prompt_ids + ids[:same], "--top", 2)["top"][-1]
    return top[0]["logprob"] - top[1]["logprob"] < 0.25


def run_json(suite, model, *options):
    got = suite.run("run", model, "--json", "--greedy", *options).json()
    for key in ("text", "ids", "n_prompt", "ttft_s", "phases", "load", "prompt_tokens_per_s", "tokens_per_s"):
        assert key in got, f"run --json has no {key}"
    for phase in got["phases"]:
        assert 0 <= phase["start_s"] <= phase["end_s"], phase
    return got


def run_contract(suite):
    model = sharded(suite, "bf16")
    got = run_json(suite, model, "-p", "Why is the sky blue?", "-n", 24)
    assert 0 < len(got["ids"]) <= 24 and got["text"].strip(), got["text"]
    assert got["n_prompt"] > 6, f"n_prompt {got['n_prompt']}: no chat template?"
    assert 0 < got["ttft_s"] < 60
    load = got["load"]
    for key in ("bytes", "seconds", "gb_per_s", "reader", "why", "verify", "ranks"):
        assert key in load, f"load has no {key}"
    assert load["verify"] == "full" and len(load["ranks"]) == 1
    stored = sum(p.stat().st_size for p in (model / "tp1").rglob("*.safetensors"))
    assert 0.95 * stored < load["bytes"] <= stored, f"load.bytes {load['bytes']}, parts have {stored}"
    assert math.isclose(load["gb_per_s"], load["bytes"] / load["seconds"] / 1e9, rel_tol=0.02), load
    return f"first token {got['ttft_s']:.3f} s: {got['text'][:40]!r}"


def same_text(suite):
    """The same greedy answer from one rank, three ranks, the traditional path, and the GGUF itself."""
    model = sharded(suite, "bf16")
    prompt = ["-p", "List three rivers of Europe.", "-n", 40]
    first = run_json(suite, model, *prompt)
    assert run_json(suite, model, *prompt)["ids"] == first["ids"], "two equal runs differ"
    text = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    text += "<|im_start|>user\nList three rivers of Europe.<|im_end|>\n<|im_start|>assistant\n"
    encoded = suite.run("tokenize", model, "--json", stdin=json.dumps(text).encode() + b"\n").json()["ids"]
    assert len(encoded) == first["n_prompt"], f"the template gives {first['n_prompt']} tokens, by hand {len(encoded)}"
    for options in ((model, "--tp", 3), (model, "--traditional"), (suite.gguf,), (model, "--threads", 1)):
        other = run_json(suite, options[0], *options[1:], *prompt)
        assert other["n_prompt"] == first["n_prompt"]
        assert near_tie(suite, model, encoded, first["ids"], other["ids"]), f"{options[1:] or 'the .gguf'}: {other['text']!r}"


def streams_text(suite):
    model = sharded(suite, "bf16")
    plain = suite.run("run", model, "-p", "Say hello.", "-n", 12, "--greedy")
    got = run_json(suite, model, "-p", "Say hello.", "-n", 12)
    assert plain.out.strip() == got["text"].strip(), f"{plain.out!r} against {got['text']!r}"
    assert "first token" in plain.err, "no time line on stderr"


def seeds(suite):
    model = sharded(suite, "bf16")
    def sampled(seed):
        return suite.run("run", model, "-p", "Tell me a story.", "-n", 16, "--temperature", 1.2, "--seed", seed, "--json").json()["ids"]
    assert sampled(1) == sampled(1), "a seed does not repeat"
    assert sampled(1) != sampled(2), "two seeds give the same 16 tokens"


def tokenizer(suite):
    """OUT/tokenizer.json, opened by the Python package, gives the ids that tokenize gives."""
    tokenizers, = need("tokenizers")
    model = sharded(suite, "bf16")
    theirs = tokenizers.Tokenizer.from_file(str(model / "tokenizer.json"))
    rng = random.Random(5)
    pools = ["abc XYZ", "0123456789", " \n\t\r", ".,;:!?'\"()[]{}<>|", "äöüßéèñ", "漢字かなカナ", "Привет", "שלום", "مرحبا", "😀🚀👨‍👩‍👧", "नमस्ते", "'s're'll"]
    texts = ["", " ", "<|im_start|>user\nhi<|im_end|>", "a" * 3000, " " * 500, "I'll don't we've 12345"]
    for _ in range(2000):
        pool = "".join(rng.sample(pools, rng.randrange(1, 4)))
        texts.append("".join(rng.choice(pool) for _ in range(rng.randrange(1, 60))))
    stdin = "".join(json.dumps(t) + "\n" for t in texts).encode()
    lines = suite.run("tokenize", model, "--json", stdin=stdin).out.splitlines()
    assert len(lines) == len(texts), f"{len(lines)} lines for {len(texts)} texts"
    wrong = [t for t, line in zip(texts, lines) if json.loads(line)["ids"] != theirs.encode(t).ids]
    assert not wrong, f"{len(wrong)} of {len(texts)} texts differ, first {wrong[0]!r}"
    from_gguf = suite.run("tokenize", suite.smollm2(), "--json", stdin=stdin).out.splitlines()
    assert from_gguf == lines, "the GGUF's own tokenizer differs"
    return f"{len(texts)} texts"


def main():
    suite = Suite()
    for family in sorted(p.name for p in TINY.iterdir() if (p / "golden.json").exists()):
        tps = (1, 3) if family == "smollm2" else (1, 2)
        for tp in tps:
            suite.check(f"tiny {family}, f32, tp {tp}: log-probabilities are transformers'", tiny_golden, suite, family, tp)
    for tp in (1, 3):
        suite.check(f"SmolLM2 f32 at tp {tp}: log-probabilities are transformers'", smollm2_golden, suite, tp)
    suite.check("SmolLM2 bf16 stays close to f32", bf16_divergence, suite)
    suite.check("windows are independent", windows, suite)
    suite.check("run --json keeps its contract", run_contract, suite)
    suite.check("greedy text is the same by every path", same_text, suite)
    suite.check("run streams the text that --json reports", streams_text, suite)
    suite.check("a seed decides the sampled text", seeds, suite)
    suite.check("tokenize is equal to Python's tokenizers", tokenizer, suite)
    sys.exit(suite.end())


def tiny_golden(suite, family, tp):
    out = suite.tmp / f"tiny-{family}"
    if not (out / "READY").exists():
        suite.run("shard", TINY / family, "-o", out, "--dtype", "f32", "--tp", "1,3" if family == "smollm2" else "1,2")
    return golden(suite, out, TINY / family / "golden.json", tp)


if __name__ == "__main__":
    main()
