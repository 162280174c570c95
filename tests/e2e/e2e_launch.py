# SPDX-License-Identifier: Apache-2.0
"""One process a rank on the CPU, as torchrun starts them: the answers of one process to the last bit, from rank 0 alone; and what
ends one rank ends all, with its cause."""
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time

from common import Suite, flip_bit

TP = 3
CPU = ["--device", "cpu"]
TEXT = "Rain fell on the harbour all night, and in the morning the boats lay low in the water. " * 12


class Ranks:
    """The program, once a rank, each with a launcher's variables; outputs go to files."""

    def __init__(self, suite, *arguments, n=TP, changed=None, changed_of_rank=lambda rank: {}):
        self.suite, self.arguments = suite, [str(a) for a in arguments]
        port = free_port()
        self.out = [tempfile.TemporaryFile(dir=suite.tmp) for _ in range(n)]
        self.err = [tempfile.TemporaryFile(dir=suite.tmp) for _ in range(n)]
        self.processes = []
        for rank in reversed(range(n)):  # rank 0 comes last
            variables = {"RANK": str(rank), "WORLD_SIZE": str(n), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1",
                         "MASTER_PORT": str(port), **(changed or {}), **changed_of_rank(rank)}
            environment = {**os.environ, **{name: value for name, value in variables.items() if value is not None}}
            self.processes.insert(0, subprocess.Popen([suite.binary, *self.arguments], stdin=subprocess.DEVNULL,
                                                      stdout=self.out[rank], stderr=self.err[rank], env=environment))

    def end(self, timeout=120):
        """Exit codes of all ranks; fails if one does not end."""
        deadline = time.monotonic() + timeout
        codes = []
        for rank, process in enumerate(self.processes):
            try:
                codes.append(process.wait(max(0.01, deadline - time.monotonic())))
            except subprocess.TimeoutExpired:
                self.kill()
                raise AssertionError(f"rank {rank} hung for {timeout} s: {' '.join(self.arguments)}") from None
        return codes

    def kill(self):
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()

    def kill_one(self, victim, timeout=10):
        """The others end within 2 seconds, with code 6, and say why. Returns a note."""
        self.processes[victim].kill()
        begin = time.monotonic()
        codes = self.end(timeout)
        seconds = time.monotonic() - begin
        n = len(self.processes)
        assert codes == [-signal.SIGKILL if r == victim else 6 for r in range(n)], codes
        for rank in set(range(n)) - {victim}:
            assert self.stderr(rank).endswith(f"firstlight: rank {victim} of {n}: its process is gone without a word (killed, or crashed)\n"), self.stderr(rank)
        assert seconds < 2, f"{seconds:.2f} s"
        return f"{1000 * seconds:.0f} ms"

    def text(self, files, rank):
        files[rank].seek(0)
        return files[rank].read().decode(errors="replace")

    def stdout(self, rank):
        return self.text(self.out, rank)

    def stderr(self, rank):
        return self.text(self.err, rank)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def json_of(suite, *arguments, n=TP):
    """What rank 0 prints; the others must print nothing at all."""
    import json
    ranks = Ranks(suite, *arguments, "--json", n=n)
    codes = ranks.end()
    assert codes == [0] * n, f"{codes}\n{ranks.stderr(0)}{ranks.stderr(1)}"
    for rank in range(1, n):
        assert ranks.stdout(rank) == "" and ranks.stderr(rank) == "", ranks.stdout(rank) + ranks.stderr(rank)
    return json.loads(ranks.stdout(0))


def same_answers(suite, model):
    for options in (["--greedy"], ["--seed", "7", "--temperature", "1"], ["--greedy", "--kv", "tq4"]):
        arguments = ["run", model, *CPU, "-p", "Name three birds of the sea.", "-n", 40, *options]
        one = suite.run(*arguments, "--tp", TP, "--json").json()
        many = json_of(suite, *arguments)
        assert many["ids"] == one["ids"] and many["text"] == one["text"], (many["text"], one["text"])
        assert many["tp"] == TP and many["sums"] == "shared memory between processes", many["sums"]


def same_log_probabilities(suite, model):
    text = suite.tmp / "text"
    text.write_text(TEXT)
    arguments = ["score", model, *CPU, "--text", text, "--top", 5]
    one = suite.run(*arguments, "--tp", TP, "--json").json()
    many = json_of(suite, *arguments)
    assert len(one["logprobs"]) > 200
    assert many == one, "JSON of both, to the last digit"


def loads(suite, model):
    one = suite.run("load", model, *CPU, "--tp", TP, "--json").json()["load"]
    many = json_of(suite, "load", model, *CPU)["load"]
    assert many["bytes"] == one["bytes"]
    assert [(r["rank"], r["bytes"], r["leaves_checked"]) for r in many["ranks"]] == [
        (r["rank"], r["bytes"], r["leaves_checked"]) for r in one["ranks"]]


def killed(suite, model, victim):
    ranks = Ranks(suite, "run", model, *CPU, "-p", "Count.", "-n", 100000, "--ignore-eos", "--greedy")
    try:
        deadline = time.monotonic() + 60
        while not ranks.stdout(0):  # all of them compute
            assert time.monotonic() < deadline and ranks.processes[0].poll() is None, ranks.stderr(0)
            time.sleep(0.01)
        return ranks.kill_one(victim)
    finally:
        ranks.kill()


def damaged(suite, model):
    part = next((model / f"tp{TP}" / "rank-01").glob("*.safetensors"))
    flip_bit(part, part.stat().st_size // 2)
    try:
        for command in (["run", model, *CPU, "-p", "Hello", "-n", 5], ["load", model, *CPU]):
            ranks = Ranks(suite, *command)
            assert ranks.end() == [4] * TP
            for rank in range(TP):
                assert "rank 1 of 3: " in ranks.stderr(rank) or rank == 1, ranks.stderr(rank)
                assert "rank-01/model-" in ranks.stderr(rank), ranks.stderr(rank)
    finally:
        flip_bit(part, part.stat().st_size // 2)


def interrupted(suite, model):
    ranks = Ranks(suite, "run", model, *CPU, "-p", "Count.", "-n", 100000, "--ignore-eos", "--greedy")
    while not ranks.stdout(0) and ranks.processes[0].poll() is None:
        time.sleep(0.01)
    for process in ranks.processes:
        process.send_signal(signal.SIGINT)
    assert ranks.end(timeout=10) == [130] * TP, [ranks.stderr(r) for r in range(TP)]


def refusals(suite, model):
    cases = [({"WORLD_SIZE": None}, [], 2, "WORLD_SIZE is not set"),
             ({"RANK": "one"}, [], 2, "RANK is 'one', expected a number from 0 to 2"),
             ({"RANK": "3"}, [], 2, "RANK is '3', expected a number from 0 to 2"),
             ({"MASTER_ADDR": None}, [], 2, "MASTER_ADDR is not set"),
             ({"MASTER_PORT": "0"}, [], 2, "MASTER_PORT is '0'"),
             ({"LOCAL_WORLD_SIZE": "1"}, [], 2, "the ranks are on several hosts"),
             ({}, ["--tp", 2], 2, "--tp 2, but the launcher has started 3 ranks")]
    for changed, options, code, words in cases:
        ranks = Ranks(suite, "load", model, *CPU, *options, changed=changed)
        assert ranks.end() == [code] * TP, (words, [ranks.stderr(r) for r in range(TP)])
        for rank in range(TP):
            assert words in ranks.stderr(rank) and ranks.stderr(rank).count("\n") == 1, ranks.stderr(rank)
    for arguments, words in ((["run", suite.smollm2(), "-p", "x"], "reads rank checkpoints only"), (["chat", model], "chat: one process a rank"),
                             (["load", model, *CPU, "--comm", "nccl"], "--comm nccl is for one process a rank on GPUs, and this is the CPU")):
        ranks = Ranks(suite, *arguments)
        assert ranks.end() == [2] * TP and words in ranks.stderr(0), ranks.stderr(0)
    ranks = Ranks(suite, "load", model, *CPU, n=2)  # nine heads
    assert ranks.end() == [2, 2] and "tp 2" in ranks.stderr(0), ranks.stderr(0)


def main():
    suite = Suite()
    model = suite.tmp / "ranks"
    made = []

    def make():
        suite.run("shard", suite.smollm2(), "-o", model, "--tp", f"1,{TP}")
        made.append(True)

    suite.check("shard", make)
    if made:
        suite.check("the answer of one process", same_answers, suite, model)
        suite.check("the log-probabilities of one process, to the bit", same_log_probabilities, suite, model)
        suite.check("load", loads, suite, model)
        for victim in range(TP):
            suite.check(f"rank {victim} killed ends all, which say so", killed, suite, model, victim)
        suite.check("a damaged rank ends all with its cause", damaged, suite, model)
        suite.check("Ctrl-C", interrupted, suite, model)
        suite.check("variables and options that make no sense", refusals, suite, model)
    return suite.end()


if __name__ == "__main__":
    sys.exit(main())
