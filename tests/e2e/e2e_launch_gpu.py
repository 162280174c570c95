# SPDX-License-Identifier: Apache-2.0
"""One process a GPU, as torchrun starts them: the answers of one process that has both GPUs, to the last bit; and what
ends one rank ends the other, with its cause. Random weights in a real model's shapes."""
import json
import os
import signal
import sys
import tempfile
import time

from common import Skip, Suite, flip_bit
from e2e_launch import Ranks, json_of

TP = 2
PROMPT = [(i * 7919) % 30000 + 100 for i in range(700)]


def ids(suite, n):
    path = suite.tmp / f"ids{n}.json"
    path.write_text(json.dumps(PROMPT[:n]))
    return path


def same_answers(suite, model):
    notes = []
    for n, options in ((64, ["--greedy"]), (600, ["--greedy"]), (64, ["--seed", "7", "--temperature", "0.8"]),
                       (64, ["--greedy", "--kv", "tq4"])):
        arguments = ["run", model, "--device", "cuda", "--ids", ids(suite, n), "-n", 60, "--ignore-eos",
                     "--max-context", 2048, *options]
        one = suite.run(*arguments, "--tp", TP, "--json").json()
        many = json_of(suite, *arguments, n=TP)
        assert many["ids"] == one["ids"], (many["ids"], one["ids"])
        assert many["tp"] == TP and many["devices"] == one["devices"], many["devices"]
        assert many["sums"] == "peer access between processes" and one["sums"] == "peer access", many["sums"]
        notes.append(f"{one['tokens_per_s']:.0f} and {many['tokens_per_s']:.0f} tokens/s, first token "
                     f"{one['ttft_s']:.3f} and {many['ttft_s']:.3f} s")
    return "; ".join(notes)


def same_log_probabilities(suite, model):
    arguments = ["score", model, "--device", "cuda", "--ids", ids(suite, 700), "--top", 5]
    one = suite.run(*arguments, "--tp", TP, "--json").json()
    many = json_of(suite, *arguments, n=TP)
    assert len(one["logprobs"]) > 600
    assert many == one, "JSON of both, to the last digit"


def sharing(suite, model):
    arguments = ["score", model, "--device", "cuda:0", "--ids", ids(suite, 100), "--top", 5]
    one = suite.run(*arguments, "--tp", TP, "--json").json()
    assert json_of(suite, *arguments, n=TP) == one, "two ranks on one GPU"


def loads(suite, model):
    one = suite.run("load", model, "--device", "cuda", "--tp", TP, "--json").json()["load"]
    many = json_of(suite, "load", model, "--device", "cuda", n=TP)["load"]
    assert [(r["rank"], r["device"], r["bytes"], r["leaves_checked"]) for r in many["ranks"]] == [
        (r["rank"], r["device"], r["bytes"], r["leaves_checked"]) for r in one["ranks"]]
    return f"{one['gb_per_s']:.1f} and {many['gb_per_s']:.1f} GB/s"


def killed(suite, model, victim):
    """In mid-generation: ranks compute a few seconds at least, and are seen to."""
    ranks = Ranks(suite, "run", model, "--device", "cuda", "--ids", ids(suite, 64), "-n", 100000, "--ignore-eos",
                  "--greedy", n=TP)
    try:
        time.sleep(4)  # ids come all at once, so nothing tells that it has begun; a first token takes 0.7 s
        assert all(p.poll() is None for p in ranks.processes), ranks.stderr(0)
        ranks.processes[victim].kill()
        begin = time.monotonic()
        codes = ranks.end(timeout=20)
        seconds = time.monotonic() - begin
    finally:
        ranks.kill()
    assert codes == [-signal.SIGKILL if r == victim else 6 for r in range(TP)], codes
    other = 1 - victim
    assert ranks.stderr(other).endswith(f"firstlight: rank {victim} of {TP}: its process is gone without a word (killed, or crashed)\n"), ranks.stderr(other)
    assert seconds < 2, f"{seconds:.2f} s"
    return f"{1000 * seconds:.0f} ms"


def damaged(suite, model):
    part = next((model / f"tp{TP}" / "rank-01").glob("*.safetensors"))
    flip_bit(part, part.stat().st_size // 2)
    try:
        ranks = Ranks(suite, "run", model, "--device", "cuda", "--ids", ids(suite, 64), "-n", 5, n=TP)
        assert ranks.end() == [4] * TP, [ranks.stderr(r) for r in range(TP)]
        assert "rank 1 of 2: " in ranks.stderr(0) and "rank-01/model-" in ranks.stderr(0), ranks.stderr(0)
    finally:
        flip_bit(part, part.stat().st_size // 2)


def hidden(suite, model):
    """A GPU of another rank that this one does not see is said, and done without."""
    arguments = ["run", model, "--device", "cuda:0", "--ids", ids(suite, 64), "-n", 5, "--greedy", "--ignore-eos"]
    many = json_of(suite, *arguments, n=TP)
    assert many["sums"] == "host memory (ranks 0 and 1 share a GPU)", many["sums"]


def main():
    suite = Suite()
    folder = tempfile.TemporaryDirectory(prefix="firstlight-e2e-", dir="/dev/shm")
    model = suite.tmp.__class__(folder.name) / "ranks"
    made = []

    def make():
        if sum(os.path.exists(f"/dev/nvidia{i}") for i in range(16)) < TP:
            raise Skip("two GPUs are needed")
        suite.run("synth", "--like", "llama-3.2-1b", "--tp", f"1,{TP}", "-o", model)
        made.append(True)

    suite.check("a model", make)
    if made:
        suite.check("load", loads, suite, model)
        suite.check("the answers of one process", same_answers, suite, model)
        suite.check("the log-probabilities of one process, to the bit", same_log_probabilities, suite, model)
        suite.check("the log-probabilities of ranks that share a GPU", sharing, suite, model)
        suite.check("ranks that share a GPU say so", hidden, suite, model)
        for victim in range(TP):
            suite.check(f"rank {victim} killed ends the other, which says so", killed, suite, model, victim)
        suite.check("a damaged rank ends both with its cause", damaged, suite, model)
    folder.cleanup()
    return suite.end()


if __name__ == "__main__":
    sys.exit(main())
