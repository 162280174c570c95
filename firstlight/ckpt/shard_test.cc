// SPDX-License-Identifier: Apache-2.0
// What a conversion writes: gathered again it is the source, it depends on nothing but its input, and it says no in
// time.
#include "firstlight/ckpt/shard.h"

#include <gmock/gmock.h>

#include "firstlight/base/error.h"
#include "firstlight/base/hash.h"
#include "firstlight/ckpt/load.h"
#include "firstlight/ckpt/shard_testing.h"

namespace firstlight {
namespace {

using namespace testing_shard;
using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class EveryFamily : public ::testing::TestWithParam<Family> {};
INSTANTIATE_TEST_SUITE_P(Shard, EveryFamily, ::testing::ValuesIn(families()),
                         [](const auto& info) { return std::string(info.param.name); });

void expect_gathers(const MemorySource& source, const fs::path& out, int tp, DType dtype) {
  std::vector<std::map<std::string, RankTensor>> ranks;
  for (int rank = 0; rank < tp; ++rank) ranks.push_back(read_rank(rank_path(out, tp, rank)));
  for (const auto& rank : ranks) ASSERT_EQ(rank.size(), source.tensors().size());
  for (const SourceTensor& tensor : source.tensors()) {
    std::vector<const RankTensor*> pieces;
    for (const auto& rank : ranks) pieces.push_back(&rank.at(tensor.name));
    EXPECT_EQ(pieces[0]->dtype, safetensors_name(dtype)) << tensor.name;
    EXPECT_TRUE(gather(tensor.name, pieces, source.config()) == source.bytes_of(tensor.name, dtype))
        << tensor.name << " at tp " << tp << " is not the source's";
  }
}

TEST_P(EveryFamily, GatheredFromAllRanksIsTheSourceBitForBitAtEveryTp) {
  const ScratchDirectory scratch;
  for (const DType stored : {DType::bf16, DType::f32}) {
    const MemorySource source(GetParam().config, stored);
    const fs::path out = scratch.path() / std::string(to_string(stored));
    const ShardReport report = shard(source, out, small_options(GetParam().tps));
    EXPECT_EQ(report.tps, GetParam().tps);
    for (const int tp : GetParam().tps) expect_gathers(source, out, tp, stored);
    EXPECT_THAT(verify(out, 2, {}, {}).problems, IsEmpty());
  }
}

TEST_P(EveryFamily, TheTpsThatWorkAreExactlyThese) {
  const MemorySource source(GetParam().config);
  EXPECT_EQ(possible_tps(source.config()), GetParam().tps);
  const ScratchDirectory scratch;
  const std::string message =
      error_of(ErrorKind::bad_input, [&] { shard(source, scratch.path() / "out", small_options({5})); });
  EXPECT_THAT(message, HasSubstr("tp 5"));
  EXPECT_THAT(message, HasSubstr("possible: 1, "));
  EXPECT_FALSE(fs::exists(scratch.path() / "out"));
}

TEST_P(EveryFamily, OnePassAndOneTpAfterAnotherMakeTheSameFiles) {
  const ScratchDirectory scratch;
  const MemorySource source(GetParam().config);
  shard(source, scratch.path() / "a", small_options(GetParam().tps));
  for (auto tp = GetParam().tps.rbegin(); tp != GetParam().tps.rend(); ++tp) {
    shard(source, scratch.path() / "b", small_options({*tp}));
    EXPECT_THAT(verify(scratch.path() / "b", 2, {}, {}).problems, IsEmpty());
  }
  EXPECT_THAT(differences(tree(scratch.path() / "a"), tree(scratch.path() / "b")), IsEmpty());
}

TEST_P(EveryFamily, PartsBeginAtTwoMebibytesWithPagesFirstAndFusedGroupsTogether) {
  const ScratchDirectory scratch;
  const MemorySource source(GetParam().config);
  const fs::path& out = scratch.path();
  shard(source, out, small_options(GetParam().tps));
  size_t n_parts = 0;
  for (const ManifestTp& tp : read_manifest(out).tps) {
    for (const ManifestRank& rank : tp.ranks) {
      n_parts = std::max(n_parts, rank.parts.size());
      for (const ManifestPart& part : rank.parts) {
        const std::string text = read_text(out / part.file);
        uint64_t length = 0;
        std::memcpy(&length, text.data(), 8);
        EXPECT_EQ(length + 8, 2u << 20);
        EXPECT_EQ(text.size(), (2u << 20) + part.data_bytes);
        for (const auto& [name, tensor] : read_safetensors(out / part.file)) {
          EXPECT_EQ(tensor.begin < part.tail_begin, tensor.bytes.size() % 4096 == 0) << name;
          if (tensor.begin < part.tail_begin) {
            EXPECT_EQ(tensor.begin % 4096, 0u) << name;
          }
        }
      }
      const auto tensors = read_rank(out / rank.directory);
      for (int layer = 0; layer < source.config().n_layers; ++layer) {
        const std::string prefix = "model.layers." + std::to_string(layer) + ".";
        const auto file = [&](const char* name) { return tensors.at(prefix + name).file; };
        EXPECT_EQ(file("self_attn.q_proj.weight"), file("self_attn.k_proj.weight"));
        EXPECT_EQ(file("self_attn.q_proj.weight"), file("self_attn.v_proj.weight"));
        EXPECT_EQ(file("mlp.gate_proj.weight"), file("mlp.up_proj.weight"));
      }
    }
  }
  EXPECT_GT(n_parts, 1u) << "the sizes of this test no longer make several parts";
}

TEST(Shard, FusedGroupsThatArePageMultiplesAreNeighbours) {
  const ScratchDirectory scratch;
  const MemorySource source(family("mistral").config);
  shard(source, scratch.path(), small_options({1, 2}));
  for (const int tp : {1, 2}) {
    const auto t = read_rank(rank_path(scratch.path(), tp, tp - 1));
    const auto follows = [&](const char* a, const char* b) {
      EXPECT_EQ(t.at(a).begin + t.at(a).bytes.size(), t.at(b).begin) << a << " and " << b;
    };
    follows("model.layers.1.self_attn.q_proj.weight", "model.layers.1.self_attn.k_proj.weight");
    follows("model.layers.1.self_attn.k_proj.weight", "model.layers.1.self_attn.v_proj.weight");
    follows("model.layers.1.mlp.gate_proj.weight", "model.layers.1.mlp.up_proj.weight");
  }
}

TEST(Shard, LeavesAreTheHashesOfEachMebibyteOfData) {
  const ScratchDirectory scratch;
  // Large enough for several leaves: 4000 x 144 bf16.
  std::string config = family("smollm2").config;
  config.replace(config.find("\"vocab_size\":256"), 16, "\"vocab_size\":9001");
  const MemorySource source(config);
  ShardOptions options = small_options({3});
  options.part_bytes = 4u << 20;
  shard(source, scratch.path(), options);
  const Manifest manifest = read_manifest(scratch.path());
  for (const ManifestRank& rank : manifest.find_tp(3)->ranks) {
    std::string want;
    for (const ManifestPart& part : rank.parts) {
      const std::string data = read_text(scratch.path() / part.file).substr(2u << 20);
      EXPECT_EQ(want.size() / 8, part.first_leaf);
      for (size_t at = 0; at < data.size(); at += 1u << 20) {
        const std::string leaf = data.substr(at, 1u << 20);
        const uint64_t hash = xxh3_64(std::as_bytes(std::span(leaf)));
        want.append(reinterpret_cast<const char*>(&hash), 8);
      }
    }
    EXPECT_GE(want.size(), 16u);
    EXPECT_TRUE(read_text(scratch.path() / rank.directory / "leaves.xxh3") == want);
  }
}

TEST(Shard, NeitherThreadsNorMemoryNorTheFileSystemChangeAByte) {
  const ScratchDirectory in_memory, on_disk(false);
  const MemorySource source(family("smollm2").config);
  shard(source, in_memory.path() / "a", small_options({1, 3, 9}));
  const auto want = tree(in_memory.path() / "a");
  ShardOptions options = small_options({9, 3, 1});
  options.memory_bytes = 20u << 20;
  options.n_threads = 5;
  shard(source, on_disk.path() / "b", options);
  EXPECT_THAT(differences(want, tree(on_disk.path() / "b")), IsEmpty());
}

TEST(Shard, AllTpsTogetherReadTheSourceOnce) {
  const ScratchDirectory scratch;
  const MemorySource source(family("mistral").config);
  uint64_t total = 0;
  for (const SourceTensor& tensor : source.tensors()) total += tensor.stored_bytes;
  shard(source, scratch.path(), small_options({1, 2, 4, 8}));
  EXPECT_EQ(source.bytes_read.load(), total);
}

TEST(Shard, ATailTooLargeForMemoryIsReadAgainAndStillRight) {
  const ScratchDirectory scratch;
  std::string config = family("smollm2").config;  // rows of 288 bytes: 20,001 of them are no page multiple
  config.replace(config.find("\"vocab_size\":256"), 16, "\"vocab_size\":20001");
  const MemorySource source(config);
  ShardOptions options = small_options({1, 3});
  options.memory_bytes = 9u << 20;  // an eighth of it is less than the 5.8 MB embedding
  options.part_bytes = 64u << 20;
  shard(source, scratch.path(), options);
  for (const int tp : {1, 3}) expect_gathers(source, scratch.path(), tp, DType::bf16);
}

TEST(Shard, TooLittleMemoryIsSaidBeforeAnythingIsWritten) {
  const ScratchDirectory scratch;
  const MemorySource source(family("mistral").config);
  ShardOptions options = small_options({1, 2, 4, 8});
  options.memory_bytes = 4u << 20;
  const std::string message = error_of(ErrorKind::bad_input, [&] { shard(source, scratch.path() / "out", options); });
  EXPECT_THAT(message, HasSubstr("--memory"));
  EXPECT_THAT(message, HasSubstr("MiB is enough"));
  options.memory_bytes = std::stoull(message.substr(message.find("at once: ") + 9)) << 20;
  shard(source, scratch.path() / "out", options);  // what it asked for is enough
  EXPECT_THAT(verify(scratch.path() / "out", 1, {}, {}).problems, IsEmpty());
}

TEST(Shard, ConfigsSayTheTypeThatIsStored) {
  const ScratchDirectory scratch;
  const MemorySource source(family("llama").config);
  ShardOptions options = small_options({1, 2});
  options.dtype = DTypeChoice::f32;
  shard(source, scratch.path(), options);
  Json want = Json::parse(family("llama").config);
  want["torch_dtype"] = "float32";
  for (const char* name : {"config.json", "tp1/rank-00/config.json", "tp2/rank-01/config.json"}) {
    EXPECT_EQ(Json::parse(read_text(scratch.path() / name)), want) << name;
  }
  expect_gathers(source, scratch.path(), 2, DType::f32);
}

TEST(Shard, AnUnchangedConfigIsCopiedToTheByte) {
  const ScratchDirectory scratch;
  const MemorySource source(family("qwen3").config);
  shard(source, scratch.path(), small_options({1}));
  EXPECT_EQ(read_text(scratch.path() / "config.json"), family("qwen3").config);
  EXPECT_EQ(read_text(scratch.path() / "tp1/rank-00/config.json"), family("qwen3").config);
  EXPECT_EQ(read_text(scratch.path() / "tp1/rank-00/generation_config.json"), "{\"eos_token_id\": 2}\n");
}

TEST(Shard, HalfPrecisionBecomesBf16AndThatIsSaid) {
  const ScratchDirectory scratch;
  MemorySource source(family("llama").config);
  for (SourceTensor& tensor : source.mutable_tensors()) {
    tensor.dtype = DType::f16;
    tensor.stored_type = "F16";
  }
  std::vector<std::string> notes;
  ShardOptions options = small_options({1});
  options.note = [&](const std::string& line) { notes.push_back(line); };
  EXPECT_EQ(shard(source, scratch.path(), options).dtype, "source");
  EXPECT_THAT(notes, Contains(HasSubstr("F16 becomes BF16")));
  expect_gathers(source, scratch.path(), 1, DType::bf16);
}

TEST(Shard, AGgufWithBf16OrQuantisedWeightsIsStoredAsBf16ThroughoutAndF32StaysF32) {
  MemorySource source(family("llama").config, DType::f32);
  source.kind_name = "gguf";
  {
    const ScratchDirectory scratch;
    EXPECT_EQ(shard(source, scratch.path(), small_options({1})).dtype, "source");
    expect_gathers(source, scratch.path(), 1, DType::f32);
  }
  source.mutable_tensors()[1].quantised = true;
  source.mutable_tensors()[1].stored_type = "Q4_1";
  const ScratchDirectory scratch;
  EXPECT_EQ(shard(source, scratch.path(), small_options({1})).dtype, "bf16");
  expect_gathers(source, scratch.path(), 1, DType::bf16);
}

TEST(Shard, AnIntegerTensorIsRefusedByName) {
  const ScratchDirectory scratch;
  MemorySource source(family("llama").config);
  source.mutable_tensors()[3].dtype = DType::i8;
  source.mutable_tensors()[3].stored_type = "I8";
  const std::string message =
      error_of(ErrorKind::unsupported, [&] { shard(source, scratch.path() / "out", small_options({1})); });
  EXPECT_THAT(message, HasSubstr(source.tensors()[3].name));
}

TEST(Shard, WeightsThatRunCouldNotReadAsOneAreRefusedByName) {
  for (const auto& [name, beside] : {std::pair("model.layers.1.self_attn.v_proj.weight", "q_proj.weight"),
                                     std::pair("model.layers.0.mlp.up_proj.weight", "gate_proj.weight"),
                                     std::pair("model.layers.1.self_attn.k_proj.bias", "q_proj.bias")}) {
    const ScratchDirectory scratch;
    MemorySource source(family("llama_biases").config);
    for (SourceTensor& tensor : source.mutable_tensors()) {
      if (tensor.name == name) tensor.dtype = DType::f32, tensor.stored_type = "F32";
    }
    std::vector<std::string> notes;
    ShardOptions options = small_options({1});
    options.note = [&](const std::string& line) { notes.push_back(line); };
    const std::string what = error_of(ErrorKind::unsupported, [&] { shard(source, scratch.path() / "out", options); });
    EXPECT_THAT(what, HasSubstr(name));
    EXPECT_THAT(what, HasSubstr(beside));
    EXPECT_THAT(notes, IsEmpty()) << "said something before it refused";
    EXPECT_FALSE(fs::exists(scratch.path() / "out"));
    options.dtype = DTypeChoice::f32;
    shard(source, scratch.path() / "out", options);
    expect_gathers(source, scratch.path() / "out", 1, DType::f32);
  }
}

TEST(Shard, AGenerationConfigThatRunWouldRefuseIsRefused) {
  const ScratchDirectory scratch;
  MemorySource source(family("llama").config);
  source.mutable_aux()[1].content = "{\"eos_token_id\": 259}\n";
  EXPECT_THAT(error_of(ErrorKind::bad_input, [&] { shard(source, scratch.path() / "out", small_options({1})); }),
              HasSubstr("eos_token_id is 259"));
}

TEST(Shard, WhatHappensToValuesIsSaidAsItIs) {
  const auto notes_of = [](DType stored, const char* name, bool quantised, DTypeChoice choice) {
    const ScratchDirectory scratch;
    MemorySource source(family("llama").config);
    for (SourceTensor& tensor : source.mutable_tensors()) {
      tensor.dtype = stored;
      tensor.stored_type = name;
      tensor.quantised = quantised;
    }
    std::string all;
    ShardOptions options = small_options({1});
    options.dtype = choice;
    options.note = [&](const std::string& line) { all += line + "\n"; };
    shard(source, scratch.path(), options);
    return all;
  };
  EXPECT_THAT(notes_of(DType::f16, "F16", false, DTypeChoice::f32), HasSubstr("F16 becomes F32 in 21 tensors: exact"));
  EXPECT_THAT(notes_of(DType::f32, "F32", false, DTypeChoice::bf16),
              HasSubstr("F32 becomes BF16 in 21 tensors: rounded"));
  EXPECT_THAT(notes_of(DType::f32, "Q4_0", true, DTypeChoice::f32),
              HasSubstr("Q4_0 becomes F32 in 21 tensors: decoded\n"));
  EXPECT_THAT(notes_of(DType::f32, "Q4_0", true, DTypeChoice::bf16),
              HasSubstr("decoded, then rounded to nearest even"));
  EXPECT_EQ(notes_of(DType::f32, "F32", false, DTypeChoice::f32), "");
}

TEST(Shard, OneRuleForTheTpOfAPlanAndOfALoad) {
  const ScratchDirectory scratch;
  shard(MemorySource(family("smollm2").config), scratch.path(), small_options({1}));
  LoadOptions load;
  for (const auto& [tp, kind] : {std::pair(2, ErrorKind::bad_input), std::pair(3, ErrorKind::not_found)}) {
    load.tp = tp;
    const std::string planned = error_of(kind, [&, tp = tp] { plan_load(scratch.path(), tp); });
    EXPECT_EQ(error_of(kind, [&] { load_rank_checkpoint(scratch.path(), load); }), planned);
  }
}

TEST(Shard, APlanIsMadeFromCheckedHeadersOnly) {
  const ScratchDirectory scratch;
  shard(MemorySource(family("smollm2").config), scratch.path(), small_options({1}));
  const fs::path part = scratch.path() / read_manifest(scratch.path()).tps[0].ranks[0].parts[0].file;
  std::string bytes = read_text(part);
  bytes[bytes.find("pt\"")] = 'q';  // __metadata__: any reader would still open it
  write_durably(part, std::string_view(bytes));
  EXPECT_THAT(error_of(ErrorKind::damaged, [&] { plan_load(scratch.path(), 1); }), HasSubstr("bytes [0, "));
}

TEST(Shard, ProgressEndsAtTheTotal) {
  const ScratchDirectory scratch;
  const MemorySource source(family("llama").config);
  ShardOptions options = small_options({1});
  Progress last;
  uint64_t before = 0;
  options.progress = [&](const Progress& progress) {
    if (progress.what != "writing") return;
    EXPECT_GE(progress.done_bytes, before);
    EXPECT_LE(progress.done_bytes, progress.total_bytes);
    before = progress.done_bytes;
    last = progress;
  };
  shard(source, scratch.path(), options);
  EXPECT_GT(last.total_bytes, 0u);
  EXPECT_EQ(last.done_bytes, last.total_bytes);
}

TEST(Shard, APlanCountsWhatTheFilesHold) {
  const ScratchDirectory scratch;
  const MemorySource source(family("smollm2").config);
  shard(source, scratch.path(), small_options({1, 3}));
  const LoadPlan plan = plan_load(scratch.path(), 3);
  ASSERT_EQ(plan.ranks.size(), 3u);
  for (const PlanRank& rank : plan.ranks) {
    uint64_t bytes = 0, aligned = 0;
    for (const auto& [name, tensor] : read_rank(rank_path(scratch.path(), 3, rank.rank))) {
      bytes += tensor.bytes.size();
      if (tensor.bytes.size() % 4096 == 0) aligned += tensor.bytes.size();
    }
    EXPECT_EQ(rank.bytes, bytes);
    EXPECT_EQ(rank.aligned_bytes, aligned);
    EXPECT_GE(rank.arena_bytes, bytes);
    EXPECT_EQ(rank.n_leaves, fs::file_size(rank_path(scratch.path(), 3, rank.rank) / "leaves.xxh3") / 8);
    EXPECT_GE(rank.n_reads, rank.n_parts);
  }
  EXPECT_THAT(error_of(ErrorKind::not_found, [&] { plan_load(scratch.path(), 9); }), HasSubstr("stored: 1, 3"));
}

}  // namespace
}  // namespace firstlight
