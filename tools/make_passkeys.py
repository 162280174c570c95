#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes prompts for `kv_quality --passkeys`: a five-digit pass key hidden in filler text, at several lengths and depths.

Each is a JSON object {"length": tokens, about, "depth": per cent before the key, "n_answer": tokens of the answer, "ids"}; the
answer stands at the end. The chat's markup is ChatML, which SmolLM2 and Qwen speak; the model's own tokenizer makes the ids.
"""
import argparse
import json
import random
import subprocess

FILLER = ("The river turns past the mill and slows. ", "Two ferries cross it before noon. ", "On market days the square is full. ",
          "Nobody minds the rain in this town. ", "The clock above the hall is late again. ")
ASK = "<|im_start|>user\nA pass key is hidden in the text below. Find it and remember it.\n\n"
END = "\nWhat is the pass key?<|im_end|>\n<|im_start|>assistant\nThe pass key is "


def tokenize(firstlight, model, texts):
    lines = "".join(json.dumps(text) + "\n" for text in texts)
    done = subprocess.run([firstlight, "tokenize", model, "--json", "--no-special"], input=lines.encode(), stdout=subprocess.PIPE, check=True)
    return [json.loads(line)["ids"] for line in done.stdout.splitlines()]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("firstlight")
    parser.add_argument("model")
    parser.add_argument("-o", "--out", required=True)
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 2000])
    parser.add_argument("--depths", type=int, nargs="+", default=[10, 30, 50, 70, 90])
    parser.add_argument("--keys", type=int, default=2, help="prompts of each length and depth")
    args = parser.parse_args()
    random.seed(1)
    ask, end, *filler = tokenize(args.firstlight, args.model, [ASK, END, *FILLER])
    prompts = []
    for length in args.lengths:
        for depth in args.depths:
            for _ in range(args.keys):
                key = f"{random.randrange(10000, 100000)}"
                hidden, answer = tokenize(args.firstlight, args.model, [f"The pass key is {key}. Remember it: {key} is the pass key. ", key])
                room = length - len(ask) - len(end) - len(hidden) - len(answer)
                body = []
                placed = False
                while len(body) < room + (len(hidden) if placed else 0):
                    if not placed and len(body) * 100 >= room * depth:
                        body += hidden
                        placed = True
                    body += random.choice(filler)
                prompts.append({"length": length, "depth": depth, "n_answer": len(answer), "ids": ask + body + end + answer})
    with open(args.out, "w", encoding="utf-8") as file:
        json.dump(prompts, file)
    print(f"{args.out}: {len(prompts)} prompts, {min(len(p['ids']) for p in prompts)} to {max(len(p['ids']) for p in prompts)} tokens")


if __name__ == "__main__":
    main()
