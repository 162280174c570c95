// SPDX-License-Identifier: Apache-2.0
// Files of means: what is written is read, and what is wrong with a file is said before a mean is used.
#include "firstlight/ckpt/kv_calibration.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>

#include "firstlight/base/error.h"

namespace firstlight {
namespace {

KvCalibration small_calibration() {
  KvCalibration calibration{{2, 3, 4, {}}, "safetensors:0123", 1000};
  for (int i = 0; i < 2 * 2 * 3 * 4; ++i) calibration.means.values.push_back(static_cast<float>(i) / 8);
  return calibration;
}

ModelConfig config_of(const KvMeans& means) {
  ModelConfig config;
  config.n_layers = means.n_layers;
  config.n_kv_heads = means.n_kv_heads;
  config.head_dim = means.head_dim;
  return config;
}

void expect_no_calibration(const std::string& file, ErrorKind kind, const std::string& words) {
  try {
    parse_kv_calibration(file, "x.safetensors");
    ADD_FAILURE() << "taken, expected: " << words;
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), kind) << error.what();
    EXPECT_THAT(error.what(), testing::HasSubstr(words));
    EXPECT_THAT(error.what(), testing::HasSubstr("x.safetensors"));
  }
}

std::string with_change(std::string file, const std::string& old_text, const std::string& new_text) {
  const size_t at = file.find(old_text);
  EXPECT_NE(at, file.npos) << old_text;
  EXPECT_EQ(old_text.size(), new_text.size());
  return at == file.npos ? file : file.replace(at, old_text.size(), new_text);
}

TEST(KvCalibration, ReadsWhatItWrote) {
  const KvCalibration written = small_calibration(), read = parse_kv_calibration(to_file(written), "x");
  EXPECT_EQ(read.means.values, written.means.values);
  EXPECT_EQ(read.means.n_kv_heads, 3);
  EXPECT_EQ(read.model, written.model);
  EXPECT_EQ(read.n_tokens, 1000);
}

TEST(KvCalibration, RefusesFilesThatAreNone) {
  const std::string good = to_file(small_calibration());
  expect_no_calibration("", ErrorKind::bad_input, "0 bytes");
  expect_no_calibration(std::string(8, '\xff'), ErrorKind::bad_input, "header would have 18446744073709551615");
  expect_no_calibration(good.substr(0, good.size() - 4), ErrorKind::bad_input, "");
  expect_no_calibration(good + "more", ErrorKind::bad_input, "");
  expect_no_calibration(with_change(good, "kv_means", "kv_weird"), ErrorKind::bad_input, "expected one tensor");
  expect_no_calibration(with_change(good, "[2,2,3,4]", "[2,2,3,5]"), ErrorKind::bad_input, "");
  expect_no_calibration(with_change(good, "[2,2,3,4]", "[2,4,3,2]"), ErrorKind::bad_input, "is not F32");
  expect_no_calibration(with_change(good, "\"1000\"", "\"-100\""), ErrorKind::bad_input, "n_tokens is '-100'");
  expect_no_calibration(with_change(good, "\"model\"", "\"modal\""), ErrorKind::bad_input, "no \"model\"");
  expect_no_calibration(with_change(good, "calibration\":\"1\"", "calibration\":\"2\""), ErrorKind::unsupported,
                        "version 2");
}

TEST(KvCalibration, RefusesMeansThatWereNotWrittenAndOnesThatAreNoNumbers) {
  std::string damaged = to_file(small_calibration());
  damaged.back() = static_cast<char>(damaged.back() ^ 1);
  expect_no_calibration(damaged, ErrorKind::damaged, "another hash");
  for (const float wrong : {std::nanf(""), INFINITY, 2e5f}) {
    KvCalibration calibration = small_calibration();
    calibration.means.values[7] = wrong;
    expect_no_calibration(to_file(calibration), ErrorKind::bad_input, "mean 7 is");
  }
}

TEST(KvCalibration, RefusesAnotherModel) {
  const KvCalibration calibration = small_calibration();
  const fs::path path = fs::path(testing::TempDir()) / "kv_calibration_test.safetensors";
  std::ofstream(path, std::ios::binary) << to_file(calibration);
  ModelConfig config = config_of(calibration.means);
  EXPECT_EQ(read_kv_calibration(path, config, "safetensors:0123").means.values, calibration.means.values);
  EXPECT_THROW(read_kv_calibration(path, config, "safetensors:0124"), Error);
  config.n_layers = 3;
  EXPECT_THROW(read_kv_calibration(path, config, "safetensors:0123"), Error);
  std::ofstream(path, std::ios::binary | std::ios::app) << std::string(10000, ' ');
  EXPECT_THROW(read_kv_calibration(path, config, "safetensors:0123"), Error);
  fs::remove(path);
}

}  // namespace
}  // namespace firstlight
