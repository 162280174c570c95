// SPDX-License-Identifier: Apache-2.0
// For tools/check_tokenizer.py: one JSON value a line on stdin, one object a line on stdout. A string gives {"ids"}, a
// list of ids {"text", "stream"}: decode() and what a Detokenizer gave in all. The tokenizer is a tokenizer.json, or
// the metadata of a GGUF as JSON (--gguf-fields). --pieces PATTERN gives {"pieces"} of a string: where that pattern
// cuts it.
#include <cstdio>
#include <ctime>
#include <fstream>
#include <iostream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "firstlight/base/error.h"
#include "firstlight/text/gguf_tokenizer.h"
#include "firstlight/text/pre_tokenizer.h"
#include "firstlight/text/tokenizer.h"
#include "firstlight/text/unicode.h"

namespace {

using Json = nlohmann::json;

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw firstlight::Error(firstlight::ErrorKind::not_found, "cannot open '" + path + "'");
  return {std::istreambuf_iterator<char>(file), {}};
}

template <class T>
std::optional<T> optional_of(const Json& json, const char* key) {
  return json.contains(key) ? std::optional<T>(json[key].get<T>()) : std::nullopt;
}

firstlight::TokenizerSpec spec_of_fields(const Json& json) {
  firstlight::GgufTokenizerFields fields;
  fields.model = json.at("model").get<std::string>();
  fields.pre = json.value("pre", "");
  for (const auto& token : json.at("tokens")) fields.tokens.push_back(token.get_ref<const std::string&>());
  for (const auto& merge : json.value("merges", Json::array())) fields.merges.push_back(merge.get<std::string>());
  fields.scores = json.value("scores", std::vector<float>());
  fields.token_type = json.value("token_type", std::vector<int32_t>());
  fields.bos_id = optional_of<int64_t>(json, "bos_token_id");
  fields.eos_id = optional_of<int64_t>(json, "eos_token_id");
  fields.unk_id = optional_of<int64_t>(json, "unknown_token_id");
  fields.add_bos = optional_of<bool>(json, "add_bos_token");
  fields.add_eos = optional_of<bool>(json, "add_eos_token");
  fields.add_space_prefix = optional_of<bool>(json, "add_space_prefix");
  return firstlight::make_gguf_tokenizer_spec(std::move(fields));
}

/// Of this process, so that a busy machine does not count.
double cpu_seconds() { return static_cast<double>(std::clock()) / CLOCKS_PER_SEC; }

/// Parse and construct, ten times; then runs of one character.
void time_it(const std::string& path, bool runs) {
  const std::string json = read_file(path);
  for (int i = 0; i < 10; ++i) {
    const double begin = cpu_seconds();
    firstlight::TokenizerSpec spec = firstlight::parse_tokenizer_json(json);
    const double parsed = (cpu_seconds() - begin);
    const firstlight::Tokenizer tokenizer(std::move(spec));
    std::printf("parse %.2f ms, construct %.2f ms\n", parsed * 1e3, (cpu_seconds() - begin - parsed) * 1e3);
  }
  if (!runs) return;
  const firstlight::Tokenizer tokenizer(firstlight::parse_tokenizer_json(json));
  for (const char* unit :
       {"a", " ", "\n", "1", "=", "\xE2\x96\x81", "\xF0\x9F\x98\x80", "\xCC\x81", "The quick brown fox. "}) {
    std::string text;
    while (text.size() < 10'000'000) text += unit;
    const double begin = cpu_seconds();
    const size_t n = tokenizer.encode(text).size();
    std::printf("10 MB of '%s': %zu ids in %.2f s\n", *unit == '\n' ? "\\n" : unit, n, (cpu_seconds() - begin));
  }
}

Json pieces_of(const std::string& pattern, const std::string& text) {
  const bool smollm = pattern == "smollm";
  const auto known = firstlight::pre_tokenizer_of_pattern(pattern);
  if (!known && !smollm) throw firstlight::Error(firstlight::ErrorKind::unsupported, "pattern " + pattern);
  Json pieces = Json::array();
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = firstlight::piece_end(smollm ? firstlight::PreTokenizer::smollm : *known, text, begin);
    pieces.push_back(text.substr(begin, end - begin));
    begin = end;
  }
  return {{"pieces", pieces}};
}

Json answer(const firstlight::Tokenizer& tokenizer, const Json& line, bool add_special, bool parse_special,
            bool skip_special) {
  if (line.is_string()) return {{"ids", tokenizer.encode(line.get<std::string>(), add_special, parse_special)}};
  const auto ids = line.get<std::vector<int>>();
  firstlight::Detokenizer stream(tokenizer, skip_special);
  std::string streamed;
  for (const int id : ids) {
    const std::string part = stream.push(id);
    if (!firstlight::is_utf8(part)) throw firstlight::Error(firstlight::ErrorKind::bug, "half a character");
    streamed += part;
  }
  streamed += stream.finish();
  return {{"text", tokenizer.decode(ids, skip_special)}, {"stream", streamed}};
}

}  // namespace

int main(int argc, char** argv) {
  bool fields = false, add_special = true, parse_special = true, skip_special = true, timed = false, timed_runs = false;
  std::string path, pattern;
  for (int i = 1; i < argc; ++i) {
    const std::string arg = argv[i];
    if (arg == "--gguf-fields") {
      fields = true;
    } else if (arg == "--no-bos") {
      add_special = false;
    } else if (arg == "--plain") {
      parse_special = false;
    } else if (arg == "--show-special") {
      skip_special = false;
    } else if (arg == "--time" || arg == "--time-load") {
      timed = true;
      timed_runs = arg == "--time";
    } else if (arg == "--pieces" && i + 1 < argc) {
      pattern = argv[++i];
    } else {
      path = arg;
    }
  }
  try {
    if (timed) {
      time_it(path, timed_runs);
      return 0;
    }
    if (!pattern.empty()) {
      for (std::string line; std::getline(std::cin, line);) {
        std::cout << pieces_of(pattern, Json::parse(line).get<std::string>()).dump() << '\n';
      }
      return 0;
    }
    const std::string text = read_file(path);
    const firstlight::Tokenizer tokenizer(fields ? spec_of_fields(Json::parse(text))
                                                 : firstlight::parse_tokenizer_json(text));
    for (std::string line; std::getline(std::cin, line);) {
      std::cout << answer(tokenizer, Json::parse(line), add_special, parse_special, skip_special).dump() << '\n';
    }
  } catch (const firstlight::Error& e) {
    std::cerr << firstlight::to_string(e.kind()) << ": " << e.what() << '\n';
    return firstlight::exit_code(e.kind());
  } catch (const std::exception& e) {
    std::cerr << e.what() << '\n';
    return 1;
  }
}
