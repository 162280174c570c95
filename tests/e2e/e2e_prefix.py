#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""run --save-prefix and --restore-prefix as a user does it: the same answers, and refusals in words."""
import json
import resource
import shutil
import sys

from common import Suite

CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 128, "intermediate_size": 96, "num_hidden_layers": 2,
          "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 128, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
          "max_position_embeddings": 2048, "torch_dtype": "bfloat16", "tie_word_embeddings": False, "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2}
KINDS = ("bf16", "f32", "tq8", "tq4", "k3v2")


def ids_file(suite, n, changed=None):
    ids = [(i * i * 7 + i * 31) % 125 + 3 for i in range(n)]
    if changed is not None:
        ids[changed] = 2
    path = suite.tmp / f"ids{n}-{changed}.json"
    path.write_text(json.dumps(ids))
    return path


def run(suite, model, n, *options, code=0, changed=None):
    ids = ids_file(suite, n, changed)
    return suite.run("run", model, "--ids", ids, "-n", 20, "--temperature", 1, "--ignore-eos", "--device", "cpu", "--json", *options, code=code).json()


def restored_answers(suite, model):
    """Draws at temperature 1 depend on every logit."""
    for kind in KINDS:
        for tp in (1, 2):
            cache, file = ("--kv", kind, "--tp", tp), suite.tmp / f"{kind}-{tp}.prefix"
            saved = run(suite, model, 700, *cache, "--save-prefix", file)
            assert saved["prefix"]["saved"]["tokens"] == 640 and saved["prefix"]["saved"]["bytes"] == file.stat().st_size, saved["prefix"]
            assert saved["ids"] == run(suite, model, 700, *cache)["ids"], (kind, tp, "saving changes the answer")
            for n, taken in ((640, 576), (645, 576), (648, 640), (700, 640), (1200, 640)):
                whole, reused = run(suite, model, n, *cache), run(suite, model, n, *cache, "--restore-prefix", file)
                assert reused["ids"] == whole["ids"], (kind, tp, n)
                assert reused["prefix"]["tokens_taken"] == taken, reused["prefix"]
    return f"{len(KINDS) * 2 * 5} answers"


def saved_longer(suite, model):
    first, longer, whole = (suite.tmp / name for name in ("first.prefix", "longer.prefix", "whole.prefix"))
    run(suite, model, 300, "--save-prefix", first)
    run(suite, model, 1000, "--restore-prefix", first, "--save-prefix", longer)
    run(suite, model, 1000, "--save-prefix", whole)
    assert longer.read_bytes() == whole.read_bytes()


def saved_behind_the_first_token(suite, model):
    """By the order of events in the report, not by how long they took."""
    for kind in ("bf16", "tq4"):
        report = run(suite, model, 1000, "--kv", kind, "--save-prefix", suite.tmp / "behind.prefix")
        saving = [phase for phase in report["phases"] if phase["name"] == "save prefix"]
        assert len(saving) == 1 and saving[0]["start_s"] >= report["ttft_s"], (report["ttft_s"], report["phases"])
        assert report["prefix"]["saved"]["gb_per_s"] > 0, report["prefix"]


def a_full_disk(suite, model):
    """A file that may not grow: the answer is there, then what went wrong, and no file."""
    file = suite.tmp / "large.prefix"
    arguments = ("run", model, "--ids", ids_file(suite, 1000), "-n", 20, "--greedy", "--ignore-eos", "--device", "cpu", "--save-prefix", file)
    whole = suite.run(*arguments)
    size = file.stat().st_size
    file.unlink()
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, resource.RLIM_INFINITY))  # the program inherits it
    try:
        done = suite.run(*arguments, code=6)
        both = suite.run(*arguments, "--json", code=6).json()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert done.out == whole.out, (done.out, whole.out)
    assert "large.prefix" in done.err and "File too large" in done.err, done.err
    assert len(both["ids"]) == 20 and both["error"]["kind"] == "io" and "File too large" in both["error"]["message"], both
    assert not list(suite.tmp.glob("large.prefix*"))


def lanes(suite, model):
    """The weights' where they have any; a load that fails names its own cause."""
    file = suite.tmp / "lanes.prefix"
    saved = run(suite, model, 300, "--tp", 1, "--save-prefix", file)
    for options, why in ((("--tp", 1), "behind the weights, by their reader"), (("--traditional",), "--reader pread")):
        reused = run(suite, model, 300, *options, "--reader", "pread", "--restore-prefix", file)
        assert reused["ids"] == saved["ids"], options
        assert reused["prefix"]["why"] == why and reused["prefix"]["reader"].startswith("pread"), reused["prefix"]
        assert reused["prefix"]["restored"]["bytes"] > 0 and reused["load"]["bytes"] > 0, reused
    bad = suite.tmp / "bad"
    shutil.copytree(model, bad)
    part = next((bad / "tp1" / "rank-00").glob("*.safetensors"))
    data = bytearray(part.read_bytes())
    data[-1000] ^= 1
    part.write_bytes(data)
    error = run(suite, bad, 300, "--tp", 1, "--restore-prefix", file, code=4)["error"]
    assert part.name in error["message"], error


def refusals(suite, model):
    file, text = suite.tmp / "good.prefix", suite.tmp / "notes.txt"
    run(suite, model, 200, "--save-prefix", file)
    text.write_text("not to be lost\n")
    other = suite.tmp / "other"
    suite.run("synth", "--config", suite.tmp / "prefix.json", "-o", other, "--seed", 5)
    cut, flipped, longer = (suite.tmp / name for name in ("cut.prefix", "flipped.prefix", "longer-file.prefix"))
    good = file.read_bytes()
    cut.write_bytes(good[:-1])
    flipped.write_bytes(good[:5000] + bytes([good[5000] ^ 4]) + good[5001:])
    longer.write_bytes(good + bytes(10))
    restore = "--restore-prefix"
    cases = [((model, 200, restore, file, "--kv", "tq4"), "--kv) is bf16, expected tq4", 2), ((model, 200, restore, file, "--tp", 2), "tp is 1, expected 2", 2),
             ((other, 200, restore, file), "the model is xxh3:", 2), ((model, 150, restore, file), "its first 150 only", 2),
             ((model, 200, restore, text), "no prefix file", 2), ((model, 200, restore, suite.tmp), "directory", 2),
             ((model, 200, restore, suite.tmp / "none"), "none", 3), ((model, 200, restore, cut), "it was cut", 4),
             ((model, 200, restore, flipped), "bytes [4096, ", 4), ((model, 200, restore, longer), "its head says", 4),
             ((model, 63, "--save-prefix", suite.tmp / "x"), "nothing to save", 2), ((model, 200, "--save-prefix", text), "not overwritten", 2),
             ((model, 200, "--save-prefix", suite.tmp / "no" / "x"), "/no/x", 3)]
    for arguments, words, code in cases:
        error = run(suite, *arguments, code=code)["error"]
        assert words in error["message"], (words, error)
    error = run(suite, model, 200, restore, file, changed=77, code=2)["error"]
    assert "token 77 is 2" in error["message"], error
    assert text.read_text() == "not to be lost\n"
    return f"{len(cases) + 1} refusals"


def chat_shares(suite):
    """A turn's prompt begins with the one before: its whole pages are not computed again."""
    message = "Here is a list of words, which you need not keep: " + "apple river stone cloud " * 30
    done = suite.run("chat", suite.smollm2(), "--device", "cpu", "--greedy", "-n", 8, "--max-context", 2048, "--json", timeout=300,
                     stdin=f"{message}\nGo on.\n/reset\n{message}\n".encode())
    first, second, _, again = (json.loads(line) for line in done.out.splitlines())
    assert first["n_shared"] == 0, first
    assert second["n_shared"] == first["n_prompt"] // 64 * 64 > 0, (first["n_prompt"], second)
    assert again["n_shared"] == (first["n_prompt"] - 8) // 64 * 64, again
    assert again["ids"] == first["ids"], "the same prompt, another answer"
    return f"{second['n_shared']} of {second['n_prompt']} tokens"


def main():
    suite = Suite()
    (suite.tmp / "prefix.json").write_text(json.dumps(CONFIG))
    model = suite.tmp / "model"
    suite.run("synth", "--config", suite.tmp / "prefix.json", "-o", model, "--tp", "1,2")
    suite.check("a restored prefix gives the answers of the whole prompt", restored_answers, suite, model)
    suite.check("a restored prefix is saved longer as the whole is", saved_longer, suite, model)
    suite.check("a prefix is saved behind the first token", saved_behind_the_first_token, suite, model)
    suite.check("a prefix that finds no room is an error and leaves nothing", a_full_disk, suite, model)
    suite.check("a restored prefix comes by the lanes of the weights", lanes, suite, model)
    suite.check("a prefix that does not fit is refused in words", refusals, suite, model)
    suite.check("a turn of chat computes what is new", chat_shares, suite)
    sys.exit(suite.end())


if __name__ == "__main__":
    main()
