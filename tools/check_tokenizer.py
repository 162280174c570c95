#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Compares Firstlight's tokenizer with the Python package tokenizers (and sentencepiece) on generated strings.

    python tools/check_tokenizer.py --binary build/release/tests/tokenize_lines [--gguf MODEL.gguf] [--only llama3,qwen2]

Families are trained small (tools/tokenizer_families.py) and wear the published pipelines. A GGUF is compared with an
implementation of its pre-tokenizer of our own in Python (regex package and plain BPE). Any difference is an error.
"""
import argparse
import json
import pathlib
import random
import subprocess
import sys
import tempfile

from tokenizers import Tokenizer

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import tokenizer_families as families  # noqa: E402
from tokenizer_corpus import CODE, EMOJI, TEXT, corpus  # noqa: E402


def run(binary, arguments, lines):
    text = "".join(json.dumps(line) + "\n" for line in lines)
    done = subprocess.run([*binary, *arguments], input=text, capture_output=True, text=True, encoding="utf-8", check=False)
    if done.returncode:
        raise SystemExit(f"{binary[0]} {' '.join(arguments)} failed ({done.returncode}): {done.stderr}")
    return [json.loads(line) for line in done.stdout.split("\n") if line]


class Report:
    def __init__(self):
        self.differences = 0

    def compare(self, name, inputs, ours, theirs):
        assert len(inputs) == len(ours) == len(theirs), (name, len(inputs), len(ours), len(theirs))
        bad = [i for i in range(len(inputs)) if ours[i] != theirs[i]]
        for i in bad[:3]:
            at = next((k for k, (a, b) in enumerate(zip(ours[i], theirs[i])) if a != b), min(len(ours[i]), len(theirs[i])))
            print(f"  {name}: input {inputs[i][:60]!r}: at {at}: ours {ours[i][max(0, at - 2):at + 6]!r}, expected {theirs[i][max(0, at - 2):at + 6]!r}")
        self.differences += len(bad)
        print(f"{name}: {len(inputs)} compared, {len(bad)} differ", flush=True)


def check_family(report, binary, name, spec, strings, decode=True, skip_special=True):
    with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as file:
        json.dump(spec, file, ensure_ascii=False)
        file.flush()
        theirs = Tokenizer.from_file(file.name)
        expected = [e.ids for e in theirs.encode_batch(strings)]
        got = [r["ids"] for r in run(binary, [file.name], strings)]
        report.compare(name, strings, got, expected)
        theirs.encode_special_tokens = True
        some = strings[::4]
        plain = [e.ids for e in theirs.encode_batch(some, add_special_tokens=False)]
        report.compare(name + " plain", some, [r["ids"] for r in run(binary, [file.name, "--plain", "--no-bos"], some)], plain)
        if decode:
            check_decode(report, binary, name, file.name, theirs, expected, skip_special)


def check_decode(report, binary, name, path, theirs, encoded, skip_special):
    rng = random.Random(1)
    size = theirs.get_vocab_size()
    ids = encoded[::3] + [[rng.randrange(size + 3) for _ in range(rng.randrange(12))] for _ in range(2000)]
    low = min(size, 300)
    ids += [[rng.randrange(low) for _ in range(rng.randrange(12))] for _ in range(2000)]  # byte tokens, for the most part
    for skip in (True, False) if skip_special else (False,):
        expected = theirs.decode_batch(ids, skip_special_tokens=skip)
        got = run(binary, [path, *([] if skip else ["--show-special"])], ids)
        report.compare(f"{name} decode{'' if skip else ' with special'}", ids, [r["text"] for r in got], expected)
        # A run of byte tokens that is text only in part is the one place where streaming may differ.
        sure = [i for i, text in enumerate(expected) if "\ufffd" not in text]
        report.compare(f"{name} stream{'' if skip else ' with special'}", [ids[i] for i in sure], [got[i]["stream"] for i in sure],
                       [expected[i] for i in sure])


def check_pieces(report, binary, n, seed):
    """Where text is cut: vocabularies are too small to show every wrong cut in their ids."""
    strings = corpus(n, seed, ["'\u017ft", "I'Ll", "'\u017f\u017f", "\u2019s"])
    for name, cutter in families.patterns().items():
        expected = [[piece for piece, _ in cutter.pre_tokenize_str(s)] for s in strings]
        got = [r["pieces"] for r in run(binary, ["--pieces", name], strings)]
        report.compare(f"pieces {name[:24]}", strings, got, expected)


class PlainBpe:
    """Byte-level BPE in a few lines, straight from the definition."""

    def __init__(self, fields):
        import regex
        assert fields["pre"] == "smollm", fields["pre"]
        printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        rest = [b for b in range(256) if b not in printable]
        self.letter = {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(rest)}
        self.ids = {t: i for i, t in enumerate(fields["tokens"])}
        self.ranks = {tuple(m.split(" ")): i for i, m in enumerate(fields["merges"])}
        special = [t for t, kind in zip(fields["tokens"], fields["token_type"]) if kind in (3, 4)]
        self.special = regex.compile("(" + "|".join(map(regex.escape, sorted(special, key=len, reverse=True))) + ")")
        self.digit = regex.compile(r"(\p{N})")
        self.pattern = regex.compile(families.GPT2)
        self.cache = {}

    def word(self, word):
        if word not in self.cache:
            # A byte that the vocabulary lacks is nothing, and its neighbours meet: so do tokenizers.
            parts = [self.letter[b] for b in word.encode() if self.letter[b] in self.ids]
            while len(parts) > 1:
                rank, at = min((self.ranks.get(pair, 1 << 30), i) for i, pair in enumerate(zip(parts, parts[1:])))
                if rank == 1 << 30:
                    break
                parts[at:at + 2] = [parts[at] + parts[at + 1]]
            self.cache[word] = [self.ids[p] for p in parts]
        return self.cache[word]

    def encode(self, text):
        ids = []
        for i, part in enumerate(self.special.split(text)):
            if i % 2:
                ids.append(self.ids[part])
                continue
            for piece in self.digit.split(part):
                for word in self.pattern.findall(piece):
                    ids += self.word(word)
        return ids


def gguf_fields(path):
    import gguf
    reader = gguf.GGUFReader(path)
    fields = {key.removeprefix("tokenizer.ggml."): f.contents() for key, f in reader.fields.items() if key.startswith("tokenizer.ggml.")}
    return {key: value for key, value in fields.items() if key not in ("precompiled_charsmap",)}


def known_to_regex(strings):
    """The regex package has a newer Unicode than tokenizers: strings on whose characters the two agree."""
    import unicodedata
    import regex
    letter, number, space = regex.compile(r"\p{L}"), regex.compile(r"\p{N}"), regex.compile(r"\s")
    from tokenizers import Regex, pre_tokenizers
    disputed = set()
    chars = "".join(chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000)
    for pattern, ours in ((r"\p{L}", letter), (r"\p{N}", number), (r"\s", space)):
        kept = set()
        for _, (b, e) in pre_tokenizers.Split(Regex(pattern), "removed").pre_tokenize_str(chars):
            kept.update(chars[b:e])
        disputed |= {c for c in chars if (c not in kept) != bool(ours.match(c))}
    digits = {c for c in chars if unicodedata.category(c)[0] == "N"}
    for c in chars:
        pieces = c in digits
        if pieces != bool(number.match(c)):
            disputed.add(c)
    return ["".join(c for c in s if c not in disputed) for s in strings]


def check_gguf(report, binary, path, n, seed):
    fields = gguf_fields(path)
    strings = known_to_regex(corpus(n, seed, [t for t, kind in zip(fields["tokens"], fields["token_type"]) if kind == 3]))
    plain = PlainBpe(fields)
    with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as file:
        json.dump(fields, file)
        file.flush()
        got = [r["ids"] for r in run(binary, [file.name, "--gguf-fields"], strings)]
    report.compare(f"GGUF {fields['pre']}", strings, got, [plain.encode(s) for s in strings])
    special = [families.added(i, t) for i, (t, kind) in enumerate(zip(fields["tokens"], fields["token_type"])) if kind == 3]
    spec = {"version": "1.0", "added_tokens": special, "normalizer": None, "post_processor": None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, families.BYTE_LEVEL]},
            "decoder": families.BYTE_LEVEL,
            "model": {"type": "BPE", "vocab": {t: i for i, t in enumerate(fields["tokens"])}, "merges": fields["merges"]}}
    check_family(report, binary, "the same as tokenizer.json", spec, corpus(n, seed + 1, [t["content"] for t in special]))


def check_sentencepiece(report, binary, n, seed):
    """SentencePiece's own BPE, and a GGUF's fields made of its model."""
    import io
    try:
        import sentencepiece
    except ImportError:
        print("GGUF llama: SKIPPED, the Python package sentencepiece is not installed")
        return
    rng = random.Random(7)
    texts = [" ".join(rng.choices(TEXT + CODE + EMOJI, k=6)).replace("\0", "") for _ in range(3000)]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, vocab_size=1300, model_type="bpe", byte_fallback=True, character_coverage=0.98,
        normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True, allow_whitespace_only_pieces=True,
        unk_id=0, bos_id=1, eos_id=2, minloglevel=2)
    sp = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    ids = range(sp.vocab_size())
    kind = [2 if sp.is_unknown(i) else 3 if sp.is_control(i) else 6 if sp.is_byte(i) else 5 if sp.is_unused(i) else 1 for i in ids]
    fields = {"model": "llama", "tokens": [sp.id_to_piece(i) for i in ids], "scores": [sp.get_score(i) for i in ids], "token_type": kind,
              "bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}
    # NUL ends SentencePiece's strings, and names of tokens in the text are for parse_special.
    strings = [s.replace("\0", "") for s in corpus(n, seed)]
    with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as file:
        json.dump(fields, file)
        file.flush()
        got = [r["ids"] for r in run(binary, [file.name, "--gguf-fields", "--plain"], strings)]
        report.compare("GGUF llama (sentencepiece)", strings, got, [[1] + sp.encode(s) for s in strings])
        ids = [sp.encode(s) for s in strings[::3]]
        ids = [i for i in ids if "\ufffd" not in sp.decode(i)]
        text = run(binary, [file.name, "--gguf-fields"], ids)
        report.compare("GGUF llama decode", ids, [r["text"] for r in text], [sp.decode(i) for i in ids])


def training_texts():
    rng = random.Random(7)
    texts = corpus(3000, 11, exhaustive=False)
    return texts + [" ".join(rng.choices(TEXT + CODE + EMOJI, k=6)) for _ in range(3000)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", required=True, help="the program tokenize_lines, or a command that does the same")
    parser.add_argument("--gguf", help="a GGUF whose pre-tokenizer is smollm")
    parser.add_argument("--only", default="", help="names of families, with commas")
    parser.add_argument("--strings", type=int, default=21000)
    parser.add_argument("--seed", type=int, default=2)
    args = parser.parse_args()
    binary = args.binary.split()
    report = Report()
    texts = training_texts()
    llama2 = families.llama2(texts, 3000)
    jobs = {
        "gpt2": lambda: (families.gpt2(texts, 3000), {}),
        "smollm": lambda: (families.smollm(texts, 3000), {}),
        "llama3": lambda: (families.llama3(texts, 3000), {}),
        "qwen2": lambda: (families.qwen2(texts, 3000), {}),
        "llama2": lambda: (llama2, {}),
        "llama2-normalized": lambda: (families.llama2(texts, 3000, normalized=True), {"skip_special": False}),
        "llama2-first": lambda: (families.metaspace(llama2, "first", False), {}),
        "llama2-always": lambda: (families.metaspace(llama2, "always", False), {}),
        "llama2-split": lambda: (families.metaspace(llama2, "always", True), {}),
        "llama2-never": lambda: (families.metaspace(llama2, "never", True), {}),
        "llama2-unknown": lambda: (families.without_bytes(llama2), {}),
        "flags-gpt2": lambda: (families.with_flags(families.gpt2(texts, 1000), True), {}),
        "flags-qwen2": lambda: (families.with_flags(families.qwen2(texts, 1000), True), {}),
        "flags-llama2": lambda: (families.with_flags(llama2, True), {}),
        "flags-first": lambda: (families.with_flags(families.metaspace(llama2, "first", False), True), {}),
    }
    wanted = args.only.split(",") if args.only else ["pieces", *jobs, "sentencepiece", "gguf"]
    for name in wanted:
        if name in jobs:
            spec, options = jobs[name]()
            extra = [t["content"] for t in spec["added_tokens"]]
            check_family(report, binary, name, spec, corpus(args.strings, args.seed, extra), **options)
    if "pieces" in wanted:
        check_pieces(report, binary, args.strings, args.seed)
    if "sentencepiece" in wanted:
        check_sentencepiece(report, binary, args.strings, args.seed)
    if "gguf" in wanted and args.gguf:
        check_gguf(report, binary, args.gguf, args.strings, args.seed)
    print("no difference" if report.differences == 0 else f"{report.differences} DIFFERENCES")
    return 1 if report.differences else 0


if __name__ == "__main__":
    sys.exit(main())
