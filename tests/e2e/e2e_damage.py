# SPDX-License-Identifier: Apache-2.0
"""Damage: whatever happens to a file, the program says so, names it, and ends with the right exit code."""
import json
import random
import shutil
import subprocess
import sys
import time

from common import TINY, Suite, files_of, flip_bit
from hostile import hostile_gguf, hostile_safetensors

MISSING, DAMAGED, BAD_INPUT = 3, 4, 2


def copy_of(suite, out):
    copy = suite.tmp / "damaged"
    if copy.exists():
        shutil.rmtree(copy)
    shutil.copytree(out, copy)
    return copy


def tiny_model(suite):
    """A tiny model with a byte-level tokenizer and every small file that run uses."""
    model = suite.tmp / "tiny-source"
    shutil.copytree(TINY / "qwen2.5", model)
    letters = [chr(c) for c in [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x144)]]
    tokenizer = {"version": "1.0", "added_tokens": [], "normalizer": None, "post_processor": None,
                 "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
                 "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
                 "model": {"type": "BPE", "unk_token": None, "vocab": {c: i for i, c in enumerate(letters)}, "merges": []}}
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    (model / "tokenizer_config.json").write_text('{"add_bos_token": false}')
    (model / "generation_config.json").write_text('{"eos_token_id": 1}')
    (model / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    (model / "LICENSE").write_text("free")
    return model


def uses(command, tp, name):
    """What docs/rank-checkpoint.md §8 says: does `command` at `tp` check this file? For parts "header" where that is all."""
    mine, part = name.startswith(f"tp{tp}/"), name.endswith(".safetensors")
    if name in ("READY", "manifest.json"):
        return True
    if command == "verify":
        return True
    if command in ("load", "traditional", "score", "run"):
        return mine or "/" not in name
    if command == "tokenize":
        return name in ("tokenizer.json", "tokenizer.bin")
    if command == "plan":
        return "header" if mine and part else name == "config.json"
    if command == "inspect":
        return "header" if part else False
    assert command == "hash"
    return part


def expect_failure(suite, name, codes, *command):
    done = suite.run(*command, code=codes, timeout=60)
    assert name in done.err or name.rsplit("/", 1)[-1] in done.err, f"{' '.join(map(str, command[:1]))} does not name {name}: {done.err.strip()[-300:]}"
    assert "\n" in done.err and len(done.err) < 20_000, "no message, or a flood"


def every_file(suite, kind):
    """One kind of damage to each file in turn: every command that uses the file must find it, no other minds."""
    out = suite.tmp / "tiny"
    if not out.exists():
        suite.run("shard", tiny_model(suite), "-o", out, "--tp", "1,2")
    ids = suite.tmp / "ids.json"
    ids.write_text("[1,2,3,4]")
    header_bytes = {part["file"]: part["header_bytes"] for tp in json.loads((out / "manifest.json").read_text())["tps"]
                    for rank in tp["ranks"] for part in rank["parts"]}
    rng = random.Random(3)
    names = [str(p.relative_to(out)) for p in files_of(out)]
    for name in names:
        copy = copy_of(suite, out)
        path = copy / name
        size, offset = path.stat().st_size, None
        if kind == "delete":
            path.unlink()
        elif kind == "truncate":
            with open(path, "r+b") as file:
                file.truncate(rng.randrange(size))
        elif kind == "grow":
            with open(path, "ab") as file:
                file.write(b"\0")
        else:
            offset = rng.randrange(size)
            if name.endswith(".safetensors"):  # in the data, where the most bytes of a real file are, or in the header
                offset = rng.randrange(2 << 20, size) if rng.random() < 0.5 else rng.randrange(header_bytes[name])
            flip_bit(path, offset, rng.randrange(8))
        # Without READY the manifest can't be trusted, with a broken one neither: both are found first.
        codes = {MISSING} if kind == "delete" and name in ("READY", "manifest.json") else {MISSING, DAMAGED} if kind == "delete" else {DAMAGED}
        if name == "READY" and kind != "delete":
            codes = {DAMAGED, BAD_INPUT}
        commands = [("verify", 0, ("verify", copy)), ("tokenize", 0, ("tokenize", copy)), ("inspect", 0, ("inspect", copy)),
                    ("hash", 0, ("inspect", copy, "--hash", "sha256")),
                    ("traditional", 1, ("load", copy, "--tp", 1, "--traditional"))]
        for tp in (1, 2):
            commands += [("load", tp, ("load", copy, "--tp", tp)), ("score", tp, ("score", copy, "--ids", ids, "--tp", tp)),
                         ("plan", tp, ("plan", copy, "--tp", tp)),
                         ("run", tp, ("run", copy, "--ids", ids, "-n", 1, "--tp", tp))]
        for command, tp, arguments in commands:
            found = uses(command, tp, name)
            expected = {DAMAGED} if command == "verify" and kind == "delete" else codes
            if found == "header":  # size and header are looked at, the data is not
                found = offset is None or offset < header_bytes[name]
            if found:
                expect_failure(suite, name, expected, *arguments)
            else:
                suite.run(*arguments)
    return f"{len(names)} files"


def every_leaf(suite):
    """A flipped bit in the first, some middle and the last byte of each part is found, at its range."""
    out = suite.tmp / "leaves"
    suite.run("shard", TINY / "llama2", "-o", out, "--tp", "1")
    part = next(p for p in files_of(out) if p.suffix == ".safetensors")
    begin, size = 2 << 20, part.stat().st_size
    for offset in (begin, begin + 1, (begin + size) // 2, size - 1):
        flip_bit(part, offset)
        done = suite.run("load", out, code=DAMAGED)
        assert part.name in done.err and any(c.isdigit() for c in done.err), done.err
        flip_bit(part, offset)
    suite.run("load", out)


def extra_files(suite):
    """verify reports what is not in the manifest."""
    out = copy_of(suite, suite.tmp / "tiny")
    (out / "tp1" / "rank-00" / "model-00009-of-00009.safetensors").write_bytes(b"x")
    done = suite.run("verify", out, code=DAMAGED)
    assert "model-00009" in done.err and "delete the files" not in done.err and "same shard command" in done.err, done.err
    out = copy_of(suite, suite.tmp / "tiny")
    (out / "notes.txt").write_text("mine")
    done = suite.run("verify", out, "--json", code=DAMAGED)
    assert "notes.txt" in done.err and "move it away" in done.err and "give it --force" not in done.err, done.err
    assert len(done.json()["advice"]) == 1, done.out
    (out / "notes.txt").unlink()
    (out / "tp1" / "rank-00" / "model-00009-of-00009.safetensors.partial").write_bytes(b"x")
    import fcntl
    import os
    held = os.open(out, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)  # as a conversion holds it
    done = suite.run("verify", out, code=DAMAGED)
    os.close(held)
    assert "let it end" in done.err and "delete nothing" in done.err and "--force" not in done.err, done.err


def links_and_names(suite):
    """A part that is a link out of OUT, and a manifest that names files outside, are refused."""
    out = copy_of(suite, suite.tmp / "tiny")
    part = next(p for p in files_of(out / "tp1") if p.suffix == ".safetensors")
    outside = suite.tmp / "outside.safetensors"
    shutil.move(part, outside)
    part.symlink_to(outside)
    suite.run("load", out, "--tp", 1, code={BAD_INPUT, DAMAGED})
    for name in ("READY", "manifest.json", "config.json", "tokenizer.bin", "tp1/rank-00/model.safetensors.index.json"):
        out = copy_of(suite, suite.tmp / "tiny")
        outside = suite.tmp / "outside"
        shutil.move(out / name, outside)
        (out / name).symlink_to(outside)
        for command in ("verify", "load"):
            done = suite.run(command, out, code=DAMAGED)
            assert name in done.err and "link" in done.err, f"{command}, {name}: {done.err}"


def changing_source(suite):
    """A source that is cut while it is read is bad input, with advice that fits: there is no manifest to verify."""
    model = suite.tmp / "changing"
    suite.run("synth", "--like", "llama-3.2-1b", "-o", model)
    part = next(p for p in files_of(model) if p.suffix == ".safetensors")
    with open(suite.tmp / "said", "w+b") as said:
        process = subprocess.Popen([suite.binary, "shard", model, "-o", suite.tmp / "changed", "--tp", "1"], stderr=said, stdout=subprocess.DEVNULL)
        journal = suite.tmp / "changed" / "tp1"
        while not journal.exists() and process.poll() is None:
            time.sleep(0.001)
        with open(part, "r+b") as file:
            file.truncate(part.stat().st_size // 2)
        code = process.wait(60)
        said.seek(0)
        text = said.read().decode()
    shutil.rmtree(model), shutil.rmtree(suite.tmp / "changed", ignore_errors=True)
    assert code == BAD_INPUT, f"exit code {code}: {text}"
    assert part.name in text and "begin again" in text and "verify" not in text, text


def whole_model(suite):
    """SmolLM2: a damaged tokenizer or part ends run before it says a word."""
    out = suite.tmp / "smollm2"
    suite.run("shard", suite.smollm2(), "-o", out, "--tp", "1")
    part = next(p for p in files_of(out) if p.suffix == ".safetensors")
    for path, offset in ((out / "tokenizer.json", 1000), (part, part.stat().st_size // 2), (part, 2 << 20), (part, part.stat().st_size - 1)):
        flip_bit(path, offset)
        done = suite.run("run", out, "-p", "Hello", "-n", 4, code=DAMAGED)
        assert path.name in done.err, done.err
        assert done.out.strip() == "", f"printed {done.out!r} from a damaged model"
        flip_bit(path, offset)
    suite.run("run", out, "-p", "Hello", "-n", 4)


def hostile(suite, files, name):
    slow = 0.0
    wrong = []
    for case, content in files.items():
        path = suite.tmp / name
        path.write_bytes(content)
        for command in (("inspect", path), ("inspect", path, "--json", "--hash", "sha256")):
            try:
                done = suite.run(*command, code=BAD_INPUT, timeout=20)
                slow = max(slow, done.seconds)
                assert name in done.err, f"the message does not name the file: {done.err.strip()}"
                assert done.peak_bytes < 300e6, f"took {done.peak_bytes / 1e6:.0f} MB"
            except AssertionError as problem:
                wrong.append(f"{case}: {str(problem).strip()}")
                break
    assert not wrong, f"{len(wrong)} of {len(files)} cases\n  " + "\n  ".join(wrong)
    return f"{len(files)} files, slowest {slow:.2f} s"


def unknown_tokenizer(suite):
    """A GGUF whose tokenizer is not known is refused by name, with the program as it is linked, by whatever would use it."""
    path, out = suite.tmp / "other-tokenizer.gguf", suite.tmp / "other-tokenizer"
    whole = suite.smollm2().read_bytes()
    for what, (old, new) in {"pre": (b"smollm", b"deepsk"), "model": (b"gpt2", b"bert")}.items():
        key = whole.index(b"tokenizer.ggml." + what.encode())
        at = whole.index(old, key)
        path.write_bytes(whole[:at] + new + whole[at + len(new):])
        for command in (("shard", path, "-o", out, "--tp", 1), ("run", path, "x"), ("tokenize", path)):
            done = suite.run(*command, code=BAD_INPUT, stdin=b"x\n", timeout=60)
            assert new.decode() in done.err, f"{command[0]} does not name '{new.decode()}': {done.err.strip()}"
        assert not (out / "READY").exists(), "READY was written"


def hostile_models(suite):
    """The same safetensors files as a model's weights: shard refuses them and leaves nothing that looks whole."""
    wrong = []
    cases = hostile_safetensors()
    for case, content in cases.items():
        model, out = suite.tmp / "hostile-model", suite.tmp / "hostile-out"
        shutil.rmtree(model, ignore_errors=True)
        shutil.copytree(TINY / "llama3", model)
        (model / "model.safetensors").write_bytes(content)
        try:
            suite.run("shard", model, "-o", out, "--tp", 1, code=BAD_INPUT, timeout=20)
            assert not (out / "READY").exists(), "READY was written"
        except AssertionError as problem:
            wrong.append(f"{case}: {str(problem).strip()}")
    assert not wrong, f"{len(wrong)} of {len(cases)} cases\n  " + "\n  ".join(wrong)
    return f"{len(cases)} files"


def bad_configs(suite):
    """Configurations that make no sense, or ask for what is not done, are refused by name."""
    good = json.loads((TINY / "llama3" / "config.json").read_text())
    changes = {
        "num_attention_heads": 0, "num_key_value_heads": 3, "hidden_size": -64, "num_hidden_layers": 10**9, "vocab_size": 2**40,
        "model_type": "mamba", "hidden_act": "gelu_new", "quantization_config": {"quant_method": "gptq"},
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0}, "intermediate_size": "many",
    }
    wrong = []
    for key, bad in changes.items():
        model = suite.tmp / "bad-config"
        shutil.rmtree(model, ignore_errors=True)
        shutil.copytree(TINY / "llama3", model)
        config = {**good, key: bad}
        if key == "rope_scaling":
            config.pop("rope_parameters", None)
        if key == "model_type":
            config["architectures"] = ["MambaForCausalLM"]
        (model / "config.json").write_text(json.dumps(config))
        try:
            done = suite.run("shard", model, "-o", suite.tmp / "bad-out", "--tp", 1, code=BAD_INPUT, timeout=20)
            assert len(done.err.strip()) > 20, f"no message: {done.err}"
        except AssertionError as problem:
            wrong.append(f"{key} = {bad}: {str(problem).strip()}")
    assert not wrong, "\n  ".join(wrong)
    return f"{len(changes)} configurations"


def main():
    suite = Suite()
    for kind in ("flip a bit", "truncate", "grow", "delete"):
        suite.check(f"{kind}: found in every file under OUT", every_file, suite, kind)
    suite.check("a flipped bit is found wherever it is", every_leaf, suite)
    suite.check("files that should not be there are reported", extra_files, suite)
    suite.check("links out of OUT are refused", links_and_names, suite)
    suite.check("a source that changes is bad input", changing_source, suite)
    suite.check("a damaged model says no word", whole_model, suite)
    suite.check("hostile safetensors files are refused", hostile, suite, hostile_safetensors(), "hostile.safetensors")
    suite.check("hostile GGUF files are refused", hostile, suite, hostile_gguf(), "hostile.gguf")
    suite.check("a tokenizer that is not known is refused", unknown_tokenizer, suite)
    suite.check("hostile weights are not converted", hostile_models, suite)
    suite.check("nonsense configurations are refused", bad_configs, suite)
    sys.exit(suite.end())


if __name__ == "__main__":
    main()
