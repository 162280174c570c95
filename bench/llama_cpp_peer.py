#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Firstlight beside llama.cpp on this machine, in alternating fresh processes: start to first token, prompt and generation rate.

llama.cpp is built from the source package of llama-cpp-python on PyPI for this machine's CPU (in --venv, once, about ten
minutes on two cores), and driven by bench/llama_cpp_start.cc, a native program; the start is also taken through the
package's own Python interface. Prints a Markdown table: medians, spread
(first to third quartile), and the median of the pairs' ratios.

    bench/llama_cpp_peer.py --venv build/llama-cpp --gguf models/smollm2.gguf --out models/smollm2 [-n 15]
"""
import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROMPT = "The capital of France is"
LONG_PROMPT = " the" * 512  # 512 tokens in every vocabulary tried


def build_peer(venv):
    """llama.cpp in a virtual environment of its own, and our driver linked against it."""
    python = venv / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    if not list(venv.glob("lib/python*/site-packages/llama_cpp/lib/libllama.so")):
        print("building llama.cpp from llama-cpp-python's source package …", file=sys.stderr)
        environment = {**os.environ, "CMAKE_ARGS": "-DGGML_NATIVE=ON"}
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-binary", "llama-cpp-python", "llama-cpp-python"], check=True, env=environment)
    site = next(venv.glob("lib/python*/site-packages"))
    library = site / "llama_cpp" / "lib"
    driver = venv / "bin" / "llama_cpp_start"
    source = ROOT / "bench" / "llama_cpp_start.cc"
    if not driver.exists() or driver.stat().st_mtime < source.stat().st_mtime:
        subprocess.run(["g++", "-O2", "-std=c++20", source, "-o", driver, f"-I{site / 'include'}", f"-L{library}", "-lllama", "-lggml", "-lggml-base",
                        f"-Wl,-rpath,{library.resolve()}", f"-Wl,-rpath-link,{library.resolve()}"], check=True)
    version = next(site.glob("llama_cpp_python-*.dist-info")).stem.split("-")[1]
    return driver, version


def make_bf16(gguf, python):
    out = gguf.with_name(gguf.stem + "-bf16.gguf")
    if not out.exists():
        subprocess.run([python, ROOT / "tools" / "make_bf16_gguf.py", gguf, out], check=True, stdout=sys.stderr)
    return out


def timed(command):
    """Seconds of a run that directly follows another of the same: its files are in the page cache, and the memory that it
    takes is what the other let go. (Where a virtual machine's balloon reports free pages, memory that was free for two
    seconds goes back to the host, and touching it again costs over 1 s a GB: whichever contender comes to it would pay.)
    """
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    begin = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - begin


def json_of(command):
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout)


def spread(values):
    quartiles = statistics.quantiles(values, n=4)
    return f"{statistics.median(values):.4g} ({quartiles[0]:.4g}–{quartiles[2]:.4g})"


def alternate(n, contenders):
    """{name: [n figures]}, one of each in turn, the first round thrown away (it fills the page cache)."""
    figures = {name: [] for name in contenders}
    for i in range(n + 1):
        for name, measure in contenders.items():
            value = measure()
            if i > 0:
                figures[name].append(value)
    return figures


def starts(arguments, driver, bf16):
    threads = str(arguments.threads)
    contenders = {
        "llama.cpp Q4_1": lambda: timed([driver, "start", arguments.gguf, threads, PROMPT]),
        "llama.cpp BF16": lambda: timed([driver, "start", bf16, threads, PROMPT]),
    }
    # The package as it is used: Python, its library, one token.
    package = ("import sys; from llama_cpp import Llama; "
               "Llama(sys.argv[1], n_threads=int(sys.argv[2]), verbose=False)(sys.argv[3], max_tokens=1, temperature=0)")
    for name, model in (("Q4_1", arguments.gguf), ("BF16", bf16)):
        contenders[f"llama-cpp-python {name}"] = lambda model=model: timed([arguments.venv / "bin" / "python", "-c", package, model, threads, PROMPT])
    if arguments.firstlight:
        contenders["Firstlight bf16"] = lambda: timed([arguments.firstlight, "run", arguments.out, "--raw", "-p", PROMPT, "-n", "1", "--greedy", "--threads", threads])
    return alternate(arguments.n, contenders)


def rates(arguments, driver, bf16, key, cache):
    """The rate `key` of each contender; one run gives both, so the second call takes what the first kept."""
    if not cache:
        prompt = arguments.gguf.with_name("peer-prompt.txt")
        prompt.write_text(LONG_PROMPT)
        contenders = {"llama.cpp BF16": lambda: json_of([driver, "rates", bf16, str(arguments.threads), LONG_PROMPT, str(arguments.tokens)])}
        if arguments.firstlight:
            contenders["Firstlight bf16"] = lambda: json_of([arguments.firstlight, "run", arguments.out, "--raw", "--prompt-file", prompt, "-n", str(arguments.tokens), "--greedy",
                                                             "--ignore-eos", "--json", "--threads", str(arguments.threads)])
        cache.update(alternate(max(3, arguments.n // 2), contenders))
        prompt.unlink()
    counts = {run["n_prompt"] for runs in cache.values() for run in runs}
    if len(counts) > 1:
        sys.exit(f"the contenders made {sorted(counts)} tokens of one prompt")
    return {name: [run[key] for run in runs] for name, runs in cache.items()}


def rows(title, figures, better_is_less):
    lines, mine = [], figures.get("Firstlight bf16")
    for name, values in figures.items():
        ratio = ""
        if mine and mine is not values:
            ratio = f"{statistics.median(m / v for m, v in zip(mine, values)):.2f}"
        lines.append(f"| {title} | {name} | {spread(values)} | {ratio} | {'less' if better_is_less else 'more'} |")
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--firstlight", type=pathlib.Path, default=ROOT / "build" / "cpu" / "firstlight")
    parser.add_argument("--gguf", type=pathlib.Path, default=ROOT / "models" / "smollm2.gguf", help="llama.cpp's quantised model")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "models" / "smollm2", help="Firstlight's rank checkpoint of the same model")
    parser.add_argument("--venv", type=pathlib.Path, default=ROOT / "build" / "llama-cpp", help="where llama.cpp is or will be built")
    parser.add_argument("--python", default=sys.executable, help="a Python with gguf and numpy")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--tokens", type=int, default=64, help="generated tokens for the rate")
    parser.add_argument("-n", type=int, default=15, help="rounds")
    parser.add_argument("--peer-only", action="store_true", help="measure llama.cpp alone")
    arguments = parser.parse_args()
    if arguments.peer_only:
        arguments.firstlight = None
    elif not shutil.which(str(arguments.firstlight)):
        sys.exit(f"no program at {arguments.firstlight}; --peer-only measures llama.cpp alone")
    driver, version = build_peer(arguments.venv)
    bf16 = make_bf16(arguments.gguf, arguments.python)
    cache = {}
    table = [f"llama-cpp-python {version}, {arguments.threads} threads, {arguments.n} rounds after one to warm up; median (quartiles); the ratio is Firstlight's to that line's",
             "", "| what | who | figure | ratio | better is |", "|---|---|---|---|---|"]
    table += rows("whole process, one token, s", starts(arguments, driver, bf16), True)
    table += rows("prompt of 512, tokens/s", rates(arguments, driver, bf16, "prompt_tokens_per_s", cache), False)
    table += rows("generation, tokens/s", rates(arguments, driver, bf16, "tokens_per_s", cache), False)
    print("\n".join(table))


if __name__ == "__main__":
    main()
