// SPDX-License-Identifier: Apache-2.0
// What is special to the image; that it is the same tokenizer, tokenizer_golden_test.cc shows.
#include "firstlight/text/tokenizer_image.h"

#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <sstream>

#include "firstlight/base/error.h"

namespace firstlight {
namespace {

std::string json_of(const std::string& family) {
  std::ifstream file(std::string(FIRSTLIGHT_TESTDATA) + "/tokenizer/" + family + ".json", std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

TEST(TokenizerImage, TheSameJsonGivesTheSameBytes) {
  const std::string json = json_of("llama3");
  ASSERT_FALSE(json.empty());
  EXPECT_EQ(make_tokenizer_image(json), make_tokenizer_image(json));
}

TEST(TokenizerImage, NamesTheJsonItWasMadeOf) {
  std::string json = json_of("gpt2");
  const std::string image = make_tokenizer_image(json);
  json += ' ';
  const std::string other = make_tokenizer_image(json);
  EXPECT_EQ(image_source(image).size(), 32u);
  EXPECT_NE(image_source(image), image_source(other));
}

TEST(TokenizerImage, ACutOrLengthenedImageIsRefused) {
  const std::string image = make_tokenizer_image(json_of("llama2"));
  for (const size_t size : {size_t{0}, size_t{7}, size_t{63}, size_t{64}, image.size() / 2, image.size() - 1}) {
    EXPECT_THROW(parse_tokenizer_image(image.substr(0, size)), Error) << size;
  }
  EXPECT_THROW(parse_tokenizer_image(image + " "), Error);
}

TEST(TokenizerImage, AMergeOfATokenThatIsNotThereIsRefused) {
  std::string image = make_tokenizer_image(json_of("gpt2"));
  uint32_t json_bytes = 0, n_tokens = 0;
  std::memcpy(&json_bytes, image.data() + 8, 4);
  std::memcpy(&n_tokens, image.data() + 16, 4);
  std::memcpy(image.data() + 64 + json_bytes + 4 * size_t{n_tokens}, &n_tokens, 4);  // the first merge's left side
  try {
    const Tokenizer tokenizer(parse_tokenizer_image(image));
    FAIL() << "taken";
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::bad_input);
    EXPECT_NE(std::string(e.what()).find("merge 0"), std::string::npos) << e.what();
  }
}

TEST(TokenizerImage, AnyFlippedByteIsAnErrorOrAUsableTokenizer) {
  const std::string image = make_tokenizer_image(json_of("llama2_first"));
  const size_t step = std::max<size_t>(1, image.size() / 4000);
  for (size_t at = 0; at < image.size(); at += at < 64 ? 1 : step) {
    std::string damaged = image;
    damaged[at] = static_cast<char>(damaged[at] ^ 0x21);
    try {
      const Tokenizer tokenizer(parse_tokenizer_image(damaged));
      for (const int id : tokenizer.encode("Hello world, 123\n")) ASSERT_LT(id, tokenizer.size());
    } catch (const Error& e) {
      EXPECT_NE(e.kind(), ErrorKind::bug) << e.what();
    }
  }
}

}  // namespace
}  // namespace firstlight
