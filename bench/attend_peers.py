#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Attention by PyTorch (scaled_dot_product_attention, each of its back ends) on one GPU, at the sizes of bench/cuda_steps_bench
and bench/cuda_attend_bench: 32 query heads on 8 key/value heads of 128, bf16, contiguous tensors (no pages), random data.

    python3 bench/attend_peers.py

Medians of 7 replays of a graph of calls (decode: as many as take some 10 ms). Prints what is missing instead of failing: torch,
a GPU, FlashInfer, or a back end that does not take these shapes."""
import importlib.util
import statistics
import sys

HEADS, KV_HEADS, DIM = 32, 8, 128


def seconds(torch, call, n):
    """Of one call: median of 7 replays of n calls."""
    call()  # whatever is compiled or asked for at first use
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(n):
            call()
    times = []
    for _ in range(8):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / 1e3 / n)
    return statistics.median(times[1:])


def main():
    try:
        import torch
        from torch.nn.attention import SDPBackend, sdpa_kernel
    except ImportError as error:
        return print(f"PyTorch is missing ({error}): nothing is measured")
    if not torch.cuda.is_available():
        return print("PyTorch sees no GPU: nothing is measured")
    print(f"PyTorch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}, {torch.cuda.get_device_name()}")
    if importlib.util.find_spec("flashinfer") is None:
        print("FlashInfer is missing: not measured")
    attend = torch.nn.functional.scaled_dot_product_attention
    backends = {"flash": SDPBackend.FLASH_ATTENTION, "cuDNN": SDPBackend.CUDNN_ATTENTION,
                "memory-efficient": SDPBackend.EFFICIENT_ATTENTION}
    for batch, rows, keys in ((8, 1, 32768), (32, 1, 32768), (1, 512, 32768), (1, 8192, 8192), (1, 32768, 32768)):
        def random(heads, n):
            return torch.randn(batch, heads, n, DIM, device="cuda", dtype=torch.bfloat16)
        q, k, v = random(HEADS, rows), random(KV_HEADS, keys), random(KV_HEADS, keys)
        read = 2 * k.numel() * k.element_size()
        # The visible half; a chunk of rows at the end of its keys sees nearly all of them, and is_causal means another corner.
        flops = 4 * HEADS * DIM * (rows * keys - rows * rows / 2) if rows > 1 else 0
        mask = None
        if 1 < rows < keys:
            mask = torch.ones(rows, keys, device="cuda", dtype=torch.bool).tril(keys - rows)
        for name, backend in backends.items():
            for grouped in (True, False):
                if not grouped and batch > 1:
                    continue
                # A back end that knows no groups gets each key/value head four times, copied before the clock runs.
                keys_of, values_of = (k, v) if grouped else (x.repeat_interleave(HEADS // KV_HEADS, 1) for x in (k, v))
                what = f"{batch:2} x {rows:5} rows on {keys} keys, {name}{'' if grouped else ', keys repeated'}"

                def call():
                    with sdpa_kernel(backend):
                        attend(q, keys_of, values_of, attn_mask=mask, is_causal=rows == keys, enable_gqa=grouped)
                try:
                    s = seconds(torch, call, 1 if rows > 512 else 10)
                except Exception as error:  # noqa: BLE001: whatever a back end says, the others are measured
                    print(f"{what}: {(str(error).strip().splitlines() or [type(error).__name__])[0][:90]}")
                    continue
                rate = f"{flops / s / 1e12:.0f} TFLOP/s" if flops else f"{read / s / 1e9:.0f} GB/s"
                print(f"{what}: {s * 1e6:.1f} us, {rate}", flush=True)
                break
        del q, k, v, mask
        torch.cuda.empty_cache()


if __name__ == "__main__":
    sys.exit(main())
