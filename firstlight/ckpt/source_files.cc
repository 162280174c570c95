// SPDX-License-Identifier: Apache-2.0
#include "firstlight/ckpt/source_files.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"

namespace firstlight {

namespace {

constexpr const char* kIndex = "model.safetensors.index.json";
constexpr const char* kSingle = "model.safetensors";

/// Takes the strings of the object "weight_map" at the top level; all else is skipped.
class IndexParser : public nlohmann::json_sax<nlohmann::json> {
 public:
  IndexParser(std::string_view path, std::unordered_map<std::string, std::string>& out) : path_(path), out_(out) {}

  bool null() override { return other(); }
  bool boolean(bool) override { return other(); }
  bool number_integer(number_integer_t) override { return other(); }
  bool number_unsigned(number_unsigned_t) override { return other(); }
  bool number_float(number_float_t, const string_t&) override { return other(); }
  bool binary(binary_t&) override { return other(); }
  bool string(string_t& value) override {
    if (!(in_map_ && depth_ == 2)) return other();
    const bool plain = !value.empty() && value.find('/') == value.npos && value.find('\\') == value.npos &&
                       value[0] != '.' && value.find('\0') == value.npos && value.ends_with(".safetensors");
    if (!plain)
      fail("file name '" + value.substr(0, std::min<size_t>(200, value.find('\0'))) +
           "' is not a plain name of a .safetensors file");
    if (!out_.emplace(key_, std::move(value)).second) fail("tensor '" + key_.substr(0, 200) + "' appears twice");
    return true;
  }
  bool start_object(size_t) override {
    if (depth_ == 1 && key_ == "weight_map") {
      if (std::exchange(has_map_, true)) fail("weight_map appears twice");
      in_map_ = true;
    } else if (in_map_) {
      other();
    }
    return enter();
  }
  bool end_object() override { return leave(); }
  bool start_array(size_t) override {
    if (depth_ == 0) fail("not an object");
    other();
    return enter();
  }
  bool end_array() override { return leave(); }
  bool key(string_t& name) override {
    if (depth_ == 1 || in_map_) key_ = std::move(name);
    return true;
  }
  bool parse_error(size_t position, const std::string&, const nlohmann::detail::exception& error) override {
    throw Error(ErrorKind::bad_input, str(path_, ": not JSON at byte ", position, ": ", error.what()));
  }
  bool has_map() const { return has_map_; }

 private:
  [[noreturn]] void fail(const std::string& what) const { throw Error(ErrorKind::bad_input, str(path_, ": ", what)); }
  bool other() {
    if (in_map_) fail("weight_map: '" + key_.substr(0, 200) + "' is no string");
    if (depth_ == 0) fail("not an object");
    if (depth_ == 1 && key_ == "weight_map") fail("weight_map is not an object");
    return true;
  }
  bool enter() {
    if (++depth_ > 64) fail("nested deeper than 64 levels");
    return true;
  }
  bool leave() {
    if (--depth_ == 1) in_map_ = false;
    return true;
  }
  std::string_view path_;
  std::unordered_map<std::string, std::string>& out_;
  std::string key_;
  int depth_ = 0;
  bool in_map_ = false, has_map_ = false;
};

/// The name of the only safetensors file.
std::string single_file(const fs::path& directory) {
  if (fs::exists(directory / kSingle)) return kSingle;
  std::vector<std::string> names;
  bool has_pickles = false;
  for (const auto& entry : fs::directory_iterator(directory)) {
    const std::string name = entry.path().filename().native();
    if (name.ends_with(".safetensors")) names.push_back(name);
    has_pickles = has_pickles || (name.starts_with("pytorch_model") && name.ends_with(".bin"));
  }
  if (names.size() == 1) return names.front();
  if (names.empty() && has_pickles) {
    throw Error(ErrorKind::unsupported,
                str(directory.native(), ": pytorch_model.bin (pickle) is not read; convert it to safetensors"));
  }
  throw Error(ErrorKind::not_found, str(directory.native(), ": ", names.size(), " .safetensors files, but neither ",
                                        kIndex, " nor ", kSingle));
}

}  // namespace

std::unordered_map<std::string, std::string> parse_safetensors_index(std::string_view json, std::string_view path) {
  std::unordered_map<std::string, std::string> out;
  if (json.find('\0') != json.npos) throw Error(ErrorKind::bad_input, str(path, ": NUL byte in the text"));
  IndexParser parser(path, out);
  nlohmann::json::sax_parse(json.begin(), json.end(), &parser);
  if (!parser.has_map()) throw Error(ErrorKind::bad_input, str(path, ": no weight_map"));
  return out;
}

SafetensorsFiles open_safetensors_directory(const fs::path& directory) {
  const fs::path index_path = directory / kIndex;
  std::unordered_map<std::string, std::string> listed;
  std::set<std::string> names;
  if (fs::exists(index_path)) {
    listed = parse_safetensors_index(read_text(index_path), index_path.native());
    for (const auto& [tensor, file] : listed) names.insert(file);
  } else {
    names.insert(single_file(directory));
  }
  SafetensorsFiles out;
  for (const std::string& name : names) {
    const fs::path path = directory / name;
    if (!fs::exists(path))
      throw Error(ErrorKind::not_found, str(path.native(), ": missing, but ", kIndex, " lists it"));
    auto file = File::open(path);
    auto header = read_safetensors_header(*file);
    out.files.push_back({name, std::move(file), std::move(header)});
    const auto& tensors = out.files.back().header.tensors;
    for (size_t i = 0; i < tensors.size(); ++i) {
      const auto [place, is_new] = out.places.try_emplace(
          tensors[i].name,
          SafetensorsFiles::Place{static_cast<uint32_t>(out.files.size() - 1), static_cast<uint32_t>(i)});
      if (!is_new) {
        throw Error(ErrorKind::bad_input, str(path.native(), ": tensor '", tensors[i].name.substr(0, 200),
                                              "' is also in ", out.files[place->second.file].name));
      }
    }
  }
  for (const auto& [tensor, file] : listed) {
    const auto place = out.places.find(tensor);
    if (place == out.places.end() || out.files[place->second.file].name != file) {
      throw Error(ErrorKind::bad_input, str((directory / file).native(), ": tensor '", tensor.substr(0, 200),
                                            "' is not in it, but ", kIndex, " lists it there"));
    }
  }
  // A tensor that the index leaves out would be there for one reader and not for another.
  for (const auto& [tensor, place] : out.places) {
    if (listed.empty() || listed.contains(std::string(tensor))) continue;
    throw Error(ErrorKind::bad_input, str((directory / out.files[place.file].name).native(), ": tensor '",
                                          std::string_view(tensor).substr(0, 200), "' is not listed in ", kIndex));
  }
  return out;
}

}  // namespace firstlight
