# SPDX-License-Identifier: Apache-2.0
"""One process a GPU, as torchrun starts them: the answers of one process that has both GPUs, to the last bit; and what
ends one rank ends the other, with its cause. Random weights in a real model's shapes."""
import json
import shutil
import subprocess
import sys
import tempfile
import time

from common import Skip, Suite, flip_bit, gpus_said
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
    assert len(one["logprobs"]) > 600
    for way in ("ipc", "host"):
        assert json_of(suite, *arguments, "--comm", way, n=TP) == one, f"JSON of both, to the last digit, by {way}"


def by_nccl(suite, model):
    score = ["score", model, "--device", "cuda", "--ids", ids(suite, 700), "--top", 5]
    ranks = Ranks(suite, *score, "--comm", "nccl", "--json", n=TP)
    codes = ranks.end()
    if codes == [2] * TP and "libnccl.so.2" in ranks.stderr(0):
        raise Skip(ranks.stderr(0).strip())
    assert codes == [0] * TP, f"{codes} {ranks.stderr(0)}"
    one = suite.run(*score, "--tp", TP, "--json").json()
    assert json.loads(ranks.stdout(0)) == one, "of two ranks sums are the same in any order"
    many = json_of(suite, "run", model, "--device", "cuda", "--ids", ids(suite, 64), "-n", 60, "--ignore-eos", "--greedy",
                   "--comm", "nccl", n=TP)
    assert many["sums"].startswith("NCCL 2."), many["sums"]
    return f"{many['sums']}; {many['tokens_per_s']:.0f} tokens/s, first token {many['ttft_s']:.3f} s"


def hidden_by_the_launcher(suite, model):
    """Some launchers leave each process its own GPU alone."""
    arguments = ["run", model, "--ids", ids(suite, 64), "-n", 20, "--ignore-eos", "--greedy", "--json"]
    ranks = Ranks(suite, *arguments, n=TP, changed_of_rank=lambda rank: {"CUDA_VISIBLE_DEVICES": str(rank)})
    assert ranks.end() == [0] * TP, ranks.stderr(0) + ranks.stderr(1)
    many = json.loads(ranks.stdout(0))
    assert many["sums"] == "peer access between processes" and many["devices"] == ["cuda:0", "cuda:1"], many


def by_torchrun(suite, model):
    torchrun = shutil.which("torchrun")
    if torchrun is None:
        raise Skip("no torchrun")
    ended = subprocess.run([torchrun, "--no-python", "--nproc-per-node", str(TP), suite.binary, "run", model, "--ids",
                            ids(suite, 64), "-n", "20", "--ignore-eos", "--greedy", "--json"], capture_output=True, timeout=120)
    assert ended.returncode == 0, ended.stderr.decode()[-2000:]
    many = json.loads(ended.stdout)
    assert many["sums"] == "peer access between processes" and len(many["ids"]) == 20, many


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


def killed(suite, model, victim, way):
    """In mid-generation: ranks compute a few seconds at least, and are seen to."""
    ranks = Ranks(suite, "run", model, "--device", "cuda", "--ids", ids(suite, 64), "-n", 100000, "--ignore-eos",
                  "--greedy", "--comm", way, n=TP)
    try:
        time.sleep(4)  # ids come all at once, so nothing tells that it has begun; a first token takes 0.7 s
        assert all(p.poll() is None for p in ranks.processes), ranks.stderr(0)
        return ranks.kill_one(victim, timeout=20)
    finally:
        ranks.kill()


def damaged(suite, model):
    part = next((model / f"tp{TP}" / "rank-01").glob("*.safetensors"))
    flip_bit(part, part.stat().st_size // 2)
    try:
        ranks = Ranks(suite, "run", model, "--device", "cuda", "--ids", ids(suite, 64), "-n", 5, n=TP)
        assert ranks.end() == [4] * TP, [ranks.stderr(r) for r in range(TP)]
        assert "rank 1 of 2: " in ranks.stderr(0) and "rank-01/model-" in ranks.stderr(0), ranks.stderr(0)
    finally:
        flip_bit(part, part.stat().st_size // 2)


def sharing_is_said(suite, model):
    arguments = ["run", model, "--device", "cuda:0", "--ids", ids(suite, 64), "-n", 5, "--greedy", "--ignore-eos"]
    many = json_of(suite, *arguments, n=TP)
    assert many["sums"] == "host memory (ranks 0 and 1 share a GPU)", many["sums"]


def main():
    suite = Suite()
    folder = tempfile.TemporaryDirectory(prefix="firstlight-e2e-", dir="/dev/shm")
    model = suite.tmp.__class__(folder.name) / "ranks"
    made = []

    def make():
        gpus = gpus_said(suite)
        if f"cuda:{TP - 1} " not in gpus:  # no such GPU, or a build for the CPU
            raise Skip(f"two GPUs are needed: {gpus}")
        suite.run("synth", "--like", "llama-3.2-1b", "--tp", f"1,{TP}", "-o", model)
        made.append(True)

    suite.check("a model", make)
    if made:
        suite.check("load", loads, suite, model)
        suite.check("the answers of one process", same_answers, suite, model)
        suite.check("the log-probabilities of one process, to the bit", same_log_probabilities, suite, model)
        suite.check("the log-probabilities of ranks that share a GPU", sharing, suite, model)
        suite.check("ranks that share a GPU say so", sharing_is_said, suite, model)
        suite.check("the same by NCCL", by_nccl, suite, model)
        suite.check("GPUs that the launcher hides", hidden_by_the_launcher, suite, model)
        suite.check("torchrun", by_torchrun, suite, model)
        for victim in range(TP):
            suite.check(f"rank {victim} killed ends the other, which says so", killed, suite, model, victim, "ipc")
        suite.check("rank 1 killed ends the other, which waits in NCCL", killed, suite, model, 1, "nccl")
        suite.check("a damaged rank ends both with its cause", damaged, suite, model)
    folder.cleanup()
    return suite.end()


if __name__ == "__main__":
    sys.exit(main())
