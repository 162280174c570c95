#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""InstantTensor's distributed mode on a checkpoint, for bench/many_gpus.sh: python3 -m torch.distributed.run
--nproc-per-node N instanttensor_peer.py DIRECTORY. Every rank gets every tensor, as that loader works."""
import glob
import os
import sys
import time

import instanttensor
import torch
import torch.distributed as dist


def main() -> None:
    files = sorted(glob.glob(os.path.join(sys.argv[1], "*.safetensors")))
    size = sum(os.path.getsize(name) for name in files)
    rank = int(os.environ["LOCAL_RANK"])
    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", device_id=torch.device("cuda", rank))
    dist.barrier()
    backends = instanttensor.Backend  # those that use a warm page cache
    for backend in (backends.MMAP, backends.URING_BUFFERED):
        for _ in range(3):  # the first also starts NCCL's communicator
            dist.barrier()
            torch.cuda.synchronize()
            begin = time.perf_counter()
            tensors = {}
            with instanttensor.safe_open(
                files, framework="pt", device=rank, process_group=dist.group.WORLD, backend=backend
            ) as f:
                for name, tensor in f.tensors():
                    tensors[name] = tensor
            torch.cuda.synchronize()
            dist.barrier()
            seconds = time.perf_counter() - begin
            if rank == 0:
                print(f"{backend.name}: {size / 1e9:.1f} GB of checkpoint in {seconds:.3f} s: {size / 1e9 / seconds:.1f} GB/s")
            del tensors
            torch.cuda.empty_cache()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
