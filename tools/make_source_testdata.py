#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes tests/data/source/: what the checkpoint readers' unit tests compare with.

quants.bin        random blocks of each GGML type and their values by the package gguf
f8.bin            values of all bytes as float8_e4m3fn and float8_e5m2 by torch
configs.json      config.json texts, what transformers makes of them, and its rotary frequencies
<family>/         a tiny model as transformers saves it, and <family>*.gguf with the same weights in GGUF's names and row order
tests/fuzz/corpus/{gguf,safetensors}/seed_*   small whole files to begin with
spm_merges.json   a small scored vocabulary and the merges that transformers derives from it

Needs torch, transformers 5, safetensors, gguf, numpy. Deterministic.
"""
import argparse
import json
import math
import shutil
import struct
from pathlib import Path

import gguf
import numpy as np
import torch
import transformers
from gguf.quants import dequantize, quantize
from safetensors.torch import save_file
from transformers.convert_slow_tokenizer import generate_merges

Q = gguf.GGMLQuantizationType
DECODED = [Q.F32, Q.F16, Q.BF16, Q.Q4_0, Q.Q4_1, Q.Q5_0, Q.Q5_1, Q.Q8_0, Q.Q2_K, Q.Q3_K, Q.Q4_K, Q.Q5_K, Q.Q6_K]


def write_quants(path, rng):
    """Per type: u32 type, u32 elements, the blocks, the values as f32. Random bits: scales are any f16, NaN and infinity included."""
    out = bytearray()
    for t in DECODED:
        block, size = gguf.GGML_QUANT_SIZES[t]
        n = 512 if block == 1 else 12 * block if block == 32 else 3 * block
        raw = rng.integers(0, 256, n // block * size, dtype=np.uint8)
        if block == 256 or block == 32:  # the first block: subnormal scales everywhere
            raw[:size] &= np.uint8(0x83) if t != Q.Q8_0 else np.uint8(0xFF)
        with np.errstate(all="ignore"):
            values = dequantize(raw.copy(), t).astype(np.float32)
        assert values.size == n
        out += struct.pack("<II", int(t), n) + raw.tobytes() + values.tobytes()
    path.write_bytes(out)


def write_f8(path):
    bits = torch.arange(256, dtype=torch.uint8)
    path.write_bytes(b"".join(bits.view(t).float().numpy().tobytes() for t in (torch.float8_e4m3fn, torch.float8_e5m2)))


def frequencies(config):
    module = __import__(f"transformers.models.{config.model_type}.modeling_{config.model_type}", fromlist=["x"])
    rotary = getattr(module, {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}[config.model_type] + "RotaryEmbedding")
    return [float(x) for x in rotary(config).inv_freq]


def config_cases():
    llama = dict(architectures=["LlamaForCausalLM"], model_type="llama", vocab_size=1000, hidden_size=256, intermediate_size=512,
                 num_hidden_layers=2, num_attention_heads=4)
    llama3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192)
    yield "llama, nothing but sizes", llama
    yield "llama, class defaults", dict(model_type="llama")
    yield "mistral, class defaults but the window", dict(model_type="mistral", sliding_window=None)
    yield "qwen2, class defaults", dict(model_type="qwen2")
    yield "qwen3, class defaults", dict(model_type="qwen3")
    yield "hub spelling", llama | dict(rope_theta=500000.0, torch_dtype="float16", num_key_value_heads=2, rms_norm_eps=1e-5, eos_token_id=[7, 9],
                                       bos_token_id=None, tie_word_embeddings=True, attention_bias=True, mlp_bias=True, head_dim=32)
    yield "transformers 5 spelling", llama | dict(rope_parameters=dict(rope_theta=250000.0, rope_type="default"), dtype="float32")
    yield "llama 3.1", llama | dict(head_dim=128, rope_theta=500000.0, max_position_embeddings=131072, rope_scaling=llama3)
    yield "llama 3.2", llama | dict(head_dim=64, max_position_embeddings=131072, rope_parameters=llama3 | dict(factor=32.0, rope_theta=500000.0))
    yield "linear", llama | dict(rope_scaling=dict(type="linear", factor=4.0))
    yield "qwen2 without window", dict(architectures=["Qwen2ForCausalLM"], model_type="qwen2", hidden_size=256, num_attention_heads=4,
                                       num_key_value_heads=2, use_sliding_window=False, sliding_window=32768, max_window_layers=21,
                                       max_position_embeddings=65536, rope_theta=1000000.0)
    yield "qwen3 with biases", dict(architectures=["Qwen3ForCausalLM"], model_type="qwen3", attention_bias=True, head_dim=64, hidden_size=256,
                                    num_attention_heads=8, num_key_value_heads=None, eos_token_id=5)


def write_configs(path):
    cases = []
    for name, text in config_cases():
        c = transformers.AutoConfig.for_model(**json.loads(json.dumps(text)))
        eos = c.eos_token_id
        dtype = {"torch.float16": "f16", "torch.float32": "f32", "None": "bf16"}[str(c.dtype)]
        cases.append(dict(name=name, config=json.dumps(text), expect=dict(
            model_type=c.model_type, n_layers=c.num_hidden_layers, dim=c.hidden_size, hidden_dim=c.intermediate_size, n_heads=c.num_attention_heads,
            n_kv_heads=c.num_key_value_heads, head_dim=getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads,
            vocab_size=c.vocab_size, max_context=c.max_position_embeddings, norm_eps=c.rms_norm_eps, rope_theta=c.rope_parameters["rope_theta"],
            tied=c.tie_word_embeddings, attention_bias=bool(getattr(c, "attention_bias", False)), mlp_bias=bool(getattr(c, "mlp_bias", False)),
            eos=[] if eos is None else eos if isinstance(eos, list) else [eos], bos=c.bos_token_id, dtype=dtype),
            frequencies=frequencies(c)))
    factors = [dict(factor=f, head_dim=d, factors=converter_factors(f, d)) for f in (8.0, 32.0, 16.0) for d in (64, 128)]
    path.write_text(json.dumps(dict(cases=cases, rope_factors=factors), indent=0))


def converter_factors(factor, head_dim, theta=500000.0, low=1.0, high=4.0, context=8192):
    """rope_freqs.weight: per pair, what the plain frequency is divided by; in f32 as a converter working in torch does it."""
    out = []
    for freq in 1.0 / (theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)):
        wavelength = 2 * math.pi / freq
        if wavelength < context / high:
            out.append(1.0)
        elif wavelength > context / low:
            out.append(factor)
        else:
            smooth = (context / wavelength - low) / (high - low)
            out.append(float(1 / ((1 - smooth) / factor + smooth)))
    return [float(np.float32(x)) for x in out]


def permute(w, n_heads):
    """Halves of each head interleaved: row k·d/2 + j goes to 2j + k."""
    return w.reshape(n_heads, 2, w.shape[0] // n_heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


NAMES = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
         "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "input_layernorm": "attn_norm",
         "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}


def gguf_name(name):
    fixed = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight", "lm_head.weight": "output.weight"}
    if name in fixed:
        return fixed[name]
    layer, rest = name.removeprefix("model.layers.").split(".", 1)
    stem, suffix = rest.rsplit(".", 1)
    return f"blk.{layer}.{NAMES[stem]}.{suffix}"


def write_family(out, model_type, rng, matrix_type, torch_dtype, config, parts, arch, metadata):
    torch.manual_seed(7)
    config = transformers.AutoConfig.for_model(model_type, **config)
    model = transformers.AutoModelForCausalLM.from_config(config)
    state = {}
    quantised = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        x = rng.standard_normal(tuple(tensor.shape), dtype=np.float32) * np.float32(0.5)
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2]) if arch == "llama" else None
        stored = permute(x, heads) if heads else x
        t = matrix_type if x.ndim == 2 else Q.F32
        if t == "mixed":
            t = Q.Q8_0 if "embed" in name else Q.Q4_1 if "self_attn" in name else Q.Q5_0
        if x.ndim == 1:  # exact in every type that the safetensors file may have
            stored = torch.from_numpy(stored.copy()).to(torch_dtype).float().numpy()
        raw = quantize(stored, t)
        quantised[gguf_name(name)] = (raw, t)
        value = dequantize(raw, t).reshape(x.shape)
        if heads:  # back to Hugging Face's order, by the transposed reshape
            value = value.reshape(heads, x.shape[0] // heads // 2, 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)
        state[name] = torch.from_numpy(np.ascontiguousarray(value)).to(torch_dtype)
    directory = out / model_type
    directory.mkdir()
    config.architectures = [type(model).__name__]
    config.dtype = torch_dtype
    config.save_pretrained(directory)
    if parts == 1:
        save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
    else:
        names = list(state)
        index = {}
        for i in range(parts):
            file = f"model-{i + 1:05d}-of-{parts:05d}.safetensors"
            part = {n: state[n] for n in names[i::parts]}
            save_file(part, directory / file, metadata={"format": "pt"})
            index |= {n: file for n in part}
        (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": index}))
    names = list(quantised)
    for i in range(parts):
        file = f"{model_type}.gguf" if parts == 1 else f"{model_type}-{i + 1:05d}-of-{parts:05d}.gguf"
        w = gguf.GGUFWriter(str(out / file), arch)
        if i == 0:
            w.add_block_count(config.num_hidden_layers)
            w.add_context_length(config.max_position_embeddings)
            w.add_embedding_length(config.hidden_size)
            w.add_feed_forward_length(config.intermediate_size)
            w.add_head_count(config.num_attention_heads)
            w.add_head_count_kv(config.num_key_value_heads)
            w.add_layer_norm_rms_eps(config.rms_norm_eps)
            w.add_rope_freq_base(config.rope_parameters["rope_theta"])
            metadata(w, config)
        if parts > 1:
            w.add_uint16("split.no", i)
            w.add_uint16("split.count", parts)
            w.add_int32("split.tensors.count", len(names))
        for n in names[i::parts]:
            raw, t = quantised[n]
            w.add_tensor(n, raw, raw_dtype=t if t not in (Q.F32, Q.F16) else None)
        w.write_header_to_file()
        w.write_kv_data_to_file()
        w.write_tensors_to_file()
        w.close()


def llama_metadata(w, config):
    w.add_rope_dimension_count(config.head_dim)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("smollm")
    tokens = ["<|end|>"] + [chr(c) for c in range(ord("a"), ord("s"))] + ["Ġ", "Ġa", "ab", "Ġab", "<|user|>"]
    assert len(tokens) == config.vocab_size, len(tokens)
    w.add_token_list(tokens)
    w.add_token_types([3] + [1] * (len(tokens) - 2) + [4])
    w.add_token_merges(["Ġ a", "a b", "Ġ ab"])
    w.add_bos_token_id(0)
    w.add_eos_token_id(0)
    w.add_eot_token_id(23)
    w.add_chat_template("{{ messages[0]['content'] }}")


def write_spm_merges(path):
    tokens = ["<unk>", "<s>", "</s>", "<0x0A>", "▁", "a", "b", "é", "▁a", "ab", "abé", "bé", "▁ab", "▁abé", "s>", "<"]
    types = [2, 3, 3, 6] + [1] * (len(tokens) - 4)
    scores = [0.0] * 4 + [-float(i % 5) for i in range(len(tokens) - 4)]
    vocab = {t: i for i, t in enumerate(tokens)}
    normal = [(t, s) for t, s, k in zip(tokens, scores, types) if k == 1]
    merges = generate_merges(vocab, normal, skip_tokens=[t for t, k in zip(tokens, types) if k != 1])
    path.write_text(json.dumps(dict(tokens=tokens, types=types, scores=scores, merges=merges), ensure_ascii=False))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent.parent / "tests/data/source")
    out = parser.parse_args().out
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    rng = np.random.default_rng(1)
    write_quants(out / "quants.bin", rng)
    write_f8(out / "f8.bin")
    write_configs(out / "configs.json")
    write_spm_merges(out / "spm_merges.json")
    small = dict(vocab_size=24, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
                 max_position_embeddings=64, rms_norm_eps=1e-5)
    write_family(out, "llama", rng, "mixed", torch.float32, small | dict(tie_word_embeddings=True, bos_token_id=0, eos_token_id=0), 1, "llama",
                 llama_metadata)
    tiny = small | dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2)
    write_family(out, "qwen2", rng, Q.F16, torch.float16, tiny | dict(rope_parameters=dict(rope_theta=1e6, rope_type="default")), 2, "qwen2",
                 lambda w, c: None)
    write_family(out, "qwen3", rng, Q.BF16, torch.bfloat16, tiny | dict(head_dim=12, tie_word_embeddings=True), 1, "qwen3",
                 lambda w, c: (w.add_key_length(c.head_dim), w.add_value_length(c.head_dim)))
    write_seeds(out, out.parents[1] / "fuzz" / "corpus")


def write_seeds(out, corpus):
    """Only seed_*: inputs that once failed stand beside them."""
    for kind in ("gguf", "safetensors"):
        (corpus / kind).mkdir(parents=True, exist_ok=True)
    shutil.copy(out / "llama.gguf", corpus / "gguf" / "seed_llama")
    shutil.copy(out / "qwen2-00002-of-00002.gguf", corpus / "gguf" / "seed_part")
    save_file({"a": torch.zeros(2, 3), "b": torch.zeros(0, 4, dtype=torch.bfloat16)}, corpus / "safetensors" / "seed_two", metadata={"format": "pt"})
    head = b'{"__metadata__":{"k":"v"},"x":{"dtype":"F8_E4M3","shape":[],"data_offsets":[0,1],"extra":{"y":[1,null]}}}   '
    (corpus / "safetensors" / "seed_extra").write_bytes(struct.pack("<Q", len(head)) + head + b"\x00")


if __name__ == "__main__":
    main()
