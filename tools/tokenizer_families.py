# SPDX-License-Identifier: Apache-2.0
"""Tokenizers of every supported family, trained small, wearing the pipelines that the families publish.

Each function gives a tokenizer.json as a dict. Patterns and steps are those of the published tokenizer.json files.
"""
import json

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers, Regex

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def patterns():
    """What cuts text, by the name that tokenize_lines --pieces knows it by."""
    split = {name: pre_tokenizers.Split(Regex(name), "isolated") for name in (GPT2, LLAMA3, QWEN2)}
    return split | {"smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), split[GPT2]])}


def added(i, content, special=True, **flags):
    return {"id": i, "content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": special, **flags}


def template(token, i):
    a, b = {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}
    start = {"SpecialToken": {"id": token, "type_id": 0}}
    return {"type": "TemplateProcessing", "single": [start, a], "pair": [start, a, start, b],
            "special_tokens": {token: {"id": token, "ids": [i], "tokens": [token]}}}


def byte_level(texts, pre, vocab_size, use_regex):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return json.loads(tokenizer.to_str())


def with_added(spec, tokens):
    n = len(spec["model"]["vocab"])
    spec["added_tokens"] = [added(n + i, t) if isinstance(t, str) else {**t, "id": n + i} for i, t in enumerate(tokens)]
    return spec


def legacy_merges(spec):
    spec["model"]["merges"] = [" ".join(m) for m in spec["model"]["merges"]]
    return spec


def gpt2(texts, vocab_size):
    spec = byte_level(texts, pre_tokenizers.ByteLevel(add_prefix_space=False), vocab_size, True)
    spec["post_processor"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    return legacy_merges(with_added(spec, ["<|endoftext|>"]))


def smollm(texts, vocab_size):
    steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    spec = byte_level(texts, pre_tokenizers.Sequence(steps), vocab_size, True)
    return legacy_merges(with_added(spec, ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>"]))


def split_family(texts, vocab_size, pattern):
    steps = [pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    return byte_level(texts, pre_tokenizers.Sequence(steps), vocab_size, False)


def llama3(texts, vocab_size):
    spec = split_family(texts, vocab_size, LLAMA3)
    names = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    with_added(spec, names + [f"<|reserved_special_token_{i}|>" for i in range(20)])
    # Words that no merges lead to: with ignore_merges they are found all the same.
    n = spec["added_tokens"][-1]["id"] + 1 - len(spec["added_tokens"])
    whole = ["Ġwholeword", "Größe", "çŃī", "Ġquickbrown"]
    whole = [w for w in whole if w not in spec["model"]["vocab"]]
    spec["model"]["vocab"].update({w: n + i for i, w in enumerate(whole)})
    for token in spec["added_tokens"]:
        token["id"] += len(whole)
    spec["model"]["ignore_merges"] = True
    bos = spec["added_tokens"][0]
    spec["post_processor"] = {"type": "Sequence", "processors": [
        {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}, template(bos["content"], bos["id"])]}
    return spec


def qwen2(texts, vocab_size):
    spec = split_family([normalizers.NFC().normalize_str(t) for t in texts], vocab_size, QWEN2)
    spec["normalizer"] = {"type": "NFC"}
    spec["post_processor"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(added(0, t, special=False) for t in ("<tool_call>", "</tool_call>", "<think>", "</think>"))]
    return legacy_merges(with_added(spec, names))


def llama2(texts, vocab_size, normalized=False):
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=specials, limit_alphabet=400, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    spec = json.loads(tokenizer.to_str())
    model = spec["model"]
    model["merges"] = [list(m) if isinstance(m, (list, tuple)) else m.split(" ") for m in model["merges"]]
    for n in (1, 2, 4, 8):  # runs of spaces, which training on words cannot give
        if "▁" * 2 * n not in model["vocab"]:
            model["vocab"]["▁" * 2 * n] = len(model["vocab"])
            model["merges"].append(["▁" * n, "▁" * n])
    if ["▁", "▁▁"] not in model["merges"]:
        model["vocab"]["▁▁▁"] = len(model["vocab"])
        model["merges"].append(["▁", "▁▁"])
        model["merges"].append(["▁▁", "▁"])
    spec["added_tokens"] = [added(i, t, normalized=normalized) for i, t in enumerate(specials[:3])]
    spec["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
                                                              {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]}
    spec["pre_tokenizer"] = None
    spec["post_processor"] = template("<s>", 1)
    spec["decoder"] = {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
                                                        {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}
    return spec


def metaspace(spec, scheme, split):
    spec = json.loads(json.dumps(spec))
    spec["normalizer"] = None
    spec["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split}
    return spec


def with_flags(spec, normalized):
    """Added tokens with every flag that there is; their ids follow the vocabulary's."""
    spec = json.loads(json.dumps(spec))
    n = max([*spec["model"]["vocab"].values(), *(t["id"] for t in spec["added_tokens"])]) + 1
    flags = [{"lstrip": True}, {"rstrip": True}, {"lstrip": True, "rstrip": True}, {"single_word": True}, {}]
    names = ["<mask>", "<|user|>", "[both]", "word", "foo bar"]
    tokens = [added(n + i, name, special=i % 2 == 0, **f) for i, (name, f) in enumerate(zip(names, flags))]
    tokens += [added(n + 5 + i, t, special=False, **f) for i, (t, f) in enumerate((("foo", {}), ("  ", {}), ("ﬁné", {"normalized": normalized}),
                                                                                ("e\u0301t", {"normalized": normalized}),
                                                                                ("n b", {"normalized": normalized, "rstrip": True})))]
    spec["added_tokens"] += tokens
    return spec


def without_bytes(spec):
    """Some byte tokens are missing: characters with them become the unknown token, neighbours fused."""
    spec = json.loads(json.dumps(spec))
    vocab = spec["model"]["vocab"]
    for name in ("<0xF0>", "<0xCC>"):
        vocab[name + "gone"] = vocab.pop(name)
    return spec
