// SPDX-License-Identifier: Apache-2.0
// Text ↔ token ids: byte-level BPE and SentencePiece-style BPE with byte fall-back, equal to the Python package tokenizers.
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace firstlight {

/// How text is cut before merging. Each is a hand-written linear scanner.
enum class PreTokenizer {
  gpt2,        ///< GPT-2's pattern
  smollm,      ///< digits singly, then GPT-2's pattern
  llama_bpe,   ///< Llama 3's pattern
  qwen2,       ///< Qwen2's pattern
  llama_spm,   ///< none: "▁" for spaces, merges over the whole text
};

struct AddedToken {
  int id = 0;
  std::string content;
  bool special = false;      ///< hidden by decode(skip_special)
  bool lstrip = false, rstrip = false, single_word = false;
  bool normalized = false;
};

/// Everything a tokenizer is, without a file format. Filled from tokenizer.json (parse_tokenizer_json) or from GGUF metadata.
struct TokenizerSpec {
  enum class Kind { byte_level_bpe, spm_bpe };
  Kind kind = Kind::byte_level_bpe;
  PreTokenizer pre = PreTokenizer::gpt2;
  std::vector<std::string> tokens;   ///< by id; as in the vocabulary file (byte-level alphabet or "▁"); "" for holes
  /// By rank. Pairs of token strings are resolved to ids while parsing. For spm_bpe from GGUF (no merges): empty, scores instead.
  std::vector<std::pair<int, int>> merges;
  std::vector<int> merge_results;    ///< id of each merged pair
  std::vector<float> scores;         ///< spm_bpe from GGUF: higher merges first
  std::vector<AddedToken> added;
  bool ignore_merges = false;        ///< a piece that is a token is taken whole (Llama 3)
  bool byte_fallback = false;
  bool nfc = false;                  ///< Unicode normalisation form C (Qwen2)
  bool add_dummy_prefix = false;     ///< SentencePiece: "▁" before the text
  enum class DummyPrefixScheme { always, first } prefix_scheme = DummyPrefixScheme::always;
  std::optional<int> unk_id;
  std::vector<int> bos, eos_suffix;  ///< ids that add_special puts before and after (the post-processor)
};

/// tokenizer.json, parsed by SAX (2 MB in about 10 ms). Throws Error{bad_input} for nonsense and Error{unsupported} naming the model type,
/// normalizer, pattern or step that is not known.
TokenizerSpec parse_tokenizer_json(std::string_view json);

/// Immutable after construction; all methods may be called from several threads at once.
class Tokenizer {
 public:
  explicit Tokenizer(TokenizerSpec spec);
  ~Tokenizer();
  Tokenizer(Tokenizer&&) noexcept;

  /// Text must be valid UTF-8 (invalid bytes are read as U+FFFD). `add_special`: the post-processor's BOS/EOS. `parse_special`: added tokens
  /// written out in the text become their ids; without it they are plain text. Linear in the text, also for a long run of one character.
  std::vector<int> encode(std::string_view text, bool add_special = true, bool parse_special = true) const;

  /// Bytes of one token as they stand in text ("Ġthe" → " the", "<0x0A>" → "\n"); empty for ids out of range.
  std::string_view bytes_of(int id) const;
  bool is_special(int id) const;
  std::optional<int> find(std::string_view token) const;  ///< id of a token by its vocabulary string or an added token's content
  int size() const;
  const TokenizerSpec& spec() const;

  /// All at once; malformed UTF-8 becomes U+FFFD; SentencePiece's leading space is dropped as tokenizers does.
  std::string decode(const std::vector<int>& ids, bool skip_special = true) const;

 private:
  struct Impl;
  std::unique_ptr<const Impl> impl_;
};

/// Feeds ids one by one, gives text that never ends in half a character. Not thread-safe; one a sequence.
class Detokenizer {
 public:
  explicit Detokenizer(const Tokenizer& tokenizer, bool skip_special = true);
  /// Text that became certain with this token; may be empty.
  std::string push(int id);
  /// What is left, an unfinished character as U+FFFD.
  std::string finish();

 private:
  const Tokenizer* tokenizer_;
  bool skip_special_;
  bool first_ = true;
  std::string pending_;
};

}  // namespace firstlight
