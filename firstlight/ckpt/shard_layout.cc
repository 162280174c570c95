// SPDX-License-Identifier: Apache-2.0
#include "firstlight/ckpt/shard_layout.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <map>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"

namespace firstlight {

namespace {

/// What `source` makes of a stored type.
DType kept_type(const SourceTensor& tensor) {
  if (tensor.only_loaded) return tensor.dtype;
  switch (tensor.dtype) {
    case DType::f32:
    case DType::bf16:
      return tensor.dtype;
    case DType::f16:
      return DType::bf16;
    case DType::f64:
      return DType::f32;
    default:
      throw Error(ErrorKind::unsupported,
                  str("tensor '", tensor.name, "' is stored as ", tensor.stored_type,
                      "; expected F64, F32, F16, BF16 or a GGUF type that decodes to F32 (or choose --dtype bf16)"));
  }
}

DType stored_type(const SourceTensor& tensor, DTypeChoice choice) {
  if (choice == DTypeChoice::bf16) return DType::bf16;
  return choice == DTypeChoice::f32 ? DType::f32 : kept_type(tensor);
}

/// What happens to values: decoded blocks are f32, F8 fits into BF16 and everything but F64 into F32.
std::string_view loss(const SourceTensor& from, DType to) {
  if (from.quantised) return to == DType::f32 ? ": decoded" : ": decoded, then rounded to nearest even";
  const bool is_f8 = from.dtype == DType::f8_e4m3 || from.dtype == DType::f8_e5m2;
  const bool exact = is_f8 || (to == DType::f32 && from.dtype != DType::f64);
  return exact ? ": exact" : ": rounded to nearest even";
}

/// Tensors that must not straddle two parts: q,k,v weights and gate,up weights. True if `tensor` continues the group of
/// the one before it.
bool continues_group(const std::string& name) {
  return name.ends_with(".k_proj.weight") || name.ends_with(".v_proj.weight") || name.ends_with(".up_proj.weight");
}

struct Unit {
  size_t first = 0, end = 0;  // tensors [first, end)
  uint64_t bytes = 0;
};

std::vector<uint64_t> slice_sizes(const ModelConfig& config, const std::vector<StoredTensor>& tensors, int tp) {
  std::vector<uint64_t> sizes;
  sizes.reserve(tensors.size());
  for (const StoredTensor& tensor : tensors) {
    uint64_t bytes = size_of(tensor.dtype);
    for (const int64_t n : slice_of(config, tensor.model, tp, 0).shape()) bytes *= static_cast<uint64_t>(n);
    sizes.push_back(bytes);
  }
  return sizes;
}

PartLayout lay_out_part(const std::vector<uint64_t>& sizes, size_t first, size_t end) {
  PartLayout part;
  part.last_index = end - 1;
  for (const bool tail : {false, true}) {
    for (size_t i = first; i < end; ++i) {
      if ((sizes[i] % kPageBytes != 0) != tail) continue;
      part.placed.push_back({i, sizes[i], part.data_bytes});
      part.data_bytes += sizes[i];
    }
    if (!tail) {
      part.n_head = part.placed.size();
      part.tail_begin = part.data_bytes;
    }
  }
  return part;
}

}  // namespace

uint64_t StoredTensor::row_bytes() const {
  const int64_t n = model.shape.size() == 1 ? model.shape[0] : model.shape[1];
  return static_cast<uint64_t>(n) * size_of(dtype);
}

uint64_t RankLayout::total_bytes() const {
  uint64_t total = 0;
  for (const PartLayout& part : parts) total += part.data_bytes;
  return total;
}

std::string_view to_string(DTypeChoice choice) noexcept {
  switch (choice) {
    case DTypeChoice::source:
      return "source";
    case DTypeChoice::bf16:
      return "bf16";
    case DTypeChoice::f32:
      return "f32";
  }
  return "?";
}

DTypeChoice default_dtype(const Source& source) {
  if (source.kind() != "gguf") return DTypeChoice::source;
  const auto& tensors = source.tensors();
  const bool plain_f32 = std::all_of(tensors.begin(), tensors.end(), [](const SourceTensor& tensor) {
    return tensor.dtype == DType::f32 && !tensor.quantised;
  });
  return plain_f32 ? DTypeChoice::source : DTypeChoice::bf16;
}

std::vector<StoredTensor> stored_tensors(const Source& source, DTypeChoice choice) {
  std::map<std::string_view, const SourceTensor*> by_name;
  for (const SourceTensor& tensor : source.tensors()) by_name.emplace(tensor.name, &tensor);
  std::vector<StoredTensor> out;
  for (ModelTensor& model : model_tensors(source.config())) {
    const auto found = by_name.find(model.name);
    if (found == by_name.end()) {
      throw Error(ErrorKind::bad_input, str("'", source.path(), "' has no tensor '", model.name, "'"));
    }
    if (found->second->shape != model.shape) {
      throw Error(ErrorKind::bad_input,
                  str("'", source.path(), "': tensor '", model.name, "' has another shape than its config says"));
    }
    out.push_back({std::move(model), stored_type(*found->second, choice), found->second});
  }
  if (out.size() != source.tensors().size()) {
    throw Error(ErrorKind::bad_input, str("'", source.path(), "' has ", source.tensors().size(),
                                          " tensors, the architecture has ", out.size()));
  }
  std::map<std::string_view, DType> types;
  for (const StoredTensor& tensor : out) types.emplace(tensor.model.name, tensor.dtype);
  require_one_type_a_group(source.config(), [&](const std::string& name) { return types.at(name); });
  return out;
}

void note_changes(const std::vector<StoredTensor>& tensors, const std::function<void(const std::string&)>& note) {
  if (!note) return;
  std::map<std::pair<std::string, DType>, std::pair<int, std::string_view>> changes;
  for (const StoredTensor& tensor : tensors) {
    if (tensor.source->stored_type == safetensors_name(tensor.dtype)) continue;
    auto& [n, what] = changes[{tensor.source->stored_type, tensor.dtype}];
    ++n;
    what = loss(*tensor.source, tensor.dtype);
  }
  for (const auto& [change, effect] : changes) {
    const auto& [n, what] = effect;
    note(str(change.first, " becomes ", safetensors_name(change.second), " in ", n, n == 1 ? " tensor" : " tensors",
             what));
  }
}

RankLayout lay_out(const ModelConfig& config, const std::vector<StoredTensor>& tensors, int tp, uint64_t part_bytes) {
  const std::vector<uint64_t> sizes = slice_sizes(config, tensors, tp);
  std::vector<Unit> units;
  uint64_t total = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (units.empty() || !continues_group(tensors[i].model.name)) units.push_back({i, i, 0});
    units.back().end = i + 1;
    units.back().bytes += sizes[i];
    total += sizes[i];
  }
  const uint64_t n = std::max<uint64_t>(1, (total + part_bytes - 1) / part_bytes);
  RankLayout layout;
  layout.tp = tp;
  uint64_t begin = 0, current = 0;
  size_t first = 0;
  for (const Unit& unit : units) {
    // Part of the unit's middle; 128 bits because total may be 10¹² and n 10³.
    const auto middle = static_cast<unsigned __int128>(begin + unit.bytes / 2);
    const auto wanted = static_cast<uint64_t>(middle * n / total);
    if (wanted != current && unit.first > first) {
      layout.parts.push_back(lay_out_part(sizes, first, unit.first));
      first = unit.first;
    }
    current = wanted;
    begin += unit.bytes;
  }
  layout.parts.push_back(lay_out_part(sizes, first, tensors.size()));
  uint64_t n_leaves = 0;
  for (size_t i = 0; i < layout.parts.size(); ++i) {
    std::array<char, 64> name{};
    std::snprintf(name.data(), name.size(), "model-%05zu-of-%05zu.safetensors", i + 1, layout.parts.size());
    layout.parts[i].name = name.data();
    layout.parts[i].first_leaf = n_leaves;
    n_leaves += layout.parts[i].n_leaves();
  }
  return layout;
}

std::string part_header(const ModelConfig& config, const std::vector<StoredTensor>& tensors, int tp,
                        const PartLayout& part) {
  std::vector<SafetensorsTensor> table;
  for (const PlacedTensor& placed : part.placed) {
    const StoredTensor& tensor = tensors[placed.index];
    table.push_back({tensor.model.name, tensor.dtype, slice_of(config, tensor.model, tp, 0).shape(), placed.begin,
                     placed.begin + placed.bytes});
  }
  return make_safetensors_header(table, {{"format", "pt"}}, kDataBegin);
}

std::string rank_directory(int tp, int rank) {
  std::array<char, 64> name{};
  std::snprintf(name.data(), name.size(), "tp%d/rank-%02d", tp, rank);
  return name.data();
}

}  // namespace firstlight
