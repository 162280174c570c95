# SPDX-License-Identifier: Apache-2.0
"""The command line itself: help, wrong arguments, JSON, a full disk, a closed pipe."""
import ctypes
import json
import os
import pathlib
import platform
import resource
import select
import shutil
import signal
import struct
import subprocess
import sys
import time

from common import ROOT, TINY, Skip, Suite, assert_same_tree, files_of, gpus_said, tree_digest

COMMANDS = ["shard", "plan", "verify", "inspect", "load", "run", "chat", "score", "calibrate", "tokenize", "synth", "doctor", "bench start", "bench load", "bench kv"]


def helps(suite):
    top = suite.run("--help").out
    for command in COMMANDS:
        assert command.split()[0] in top, f"firstlight --help does not name {command}"
        text = suite.run(*command.split(), "--help").out
        assert "Example" in text and f"firstlight {command}" in text, f"{command} --help has no example:\n{text}"


def version(suite):
    done = suite.run("--version")
    assert done.out.startswith("firstlight ") and done.out.split()[1][0].isdigit(), done.out
    return done.out.strip()


def wrong_arguments(suite):
    out = suite.tmp / "tiny"
    suite.run("shard", TINY / "llama3", "-o", out, "--tp", "1,2")
    cases = [
        ([], "a command is missing", 2), (["frobnicate"], "frobnicate", 2), (["run"], "MODEL", 2), (["load", out, "--frobnicate"], "frobnicate", 2),
        (["run", out], "-p", 2), (["load", out, "--tp", "0"], "tp", 2), (["load", out, "--tp", "x"], "tp", 2),
        (["load", out, "--tp", "4"], "4", 3), (["plan", out, "--tp", "4"], "4", 3),
        (["load", out, "--tp", "3"], "3", 2), (["plan", out, "--tp", "3"], "3", 2), (["bench"], "bench start", 2),
        (["score", out, "--ids", "x", "--greedy"], "chooses no token", 2), (["run", out, "-p", b"a\xffb"], "byte 1 (255)", 2),
        (["run", out, "-p", "x", "--tp", "a"], "--tp", 2), (["load", suite.tmp / "nowhere"], "nowhere", 3), (["run", suite.tmp / "nowhere", "-p", "x"], "nowhere", 3),
        (["shard", TINY / "llama3"], "--out", 2), (["shard", TINY / "llama3", "-o", suite.tmp / "x", "--tp", "1", "--memory", "lots"], "lots", 2),
        (["shard", TINY / "llama3", "-o", suite.tmp / "x", "--tp", "1", "--dtype", "f7"], "f7", 2), (["score", out], "--ids", 2),
        (["score", out, "--ids", suite.tmp / "nowhere.json"], "nowhere.json", 3), (["inspect", suite.tmp / "nowhere"], "nowhere", 3),
        (["synth", "--like", "no-such-model", "-o", suite.tmp / "x"], "no-such-model", 2), (["verify", suite.tmp], str(suite.tmp), {2, 3}),
        (["load", TINY / "llama3" / "config.json"], "config.json", 2), (["run", out, "-p", "x", "--kv", "f7"], "f7", 2),
        (["run", out, "-p", "x", "--kv", "tq4", "--device", "cpu"], "head_dim 16", 2),
        (["verify", TINY / "llama3" / "config.json"], "not a rank checkpoint", 2), (["run", out, "-p", ""], "prompt is empty", 2),
        (["run", out, "-p", "x", "--temperature", "hot"], "'hot' is not a number from 0 to 100", 2), (["run", out, "-p", "x", "--tp", "a"], "'a' is not a whole number", 2),
        (["run", out, "-p", "x", "-p", "y"], "given 2 times", 2), (["run", out, "x", "-p", "y"], "a value without it in front", 2), (["shard", TINY / "llama3", "-o", ""], "--out", 2),
        (["score", out, "--ids", "x", "--top", 3], "--json", 2), (["verify", suite.tmp], "no rank checkpoint", 2), (["load", suite.tmp], "neither", 2), (["load", out, "b", "c"], "'b', 'c'", 2), (["load", out, "--threads", "many"], "'many' is not a whole number", 2), (["load", out, "--device", "toaster"], "toaster", 2),
    ]
    for arguments, word, code in cases:
        done = suite.run(*arguments, code=code)
        assert word in done.err, f"{arguments}: the message does not have {word!r}: {done.err}"
        assert done.out == "", f"{arguments}: printed on stdout: {done.out[:200]}"
    return f"{len(cases)} cases"


def limits_on_threads(suite):
    """A thread that cannot start is out of memory, and is named."""
    out, ids = suite.tmp / "tiny", suite.tmp / "ids.json"
    ids.write_text("[1, 2, 3]")

    def huge_stacks():
        resource.setrlimit(resource.RLIMIT_STACK, (1 << 40, resource.getrlimit(resource.RLIMIT_STACK)[1]))
        resource.setrlimit(resource.RLIMIT_AS, (1 << 39, 1 << 39))

    if resource.getrlimit(resource.RLIMIT_STACK)[1] not in (-1, resource.RLIM_INFINITY):
        raise Skip("the stack's limit may not be raised here")
    for arguments in (["run", out, "--ids", ids, "-n", 1], ["load", out], ["verify", out], ["tokenize", out]):
        done = suite.run(*arguments, "--json", code=5, preexec_fn=huge_stacks)
        assert done.json()["error"]["kind"] == "out_of_memory" and "start a thread for" in done.err, done.err


def one_token(suite):
    """Nothing can be scored in one token: the same code for people and programs. Text also comes from standard input."""
    out, ids = suite.tmp / "tiny", suite.tmp / "one.json"
    ids.write_text("[1]")
    assert "too short" in suite.run("score", out, "--ids", ids, code=2).err
    assert suite.run("score", out, "--ids", ids, "--json", code=2).json()["error"]["kind"] == "bad_input"
    model = suite.tmp / "smollm2"
    suite.run("shard", suite.smollm2(), "-o", model, "--tp", 1)
    text = suite.tmp / "text.txt"
    text.write_text("Once upon a time there was a fox.")
    assert suite.run("score", model, "--text", "-", stdin=text.read_bytes()).out == suite.run("score", model, "--text", text).out


def unreadable_input(suite):
    """A standard input that cannot be read, or that memory does not hold, is not the end of one."""
    out = suite.tmp / "smollm2"
    if not out.exists():
        suite.run("shard", suite.smollm2(), "-o", out, "--tp", 1)
    for command in (["tokenize", out], ["tokenize", out, "--json"], ["chat", out], ["run", out], ["score", out, "--text", "-"], ["run", out, "--ids", "-"]):
        for flags, word in ((os.O_RDONLY, "Is a directory"), (os.O_WRONLY, "Bad file descriptor")):
            path = suite.tmp if flags == os.O_RDONLY else os.devnull
            bad = os.open(path, flags)
            with subprocess.Popen([suite.binary, *map(str, command)], stdin=bad, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
                _, said = process.communicate(timeout=120)
            os.close(bad)
            assert process.returncode == 6 and f"read 'standard input': {word}" in said, f"{command}: {process.returncode}, {said}"

    def little_memory():
        resource.setrlimit(resource.RLIMIT_AS, (1 << 29, 1 << 29))
    done = suite.run("tokenize", out, "--json", stdin=b'"hello"\n' + b"a" * (600 << 20) + b'\n"bye"\n', code=5, preexec_fn=little_memory)
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert "ids" in lines[0] and lines[1]["error"]["kind"] == "out_of_memory" and len(lines) == 2, done.out
    assert "standard input" in done.err, done.err


def weights_of_nan(suite):
    """Weights that are no numbers are the same plain error for every command."""
    model, ids = suite.tmp / "nan", suite.tmp / "ids.json"
    shutil.copytree(TINY / "llama3", model)
    ids.write_text("[1, 2, 3]")
    content = bytearray((model / "model.safetensors").read_bytes())
    begin = 8 + struct.unpack("<Q", content[:8])[0]
    content[begin:] = b"\xff" * (len(content) - begin)  # NaN in bf16 and in f32
    (model / "model.safetensors").write_bytes(content)
    for command in (["score"], ["run", "-n", 2], ["run", "-n", 2, "--greedy"]):
        done = suite.run(command[0], model, *command[1:], "--ids", ids, "--json", code=2)
        assert done.json()["error"]["kind"] == "bad_input" and "not numbers" in done.err and "NaN" not in done.out.split('"message"')[0], done.out


def tokenize_streams(suite):
    """Good lines before a bad one are answered."""
    model = suite.tmp / "smollm2"
    done = suite.run("tokenize", suite.smollm2() if not model.exists() else model, "--json", stdin=b'"a"\n"b"\nc\n"d"\n', code=2)
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert [list(line) for line in lines] == [["ids"], ["ids"], ["error"]], done.out
    assert "line 3" in done.err, done.err


def interrupted_load(suite):
    """A load that is stopped says so in one line, also when the signal comes twice, as timeout(1) sends it."""
    model, out = suite.tmp / "big", suite.tmp / "big-ranks"
    suite.run("synth", "--like", "llama-3.2-1b", "-o", model)
    suite.run("shard", model, "-o", out, "--tp", 1)
    shutil.rmtree(model)
    for n_signals in (1, 2):
        with open(suite.tmp / "said", "w+b") as said:
            process = subprocess.Popen([suite.binary, "load", out, "--threads", "1"], stderr=said, stdout=subprocess.DEVNULL)
            deadline = time.monotonic() + 30
            while not pathlib.Path(said.name).stat().st_size and time.monotonic() < deadline:  # it speaks when its handler stands
                time.sleep(0.005)
            for _ in range(n_signals):
                process.send_signal(signal.SIGINT)
            assert process.wait(60) == 130
            said.seek(0)
            lines = [line for line in said.read().decode().splitlines() if not line.startswith("device:")]
            assert lines == ["firstlight: interrupted"], lines
    shutil.rmtree(out)


def json_output(suite):
    out, ids = suite.tmp / "tiny", suite.tmp / "ids.json"
    ids.write_text("[1, 2, 3]")
    for arguments in (["load", out, "--tp", 2], ["verify", out], ["plan", out, "--tp", 2], ["inspect", out], ["inspect", TINY / "llama3" / "model.safetensors"],
                      ["score", out, "--ids", ids], ["shard", TINY / "llama3", "-o", suite.tmp / "json", "--tp", 1],
                      ["synth", "--config", TINY / "llama3" / "config.json", "-o", suite.tmp / "synth"]):
        done = suite.run(*arguments, "--json")
        done.json()
        assert done.out.count("\n") >= 1 and done.out.endswith("\n"), arguments
    failed = suite.run("load", suite.tmp / "nowhere", "--json", code=3)
    assert failed.json()["error"]["kind"] == "not_found", failed.out
    damaged = suite.run("shard", "--json", code=2)
    assert "error" in damaged.json()


def inspect_hashes(suite):
    """inspect --hash gives the SHA-256 of the stored bytes, for each kind of file."""
    import hashlib
    import struct
    path = TINY / "llama3" / "model.safetensors"
    got = suite.run("inspect", path, "--json", "--hash", "sha256").json()
    raw = path.read_bytes()
    n, = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8:8 + n])
    header.pop("__metadata__", None)
    assert got.keys() == header.keys(), "other names than the file has"
    for name, tensor in header.items():
        begin, end = tensor["data_offsets"]
        assert got[name]["sha256"] == hashlib.sha256(raw[8 + n + begin:8 + n + end]).hexdigest(), name
        assert got[name]["shape"] == tensor["shape"] and got[name]["dtype"].upper() == tensor["dtype"], got[name]
    return f"{len(got)} tensors"


def synth_is_a_model(suite):
    folder, out = suite.tmp / "synthetic", suite.tmp / "synthetic-ranks"
    suite.run("synth", "--config", TINY / "qwen3" / "config.json", "-o", folder, "--seed", 3)
    suite.run("synth", "--config", TINY / "qwen3" / "config.json", "-o", suite.tmp / "again", "--seed", 3)
    assert_same_tree(tree_digest(suite.tmp / "again"), tree_digest(folder), "the same seed again")
    suite.run("shard", folder, "-o", out, "--tp", "1,2")
    suite.run("verify", out)
    suite.run("load", out, "--tp", 2)


def limited(bytes_):
    """For preexec: no file may grow beyond this; writes fail as on a full disk."""
    def prepare():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_, bytes_))
    return prepare


def failed_write(suite):
    """A write that fails half-way is exit code 6, and the conversion goes on where it was."""
    out, whole = suite.tmp / "limited", suite.tmp / "whole"
    suite.run("shard", TINY / "llama2", "-o", whole, "--tp", "1,2")
    done = suite.run("shard", TINY / "llama2", "-o", out, "--tp", "1,2", code=6, preexec_fn=limited(2_100_000))
    assert "large" in done.err or "space" in done.err, done.err
    assert not (out / "READY").exists()
    suite.run("shard", TINY / "llama2", "-o", out, "--tp", "1,2")
    assert_same_tree(tree_digest(out), tree_digest(whole), "after a failed write")


def full_disk(suite):
    """A file system without room: said before the first byte, and resumable once there is room."""
    mount = suite.tmp / "small"
    mount.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", mount], capture_output=True, text=True, check=False) if os.getuid() == 0 else None
    if done is None or done.returncode:
        raise Skip("may not mount a tmpfs here")
    try:
        out = mount / "out"
        done = suite.run("shard", TINY / "llama2", "-o", out, "--tp", "1,2", code=6)
        assert "need" in done.err or "space" in done.err or "free" in done.err, done.err
        assert not list(out.rglob("*.safetensors")), "wrote before it looked"
        subprocess.run(["mount", "-o", "remount,size=64m", mount], check=True)
        suite.run("shard", TINY / "llama2", "-o", out, "--tp", "1,2")
        assert_same_tree(tree_digest(out), tree_digest(suite.tmp / "whole"), "after the disk was full")
    finally:
        subprocess.run(["umount", mount], check=True)


def full_stdout(suite):
    with open("/dev/full", "wb") as full:
        suite.run("plan", suite.tmp / "tiny", "--json", code=6, stdout=full)
        suite.run("--help", code=6, stdout=full)


def unwritable(suite):
    path = suite.tmp / "a-file"
    path.write_text("x")
    done = suite.run("shard", TINY / "llama3", "-o", path / "out", "--tp", 1, code={2, 3, 6})
    assert "a-file" in done.err, done.err


def long_run(suite, end):
    """Starts a long answer, waits for its first byte, lets `end` stop it, and gives exit code and seconds until it was over."""
    out = suite.tmp / "smollm2"
    if not out.exists():
        suite.run("shard", suite.smollm2(), "-o", out, "--tp", 1)
    process = subprocess.Popen(
        [suite.binary, "run", out, "-p", "Tell me a very long story.", "-n", "4000", "--ignore-eos"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert process.stdout.read(1), "no answer"
        begin = time.monotonic()
        end(process)
        if not process.stdout.closed:
            process.communicate(timeout=60)
        return process.wait(60), time.monotonic() - begin
    finally:
        process.kill()  # nothing is left behind, whatever failed


def ctrl_c_in_run(suite):
    code, seconds = long_run(suite, lambda process: process.send_signal(signal.SIGINT))
    assert code == 130, f"exit code {code}"
    return f"ended {seconds:.2f} s after Ctrl-C"


def ctrl_c_in_json(suite):
    """What was generated until then is not lost."""
    process = subprocess.Popen(
        [suite.binary, "run", suite.tmp / "smollm2", "-p", "Tell me a very long story.", "-n", "8000", "--ignore-eos", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        time.sleep(3)  # the first token comes after a tenth of a second, the last after a minute
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 130, f"exit code {process.returncode}"
        answer = json.loads(out)
        assert answer["finish"] == "cancelled" and len(answer["ids"]) > 0 and answer["text"], out[:300]
        return f"{len(answer['ids'])} tokens kept"
    finally:
        process.kill()


def closed_pipe(suite):
    """`firstlight run … | head -c 1` ends soon."""
    code, seconds = long_run(suite, lambda process: process.stdout.close())
    assert code in (6, 0, 130, 141, -signal.SIGPIPE), f"exit code {code}"
    return f"ended {seconds:.2f} s after the pipe was closed"


def prompts_from_everywhere(suite):
    """The same prompt as -p, as an argument, from a file, from standard input: the same answer."""
    out = suite.tmp / "smollm2"
    if not out.exists():
        raise Skip("needs the conversion before it")
    file = suite.tmp / "prompt.txt"
    file.write_text("Name a colour.")
    ways = [(["-p", "Name a colour."], b""), (["Name a colour."], b"ignored"), (["--prompt-file", file], b""), (["--prompt-file", "-"], b"Name a colour."), ([], b"Name a colour.")]
    answers = {suite.run("run", out, *arguments, "--greedy", "-n", 8, stdin=text).out for arguments, text in ways}
    assert len(answers) == 1, f"{answers}"
    suite.run("run", out, stdin=b"", code=2)
    suite.run("run", out, stdin=b"\xff\xfe", code=2)
    return repr(answers.pop().strip())


def chat_answers(suite):
    out = suite.tmp / "smollm2"
    if not out.exists():
        raise Skip("needs the conversion before it")
    done = suite.run("chat", out, "--greedy", "-n", 12, stdin=b"My name is Ada.\nWhat is my name?\n")
    assert len(done.out.strip()) > 10, f"{done.out!r}"
    assert not done.out.startswith("> "), "a prompt for nobody"
    told = suite.run("chat", out, "--greedy", "-n", 12, "--json", stdin=b"My name is Ada.\nWhat is my name?\n")
    turns = [json.loads(line) for line in told.out.splitlines()]
    assert len(turns) == 2 and all(len(t["ids"]) == 12 and t["text"] in done.out for t in turns), told.out
    assert "load" in turns[0] and "load" not in turns[1], told.out
    return repr(done.out.strip()[:60])


def ctrl_c_in_chat(suite):
    """Ctrl-C stops an answer and the conversation goes on; at the prompt it ends it."""
    out = suite.tmp / "smollm2"
    if not out.exists():
        raise Skip("needs the conversion before it")
    import pty
    parent, child = pty.openpty()
    process = subprocess.Popen([suite.binary, "chat", out, "--greedy", "--ignore-eos", "-n", "100000"], stdin=child, stdout=child, stderr=child, start_new_session=True)
    os.close(child)
    seen = b""

    def wait_for(word, count=1):
        nonlocal seen
        deadline = time.monotonic() + 60
        while seen.count(word) < count:
            assert time.monotonic() < deadline and process.poll() is None, f"no {word!r} in {seen[-500:]!r}"
            if select.select([parent], [], [], 0.1)[0]:
                seen += os.read(parent, 4096)
    try:
        for turn in (1, 2):
            wait_for(b"> ", turn)
            os.write(parent, b"Tell me a very long story.\n")
            length = len(seen)
            deadline = time.monotonic() + 60
            while len(seen) < length + 60:  # its echo, and some of the answer
                assert time.monotonic() < deadline, f"no answer in {seen[-500:]!r}"
                if select.select([parent], [], [], 0.1)[0]:
                    seen += os.read(parent, 4096)
            process.send_signal(signal.SIGINT)
            wait_for(b"(stopped)", turn)
        wait_for(b"> ", 3)
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
    finally:
        process.kill()
        os.close(parent)


def failed_turn(suite):
    """A message that cannot be answered is an object with "error", and the exit code at the end."""
    out = suite.tmp / "smollm2"
    if not out.exists():
        raise Skip("needs the conversion before it")
    long = b"word " * 200
    done = suite.run("chat", out, "--json", "--greedy", "-n", 4, "--max-context", 128, stdin=b"Hi.\n" + long + b"\nHi.\n", code=2)
    turns = [json.loads(line) for line in done.out.splitlines()]
    assert ["error" in turn for turn in turns] == [False, True, False], done.out
    assert {"load", "kv", "ttft_s"} <= turns[0].keys(), turns[0].keys()
    done = suite.run("chat", out, "--json", "--greedy", "-n", 4, stdin=b"\n/nonsense\nHi.\n/reset \n/etc/passwd is a file.\n/exit \nHi.\n", code=2)
    turns = [json.loads(line) for line in done.out.splitlines()]
    assert [next(iter(turn)) for turn in turns] == ["error", "error", "text", "reset", "text"], done.out
    assert {"load", "kv", "ttft_s"} <= turns[2].keys() and "load" not in turns[4], done.out
    assert "/nonsense" in done.err and "press Enter" not in done.err, done.err


def bench_start(suite):
    out = suite.tmp / "smollm2"
    if not out.exists():
        raise Skip("needs the conversion before it")
    got = suite.run("bench", "start", out, "--traditional-model", suite.smollm2(), "-n", 2, "--json").json()
    assert any("ratio" in key for key in got), got.keys()
    warm = suite.run("bench", "start", out, "--warm", "--reader", "buffered", "-n", 2, "--json").json()["warm"]
    assert len(warm["ttft_s"]) == 2 and warm["min_ttft_s"] <= warm["median_ttft_s"] <= warm["max_ttft_s"]
    assert warm["load"]["verify"] == "full" and all(0 <= p["start_s"] <= p["end_s"] for p in warm["phases"]), warm


def forbid_io_uring():
    """What a container's seccomp profile does: io_uring_setup (425) is EPERM. For preexec_fn."""
    ret_errno, allow = 0x00050001, 0x7FFF0000  # SECCOMP_RET_ERRNO | EPERM, SECCOMP_RET_ALLOW
    # Load the call's number; jump by equality; return.
    code = b"".join(struct.pack("HBBI", *line) for line in ((0x20, 0, 0, 0), (0x15, 0, 1, 425), (0x06, 0, 0, ret_errno), (0x06, 0, 0, allow)))
    lines = ctypes.create_string_buffer(code)
    program = struct.pack("HxxxxxxP", 4, ctypes.addressof(lines))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(38, 1, 0, 0, 0) != 0 or libc.prctl(22, 2, program, 0, 0) != 0:  # no new privileges, then the filter
        os._exit(99)


def readers(suite):
    """All readers give the same answer; one that is forbidden is not taken, and that is said."""
    out, ids = suite.tmp / "tiny", suite.tmp / "ids.json"
    ids.write_text("[1, 2, 3]")
    answers = {}
    for reader in ("auto", "pread", "io_uring"):
        done = suite.run("run", out, "--tp", 2, "--ids", ids, "-n", 8, "--greedy", "--ignore-eos", "--json", "--reader", reader, code={0, 2})
        if done.code == 2:
            assert reader == "io_uring" and "--reader io_uring: " in done.err, done.err
            continue
        got = done.json()
        assert got["load"]["reader"].startswith(reader) or reader == "auto", got["load"]
        answers[reader] = got["ids"]
    assert len(set(map(str, answers.values()))) == 1, answers
    why = suite.run("load", out, "--json").json()["load"]["why"]
    assert "page cache" in why, why
    suite.run("load", TINY / "llama3", "--reader", "io_uring", code=2)
    if platform.machine() != "x86_64":
        raise Skip("the filter that forbids io_uring is for x86-64")
    forbidden = suite.run("load", out, "--reader", "io_uring", code=2, preexec_fn=forbid_io_uring)
    assert "forbidden" in forbidden.err and "seccomp" in forbidden.err, forbidden.err
    assert suite.run("load", out, "--json", preexec_fn=forbid_io_uring).json()["load"]["reader"].startswith("pread")
    return f"{sorted(answers)}"


def doctor(suite):
    found = suite.run("doctor", suite.tmp, "--json").json()
    names = {finding["name"] for finding in found["findings"]}
    assert {"kernel", "cores", "memory", "memory locks", "huge pages", "io_uring", "file system", "direct reads"} <= names, names
    assert found["n_warnings"] == sum(finding["state"] == "warning" for finding in found["findings"])
    assert suite.run("doctor", suite.tmp).out.count("\n") > len(names) / 2
    suite.run("doctor", suite.tmp / "nowhere", code=3)
    (suite.tmp / "file").write_text("x")
    of_a_file = {f["name"]: f["value"] for f in suite.run("doctor", suite.tmp / "file", "--json").json()["findings"]}
    assert of_a_file["file system"] == {f["name"]: f["value"] for f in found["findings"]}["file system"]
    if platform.machine() != "x86_64":
        raise Skip("the filter that forbids io_uring is for x86-64")
    blocked = suite.run("doctor", suite.tmp, "--json", preexec_fn=forbid_io_uring).json()
    uring = next(finding for finding in blocked["findings"] if finding["name"] == "io_uring")
    assert uring["state"] == "warning" and "seccomp" in uring["value"] + uring["advice"], uring


def drawn(suite, name, report):
    """The picture that tools/plot_NAME.py makes of what `bench NAME --json` printed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise Skip(f"bench {name} is right; its picture needs matplotlib") from None
    (suite.tmp / f"{name}.json").write_text(json.dumps(report))
    picture = suite.tmp / f"{name}.svg"
    subprocess.run([sys.executable, ROOT / "tools" / f"plot_{name}.py", suite.tmp / f"{name}.json", "-o", picture], check=True)
    return picture.read_text()


def bench_load(suite):
    out = suite.tmp / "tiny"
    got = suite.run("bench", "load", out, "-n", 1, "--pieces", "64KiB,1MiB", "--in-flight", 4, "--json").json()
    assert any(row["is_floor"] for row in got["loads"]) and all(row["gb_per_s"] > 0 for row in got["loads"]), got["loads"]
    assert {point["reader"] for point in got["sweep"]} >= {"pread"} and got["time_against_bytes"], got
    assert "share of the floor" in suite.run("bench", "load", out, "-n", 1, "--no-sweep").out
    few = suite.run("bench", "load", out, "-n", 1, "--no-sweep", "--states", "cold", "--readers", "pread", "--verify", "full", "--json").json()
    assert {(load["state"], load["what"], load["verify"]) for load in few["loads"] if not load["is_floor"]} <= {
        ("cold", "load by pread with O_DIRECT", "full")}, few["loads"]
    assert "--states" in suite.run("bench", "load", out, "--states", "cold", "--peers", code=2).err
    suite.run("bench", "load", out, "--states", "hot", code=2), suite.run("bench", "load", out, "--readers", "cufile", code=2)
    suite.run("bench", "load", out, "--tp", 64, code=3), suite.run("bench", "load", out, "--pieces", "1000", code=2)
    picture = drawn(suite, "load", got)
    assert all(row["what"] in picture for row in got["loads"]), picture


def codes_memory(suite):
    """A page of codes is 34 / 128 of a bf16 page at head_dim 64, and no context has more exact pages than pages."""
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
              "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64, "vocab_size": 128, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
              "max_position_embeddings": 8192, "torch_dtype": "bfloat16", "tie_word_embeddings": False, "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2}
    (suite.tmp / "codes.json").write_text(json.dumps(config))
    (suite.tmp / "codes_ids.json").write_text("[5, 6, 7]")
    suite.run("synth", "--config", suite.tmp / "codes.json", "-o", suite.tmp / "codes_model")
    bf16, codes = 2 * 64 * 64 * 2 * 2, 2 * 64 * 34 * 2  # keys and values, 64 tokens, two layers
    common = ["run", suite.tmp / "codes_model", "--ids", suite.tmp / "codes_ids.json", "-n", 1, "--ignore-eos", "--device", "cpu", "--kv", "tq4", "--json"]
    for pages, exact in ((1, 1), (5, 5), (13, 13), (14, 13), (100, 13)):
        for size in (["--max-context", pages * 64], ["--kv-memory", pages * codes + exact * bf16]):
            kv = suite.run(*common, *size).json()["kv"]
            assert kv["exact_bytes"] == exact * bf16, (pages, size, kv)
            assert kv["bytes"] == pages * codes + exact * bf16, (pages, size, kv)
    told = [suite.run(*(kind if word == "tq4" else word for word in common), "--max-context", 320, *options)
            for kind, options in (("tq4", []), ("tq4", ["--prefill", "fast"]), ("bf16", ["--prefill", "fast"]))]
    assert [done.json()["prefill"] for done in told] == ["strict", "fast", "strict"] and "bf16 pages hold no codes" in told[2].err, told[2].err
    refused = suite.run(*common, "--prefill", "fast", "--save-prefix", suite.tmp / "fast.kv", code=2)
    assert "strict prefill" in refused.err and not (suite.tmp / "fast.kv").exists(), refused.err
    return "10 sizes"


def calibration(suite):
    """Means of keys and values: made, used, and refused where they do not fit; the model is codes_memory's."""
    model, ids, out = suite.tmp / "codes_model", suite.tmp / "calibration_ids.json", suite.tmp / "means.kv"
    ids.write_text(json.dumps([(i * i + 3 * i) % 128 for i in range(700)]))
    made = suite.run("calibrate", model, "--ids", ids, "-o", out, "--window", 500, "--json").json()
    assert made["n_tokens"] == 700 - 2 * 64 and made["bytes"] == out.stat().st_size, made
    length = int.from_bytes(out.read_bytes()[:8], "little")
    header = json.loads(out.read_bytes()[8:8 + length])
    assert header["kv_means"]["shape"] == [2, 2, 1, 64] and header["__metadata__"]["model"] == made["model"], header
    common = ["run", model, "--ids", suite.tmp / "codes_ids.json", "-n", 1, "--ignore-eos", "--device", "cpu", "--json"]
    assert suite.run(*common, "--kv", "tq4").json()["kv"]["centring"] is None
    used = suite.run(*common, "--kv", "tq4", "--kv-calibration", out).json()["kv"]["centring"]
    assert used == header["__metadata__"]["xxh3"], used
    other, damaged = suite.tmp / "other_model", suite.tmp / "damaged.kv"
    suite.run("synth", "--config", suite.tmp / "codes.json", "-o", other, "--seed", 2)
    flipped = bytearray(out.read_bytes())
    flipped[-1] ^= 1
    damaged.write_bytes(flipped)
    for code, words, options in ((2, "another model", ["--kv", "tq4", "--kv-calibration", out]), (4, "another hash", ["--kv", "tq4", "--kv-calibration", damaged]),
                                 (2, "keeps numbers", ["--kv", "bf16", "--kv-calibration", out])):
        done = suite.run("run", other, *common[2:-1], *options, code=code)
        assert words in done.err, (words, done.err)
    short = suite.run("calibrate", model, "--ids", suite.tmp / "codes_ids.json", "-o", suite.tmp / "none.kv", code=2)
    assert "too short" in short.err and not (suite.tmp / "none.kv").exists(), short.err


def bench_kv(suite):
    """Quality, times and room of kinds of KV cache; the model, its ids and its means are calibration's."""
    model, ids = suite.tmp / "codes_model", suite.tmp / "calibration_ids.json"
    common = ["bench", "kv", model, "--device", "cpu"]
    got = suite.run(*common, "--ids", ids, "--window", 320, "--skip", 64, "--kv", "bf16,tq4", "--contexts", "200,64", "--batches", "1,3", "--steps", 2,
                    "--json").json()
    quality = {kind["kv"]: kind for kind in got["quality"]["kinds"]}
    assert list(quality) == ["f32", "bf16", "tq4"] and got["quality"]["positions"] == 2 * 255, got["quality"]
    assert quality["f32"]["mean_kld"] == 0 < quality["bf16"]["mean_kld"] < quality["tq4"]["mean_kld"] < 0.1, quality
    assert "gate" in quality["tq4"] and "gate" not in quality["bf16"], quality
    assert [(s["kv"], s["sequences"], s["context"]) for s in got["steps"]] == [(k, n, c) for n in (1, 3) for c in (64, 200) for k in ("bf16", "tq4")]
    assert all(s["least_s"] > 0 and s["beside_first"] > 0 for s in got["steps"]) and len(got["prompts"]) == 8, got
    assert got["room"][0]["bytes_a_token"] == 2 * 2 * 64 * 2 and got["room"][1]["bytes_a_token"] < 0.3 * 512, got["room"]
    centred = suite.run(*common, "--ids", ids, "--window", 320, "--skip", 64, "--kv", "tq4", "--no-speed", "--kv-calibration", suite.tmp / "means.kv", "--json")
    assert [kind["kv"] for kind in centred.json()["quality"]["kinds"]] == ["f32", "tq4+centred"], centred.out
    told = suite.run(*common, "--kv", "bf16,tq8", "--contexts", 64, "--steps", 1)
    assert "| tq8 | 1 x 64 |" in told.out and "--text" in told.err, told.out + told.err
    for words, code, options in (("--text", 2, ["--no-speed"]), ("more text", 2, ["--ids", ids]), ("f7", 2, ["--kv", "bf16,f7"]), ("--contexts 9000", 2, ["--contexts", 9000]),
                                 ("positions for", 2, ["--ids", ids, "--window", 9000]), ("nowhere", 3, ["--text", suite.tmp / "nowhere"]),
                                 ("--skip", 2, ["--ids", ids, "--window", 64, "--skip", 63]), ("wants --text", 2, ["--kv-calibration", suite.tmp / "means.kv"])):
        done = suite.run(*common, *options, code=code)
        assert words in done.err, (words, done.err)
    picture = drawn(suite, "kv", got)
    assert all(picture.count(f">{kind}</text>") == 2 for kind in ("bf16", "tq4")), picture


def centring_on_a_gpu(suite):
    """The CPU's log-probabilities, and a prefix without means is none with them; model, ids and means are calibration's."""
    gpus = gpus_said(suite)
    if "cuda:0 " not in gpus:
        raise Skip(gpus)
    ids, centred = suite.tmp / "calibration_ids.json", ["--kv", "tq4", "--kv-calibration", suite.tmp / "means.kv"]
    cpu, gpu = (suite.run("score", suite.tmp / "codes_model", "--ids", ids, *centred, "--device", device, "--json").json() for device in ("cpu", "cuda"))
    worst = max(abs(a - b) for a, b in zip(cpu["logprobs"][1:], gpu["logprobs"][1:], strict=True))
    assert worst < 0.05, worst
    run = ["run", suite.tmp / "codes_model", "--ids", ids, "-n", 4, "--greedy", "--ignore-eos", "--device", "cuda", "--json"]
    saved = suite.run(*run, *centred, "--save-prefix", suite.tmp / "centred.prefix").json()
    restored = suite.run(*run, *centred, "--restore-prefix", suite.tmp / "centred.prefix").json()
    assert restored["ids"] == saved["ids"] and restored["kv"]["centring"] == saved["kv"]["centring"] is not None, (saved, restored)
    refused = suite.run(*run, "--kv", "tq4", "--restore-prefix", suite.tmp / "centred.prefix", code=2)
    assert "centring" in refused.err, refused.err
    return f"log-probabilities within {worst:.4f} of the CPU's"


def main():
    suite = Suite()
    suite.check("every command has help with an example", helps, suite)
    suite.check("--version", version, suite)
    suite.check("wrong arguments end with a message", wrong_arguments, suite)
    suite.check("--json gives one object", json_output, suite)
    suite.check("codes take the memory they say", codes_memory, suite)
    suite.check("keys and values are centred by a calibration", calibration, suite)
    suite.check("bench kv measures and is drawn", bench_kv, suite)
    suite.check("codes centred on a GPU are the CPU's, and so are their prefixes", centring_on_a_gpu, suite)
    suite.check("a thread that cannot start is out of memory", limits_on_threads, suite)
    suite.check("score of one token, and of standard input", one_token, suite)
    suite.check("a stopped load has a last word", interrupted_load, suite)
    suite.check("readers agree, and a forbidden one is said", readers, suite)
    suite.check("inspect hashes stored bytes", inspect_hashes, suite)
    suite.check("doctor says what forbids io_uring", doctor, suite)
    suite.check("synth makes a model", synth_is_a_model, suite)
    suite.check("a failed write is resumable", failed_write, suite)
    suite.check("a full disk is said first, and resumable", full_disk, suite)
    suite.check("a full stdout is an error", full_stdout, suite)
    suite.check("a directory that can't be made is an error", unwritable, suite)
    suite.check("Ctrl-C ends run with 130", ctrl_c_in_run, suite)
    suite.check("Ctrl-C keeps what run --json has", ctrl_c_in_json, suite)
    suite.check("a closed pipe ends run", closed_pipe, suite)
    suite.check("Ctrl-C stops an answer of chat", ctrl_c_in_chat, suite)
    suite.check("a failed turn of chat is seen at the end", failed_turn, suite)
    suite.check("tokenize answers what comes before a bad line", tokenize_streams, suite)
    suite.check("an input that cannot be read is not empty", unreadable_input, suite)
    suite.check("weights of NaN are bad input", weights_of_nan, suite)
    suite.check("a prompt comes from everywhere", prompts_from_everywhere, suite)
    suite.check("chat answers lines from a pipe", chat_answers, suite)
    suite.check("bench start compares", bench_start, suite)
    suite.check("bench load measures and is drawn", bench_load, suite)
    sys.exit(suite.end())


if __name__ == "__main__":
    main()
