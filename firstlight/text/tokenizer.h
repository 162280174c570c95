// SPDX-License-Identifier: Apache-2.0
// Text ↔ token ids: byte-level BPE and SentencePiece-style BPE with byte fall-back, equal to the Python package
// tokenizers.
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "firstlight/text/string_table.h"

namespace firstlight {

/// How text is cut before merging. Each is a hand-written linear scanner.
enum class PreTokenizer {
  gpt2,       ///< GPT-2's pattern
  smollm,     ///< digits singly, then GPT-2's pattern
  llama_bpe,  ///< Llama 3's pattern
  qwen2,      ///< Qwen2's pattern
  llama_spm,  ///< none: "▁" for spaces, merges over the whole text
};

struct AddedToken {
  int id = 0;
  std::string content;
  bool special = false;  ///< hidden by decode(skip_special)
  bool lstrip = false, rstrip = false, single_word = false;
  bool normalized = false;  ///< looked for in its normalised form, in normalised text
};

/// How SentencePiece-style vocabularies write spaces.
struct SpaceMarks {
  /// What becomes of " " → "▁" and the prefix: nothing; before normalized added tokens are looked for (a normalizer);
  /// or after that, and the prefix only where the text does not begin with "▁" (the Metaspace pre-tokenizer).
  enum class Step { none, normalizer, metaspace } step = Step::none;
  enum class Prefix {
    none,
    always,
    first
  } prefix = Prefix::none;  ///< "▁" before each text between added tokens, or the first
  bool split = false;       ///< metaspace: pieces begin at each "▁"
};

/// Two neighbours and what they become.
struct MergeIds {
  uint32_t left = 0, right = 0, result = 0;
};

/// Everything a tokenizer is, without a file format. Filled from tokenizer.json (parse_tokenizer_json) or from GGUF
/// metadata (make_gguf_tokenizer_spec).
struct TokenizerSpec {
  enum class Kind { byte_level_bpe, spm_bpe };
  Kind kind = Kind::byte_level_bpe;
  PreTokenizer pre = PreTokenizer::gpt2;
  StringTable tokens;               ///< by id; as in the vocabulary file (byte-level alphabet or "▁"); "" for holes
  StringTable merges;               ///< by rank, two strings a merge: left, right; or instead of them
  std::vector<MergeIds> merge_ids;  ///< … their ids, where these have been worked out (tokenizer_image.h)
  std::vector<float>
      scores;  ///< spm_bpe without merges: the pair whose token scores highest merges first, of equal
               ///< scores the one with the longer left half, then the longer right half, then the lower id
  std::vector<bool>
      reserved;  ///< by id, or empty: with scores, tokens that text never becomes (control, unknown, byte)
  std::vector<AddedToken> added;
  bool ignore_merges = false;  ///< a piece that is a token is taken whole (Llama 3)
  bool byte_fallback = false;  ///< a character that is no token becomes its bytes "<0x..>"
  bool fuse_unk = false;       ///< neighbouring unknown characters become one unknown token
  bool nfc = false;            ///< Unicode normalisation form C first (Qwen2)
  SpaceMarks marks;
  bool strip_first_space = false;  ///< decoding: the text's first space goes (the dummy prefix)
  std::optional<int> unk_id;
  std::vector<int> bos, eos_suffix;  ///< ids that add_special puts before and after (the post-processor)
};

/// tokenizer.json. Throws Error{bad_input} for nonsense and Error{unsupported} naming the model type, normalizer,
/// pattern or step that is not known. Its settings of truncation and padding are ignored.
TokenizerSpec parse_tokenizer_json(std::string_view json);

/// Immutable after construction; all methods may be called from several threads at once.
class Tokenizer {
 public:
  /// Throws Error{bad_input} for merges of unknown tokens, equal tokens and ids out of range.
  explicit Tokenizer(TokenizerSpec spec);
  ~Tokenizer();
  Tokenizer(Tokenizer&&) noexcept;

  /// Text should be valid UTF-8 (each ill-formed part is read as U+FFFD). `add_special`: the post-processor's BOS/EOS.
  /// `parse_special`: special tokens written out in the text become their ids; without it they are plain text (added
  /// tokens that are not special are found either way). Linear in the text, also for a long run of one character.
  std::vector<int> encode(std::string_view text, bool add_special = true, bool parse_special = true) const;

  /// Bytes of one token as they stand in text ("Ġthe" → " the", "<0x0A>" → "\n"); empty for ids out of range.
  std::string_view bytes_of(int id) const;
  bool is_special(int id) const;
  /// A byte token of a SentencePiece-style vocabulary ("<0x0A>").
  bool is_byte(int id) const;
  /// The id of a token by its vocabulary string or an added token's content.
  std::optional<int> find(std::string_view token) const;
  int size() const;
  const TokenizerSpec& spec() const;

  /// All at once, as the Python package tokenizers decodes: malformed UTF-8 becomes U+FFFD (one for each byte of a run
  /// of byte tokens that is not text), SentencePiece's leading space is dropped, ids out of range are nothing.
  std::string decode(const std::vector<int>& ids, bool skip_special = true) const;

 private:
  struct Impl;
  std::unique_ptr<const Impl> impl_;
};

/// Feeds ids one by one, gives text that never ends in half a character. What it gives in all is decode()'s text. So a
/// run of SentencePiece's byte tokens is held back until a token that is none ends it: one byte that does not fit makes
/// all of the run U+FFFD. Not thread-safe; one a sequence.
class Detokenizer {
 public:
  explicit Detokenizer(const Tokenizer& tokenizer, bool skip_special = true);
  /// Text that became certain with this token; may be empty.
  std::string push(int id);
  /// What is left, an unfinished character as U+FFFD.
  std::string finish();

 private:
  void end_byte_run(std::string& out);
  std::string without_first_space(std::string text);

  const Tokenizer* tokenizer_;
  bool skip_special_;
  bool first_ = true;
  std::string pending_;
};

}  // namespace firstlight
