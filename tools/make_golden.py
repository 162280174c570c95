#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes tests/data/golden/smollm2.json: what transformers computes, in fp32, for SmolLM2-135M-Instruct as its GGUF dequantises.

Texts are this script's own: some short ones and one of 2,048 tokens put together from a seed. For each: token ids, the log-probability of every next
token, and the likeliest tokens after some positions (6 digits after the point).

Needs torch, transformers, gguf and accelerate.

    python tools/make_golden.py --smollm2 PATH/TO/SmolLM2-135M-Instruct.Q4_1.gguf [-o tests/data/golden/smollm2.json]
"""
import argparse
import json
import pathlib
import random

import torch
import transformers

TOP = 16
LONG_TOKENS = 2048

SHORT_TEXTS = [
    "The sky is blue because air scatters short waves of light more strongly than long ones.",
    "<|im_start|>system\nYou are a helpful AI assistant.<|im_end|>\n<|im_start|>user\nHow many legs has a spider?<|im_end|>\n<|im_start|>assistant\n",
    "def mean(values):\n    \"\"\"The arithmetic mean; 0.0 for an empty list.\"\"\"\n    total = 0.0\n    for value in values:\n        total += value\n"
    "    return total / len(values) if values else 0.0\n\n\nprint(mean([1, 2, 3, 4]))  # 2.5\n",
    "Der Fluss fließt langsam durch das Tal, und am Abend hört man die Glocken. Le train part à 17 h 45, quai numéro 3. 東京は今日も雨です。 Übrigens: 3.14159 ≈ π 🚀\n\n\t- one\n\t- two",
    "A lighthouse keeper wrote in her book every evening. On the first page she noted the wind, on the second the ships, and on the third whatever she had thought "
    "about while the lamp was warming up. After eleven years the shelf in the lamp room was full, so she began to write between the lines of the oldest volumes. "
    "Visitors who opened them found two stories at once: a calm north-easterly with four schooners, and, in smaller letters, a storm that had taken the roof off the "
    "store house thirty years later. \"It is the same sea,\" she used to say when they asked which of the two was true, \"and I have only one pen.\"",
]

PLACES = ["the harbour", "the old mill", "a village near the border", "the reading room", "the northern station", "a garden behind the school", "the market square", "the workshop"]
PEOPLE = ["Anna", "the engineer", "Mr. Okafor", "a young cook", "the twins", "Professor Lind", "the night watchman", "Mei", "her grandfather", "the surveyor"]
DEEDS = ["repaired the clock", "counted the boats", "wrote a long letter", "lost a silver key", "measured the depth of the well", "painted the door green",
         "told the story of the flood", "opened the wooden box", "planted nine apple trees", "asked for the map"]
TIMES = ["in the early morning", "after the first snow", "on a Tuesday in March", "while the bells were ringing", "shortly before midnight", "in 1907", "when the rain had stopped"]
ENDINGS = ["and nobody asked why", "so the others had to wait", "but the price had already doubled", "which took {n} minutes longer than planned", "and found {n} coins under the floor",
           "because the bridge was closed", "although the letter had arrived {n} days late"]
FRAMES = ["{time}, {who} {deed} in {place}, {end}.", "{who} {deed} {time}, {end}.", "In {place}, {who} {deed}, {end}.", "\"Have you heard that {who} {deed}?\" asked {other}. \"Yes, {time}, {end}.\"",
          "Item {n}: {who} {deed} ({place}).", "It was {time} that {who} {deed}; {other} {deed2} only later, {end}."]


def long_text(sentences):
    rng = random.Random(7)
    out = []
    for i in range(sentences):
        values = dict(time=rng.choice(TIMES), who=rng.choice(PEOPLE), other=rng.choice(PEOPLE), deed=rng.choice(DEEDS), deed2=rng.choice(DEEDS), place=rng.choice(PLACES), n=rng.randrange(2, 400))
        sentence = rng.choice(FRAMES).format(end=rng.choice(ENDINGS).format(n=rng.randrange(2, 90)), **values)
        out.append(sentence[0].upper() + sentence[1:] + ("\n\n" if i % 9 == 8 else " "))
    return "".join(out)


def golden(model, ids, positions):
    with torch.no_grad():
        logprobs = torch.log_softmax(model(torch.tensor(ids)[None]).logits[0].double(), -1)
    after = {}
    for i in positions:
        values, tokens = logprobs[i].topk(TOP)
        after[str(i)] = [[t, round(p, 6)] for t, p in zip(tokens.tolist(), values.tolist())]
    next_token = [round(logprobs[i, ids[i + 1]].item(), 6) for i in range(len(ids) - 1)]
    return {"ids": ids, "logprobs": [None] + next_token, "top": after}


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--smollm2", type=pathlib.Path, required=True, metavar="GGUF")
    arguments.add_argument("-o", "--out", type=pathlib.Path, default=pathlib.Path("tests/data/golden/smollm2.json"))
    options = arguments.parse_args()
    folder, name = str(options.smollm2.parent), options.smollm2.name
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=name)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32, attn_implementation="eager").eval()
    assert all(p.dtype == torch.float32 for p in model.parameters())

    texts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in SHORT_TEXTS]
    texts.append(tokenizer(long_text(200), add_special_tokens=False)["input_ids"][:LONG_TOKENS])
    assert len(texts[-1]) == LONG_TOKENS
    sequences = []
    for ids in texts:
        step = 10 if len(ids) < LONG_TOKENS else 32
        sequences.append(golden(model, ids, sorted(set(range(0, len(ids), step)) | {len(ids) - 1})))
        mean = sum(sequences[-1]["logprobs"][1:]) / (len(ids) - 1)
        print(f"{len(ids)} tokens, mean log-probability {mean:.4f}, {len(sequences[-1]['top'])} positions with top {TOP}")
    text = json.dumps({"model": "SmolLM2-135M-Instruct Q4_1, dequantised to fp32", "transformers": transformers.__version__, "sequences": sequences}, separators=(",", ":"))
    options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
