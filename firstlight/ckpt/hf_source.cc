// SPDX-License-Identifier: Apache-2.0
#include "firstlight/ckpt/hf_source.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "firstlight/base/error.h"
#include "firstlight/base/hash.h"
#include "firstlight/base/str.h"
#include "firstlight/ckpt/slice_map.h"
#include "firstlight/ckpt/source_sample.h"
#include "firstlight/quant/convert.h"

namespace firstlight {

namespace {

constexpr size_t kConvertBytes = 1u << 20;  // stored bytes converted at a time: in and out stay in L2

// What tokenizers, generation and people need; weights in other formats are not taken along.
constexpr std::array<const char*, 13> kAuxNames{"config.json",
                                                "generation_config.json",
                                                "tokenizer.json",
                                                "tokenizer_config.json",
                                                "special_tokens_map.json",
                                                "added_tokens.json",
                                                "tokenizer.model",
                                                "vocab.json",
                                                "merges.txt",
                                                "chat_template.jinja",
                                                "chat_template.json",
                                                "LICENSE",
                                                "LICENSE.txt"};

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string out = "[";
  for (size_t i = 0; i < shape.size(); ++i) out += str(i > 0 ? ", " : "", shape[i]);
  return out + "]";
}

bool is_weight_type(DType dtype) {
  switch (dtype) {
    case DType::f64:
    case DType::f32:
    case DType::f16:
    case DType::bf16:
    case DType::f8_e4m3:
    case DType::f8_e5m2:
      return true;
    default:
      return false;
  }
}

}  // namespace

std::span<const char* const> small_file_names() { return kAuxNames; }

RowRange check_rows(const SourceTensor& tensor, int64_t row_begin, int64_t row_end, DType as, size_t out_bytes) {
  const bool flat = tensor.shape.size() == 1;
  const int64_t rows = flat ? 1 : tensor.shape.at(0);
  RowRange range;
  range.columns = flat ? tensor.shape.at(0) : tensor.shape.at(1);
  if (row_begin < 0 || row_begin > row_end || row_end > rows) {
    throw Error(ErrorKind::bug, str("tensor '", tensor.name, "': rows [", row_begin, ", ", row_end, ") of ", rows));
  }
  range.elements = (row_end - row_begin) * range.columns;
  if (as != DType::f32 && as != DType::bf16 && as != tensor.dtype) {
    throw Error(ErrorKind::bug,
                str("tensor '", tensor.name, "' of ", to_string(tensor.dtype), " read as ", to_string(as)));
  }
  if (static_cast<uint64_t>(range.elements) * size_of(as) != out_bytes) {
    throw Error(ErrorKind::bug, str("tensor '", tensor.name, "': ", out_bytes, " bytes for ", range.elements,
                                    " elements of ", to_string(as)));
  }
  return range;
}

HfSource::HfSource(const fs::path& directory) : path_(directory.native()) {
  for (const char* name : kAuxNames) {
    const fs::path path = directory / name;
    std::error_code ignored;  // what cannot be looked at is not there; config.json is asked for below
    if (fs::is_regular_file(path, ignored)) aux_.push_back({name, read_text(path)});
  }
  if (aux_.empty() || aux_.front().name != "config.json") {
    throw Error(ErrorKind::not_found, str((directory / "config.json").native(), ": missing"));
  }
  config_ = parse_hf_config(aux_.front().content);
  files_ = open_safetensors_directory(directory);
  list_tensors();
}

void HfSource::list_tensors() {
  const std::vector<ModelTensor> expected = model_tensors(config_);
  std::unordered_map<std::string_view, bool> known;
  for (const ModelTensor& tensor : expected) {
    known.emplace(tensor.name, true);
    const auto place = files_.places.find(tensor.name);
    if (place == files_.places.end()) {
      throw Error(ErrorKind::bad_input, str(path_, ": tensor '", tensor.name, "' of the ", config_.hf_class,
                                            " is not in the safetensors files"));
    }
    const SafetensorsFile& file = files_.files[place->second.file];
    const SafetensorsTensor& stored = file.header.tensors[place->second.tensor];
    if (stored.shape != tensor.shape) {
      throw Error(ErrorKind::bad_input, str(file.file->path(), ": tensor '", tensor.name, "': shape ",
                                            shape_text(stored.shape), ", config.json says ", shape_text(tensor.shape)));
    }
    if (!is_weight_type(stored.dtype)) {
      throw Error(ErrorKind::unsupported,
                  str(file.file->path(), ": tensor '", tensor.name, "': weights of ", safetensors_name(stored.dtype),
                      " are not supported (floating-point types are)"));
    }
    tensors_.push_back({tensor.name, tensor.shape, std::string(safetensors_name(stored.dtype)), stored.dtype, false,
                        stored.end - stored.begin});
  }
  for (const auto& [name, place] : files_.places) {
    if (known.contains(name) || name.ends_with(".rotary_emb.inv_freq")) continue;
    if (config_.tied_embeddings && name == "lm_head.weight") {
      check_tied_head();
      continue;
    }
    throw Error(ErrorKind::unsupported, str(files_.files[place.file].file->path(), ": tensor '", name.substr(0, 200),
                                            "' is not one that a ", config_.hf_class, " with this config.json has"));
  }
}

/// transformers drops a stored lm_head if it is tied and equal, and unties it if it differs; only the first is
/// unambiguous.
void HfSource::check_tied_head() const {
  const auto bytes_of = [&](const char* name) {
    const SafetensorsFiles::Place place = files_.places.at(name);
    return std::pair(&files_.files[place.file], &files_.files[place.file].header.tensors[place.tensor]);
  };
  const auto [embed_file, embed] = bytes_of("model.embed_tokens.weight");
  const auto [head_file, head] = bytes_of("lm_head.weight");
  bool equal = embed->dtype == head->dtype && embed->shape == head->shape;
  std::vector<std::byte> a(4 * kConvertBytes), b(4 * kConvertBytes);
  const uint64_t size = embed->end - embed->begin;
  for (uint64_t at = 0; equal && at < size; at += a.size()) {
    const size_t n = std::min<uint64_t>(a.size(), size - at);
    embed_file->file->read(embed_file->header.data_begin + embed->begin + at, std::span(a).first(n));
    head_file->file->read(head_file->header.data_begin + head->begin + at, std::span(b).first(n));
    equal = std::memcmp(a.data(), b.data(), n) == 0;
  }
  if (!equal) {
    throw Error(ErrorKind::unsupported,
                str(head_file->file->path(),
                    ": config.json ties lm_head.weight to the embedding, but the file has another one; "
                    "set tie_word_embeddings to false to use it"));
  }
}

std::string HfSource::fingerprint() const {
  Xxh3_128 hash;
  const auto add = [&](std::string_view text) {
    const auto size = static_cast<uint64_t>(text.size());
    hash.update(std::as_bytes(std::span(&size, 1)));
    hash.update(std::as_bytes(std::span(text)));
  };
  for (const AuxFile& file : aux_) {
    add(file.name);
    add(file.content);
  }
  for (const SafetensorsFile& file : files_.files) {
    std::string head(file.header.data_begin, '\0');
    file.file->read(0, std::as_writable_bytes(std::span(head)));
    add(file.name);
    add(std::to_string(file.file->size()));
    add(head);
    for (const SafetensorsTensor& tensor : file.header.tensors) {
      hash_sample(hash, *file.file, file.header.data_begin + tensor.begin, tensor.end - tensor.begin);
    }
  }
  return str("safetensors:", hash.hex());
}

void HfSource::read_rows(const SourceTensor& tensor, int64_t row_begin, int64_t row_end, DType as,
                         std::span<std::byte> out) const {
  const RowRange range = check_rows(tensor, row_begin, row_end, as, out.size());
  const auto found = files_.places.find(tensor.name);
  if (found == files_.places.end())
    throw Error(ErrorKind::bug, str("tensor '", tensor.name, "' is not of this source"));
  const SafetensorsFile& file = files_.files[found->second.file];
  const SafetensorsTensor& stored = file.header.tensors[found->second.tensor];
  const size_t stored_size = size_of(stored.dtype);
  uint64_t at = file.header.data_begin + stored.begin + static_cast<uint64_t>(row_begin * range.columns) * stored_size;
  if (as == stored.dtype) {
    file.file->read(at, out);
  } else {
    std::vector<std::byte> raw(std::min<size_t>(kConvertBytes, static_cast<size_t>(range.elements) * stored_size));
    for (int64_t done = 0; done < range.elements;) {
      const int64_t n = std::min<int64_t>(static_cast<int64_t>(raw.size() / stored_size), range.elements - done);
      const auto piece = std::span(raw).first(static_cast<size_t>(n) * stored_size);
      file.file->read(at, piece);
      convert(stored.dtype, piece.data(), n, as, out.data() + static_cast<size_t>(done) * size_of(as));
      at += piece.size();
      done += n;
    }
  }
  file.file->check_unchanged();
}

std::optional<Source::Place> HfSource::place_of(const SourceTensor& tensor, int64_t row, DType as) const {
  const auto found = files_.places.find(tensor.name);
  if (found == files_.places.end()) return std::nullopt;
  const SafetensorsFile& file = files_.files[found->second.file];
  const SafetensorsTensor& stored = file.header.tensors[found->second.tensor];
  if (stored.dtype != as) return std::nullopt;
  const int64_t columns = tensor.shape.size() == 1 ? tensor.shape.at(0) : tensor.shape.at(1);
  return Place{file.file.get(),
               file.header.data_begin + stored.begin + static_cast<uint64_t>(row * columns) * size_of(as)};
}

}  // namespace firstlight
