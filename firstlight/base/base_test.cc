// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>
#include <pthread.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <numeric>
#include <vector>

#include "firstlight/base/error.h"
#include "firstlight/base/half.h"
#include "firstlight/base/hash.h"
#include "firstlight/base/hash_kernels.h"
#include "firstlight/base/start_thread.h"
#include "firstlight/base/str.h"
#include "firstlight/base/thread_pool.h"
#include "firstlight/base/timeline.h"
#include "firstlight/base/utf8.h"

namespace firstlight {
namespace {

TEST(Hash, GivesThePublishedDigests) {
  EXPECT_EQ(xxh3_64({}), 0x2d06800538d394c2u);  // xxHash's own sanity value for no bytes, seed 0
  EXPECT_EQ(xxh3_128_hex({}), "99aa06d3014798d86001c324468d497f");
  const std::string abc = "abc";
  Sha256 sha;
  sha.update(std::as_bytes(std::span(abc)));
  EXPECT_EQ(sha.hex(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");  // FIPS 180-2, appendix B.1
}

TEST(Hash, EveryInstructionSetGivesTheSameDigests) {
  std::vector<const HashKernels*> others;
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2")) others.push_back(&kHashAvx2);
  if (__builtin_cpu_supports("avx512f")) others.push_back(&kHashAvx512);
#endif
  if (others.empty()) GTEST_SKIP() << "this core has only the baseline";
  std::vector<unsigned char> data(100'003);
  uint32_t random = 1;
  for (unsigned char& byte : data) byte = static_cast<unsigned char>((random = random * 1664525 + 1013904223) >> 24);
  for (const HashKernels* other : others) {
    for (size_t n = 0; n <= data.size(); n = n < 600 ? n + 1 : n * 3 / 2 + 1) {
      const size_t shift = data.size() - n < 3 ? 0 : n % 3;  // unaligned starts
      ASSERT_EQ(other->xxh3_64(data.data() + shift, n), kHashPlain.xxh3_64(data.data() + shift, n)) << other->name << n;
      unsigned char a[16], b[16], c[16];
      kHashPlain.xxh3_128(data.data() + shift, n, a);
      other->xxh3_128(data.data() + shift, n, b);
      void* state = other->make_state();
      other->update(state, data.data() + shift, n / 3);
      other->update(state, data.data() + shift + n / 3, n - n / 3);
      other->digest(state, c);
      other->free_state(state);
      ASSERT_TRUE(std::equal(a, a + 16, b)) << other->name << " " << n;
      ASSERT_TRUE(std::equal(a, a + 16, c)) << other->name << " " << n;
    }
  }
}

TEST(Utf8, PrintableTextCannotSteerATerminal) {
  EXPECT_EQ(printable("plain ä 漢\n\tx"), "plain ä 漢\n\tx");
  EXPECT_EQ(printable("a\x1b]0;x\x07"
                      "b\x7f\r"),
            "a\xEF\xBF\xBD]0;x\xEF\xBF\xBD"
            "b\xEF\xBF\xBD\xEF\xBF\xBD");
  EXPECT_EQ(printable("c1 \xC2\x9B"
                      "31m"),
            "c1 \xEF\xBF\xBD"
            "31m");
  EXPECT_EQ(printable("\xFF"), "\xEF\xBF\xBD");
  EXPECT_EQ(printable("a\xE2\x80\xAE"
                      "b\xE2\x81\xA6"
                      "c\xE2\x80\x94"),
            "a\xEF\xBF\xBD"
            "b\xEF\xBF\xBD"
            "c\xE2\x80\x94");
  EXPECT_TRUE(has_control("a\nb") && has_control(std::string_view("\0", 1)) && has_control("\x7f"));
  EXPECT_FALSE(has_control("model.layers.0.ä漢"));
}

TEST(Half, EveryBf16AndF16SurvivesARoundTripThroughF32) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float x = bf16_to_f32(static_cast<uint16_t>(bits));
    if (std::isnan(x)) continue;
    ASSERT_EQ(f32_to_bf16(x), bits);
    const float h = f16_to_f32(static_cast<uint16_t>(bits));
    if (std::isnan(h)) continue;
    ASSERT_EQ(static_cast<float>(static_cast<_Float16>(h)), h) << bits;
  }
}

TEST(Half, RoundsToNearestEven) {
  EXPECT_EQ(f32_to_bf16(1.00390625f), 0x3f80);  // halfway between 1 and the next: to even
  EXPECT_EQ(f32_to_bf16(1.01171875f), 0x3f82);  // halfway, odd below: up
  EXPECT_TRUE(std::isnan(bf16_to_f32(f32_to_bf16(std::nanf("")))));
}

/// While it lives no thread starts: none gets a stack of a petabyte.
class NoThreads {
 public:
  NoThreads() {
    pthread_getattr_default_np(&before_);
    pthread_attr_t huge;
    pthread_attr_init(&huge);
    pthread_attr_setstacksize(&huge, size_t{1} << 50);
    pthread_setattr_default_np(&huge);
    pthread_attr_destroy(&huge);
  }
  ~NoThreads() { pthread_setattr_default_np(&before_); }

 private:
  pthread_attr_t before_{};
};

TEST(StartThread, OneThatCannotStartIsOutOfMemoryAndSaysWhatItWasFor) {
  const auto message = [](const auto& start) -> std::string {
    const NoThreads none;
    try {
      start();
    } catch (const Error& e) {
      return str(to_string(e.kind()), ": ", e.what());
    }
    return "it started";
  };
  const std::string begin = "out_of_memory: start a thread for computing: ";
  EXPECT_EQ(message([] { start_thread("computing", [] {}).join(); }).substr(0, begin.size()), begin);
  EXPECT_EQ(message([] { start_future("computing", [] { return 1; }).get(); }).substr(0, begin.size()), begin);
  EXPECT_EQ(message([] { const ThreadPool pool(2); }).substr(0, begin.size()), begin);
  EXPECT_EQ(start_future("computing", [] { return 7; }).get(), 7);
}

TEST(ThreadPool, EndsTheThreadsItHasWhenOneMoreCannotStart) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "a sanitizer's own memory does not fit under a limit on address space";
#endif
  const auto in_child = [] {  // where the limit may stay in force
    uint64_t pages = 0;
    std::ifstream("/proc/self/statm") >> pages;
    const rlim_t few_stacks = pages * 4096 + (28u << 20);  // a stack is 8 MiB
    const rlimit limit{few_stacks, few_stacks};
    setrlimit(RLIMIT_AS, &limit);
    try {
      const ThreadPool pool(64);
    } catch (const Error& e) {
      std::fprintf(stderr, "%s", e.what());
      _exit(exit_code(e.kind()));
    }
    _exit(0);
  };
  EXPECT_EXIT(in_child(), testing::ExitedWithCode(5), "start a thread for computing");
}

TEST(ThreadPool, RunsEveryPieceOnceForManyRounds) {
  for (const int spin : {0, 1000}) {
    ThreadPool pool(3, spin);
    std::vector<std::atomic<int>> hits(1000);
    for (int round = 0; round < 200; ++round) {
      pool.for_range(1000, 7, [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) hits[static_cast<size_t>(i)].fetch_add(1);
      });
    }
    for (const auto& hit : hits) ASSERT_EQ(hit.load(), 200);
  }
}

TEST(ThreadPool, RethrowsTheFirstExceptionAndGoesOnWorking) {
  ThreadPool pool(2);
  EXPECT_THROW(pool.run([](int thread) {
    if (thread == 1) throw Error(ErrorKind::io, "x");
  }),
               Error);
  std::atomic<int> sum = 0;
  pool.run([&](int thread) { sum += thread + 1; });
  EXPECT_EQ(sum.load(), 3);
}

TEST(Timeline, ExecWasBeforeNowAndNotLongAgo) {
  const double t = seconds_since_exec();
  EXPECT_GT(t, 0);
  EXPECT_LT(t, 60);
}

TEST(Str, HumanUnits) {
  EXPECT_EQ(human_bytes(271e6), "271 MB");
  EXPECT_EQ(human_seconds(0.0123), "12.3 ms");
  EXPECT_EQ(human_seconds(75), "1 min 15 s");
}

}  // namespace
}  // namespace firstlight
