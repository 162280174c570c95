// SPDX-License-Identifier: Apache-2.0
// Loading what is broken: a flipped bit in any region of any file that a load reads, files cut, replaced or missing,
// storage that fails or hangs, manifests that lie. Each is an error that names the file and the range; nothing is
// loaded wrong.
#include <gtest/gtest.h>

#include <algorithm>
#include <cerrno>
#include <thread>

#include "firstlight/ckpt/load_fixture.h"
#include "firstlight/ckpt/safetensors.h"
#include "firstlight/io/fault_read.h"
#include "firstlight/io/raw_ring.h"

namespace firstlight {
namespace {

class LoadFaultTest : public LoadTest {
 protected:
  void SetUp() override {
    LoadTest::SetUp();
    options_.tp = 2;
    rank_ = read_manifest(out_).find_tp(2)->ranks[1];
  }
  fs::path part_path(size_t part) const { return out_ / rank_.parts[part].file; }
  static std::string leaf_range(uint64_t leaf, uint64_t data_bytes) {
    return str("bytes [", kDataBegin + leaf * kLeafBytes, ", ",
               kDataBegin + std::min((leaf + 1) * kLeafBytes, data_bytes), ")");
  }

  LoadOptions options_;
  ManifestRank rank_;
};

/// Storage that fails below each of the readers.
class LoadReaderFaultTest : public LoadFaultTest, public testing::WithParamInterface<const char*> {
 protected:
  void use(const std::shared_ptr<FaultyRead>& faulty) {
    const bool uring = GetParam() == std::string_view("io_uring");
    options_.make_reader = [=](int) {
      return uring ? make_faulty_uring_reader(faulty, 2) : make_faulty_reader(faulty, 2);
    };
  }
  void use(Fault fault) { use(std::make_shared<FaultyRead>(std::vector<Fault>{std::move(fault)})); }
};

TEST_F(LoadFaultTest, AFlippedBitAnywhereInAPartIsFoundAndItsFileAndRangeAreNamed) {
  for (size_t p = 0; p < rank_.parts.size(); ++p) {
    const ManifestPart& part = rank_.parts[p];
    const std::string name = fs::path(part.file).filename();
    const auto check = [&](uint64_t offset, const std::vector<std::string>& words) {
      SCOPED_TRACE(str(part.file, " byte ", offset));
      flip(part_path(p), offset);
      expect_error(ErrorKind::damaged, words, options_);
      flip(part_path(p), offset);
    };
    for (const uint64_t offset :
         {uint64_t{0}, uint64_t{7}, uint64_t{8}, part.header_bytes / 2, part.header_bytes - 1}) {
      check(offset, {name, str("bytes [0, ", part.header_bytes, ")"), "manifest"});
    }
    for (const uint64_t offset : {part.header_bytes, part.header_bytes + 77777, kDataBegin - 1}) {
      check(offset, {name, str("bytes [", offset, ", ", offset + 1, ")"), "padding"});
    }
    std::vector<uint64_t> offsets{0, part.tail_begin - 1, part.data_bytes - 1,
                                  std::min(part.tail_begin, part.data_bytes - 1)};
    for (uint64_t leaf = 0; leaf * kLeafBytes < part.data_bytes; ++leaf) {
      offsets.push_back(leaf * kLeafBytes);
      offsets.push_back(std::min(leaf * kLeafBytes + 543'210, part.data_bytes - 1));
    }
    for (const uint64_t offset : offsets) {
      check(kDataBegin + offset,
            {name, leaf_range(offset / kLeafBytes, part.data_bytes), "leaves.xxh3", "same wrong bytes"});
    }
  }
  EXPECT_FALSE(error_of(options_)) << "all flips were undone";
}

TEST_F(LoadFaultTest, TheTensorOfADamagedLeafIsNamed) {
  const std::string path = part_path(0);
  const SafetensorsHeader header = read_safetensors_header(*File::open(path));
  const SafetensorsTensor& tensor = header.tensors[3];
  flip(path, header.data_begin + tensor.begin);
  expect_error(ErrorKind::damaged, {tensor.name}, options_);
}

TEST_F(LoadFaultTest, AFlippedBitInASmallFileIsFound) {
  const struct {
    fs::path path;
    std::vector<std::string> words;
  } cases[] = {{"READY", {"READY"}},  // malformed, or not the hash of manifest.json
               {"manifest.json", {"manifest.json", "READY"}},
               {"config.json", {"config.json"}},
               {fs::path(rank_.directory) / "leaves.xxh3", {"leaves.xxh3", "manifest"}}};
  for (const auto& [path, words] : cases) {
    const uint64_t size = fs::file_size(out_ / path);
    for (const uint64_t offset : {uint64_t{0}, size / 2, size - 1}) {
      SCOPED_TRACE(str(path, " byte ", offset));
      flip(out_ / path, offset);
      expect_error(ErrorKind::damaged, words, options_);
      flip(out_ / path, offset);
    }
  }
  EXPECT_FALSE(error_of(options_)) << "all flips were undone";
}

TEST_F(LoadFaultTest, TheOtherRanksDamageEndsTheLoadAndAnotherTpIsUntouched) {
  flip(part_path(0), kDataBegin + 5);
  const auto load = load_rank_checkpoint(out_, options_);
  EXPECT_THROW(load->wait(), Error);
  for (RankWeights& weights : load->weights()) {
    EXPECT_THROW(weights.ready->wait(n_gates(load->config()) - 1), Error) << "rank " << weights.rank;
  }
  options_.tp = 1;
  EXPECT_FALSE(error_of(options_));
}

TEST_F(LoadFaultTest, TheGateOfADamagedLayerNeverOpens) {
  flip(part_path(0), kDataBegin);  // in the first layer's leaf
  options_.n_threads = 1;
  const auto load = load_rank_checkpoint(out_, options_);
  EXPECT_THROW(load->weights()[1].ready->wait(1), Error);
  EXPECT_FALSE(load->weights()[1].ready->is_open(1));
  EXPECT_THROW(load->wait(), Error);
  EXPECT_THROW(load->wait(), Error);  // and says so again
}

TEST_P(LoadReaderFaultTest, AByteThatOnlyTheTransportFlippedIsToldFromADamagedFile) {
  use({.kind = Fault::Kind::flip,
       .amount = kDataBegin + 1000,
       .first_call = 1,
       .n_calls = 1000,
       .file = part_path(0).filename()});
  expect_error(ErrorKind::damaged, {"a second read", "gave the right bytes", leaf_range(0, rank_.parts[0].data_bytes)},
               options_);
}

TEST_F(LoadFaultTest, WithoutVerificationTheSameFlipPasses) {
  flip(part_path(0), kDataBegin + 1000);
  options_.verify = Verify::off;
  EXPECT_FALSE(error_of(options_));
}

TEST_F(LoadFaultTest, AMissingFileIsNamed) {
  fs::path missing[] = {part_path(0), out_ / rank_.directory / "leaves.xxh3", out_ / "config.json", out_ / "READY",
                        out_ / "manifest.json"};
  for (const fs::path& path : missing) {
    SCOPED_TRACE(path);
    fs::rename(path, out_ / "away");
    expect_error(ErrorKind::not_found, {path.filename()}, options_);
    fs::rename(out_ / "away", path);
  }
  fs::rename(out_ / rank_.directory, out_ / "away");
  expect_error(ErrorKind::not_found, {"rank-01"}, options_);
  out_ = out_ / "nowhere";
  expect_error(ErrorKind::not_found, {"nowhere"}, options_);
  out_ = out_.parent_path();
}

TEST_F(LoadFaultTest, AFileOfAnotherLengthIsNamedWithBothLengths) {
  for (const fs::path& path : {part_path(0), out_ / rank_.directory / "leaves.xxh3", out_ / "config.json"}) {
    SCOPED_TRACE(path);
    const uint64_t size = fs::file_size(path);
    for (const uint64_t other : {size - 1, size + 1, uint64_t{0}}) {
      fs::copy_file(path, out_ / "whole", fs::copy_options::overwrite_existing);
      fs::resize_file(path, other);
      expect_error(ErrorKind::damaged, {path.filename(), std::to_string(size), std::to_string(other)}, options_);
      fs::copy_file(out_ / "whole", path, fs::copy_options::overwrite_existing);
    }
  }
}

TEST_F(LoadFaultTest, ALinkOutOfTheCheckpointIsNotFollowed) {
  fs::rename(part_path(0), out_ / "away");
  fs::create_symlink(out_ / "away", part_path(0));
  expect_error(ErrorKind::damaged, {part_path(0).filename(), "link"}, options_);
}

TEST_P(LoadReaderFaultTest, AFileThatEndsEarlyWhileItIsReadIsDamaged) {
  const ManifestPart& part = rank_.parts[0];
  for (const uint64_t end : {uint64_t{100}, kDataBegin + 5, kDataBegin + part.data_bytes - 1}) {
    use({.kind = Fault::Kind::end_of_file, .amount = end, .file = part_path(0).filename()});
    expect_error(ErrorKind::damaged, {part_path(0).filename(), "bytes [", "ends before"}, options_);
  }
}

TEST_F(LoadFaultTest, AFileReplacedOrTouchedWhileItIsReadIsDamaged) {
  const auto during = [&](const std::function<void()>& change) {
    std::atomic<bool> first = true;
    options_.progress = [&](uint64_t, uint64_t) {
      if (first.exchange(false)) change();
    };
    expect_error(ErrorKind::damaged, {part_path(0).filename(), "changed while it was read"}, options_);
  };
  during([&] {
    fs::copy_file(part_path(0), out_ / "twin");
    fs::rename(out_ / "twin", part_path(0));
  });
  during([&] { fs::last_write_time(part_path(0), fs::file_time_type::clock::now() + std::chrono::seconds(5)); });
  during([&] { fs::rename(part_path(0), out_ / "away"); });
}

TEST_P(LoadReaderFaultTest, AnErrorOfAnyReadIsReportedWithFileAndRange) {
  const auto counter = std::make_shared<FaultyRead>(std::vector<Fault>{});
  use(counter);
  ASSERT_FALSE(error_of(options_));
  const uint64_t n_calls = counter->n_calls();
  ASSERT_GE(n_calls, 10u);
  for (uint64_t call = 0; call < n_calls; ++call) {
    SCOPED_TRACE(str("call ", call));
    const auto faulty = std::make_shared<FaultyRead>(
        std::vector<Fault>{{.kind = Fault::Kind::error, .amount = EIO, .first_call = call, .n_calls = 1}});
    use(faulty);
    const std::optional<Error> error = error_of(options_);
    // io_uring may give a read back short: loads differ by a call or two, and this one may not have come to the fault.
    if (call >= 10 && !error && faulty->n_calls() <= call) continue;
    expect_error(error, ErrorKind::io, {"tp2/rank-0", "bytes [", "Input/output error"});
  }
}

TEST_P(LoadReaderFaultTest, StorageThatHangsEndsAtTheDeadline) {
  for (const uint64_t call : {0, 3, 9}) {
    SCOPED_TRACE(str("call ", call));
    const auto faulty =
        std::make_shared<FaultyRead>(std::vector<Fault>{{.kind = Fault::Kind::stall, .first_call = call}});
    use(faulty);
    options_.deadline_s = 0.2;
    std::jthread releaser([faulty](const std::stop_token& stop) {  // the destructor waits for the stuck threads
      while (faulty->n_stalled() == 0 && !stop.stop_requested()) std::this_thread::yield();
      std::this_thread::sleep_for(std::chrono::milliseconds(400));
      faulty->release();
    });
    expect_error(ErrorKind::io, {"tp2/rank-0", "bytes [", "deadline of 200 ms"}, options_);
  }
}

TEST_F(LoadFaultTest, ADeadlineThatIsKeptChangesNothing) {
  options_.deadline_s = 600;
  EXPECT_FALSE(error_of(options_));
}

TEST_F(LoadFaultTest, AManifestThatLiesAboutTheLayoutIsRefused) {
  const std::string original = to_json(read_manifest(out_));
  const auto lie = [&](const std::vector<std::string>& words, const std::function<void(Manifest&)>& change) {
    forge(change);
    expect_error(ErrorKind::bad_input, words, options_);
    forge([&](Manifest& manifest) { manifest = parse_manifest(original, "original"); });
  };
  const auto part = [](Manifest& m) -> ManifestPart& { return m.tps[1].ranks[1].parts[0]; };
  const auto tensor = [](Manifest& m, const std::string& name) -> ManifestTensor& {
    return *std::find_if(m.tensors.begin(), m.tensors.end(), [&](const auto& t) { return t.name.ends_with(name); });
  };
  lie({"tail"}, [&](Manifest& m) { part(m).tail_begin += kPageBytes; });
  lie({"tail"}, [&](Manifest& m) { part(m).tail_begin -= kPageBytes; });
  lie({"model.norm.weight", "not listed"},
      [&](Manifest& m) { std::erase_if(m.tensors, [](const auto& t) { return t.name == "model.norm.weight"; }); });
  lie({"model.extra"}, [&](Manifest& m) {
    m.tensors.push_back({"model.extra", {8}, DType::bf16, SliceKind::replicated});
  });
  lie({"layers.0.mlp.up_proj.weight", "rows", "columns"},
      [&](Manifest& m) { tensor(m, "layers.0.mlp.up_proj.weight").slice = SliceKind::columns; });
  lie({"embed_tokens", "[1003, 256]"}, [&](Manifest& m) { tensor(m, "embed_tokens.weight").shape = {1004, 256}; });
  lie({"layers.0.mlp.up_proj.weight", "bf16", "f32"},
      [&](Manifest& m) { tensor(m, "layers.0.mlp.up_proj.weight").dtype = DType::f32; });
  lie({"config.json", "llama", "mistral"}, [&](Manifest& m) { m.architecture = "mistral"; });
}

TEST_F(LoadFaultTest, PartsOfAnotherRankOrSwappedPartsDoNotPass) {
  Manifest manifest = read_manifest(out_);
  ASSERT_GT(rank_.parts.size(), 1u);
  // Rank 0's part under rank 1's name: the same header and length, other bytes.
  const std::string other = manifest.find_tp(2)->ranks[0].parts[0].file;
  fs::copy_file(out_ / other, part_path(0), fs::copy_options::overwrite_existing);
  expect_error(ErrorKind::damaged, {part_path(0).filename(), "rank-01"}, options_);
}

INSTANTIATE_TEST_SUITE_P(Readers, LoadReaderFaultTest, testing::Values("pread", "io_uring"),
                         [](const auto& param) { return std::string(param.param); });

}  // namespace
}  // namespace firstlight
