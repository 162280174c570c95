#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes tests/data/engine/sampling.json: what transformers' logits processors leave of random rows, in double precision,
and the token that each draw of a seed picks from that.

usage: make_sampling_golden.py [OUT_FILE]
"""
import json
import pathlib
import random
import sys

import torch
from transformers.generation import logits_process as lp


def philox_uniform(seed, draw):
    """Philox4x32-10 as in Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011)."""
    mask = 0xFFFFFFFF
    c = [draw & mask, draw >> 32, 0, 0]
    k = [seed & mask, seed >> 32]
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(b >> 32) ^ c[1] ^ k[0], b & mask, (a >> 32) ^ c[3] ^ k[1], a & mask]
        k = [(k[0] + 0x9E3779B9) & mask, (k[1] + 0xBB67AE85) & mask]
    return ((c[1] << 32 | c[0]) >> 11) / 2**53


def distribution(logits, history, o):
    scores = torch.tensor([logits], dtype=torch.float64)
    ids = torch.tensor([history], dtype=torch.long)
    processors = lp.LogitsProcessorList()
    if o["repetition_penalty"] != 1:
        processors.append(lp.RepetitionPenaltyLogitsProcessor(o["repetition_penalty"]))
    if o["temperature"] > 0:
        processors.append(lp.TemperatureLogitsWarper(o["temperature"]))
        if o["top_k"]:
            processors.append(lp.TopKLogitsWarper(o["top_k"]))
        if o["top_p"] < 1:
            processors.append(lp.TopPLogitsWarper(o["top_p"]))
        if o["min_p"]:
            processors.append(lp.MinPLogitsWarper(o["min_p"]))
    scores = processors(ids, scores)[0]
    if o["temperature"] == 0:
        return scores
    return scores.softmax(-1)


def main():
    r = random.Random(5)
    cases = []
    for i in range(160):
        n = r.choice([1, 2, 5, 30, 60])
        # Multiples of 1/64: exact in every float type. Ties where a filter must treat them alike; top-p cuts ties by position.
        logits = [r.randrange(-512, 512) / 64 for _ in range(n)]
        o = {
            "temperature": r.choice([0.0, 0.5, 1.0, 1.0, 2.0, 0.25]),
            "top_k": r.choice([0, 0, 1, 3, 20, 1000]),
            "top_p": r.choice([1.0, 1.0, 0.9, 0.5, 0.1, 0.0]),
            "min_p": r.choice([0.0, 0.0, 0.05, 0.5, 1.0]),
            "repetition_penalty": r.choice([1.0, 1.0, 1.5, 0.5, 2.0]),
        }
        if o["top_p"] == 1.0 and o["top_k"] and n > 3 and r.random() < 0.5:
            for _ in range(n // 2):
                logits[r.randrange(n)] = logits[r.randrange(n)]
        elif len(set(logits)) < n:
            logits = r.sample(range(-512, 512), n)
            logits = [x / 64 for x in logits]
        history = [r.randrange(n) for _ in range(r.choice([0, 1, 4, 10]))]
        seed = r.choice([0, 1, r.getrandbits(64)])
        result = distribution(logits, history, o)
        if o["temperature"] == 0:
            best = result.max()
            picks = [int((result == best).nonzero()[0])] * 4
            kept = []
        else:
            kept = [[j, p] for j, p in enumerate(result.tolist()) if p > 0]
            picks = []
            for draw in range(4):
                below, pick = 0.0, kept[-1][0]
                for j, p in kept:
                    below += p
                    if philox_uniform(seed, draw) < below:
                        pick = j
                        break
                picks.append(pick)
        cases.append({"logits": logits, "history": history, "options": o, "seed": str(seed), "kept": kept, "picks": picks})
    # Known answers of the generator are checked here, too: Random123's kat_vectors.
    assert int(philox_uniform(0, 0) * 2**53) == (0xE169C58D6627E8D5 >> 11)
    out = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent.parent / "tests/data/engine/sampling.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    with open(out, "w") as file:
        file.write("[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]\n")


if __name__ == "__main__":
    main()
