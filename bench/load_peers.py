#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""One load of a safetensors checkpoint by another loader, tuned as its documentation says; for `firstlight bench load --peers`.

    load_peers.py LOADER DEVICE FILE…                                        one process
    python3 -m torch.distributed.run --nproc-per-node N load_peers.py …      N ranks, one a GPU

DEVICE: cpu or cuda. The clock runs from the call to the last byte on the device: imports, the GPU's context and NCCL's start
are outside of it, as they are for Firstlight's loads there. With N ranks each ends with its rows of each matrix (safetensors;
fastsafetensors, whose ranks read a file each and scatter) or with all tensors (the distributed modes of InstantTensor and
Run:ai): what these loaders do for tensor parallelism. Prints one JSON line: {"seconds", "bytes" (of all tensors on rank 0),
"version"}, or {"refused": why}. Needs torch; nothing of a loader but its safe, public interface.
"""
import importlib.metadata
import json
import os
import sys
import time

LOADERS = {
    "safetensors": "safetensors",
    "fastsafetensors": "fastsafetensors",
    "instanttensor-mmap": "instanttensor",
    "instanttensor-buffered": "instanttensor",
    "runai": "runai-model-streamer",
}


def by_safetensors(files, device, rank, ranks):
    from safetensors import safe_open
    out = {}
    for name in files:
        with safe_open(name, framework="pt", device=device) as file:
            for key in file.keys():
                part = file.get_slice(key)
                n = part.get_shape()[0]
                whole = ranks == 1 or len(part.get_shape()) < 2 or n % ranks != 0
                tensor = file.get_tensor(key) if whole else part[n // ranks * rank:n // ranks * (rank + 1)]
                out[key] = tensor.clone() if device == "cpu" else tensor  # on the CPU it is only mapped until then
    return out


def by_fastsafetensors(files, device, rank, ranks):
    from fastsafetensors import SafeTensorsFileLoader
    from fastsafetensors.common import SingleGroup
    if ranks > 1:
        import torch.distributed as dist
    loader = SafeTensorsFileLoader(dist.group.WORLD if ranks > 1 else SingleGroup(), device, nogds=True, max_threads=16)
    loader.add_filenames({r: files[r::ranks] for r in range(ranks)})
    buffers = loader.copy_files_to_device()
    keys = list(buffers.key_to_rank_lidx.keys())
    if ranks == 1:
        return {key: buffers.get_tensor(key) for key in keys}
    whole = lambda shape: len(shape) < 2 or shape[0] % ranks != 0
    return {key: buffers.get_sharded(key, -1 if whole(loader.get_shape(key)) else 0) for key in sorted(keys)}


def by_instanttensor(files, device, rank, ranks, backend):
    import instanttensor
    options = {"backend": getattr(instanttensor.Backend, backend)}
    if ranks > 1:
        import torch.distributed as dist
        options["process_group"] = dist.group.WORLD
    with instanttensor.safe_open(files, framework="pt", device=rank, **options) as file:
        return dict(file.tensors())


def by_runai(files, device, rank, ranks):
    os.environ.setdefault("RUNAI_STREAMER_CONCURRENCY", "16")
    from runai_model_streamer import SafetensorsStreamer
    out = {}
    with SafetensorsStreamer() as streamer:
        streamer.stream_files(files, **({"device": device, "is_distributed": True} if ranks > 1 else {}))
        for key, tensor in streamer.get_tensors():
            out[key] = tensor.clone() if device == "cpu" else tensor.to(device)
    return out


def refuse(rank, why):
    if rank == 0:
        print(json.dumps({"refused": why}), flush=True)


def main():
    loader, device, files = sys.argv[1], sys.argv[2], sys.argv[3:]
    version = importlib.metadata.version(LOADERS[loader])
    rank, ranks = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if ranks > 1 and loader == "fastsafetensors" and len(files) < ranks:
        return refuse(rank, f"its ranks read a file each, and here are {len(files)}")
    if device == "cpu" and loader.startswith("instanttensor"):
        return refuse(rank, "GPUs only")
    import torch
    wait = lambda: None
    if device == "cuda":
        torch.cuda.set_device(rank)
        device = f"cuda:{rank}"
        torch.zeros(1, device=device)
        wait = torch.cuda.synchronize
    if ranks > 1:
        import torch.distributed as dist
        os.environ.setdefault("NCCL_NVLS_ENABLE", "0")
        dist.init_process_group("nccl", device_id=torch.device(device))
        dist.all_reduce(torch.zeros(1, device=device))
        dist.barrier()
    load = {"safetensors": by_safetensors, "fastsafetensors": by_fastsafetensors, "runai": by_runai}.get(loader)
    wait()
    begin = time.perf_counter()
    if load is None:
        tensors = by_instanttensor(files, device, rank, ranks, {"mmap": "MMAP", "buffered": "URING_BUFFERED"}[loader.split("-")[1]])
    else:
        tensors = load(files, device, rank, ranks)
    wait()
    if ranks > 1:
        dist.barrier()
    seconds = time.perf_counter() - begin
    if rank == 0:
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        print(json.dumps({"seconds": seconds, "bytes": size, "version": version}), flush=True)
    if ranks > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
