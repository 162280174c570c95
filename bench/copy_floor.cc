// SPDX-License-Identifier: Apache-2.0
// copy_floor SRC DST: what a conversion is measured against. Two threads copy a file, or the files of a directory, by
// O_DIRECT in 8 MiB pieces, then fsync; prints bytes, seconds and GB/s.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

namespace fs = std::filesystem;

namespace {

constexpr uint64_t kPiece = 8u << 20, kPage = 4096;

[[noreturn]] void die(const std::string& what) {
  std::perror(what.c_str());
  std::exit(1);
}

struct Pair {
  int from = -1, to = -1;
  uint64_t size = 0;
};

Pair open_pair(const fs::path& from, const fs::path& to) {
  Pair pair;
  pair.from = ::open(from.c_str(), O_RDONLY | O_DIRECT);
  if (pair.from < 0) die(from);
  pair.to = ::open(to.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_DIRECT, 0644);
  if (pair.to < 0) die(to);
  struct stat info {};
  ::fstat(pair.from, &info);
  pair.size = static_cast<uint64_t>(info.st_size);
  // As the converter does: without it every write extends the file and the two threads take turns.
  if (pair.size > 0 && ::fallocate(pair.to, 0, 0, info.st_size) != 0) die("fallocate");
  return pair;
}

void copy(const std::vector<Pair>& pairs, const std::vector<std::pair<size_t, uint64_t>>& pieces,
          std::atomic<size_t>& next) {
  auto* buffer = static_cast<char*>(std::aligned_alloc(kPage, kPiece));
  for (size_t i = next++; i < pieces.size(); i = next++) {
    const auto [file, offset] = pieces[i];
    const Pair& pair = pairs[file];
    const uint64_t want = std::min(kPiece, pair.size - offset);
    const ssize_t n = ::pread(pair.from, buffer, kPiece, static_cast<off_t>(offset));
    if (n < 0 || static_cast<uint64_t>(n) < want) die("read");
    const uint64_t padded = (want + kPage - 1) / kPage * kPage;
    if (::pwrite(pair.to, buffer, padded, static_cast<off_t>(offset)) != static_cast<ssize_t>(padded)) die("write");
  }
  std::free(buffer);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: copy_floor SRC DST   (two files, or two directories)\n");
    return 2;
  }
  const auto begin = std::chrono::steady_clock::now();
  std::vector<Pair> pairs;
  if (fs::is_directory(argv[1])) {
    fs::create_directories(argv[2]);
    for (const auto& entry : fs::directory_iterator(argv[1])) {
      if (entry.is_regular_file()) pairs.push_back(open_pair(entry.path(), argv[2] / entry.path().filename()));
    }
  } else {
    pairs.push_back(open_pair(argv[1], argv[2]));
  }
  std::vector<std::pair<size_t, uint64_t>> pieces;
  uint64_t total = 0;
  for (size_t i = 0; i < pairs.size(); ++i) {
    for (uint64_t at = 0; at < pairs[i].size; at += kPiece) pieces.emplace_back(i, at);
    total += pairs[i].size;
  }
  std::atomic<size_t> next{0};
  std::thread second([&] { copy(pairs, pieces, next); });
  copy(pairs, pieces, next);
  second.join();
  for (const Pair& pair : pairs) {
    if (::ftruncate(pair.to, static_cast<off_t>(pair.size)) != 0) die("truncate");
    if (::fsync(pair.to) != 0) die("fsync");
    ::close(pair.to);
    ::close(pair.from);
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  std::printf("%llu bytes in %.3f s: %.3f GB/s\n", static_cast<unsigned long long>(total), seconds,
              static_cast<double>(total) / seconds / 1e9);
  return 0;
}
