#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes tests/data/golden/<architecture>/: a tiny random model of every architecture Firstlight runs, and what transformers says about it.

config.json and model.safetensors (BF16) are what save_pretrained writes; golden.json holds token ids, the log-probability of every next token in fp32
(weights as stored, arithmetic in fp32) and the five likeliest tokens after some positions. Run it again after a change: the same seeds give the same files.

    python tools/make_tiny_model.py [-o tests/data/golden] [NAME ...]
"""
import argparse
import json
import math
import pathlib

import torch
import transformers

SEQUENCE_LENGTHS = (7, 130, 300)  # 130 and 300 cross the borders of 64-token pages
TOP = 5


def architectures():
    """name -> config. Sizes are as small as they can be and still tell heads, kv heads, head_dim and hidden sizes apart; vocabularies no multiple of any tp."""
    small = dict(num_hidden_layers=2, hidden_size=64, intermediate_size=96, num_attention_heads=4, max_position_embeddings=1024, bos_token_id=1, eos_token_id=2)
    llama, mistral = transformers.LlamaConfig, transformers.MistralConfig
    qwen2, qwen3 = transformers.Qwen2Config, transformers.Qwen3Config
    theta = lambda t, **more: {"rope_parameters": {"rope_type": "default", "rope_theta": t, **more}}
    # Wave lengths of the 8 pairs at theta 500000: 6.3, 32, 167, 862 …; kept up to 64, interpolated to 256, divided by 8 above.
    scaled = theta(500000.0) | {"rope_parameters": {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                                    "original_max_position_embeddings": 256}}
    return {
        "llama2": llama(**small, vocab_size=331, num_key_value_heads=4, rms_norm_eps=1e-5, **theta(10000.0)),
        "llama3": llama(**small, vocab_size=335, num_key_value_heads=2, rms_norm_eps=1e-5, **theta(500000.0)),
        "llama3.1": llama(**small, vocab_size=333, num_key_value_heads=2, rms_norm_eps=1e-5, **scaled),
        "llama3.2": llama(**small | {"num_hidden_layers": 3}, vocab_size=333, num_key_value_heads=2, rms_norm_eps=1e-5, tie_word_embeddings=True, **scaled),
        "smollm2": llama(**small | {"num_hidden_layers": 3, "hidden_size": 72, "intermediate_size": 108, "num_attention_heads": 9}, vocab_size=320, num_key_value_heads=3,
                         rms_norm_eps=1e-5, tie_word_embeddings=True, **theta(100000.0)),
        "mistral": mistral(**small, vocab_size=320, num_key_value_heads=2, head_dim=32, sliding_window=None, rms_norm_eps=1e-5, **theta(1000000.0)),
        "qwen2": qwen2(**small, vocab_size=331, num_key_value_heads=2, rms_norm_eps=1e-6, use_sliding_window=False, **theta(1000000.0)),
        "qwen2.5": qwen2(**small | {"num_hidden_layers": 3}, vocab_size=321, num_key_value_heads=1, rms_norm_eps=1e-6, use_sliding_window=False, tie_word_embeddings=True, **theta(1000000.0)),
        "qwen3": qwen3(**small, vocab_size=323, num_key_value_heads=2, head_dim=32, rms_norm_eps=1e-6, use_sliding_window=False, tie_word_embeddings=True, **theta(1000000.0)),
        # No published family, but its config allows it: biases on every projection.
        "llama_biased": llama(**small, vocab_size=320, num_key_value_heads=2, rms_norm_eps=1e-5, attention_bias=True, mlp_bias=True, **theta(10000.0)),
    }


def randomise(model, generator):
    """Weights of a scale at which every part matters: attention far from uniform, logits of standard deviation near 2.5."""
    dim = model.config.hidden_size
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("norm.weight"):
            value = 1 + 0.25 * noise
        elif name.endswith(".bias"):
            value = 0.5 * noise
        elif name.endswith(("embed_tokens.weight", "lm_head.weight")):
            value = 2.5 / math.sqrt(dim) * noise
        else:
            gain = 1.5 if name.endswith(("q_proj.weight", "k_proj.weight")) else 1.2
            value = gain / math.sqrt(parameter.shape[1]) * noise
        parameter.data = value.to(torch.bfloat16).to(torch.float32)  # stored exactly as BF16


def golden(model, generator):
    """Per sequence: ids, log-probabilities (null for the first token), top tokens after every tenth position."""
    sequences, entropies = [], []
    for length in SEQUENCE_LENGTHS:
        ids = torch.randint(0, model.config.vocab_size, (length,), generator=generator)
        with torch.no_grad():
            logprobs = torch.log_softmax(model(ids[None]).logits[0].double(), -1)
        entropies.append(-(logprobs.exp() * logprobs).sum(-1).mean().item())
        next_token = logprobs[:-1].gather(1, ids[1:, None])[:, 0].tolist()
        after = sorted(set(range(0, length, max(1, length // 10))) | {length - 1})
        top = {str(i): [[int(t), round(p, 6)] for p, t in zip(*(x.tolist() for x in logprobs[i].topk(TOP)))] for i in after}
        sequences.append({"ids": ids.tolist(), "logprobs": [None] + [round(x, 6) for x in next_token], "top": top})
    return sequences, sum(entropies) / len(entropies)


HUB_SPELLING = ("llama3.1", "qwen2")  # as the hub's older files write it; the others as transformers 5 does


def to_hub_spelling(path):
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = rope if rope["rope_type"] != "default" else None
    config["torch_dtype"] = config.pop("dtype")
    config.pop("layer_types", None)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("-o", "--out", type=pathlib.Path, default=pathlib.Path("tests/data/golden"))
    arguments.add_argument("names", nargs="*")
    options = arguments.parse_args()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)  # the same bits on every machine with as few cores as wanted
    for seed, (name, config) in enumerate(architectures().items()):
        if options.names and name not in options.names:
            continue
        generator = torch.Generator().manual_seed(1000 + seed)
        config._attn_implementation = "eager"
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        randomise(model, generator)
        model.tie_weights()
        sequences, entropy = golden(model, generator)
        folder = options.out / name
        folder.mkdir(parents=True, exist_ok=True)
        model.to(torch.bfloat16).save_pretrained(folder)
        (folder / "generation_config.json").unlink(missing_ok=True)
        (folder / "model.safetensors").chmod(0o644)
        if name in HUB_SPELLING:
            to_hub_spelling(folder / "config.json")
        text = json.dumps({"transformers": transformers.__version__, "sequences": sequences}, separators=(",", ":"))
        (folder / "golden.json").write_text(text + "\n")
        uniform = math.log(config.vocab_size)
        size = (folder / "model.safetensors").stat().st_size
        print(f"{name}: {size} bytes, entropy {entropy:.2f} of {uniform:.2f} nats")


if __name__ == "__main__":
    main()
