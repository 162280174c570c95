# SPDX-License-Identifier: Apache-2.0
"""Files that an attacker or a broken disk could make: {name: bytes}, each to be refused with exit code 2."""
import json
import struct


def safetensors(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(begin, end, shape=(2, 2), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def hostile_safetensors():
    good = b"\0" * 16
    two = lambda a, b: b'{"a":%s,"a":%s}' % (json.dumps(a).encode(), json.dumps(b).encode())
    return {
        "empty file": b"",
        "seven bytes": b"\x08\0\0\0\0\0\0",
        "header longer than the file": safetensors({"a": entry(0, 16)}, good, length=1 << 20),
        "header length 2^64 - 1": safetensors({"a": entry(0, 16)}, good, length=(1 << 64) - 1),
        "header over 100 MB": safetensors({"a": entry(0, 16)}, good, length=100_000_001),
        "header is no JSON": safetensors(b"{nonsense", good),
        "header is a list": safetensors(b"[1,2]", good),
        "header cut in a string": safetensors(b'{"a', good),
        "leading space": safetensors(b" " + json.dumps({"a": entry(0, 16)}).encode(), good),
        "NUL padding": safetensors(json.dumps({"a": entry(0, 16)}).encode() + b"\0\0", good),
        "bytes after the object": safetensors(json.dumps({"a": entry(0, 16)}).encode() + b"{}", good),
        "data missing": safetensors({"a": entry(0, 16)}, b""),
        "data longer than tensors": safetensors({"a": entry(0, 16)}, good + b"x"),
        "hole": safetensors({"a": entry(0, 16), "b": entry(20, 36)}, b"\0" * 36),
        "overlap": safetensors({"a": entry(0, 16), "b": entry(8, 24)}, b"\0" * 24),
        "end before begin": safetensors({"a": entry(16, 0)}, good),
        "negative offset": safetensors({"a": entry(-16, 0)}, good),
        "offset 2^64": safetensors(b'{"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,18446744073709551616]}}', good),
        "offset is a fraction": safetensors(b'{"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16.0]}}', good),
        "three offsets": safetensors(b'{"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16,16]}}', good),
        "shape disagrees": safetensors({"a": entry(0, 16, (3, 2))}, good),
        "shape overflows": safetensors({"a": entry(0, 16, (1 << 32, 1 << 32))}, good),
        "negative shape": safetensors({"a": entry(0, 16, (-2, -2))}, good),
        "unknown dtype": safetensors({"a": entry(0, 16, dtype="Q9")}, good),
        "dtype missing": safetensors({"a": {"shape": [4], "data_offsets": [0, 16]}}, good),
        "shape missing": safetensors({"a": {"dtype": "F32", "data_offsets": [0, 16]}}, good),
        "duplicate tensor": safetensors(two(entry(0, 16), entry(0, 16)), good),
        "duplicate tensor, other dtype": safetensors(two(entry(0, 16), entry(0, 16, dtype="I32")), good),
        "nested metadata": safetensors({"__metadata__": {"x": {"y": "z"}}, "a": entry(0, 16)}, good),
        "metadata is a number": safetensors({"__metadata__": {"x": 1}, "a": entry(0, 16)}, good),
        "name is not UTF-8": safetensors(b'{"\xff\xfe":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}', good),
        "deep nesting": safetensors(b'{"a":' + b"[" * 200_000, good),
        "tensor entry is a number": safetensors(b'{"a":7}', good),
    }


def string(text):
    data = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(data)) + data


def value(key, kind, payload):
    return string(key) + struct.pack("<I", kind) + payload


def tensor(name, shape, kind=0, offset=0, n_dims=None):
    return (string(name) + struct.pack("<I", len(shape) if n_dims is None else n_dims) + b"".join(struct.pack("<Q", n) for n in shape) +
            struct.pack("<IQ", kind, offset))


def gguf(values=(), tensors=(), version=3, n_values=None, n_tensors=None, data=b"\0" * 256, magic=b"GGUF"):
    head = magic + struct.pack("<IQQ", version, len(tensors) if n_tensors is None else n_tensors, len(values) if n_values is None else n_values)
    body = head + b"".join(values) + b"".join(tensors)
    return body + b"\0" * (-len(body) % 32) + data


def hostile_gguf():
    arch = value("general.architecture", 8, string("llama"))
    u32 = lambda key, n: value(key, 4, struct.pack("<I", n))
    array = lambda key, kind, n, payload=b"": value(key, 9, struct.pack("<IQ", kind, n) + payload)
    nested = array("x", 9, 1, b"".join(struct.pack("<IQ", 9, 1) for _ in range(2000)))
    ok = tensor("a", [8])
    return {
        "empty file": b"",
        "magic alone": b"GGUF",
        "other magic": gguf(magic=b"GGUG"),
        "version 0": gguf(version=0),
        "version 99": gguf(version=99),
        "big-endian version": gguf(version=3 << 24),
        "2^63 values": gguf([arch], n_values=1 << 63),
        "2^63 tensors": gguf([arch], n_tensors=1 << 63),
        "more values than the file has": gguf([arch], n_values=1000, data=b""),
        "string of 2^64 - 1 bytes": gguf([struct.pack("<Q", (1 << 64) - 1) + b"x" * 64]),
        "string of 1 GiB": gguf([struct.pack("<Q", 1 << 30) + b"x" * 64]),
        "array of 2^62 strings": gguf([arch, array("x", 8, 1 << 62)]),
        "array of 2^61 u64": gguf([arch, array("x", 10, 1 << 61)]),
        "arrays nested 2,000 deep": gguf([arch, nested]),
        "unknown value type": gguf([arch, value("x", 77, b"\0" * 8)]),
        "key twice": gguf([arch, u32("x", 1), u32("x", 2)]),
        "key is not UTF-8": gguf([arch, value(b"\xff\xfe", 4, b"\0" * 4)]),
        "alignment 0": gguf([arch, u32("general.alignment", 0)], [ok]),
        "alignment 3": gguf([arch, u32("general.alignment", 3)], [ok]),
        "alignment 2^31": gguf([arch, u32("general.alignment", 1 << 31)], [ok]),
        "tensor with 9 dimensions": gguf([arch], [tensor("a", [1] * 9)]),
        "tensor with 2^32 - 1 dimensions": gguf([arch], [tensor("a", [], n_dims=(1 << 32) - 1)]),
        "tensor of size 0": gguf([arch], [tensor("a", [0, 4])]),
        "tensor shape overflows": gguf([arch], [tensor("a", [1 << 32, 1 << 32, 2])]),
        "tensor past the end": gguf([arch], [tensor("a", [1 << 20])]),
        "tensor offset past the end": gguf([arch], [tensor("a", [8], offset=1 << 40)]),
        "tensor offset 2^64 - 32": gguf([arch], [tensor("a", [8], offset=(1 << 64) - 32)]),
        "tensor offset not aligned": gguf([arch], [tensor("a", [8], offset=7)]),
        "tensors overlap": gguf([arch], [tensor("a", [32]), tensor("b", [32], offset=32)]),
        "tensor twice": gguf([arch], [ok, tensor("a", [8], offset=32)]),
        "unknown tensor type": gguf([arch], [tensor("a", [8], kind=999)]),
        "rows are no whole blocks": gguf([arch], [tensor("a", [33], kind=8)]),
    }
