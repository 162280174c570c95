// SPDX-License-Identifier: Apache-2.0
#include "firstlight/ckpt/arena.h"

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"

namespace firstlight {

namespace {

std::string shape_text(std::span<const int64_t> shape) {
  std::string text = "[";
  for (const int64_t n : shape) text += str(text.size() > 1 ? ", " : "", n);
  return text + "]";
}

uint64_t bytes_of(std::span<const int64_t> shape, DType dtype) {
  uint64_t bytes = size_of(dtype);
  for (const int64_t n : shape) {
    if (n <= 0 || __builtin_mul_overflow(bytes, static_cast<uint64_t>(n), &bytes)) {
      throw Error(ErrorKind::bad_input, str("a tensor of shape ", shape_text(shape), " is empty or too large"));
    }
  }
  return bytes;
}

uint64_t round_up(uint64_t n, uint64_t unit) { return (n + unit - 1) / unit * unit; }

/// Gives each tail tensor its slot behind the regions, and the arena its size.
void place_tails(ArenaLayout& layout, uint64_t regions_end) {
  uint64_t at = regions_end;
  for (ArenaTensor& tensor : layout.tensors) {
    if (!tensor.in_tail) continue;
    at = round_up(at, kSlotAlignment);
    tensor.at = at;
    at += tensor.end - tensor.begin;
  }
  layout.bytes = at;
}

/// What a rank must hold of each tensor, by name.
struct Expected {
  DType dtype = DType::bf16;
  std::vector<int64_t> shape;
  int gate = 0;
};

std::map<std::string, Expected, std::less<>> expected_tensors(const ModelConfig& config, const Manifest& manifest,
                                                              int tp, int rank) {
  std::map<std::string, DType, std::less<>> dtypes;
  for (const ManifestTensor& tensor : manifest.tensors) dtypes[tensor.name] = tensor.dtype;
  std::map<std::string, Expected, std::less<>> expected;
  for (const ModelTensor& tensor : model_tensors(config)) {
    expected[tensor.name] = {dtypes.at(tensor.name), slice_of(config, tensor, tp, rank).shape(), tensor.gate};
  }
  return expected;
}

/// One tensor of a part's header against what is expected there.
void check_tensor(const SafetensorsTensor& tensor, const Expected& expected, const ManifestPart& part) {
  const auto fail = [&](const std::string& what) {
    throw Error(ErrorKind::bad_input, str("'", part.file, "': tensor '", tensor.name, "' ", what));
  };
  if (tensor.dtype != expected.dtype) {
    fail(str("is ", to_string(tensor.dtype), ", the manifest says ", to_string(expected.dtype)));
  }
  if (tensor.shape != expected.shape) {
    fail(str("has shape ", shape_text(tensor.shape), ", this rank's slice has ", shape_text(expected.shape)));
  }
  if (tensor.end - tensor.begin != bytes_of(tensor.shape, tensor.dtype)) fail("has another size than its shape");
  if (tensor.begin < part.tail_begin && (tensor.end > part.tail_begin || tensor.begin % kPageBytes != 0)) {
    fail(str("at [", tensor.begin, ", ", tensor.end, ") does not lie on pages before the tail at ", part.tail_begin));
  }
}

}  // namespace

ArenaLayout lay_out_arena(const ModelConfig& config, const Manifest& manifest, const ManifestRank& parts, int tp,
                          int rank, std::span<const SafetensorsHeader> headers) {
  const auto expected = expected_tensors(config, manifest, tp, rank);
  std::set<std::string_view> seen;
  ArenaLayout layout;
  const std::vector<uint64_t> regions = region_begins(parts);
  for (size_t p = 0; p < parts.parts.size(); ++p) {
    const ManifestPart& part = parts.parts[p];
    for (const SafetensorsTensor& tensor : headers[p].tensors) {
      const auto found = expected.find(tensor.name);
      if (found == expected.end()) {
        throw Error(ErrorKind::bad_input, str("'", part.file, "': the model has no tensor '", tensor.name, "'"));
      }
      if (!seen.insert(found->first).second) {
        throw Error(ErrorKind::bad_input, str("'", part.file, "': tensor '", tensor.name, "' stands in two parts"));
      }
      check_tensor(tensor, found->second, part);
      layout.tensors.push_back({tensor.name, tensor.dtype, tensor.shape, found->second.gate, p, tensor.begin,
                                tensor.end, tensor.begin >= part.tail_begin, regions[p] + tensor.begin});
    }
  }
  for (const auto& [name, tensor] : expected) {
    if (!seen.contains(name)) {
      throw Error(ErrorKind::bad_input, str("'", parts.directory, "' has no tensor '", name, "'"));
    }
  }
  require_one_type_a_group(config, [&](const std::string& name) { return expected.at(name).dtype; });
  place_tails(layout, regions.back() + parts.parts.back().tail_begin);
  return layout;
}

ArenaLayout lay_out_arena(const ModelConfig& config, std::span<const DType> dtypes, int tp, int rank) {
  ArenaLayout layout;
  uint64_t regions_end = 0;
  const std::vector<ModelTensor> tensors = model_tensors(config);
  for (size_t i = 0; i < tensors.size(); ++i) {
    ArenaTensor placed{.name = tensors[i].name,
                       .dtype = dtypes[i],
                       .shape = slice_of(config, tensors[i], tp, rank).shape(),
                       .gate = tensors[i].gate};
    const uint64_t bytes = bytes_of(placed.shape, placed.dtype);
    placed.in_tail = bytes % kPageBytes != 0;
    if (placed.in_tail) {
      placed.end = bytes;
    } else {
      placed.at = placed.begin = regions_end;
      placed.end = regions_end += bytes;
    }
    layout.tensors.push_back(std::move(placed));
  }
  place_tails(layout, regions_end);
  return layout;
}

void check_architecture(const ModelConfig& config, const Manifest& manifest, const fs::path& out) {
  if (manifest.architecture == to_string(config.architecture)) return;
  throw Error(ErrorKind::bad_input,
              str("'", (out / "config.json").native(), "' is of a ", to_string(config.architecture),
                  " model, the manifest says ", manifest.architecture));
}

void check_tensor_list(const ModelConfig& config, const Manifest& manifest) {
  std::map<std::string_view, const ManifestTensor*> listed;
  for (const ManifestTensor& tensor : manifest.tensors) listed[tensor.name] = &tensor;
  const std::vector<ModelTensor> tensors = model_tensors(config);
  for (const ModelTensor& tensor : tensors) {
    const auto found = listed.find(tensor.name);
    if (found == listed.end()) {
      throw Error(ErrorKind::bad_input, str("manifest.json: tensor '", tensor.name, "' of the model is not listed"));
    }
    const ManifestTensor& is = *found->second;
    if (is.shape != tensor.shape || is.slice != tensor.slice) {
      throw Error(ErrorKind::bad_input, str("manifest.json: tensor '", tensor.name, "' is ", shape_text(is.shape),
                                            " cut by ", to_string(is.slice), ", config.json makes it ",
                                            shape_text(tensor.shape), " cut by ", to_string(tensor.slice)));
    }
  }
  if (manifest.tensors.size() == tensors.size()) return;
  for (const ManifestTensor& tensor : manifest.tensors) {
    const bool known =
        std::any_of(tensors.begin(), tensors.end(), [&](const auto& t) { return t.name == tensor.name; });
    if (!known) {
      throw Error(ErrorKind::bad_input, str("manifest.json: the model has no tensor '", tensor.name, "'"));
    }
  }
}

std::vector<uint64_t> region_begins(const ManifestRank& parts) {
  std::vector<uint64_t> begins;
  uint64_t end = 0;
  for (const ManifestPart& part : parts.parts) {
    begins.push_back(end);
    end += part.tail_begin;
  }
  return begins;
}

uint64_t most_arena_bytes(const ManifestRank& parts, size_t n_tensors) {
  return round_up(parts.total_bytes() + kSlotAlignment * n_tensors, kPageBytes);
}

RankWeights make_rank_weights(const ModelConfig& config, const ArenaLayout& layout, Buffer arena, int tp, int rank) {
  if (arena.size() < layout.bytes)
    throw Error(ErrorKind::bug, str("an arena of ", arena.size(), " bytes is too small"));
  RankWeights weights;
  weights.rank = rank;
  weights.tp = tp;
  weights.arena = std::move(arena);
  weights.ready = std::make_unique<Gates>(n_gates(config));
  weights.vocab_rows = vocab_rows_per_rank(config, tp);
  weights.vocab_begin = weights.vocab_rows * rank;
  for (const ArenaTensor& tensor : layout.tensors) {
    weights.tensors.emplace(tensor.name, Tensor{tensor.name, tensor.dtype, tensor.shape,
                                                weights.arena.data() + tensor.at, tensor.end - tensor.begin});
  }
  return weights;
}

void require_fits(uint64_t weights, uint64_t reserve, uint64_t available, Device device) {
  const auto amount = [](uint64_t bytes) { return human_bytes(static_cast<double>(bytes)); };
  if (weights <= available && reserve <= available - weights) return;
  std::string what = str("memory of ", to_string(device), ": ", amount(weights), " of weights");
  if (reserve != 0) what += str(" and ", amount(reserve), " of KV cache and activations");
  what += str(" are needed, ", amount(available), " are available");
  if (weights <= available) {
    what += str("; with at most ", amount(available - weights),
                " of KV cache and activations it fits: use a smaller --max-context or --kv-memory");
  } else {
    what += str("; the weights alone are ", amount(weights - available), " too large: ");
    what += device.kind == Device::Kind::cpu
                ? "use a smaller element type (shard --dtype bf16), a smaller model, or free memory"
                : "use a larger --tp, so that each device holds less";
  }
  throw Error(ErrorKind::out_of_memory, what);
}

}  // namespace firstlight
