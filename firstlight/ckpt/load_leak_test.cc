// SPDX-License-Identifier: Apache-2.0
// A thousand loads in one process: what the tenth leaves behind is all that they leave behind.
#include <dirent.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <memory>
#include <thread>

#include "firstlight/ckpt/load_fixture.h"

namespace firstlight {
namespace {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr int kLoads = 200;  // 60 ms each under the thread sanitizer
constexpr bool kIsInstrumented = true;
#else
constexpr int kLoads = 1000;
constexpr bool kIsInstrumented = false;
#endif

class LoadLeakTest : public LoadTest {};

/// Entries of a directory of /proc/self, without the descriptor that looks.
size_t n_entries(const char* path) {
  const std::unique_ptr<DIR, int (*)(DIR*)> directory(::opendir(path), ::closedir);
  size_t n = 0;
  while (directory && ::readdir(directory.get()) != nullptr) ++n;
  return n;
}

/// The kernel lists a thread for a moment after it was joined.
size_t n_threads_at_rest(size_t expected) {
  size_t n = n_entries("/proc/self/task");
  for (int i = 0; i < 100'000 && n != expected; ++i) {
    std::this_thread::yield();
    n = n_entries("/proc/self/task");
  }
  return n;
}

size_t n_mappings() {
  std::ifstream file("/proc/self/maps");
  return static_cast<size_t>(std::count(std::istreambuf_iterator<char>(file), {}, '\n'));
}

uint64_t resident_bytes() {
  const std::unique_ptr<FILE, int (*)(FILE*)> file(std::fopen("/proc/self/statm", "r"), std::fclose);
  unsigned long size = 0, resident = 0;
  EXPECT_EQ(std::fscanf(file.get(), "%lu %lu", &size, &resident), 2);
  return resident * 4096;
}

TEST_F(LoadLeakTest, AThousandLoadsLeaveNoDescriptorNoThreadAndNoMemory) {
  std::string small = kTinyConfig;
  small.replace(small.find("\"hidden_size\": 256"), 18, "\"hidden_size\": 64");
  small.replace(small.find("\"num_hidden_layers\": 4"), 22, "\"num_hidden_layers\": 1");
  const fs::path out = make_checkpoint("leak", DTypeChoice::bf16, 1u << 20, small);
  const auto load_number = [&](int i) {
    LoadOptions options;
    options.tp = i % 2 + 1;
    options.n_threads = 2;
    const auto load = load_rank_checkpoint(out, options);
    if (i % 5 == 4) return;  // given up while bytes arrive
    EXPECT_GT(load->wait().bytes, 0u);
  };
  for (int i = 0; i < 10; ++i) load_number(i);
  const size_t descriptors = n_entries("/proc/self/fd"), threads = n_entries("/proc/self/task");
  const size_t mappings = n_mappings();
  const uint64_t memory = resident_bytes();
  for (int i = 10; i < kLoads; ++i) load_number(i);
  EXPECT_EQ(n_entries("/proc/self/fd"), descriptors);
  EXPECT_LE(n_threads_at_rest(threads), threads);
  EXPECT_LE(n_mappings(), mappings + 20);  // the allocator's own arenas and threads' stacks come and go
  // Sanitizers keep what was freed, and look for leaks themselves.
  if (!kIsInstrumented) {
    EXPECT_LT(resident_bytes(), memory + (1u << 20)) << "1 KiB a load";
  }
  fs::remove_all(out);
}

}  // namespace
}  // namespace firstlight
