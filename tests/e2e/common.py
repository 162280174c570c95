# SPDX-License-Identifier: Apache-2.0
"""What the end-to-end scripts share: running the program, counting checks, looking at trees of files."""
import argparse
import hashlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
import traceback

ROOT = pathlib.Path(__file__).resolve().parents[2]
TINY = ROOT / "tests" / "data" / "golden"


class Skip(Exception):
    """Raised by a check that this machine can't run; the message says why."""


def gpus_said(suite):
    """What doctor says of the GPUs that this build can use: "cuda:0 …", or why there is none."""
    found = {f["name"]: f for f in suite.run("doctor", suite.tmp, "--json").json()["findings"]}
    return (found.get("CUDA") or found["NVIDIA GPUs"])["value"]


class Result:
    def __init__(self, code, out, err, seconds, peak_bytes):
        self.code, self.out, self.err, self.seconds, self.peak_bytes = code, out, err, seconds, peak_bytes

    def json(self):
        """The one JSON object that stdout must be."""
        value = json.loads(self.out)
        assert isinstance(value, dict), f"stdout is JSON, but no object: {self.out[:200]}"
        return value


class Suite:
    """Runs functions as checks: `for check in …: suite.check(name, function)`, then `sys.exit(suite.end())`."""

    def __init__(self):
        parser = argparse.ArgumentParser()
        parser.add_argument("--firstlight", type=pathlib.Path, default=ROOT / "build" / "cpu" / "firstlight")
        parser.add_argument("--model", type=pathlib.Path, default=ROOT / "models" / "smollm2.gguf")
        parser.add_argument("--only", default="", help="run only checks whose name contains this")
        arguments = parser.parse_args()
        self.binary, self.gguf, self.only = arguments.firstlight.resolve(), arguments.model, arguments.only
        self.passed = self.failed = self.skipped = 0
        self.folder = tempfile.TemporaryDirectory(prefix="firstlight-e2e-")
        self.tmp = pathlib.Path(self.folder.name)
        if not self.binary.exists():
            print(f"SKIPPED: no program at {self.binary}")
            sys.exit(77)

    def smollm2(self):
        if not self.gguf.exists():
            raise Skip(f"no model at {self.gguf}; tools/fetch_smollm2.py fetches it")
        return self.gguf

    def run(self, *arguments, code=0, timeout=120, stdin=b"", **popen):
        """Runs the program; fails if it ends with another code, by a signal, or not within the time."""
        out, err = tempfile.TemporaryFile(dir=self.tmp), tempfile.TemporaryFile(dir=self.tmp)
        begin = time.monotonic()
        with subprocess.Popen([self.binary, *(a if isinstance(a, bytes) else str(a) for a in arguments)], stdin=subprocess.PIPE, stdout=popen.pop("stdout", out),
                              stderr=err, **popen) as process:
            feeder = None
            if stdin:
                import threading
                feeder = threading.Thread(target=feed, args=(process.stdin, stdin))
                feeder.start()
            else:
                process.stdin.close()
            deadline, peak = begin + timeout, 0
            while True:
                peak = max(peak, peak_memory(process.pid))
                pid, status = os.waitpid(process.pid, os.WNOHANG)
                if pid:
                    break
                if time.monotonic() > deadline:
                    process.kill()
                    os.waitpid(process.pid, 0)
                    process.returncode = -9
                    raise AssertionError(f"hung for {timeout} s: firstlight {' '.join(map(str, arguments))}")
                time.sleep(0.005)
            process.returncode = os.waitstatus_to_exitcode(status)
            if feeder:
                feeder.join()
        out.seek(0), err.seek(0)
        result = Result(process.returncode, out.read().decode(errors="replace"), err.read().decode(errors="replace"),
                        time.monotonic() - begin, peak)
        codes = code if isinstance(code, (set, tuple, list)) else {code}
        assert result.code in codes, (f"firstlight {' '.join(map(str, arguments))}: exit code {result.code}, expected "
                                      f"{sorted(codes)}\n{result.err[-1500:]}")
        assert "terminate called" not in result.err and "Sanitizer" not in result.err, result.err[-2000:]
        return result

    def start(self, *arguments):
        """Starts the program without waiting; output is thrown away."""
        return subprocess.Popen([self.binary, *map(str, arguments)], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                stderr=subprocess.DEVNULL)

    def check(self, name, function, *arguments):
        if self.only not in name:
            return
        begin = time.monotonic()
        try:
            note = function(*arguments)
            self.passed += 1
            print(f"ok       {name} ({time.monotonic() - begin:.1f} s){f': {note}' if note else ''}", flush=True)
        except Skip as reason:
            self.skipped += 1
            print(f"SKIPPED  {name}: {reason}", flush=True)
        except Exception as problem:  # a broken check is a failed one
            self.failed += 1
            print(f"FAILED   {name}: {problem}", flush=True)
            if not isinstance(problem, AssertionError):
                traceback.print_exc()

    def end(self):
        self.folder.cleanup()
        print(f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped")
        return 1 if self.failed else 77 if self.passed == 0 else 0


def peak_memory(pid):
    """Peak resident bytes so far; 0 if it has ended. (getrusage would count the parent's memory from before exec, too.)"""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii") as status:
            return next((int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM")), 0)
    except OSError:
        return 0


def feed(pipe, data):
    try:
        with pipe:
            pipe.write(data)
    except BrokenPipeError:
        pass  # the program's exit code tells the story


def need(*modules):
    """Imports modules, or skips the check."""
    try:
        return [__import__(m) for m in modules]
    except ImportError as missing:
        raise Skip(f"{missing}; scripts/setup.sh test installs it") from None


def files_of(folder):
    return sorted(p for p in pathlib.Path(folder).rglob("*") if p.is_file())


def tree_digest(folder):
    """{relative name: sha256} of all files."""
    digests = {}
    for path in files_of(folder):
        with open(path, "rb") as file:
            digests[str(path.relative_to(folder))] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def assert_same_tree(got, expected, what):
    names = sorted(n for n in got.keys() | expected.keys() if got.get(n) != expected.get(n))
    assert not names, f"{what}: {len(names)} files differ or are missing: {', '.join(names[:5])}"


def flip_bit(path, offset, bit=0):
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ (1 << bit)]))


def interrupt(process, after_s, sig=signal.SIGKILL):
    """Sends a signal after some seconds; the process's exit code (0 if it had ended before)."""
    try:
        process.wait(after_s)
    except subprocess.TimeoutExpired:
        process.send_signal(sig)
    return process.wait(60)
