#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes tests/data/tokenizer/: a tiny tokenizer.json of every family, and strings with the ids and texts that the Python
package tokenizers gives for them. The seeds of tests/fuzz/corpus/tokenizer_json/ are made of the same.

    python tools/make_tokenizer_golden.py
"""
import json
import pathlib
import sys

from tokenizers import Tokenizer, normalizers

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import tokenizer_families as families  # noqa: E402
from tokenizer_corpus import CODE, TEXT, corpus  # noqa: E402

TESTS = pathlib.Path(__file__).resolve().parent.parent / "tests"
VOCAB = 420


def small_llama2(texts):
    return families.llama2(texts, 700)


def write(path, value, indent=None):
    path.write_text(json.dumps(value, ensure_ascii=False, indent=indent, separators=(",", ":")) + "\n", encoding="utf-8")


def cases(spec, strings, decode_special_only):
    tokenizer = Tokenizer.from_str(json.dumps(spec))
    ids = [tokenizer.encode(s).ids for s in strings]
    out = {"strings": strings, "ids": ids, "shown": tokenizer.decode_batch(ids, skip_special_tokens=False)}
    if not decode_special_only:
        out["hidden"] = tokenizer.decode_batch(ids, skip_special_tokens=True)
    tokenizer.encode_special_tokens = True
    out["plain"] = [tokenizer.encode(s, add_special_tokens=False).ids for s in strings[::3]]
    return out


def main():
    out = TESTS / "data" / "tokenizer"
    out.mkdir(parents=True, exist_ok=True)
    texts = (TEXT + CODE) * 20
    llama2 = small_llama2(texts)
    made = {
        "gpt2": families.gpt2(texts, VOCAB),
        "smollm": families.smollm(texts, VOCAB),
        "llama3": families.llama3(texts, VOCAB),
        "qwen2": families.qwen2(texts, VOCAB),
        "llama2": llama2,
        "llama2_first": families.metaspace(llama2, "first", False),
        "llama2_split": families.metaspace(llama2, "always", True),
        "llama2_normalized": families.llama2(texts, 700, normalized=True),
        "llama2_unknown": families.without_bytes(llama2),
        "flags_qwen2": families.with_flags(families.qwen2(texts, VOCAB), True),
        "flags_llama2": families.with_flags(llama2, True),
    }
    for name, spec in made.items():
        extra = [t["content"] for t in spec["added_tokens"]][:12]
        strings = [s for s in corpus(150 + 40 * len(extra), 5, extra, exhaustive=False) if 0 < len(s) < 60]
        strings = ["", "it'\u017fx it'Sx we'Re 'lL 'k", "\u0e01'\u017f", *extra, *strings[-150:-36:2], *strings[20:-36:12]]
        write(out / f"{name}.json", spec)
        write(out / f"{name}_cases.json", cases(spec, strings, name == "llama2_normalized"))
    strings = ["it'\u017fx 'Sa we'Re'LLx 'k''s", *[s for s in corpus(300, 8, exhaustive=False) if 1 < len(s) < 50][-130:]]
    write(out / "pieces_cases.json", {name: [[p for p, _ in cutter.pre_tokenize_str(s)] for s in strings]
                                      for name, cutter in families.patterns().items()})
    nfc = normalizers.NFC().normalize_str
    strings = [s for s in corpus(700, 6, exhaustive=False) if nfc(s) != s and len(s) < 60]
    write(out / "nfc_cases.json", [[s, nfc(s)] for s in strings])

    seeds = TESTS / "fuzz" / "corpus" / "tokenizer_json"
    seeds.mkdir(parents=True, exist_ok=True)
    for name in ("gpt2", "llama3", "qwen2", "llama2", "llama2_split", "flags_llama2"):
        spec = json.loads(json.dumps(made[name]))
        model = spec["model"]
        kept = [t for t in model["vocab"] if len(t) == 1 or t.startswith("<")][:300]
        for merge in model["merges"]:
            left, right = merge.split(" ") if isinstance(merge, str) else merge
            if len(kept) < 330 and left in kept and right in kept and left + right not in kept:
                kept.append(left + right)
        model["vocab"] = {t: i for i, t in enumerate(kept)}
        merges = [m if isinstance(m, list) else m.split(" ") for m in model["merges"]]
        good = [m for m in merges if m[0] in kept and m[1] in kept and "".join(m) in kept]
        model["merges"] = [" ".join(m) for m in good] if isinstance(model["merges"][0], str) else good
        n = len(kept)
        for token in spec["added_tokens"]:
            if token["content"] in model["vocab"]:
                token["id"] = model["vocab"][token["content"]]
            else:
                token["id"], n = n, n + 1
        Tokenizer.from_str(json.dumps(spec))
        write(seeds / f"{name}.json", spec)
    return 0


if __name__ == "__main__":
    sys.exit(main())
