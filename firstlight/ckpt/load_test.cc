// SPDX-License-Identifier: Apache-2.0
// Loading what is sound: bytes, layouts, gates, reports, limits. What is broken: load_fault_test.cc.
#include "firstlight/ckpt/load.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <thread>

#include "firstlight/ckpt/arena.h"
#include "firstlight/ckpt/load_fixture.h"
#include "firstlight/ckpt/load_gates.h"
#include "firstlight/ckpt/safetensors.h"
#include "firstlight/io/fault_read.h"
#include "firstlight/io/memory_reader.h"
#include "firstlight/io/pread_reader.h"

namespace firstlight {
namespace {

TEST_F(LoadTest, EveryByteOfEveryRankIsTheSourcesSlice) {
  for (const int tp : {1, 2, 4}) {
    for (const int n_threads : {1, 3}) {
      LoadOptions options;
      options.tp = tp;
      options.n_threads = n_threads;
      const auto load = load_rank_checkpoint(out_, options);
      const LoadReport report = load->wait();
      ASSERT_EQ(load->weights().size(), static_cast<size_t>(tp));
      uint64_t bytes = 0;
      for (int rank = 0; rank < tp; ++rank) {
        const RankWeights& weights = load->weights()[static_cast<size_t>(rank)];
        EXPECT_EQ(weights.rank, rank);
        EXPECT_EQ(weights.vocab_rows, (1003 + tp - 1) / tp);
        EXPECT_EQ(weights.vocab_begin, rank * weights.vocab_rows);
        expect_weights(load->config(), weights);
        for (int gate = 0; gate < n_gates(load->config()); ++gate) EXPECT_TRUE(weights.ready->is_open(gate));
        for (const auto& [name, tensor] : weights.tensors) bytes += tensor.size_bytes;
      }
      EXPECT_EQ(report.bytes, bytes);
      EXPECT_EQ(report.reader, "pread");
      EXPECT_EQ(report.verify, "full");
      EXPECT_GT(report.verify_cpu_seconds, 0);
      ASSERT_EQ(report.ranks.size(), static_cast<size_t>(tp));
      EXPECT_GE(report.ranks[0].leaves_checked, report.ranks[0].bytes >> 20);
      EXPECT_LE(report.ranks[0].seconds, report.seconds);
    }
  }
}

TEST_F(LoadTest, AManifestThatHasBeenReadIsNotReadAgain) {
  const fs::path out = make_checkpoint("read", DTypeChoice::bf16, 1u << 20, kTinyConfig);
  LoadOptions options;
  options.tp = 2;
  options.manifest = std::make_shared<const Manifest>(read_manifest(out));
  fs::rename(out / "manifest.json", out / "elsewhere.json");
  const auto load = load_rank_checkpoint(out, options);
  load->wait();
  for (const RankWeights& weights : load->weights()) expect_weights(load->config(), weights);
  options.manifest.reset();
  EXPECT_THROW(load_rank_checkpoint(out, options), Error);
  fs::remove_all(out);
}

TEST_F(LoadTest, OnePartAndManyAndBothElementTypesAndQwensTensorsAreAlike) {
  std::string qwen = kTinyConfig;
  qwen.replace(qwen.find("LlamaForCausalLM"), 16, "Qwen2ForCausalLM");
  qwen.replace(qwen.find("\"llama\""), 7, "\"qwen2\"");
  qwen.replace(qwen.find("\"tie_word_embeddings\": true"), 27, "\"tie_word_embeddings\": false");
  const std::pair<std::string, uint64_t> cases[] = {{kTinyConfig, 1u << 20}, {qwen, 1u << 30}};
  for (const auto& [config, part_bytes] : cases) {
    const fs::path out = make_checkpoint("other", DTypeChoice::f32, part_bytes, config);
    for (const int tp : {1, 4}) {
      LoadOptions options;
      options.tp = tp;
      const auto load = load_rank_checkpoint(out, options);
      load->wait();
      for (const RankWeights& weights : load->weights()) expect_weights(load->config(), weights);
    }
    fs::remove_all(out);
  }
}

TEST_F(LoadTest, TheArenaHoldsTheFilesPagesInTheirOrder) {
  const auto load = load_rank_checkpoint(out_, {});
  load->wait();
  const RankWeights& weights = load->weights()[0];
  EXPECT_EQ(reinterpret_cast<uintptr_t>(weights.arena.data()) % (2 << 20), 0u);
  for (int layer = 0; layer < 4; ++layer) {  // a fused parameter is one piece of memory
    const auto at = [&](const char* name) -> const Tensor& {
      return weights.tensors.find(str("model.layers.", layer, ".", name))->second;
    };
    const Tensor& q = at("self_attn.q_proj.weight");
    const Tensor& k = at("self_attn.k_proj.weight");
    EXPECT_EQ(q.data + q.size_bytes, k.data);
    EXPECT_EQ(k.data + k.size_bytes, at("self_attn.v_proj.weight").data);
    const Tensor& gate = at("mlp.gate_proj.weight");
    EXPECT_EQ(gate.data + gate.size_bytes, at("mlp.up_proj.weight").data);
  }
}

TEST_F(LoadTest, WithoutVerificationTheBytesAreTheSame) {
  LoadOptions options;
  options.tp = 2;
  options.verify = Verify::off;
  const auto load = load_rank_checkpoint(out_, options);
  const LoadReport report = load->wait();
  EXPECT_EQ(report.verify, "off");
  EXPECT_EQ(report.ranks[0].leaves_checked, 0u);
  for (const RankWeights& weights : load->weights()) expect_weights(load->config(), weights);
}

TEST_F(LoadTest, TheTraditionalPathGivesTheSameTensors) {
  for (const DType dtype : {DType::bf16, DType::f32}) {
    const FakeSource source(kTinyConfig, dtype);
    for (const int tp : {2, 8}) {
      for (const auto& wanted : {std::optional<DType>(), std::optional(DType::bf16), std::optional(DType::f32)}) {
        LoadOptions options;
        options.tp = tp;
        options.dtype = wanted;
        const auto load = load_traditionally(source, options);
        const LoadReport report = load->wait();
        EXPECT_EQ(report.reader, "traditional");
        ASSERT_EQ(report.ranks.size(), static_cast<size_t>(tp));
        for (const RankWeights& weights : load->weights()) {
          expect_weights(load->config(), weights);
          EXPECT_TRUE(weights.ready->is_open(n_gates(load->config()) - 1));
          EXPECT_EQ(weights.tensors.begin()->second.dtype, wanted.value_or(dtype));
        }
      }
    }
  }
  LoadOptions options;
  options.dtype = DType::i8;
  EXPECT_THROW(load_traditionally(FakeSource(), options), Error);
  options = {};
  options.tp = 3;
  EXPECT_THROW(load_traditionally(FakeSource(), options), Error);
}

TEST_F(LoadTest, TheTraditionalPathStopsAndChecksMemoryFirst) {
  std::stop_source stop;
  stop.request_stop();
  LoadOptions options;
  options.stop = stop.get_token();
  EXPECT_THROW(load_traditionally(FakeSource(), options), Interrupted);
  options = {};
  options.reserve_bytes = uint64_t{1} << 60;
  try {
    load_traditionally(FakeSource(), options);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::out_of_memory);
  }
}

TEST_F(LoadTest, GatesOpenInLayerOrderAndWhatLiesBehindAnOpenGateIsThere) {
  // On one thread, in this order: of each rank a header and the leaves; each tail; each rank's first body – and then it
  // hangs.
  for (const int tp : {1, 2}) {
    const fs::path out = make_checkpoint("one_part", DTypeChoice::f32, 1u << 30);
    const auto faulty = std::make_shared<FaultyRead>(
        std::vector<Fault>{{.kind = Fault::Kind::stall, .first_call = static_cast<uint64_t>(tp * 4), .n_calls = 1}});
    LoadOptions options;
    options.tp = tp;
    options.make_reader = [&](int) { return make_faulty_reader(faulty, 1); };
    const auto load = load_rank_checkpoint(out, options);
    RankWeights& weights = load->weights()[0];
    weights.ready->wait(0);
    weights.ready->wait(1);
    const int last = n_gates(load->config()) - 1;
    EXPECT_FALSE(weights.ready->is_open(last));
    for (const auto& [name, tensor] : weights.tensors) {
      if (name.find("layers.0.self_attn.q_proj") == std::string::npos) continue;
      float first = 0;
      std::memcpy(&first, tensor.data, sizeof first);
      EXPECT_EQ(first, WeightsOf(name)(0, 0));
    }
    faulty->release();
    load->wait();
    EXPECT_TRUE(weights.ready->is_open(last));
    for (const RankWeights& each : load->weights()) expect_weights(load->config(), each);
    fs::remove_all(out);
  }
}

TEST_F(LoadTest, AGateOpensWithTheLastLeafThatTouchesItsTensorsAndNoSooner) {
  const fs::path out = make_checkpoint("one_part", DTypeChoice::bf16, 1u << 30);
  const Manifest manifest = read_manifest(out);
  const ModelConfig config = parse_hf_config(kTinyConfig);
  RankFiles files;
  files.manifest = &manifest.find_tp(1)->ranks[0];
  const ManifestPart& part = files.manifest->parts[0];
  const SafetensorsHeader header = read_safetensors_header(*File::open(out / part.file));
  files.layout = lay_out_arena(config, manifest, *files.manifest, 1, 0, {&header, 1});
  const uint64_t n_leaves = leaves_of(part);
  ASSERT_GT(n_leaves, 4u);
  int n_shared = 0;
  for (uint64_t missing = 0; missing < n_leaves; ++missing) {
    Gates gates(n_gates(config));
    LeafGates leaf_gates(files, gates);
    for (uint64_t leaf = 0; leaf < n_leaves; ++leaf) {
      if (leaf != missing) leaf_gates.leaf_done(leaf);
    }
    leaf_gates.release_last();
    const uint64_t begin = missing * kLeafBytes, end = begin + kLeafBytes;
    int n_closed = 0;
    for (int gate = 0; gate < gates.size(); ++gate) {
      bool waits = end > part.tail_begin;  // a leaf of the tail: all wait
      for (const ArenaTensor& tensor : files.layout.tensors) {
        waits = waits || (tensor.gate == gate && tensor.begin < end && tensor.end > begin);
      }
      EXPECT_EQ(gates.is_open(gate), !waits) << "gate " << gate << " without leaf " << missing;
      n_closed += waits ? 1 : 0;
    }
    if (n_closed == 2) ++n_shared;
    leaf_gates.leaf_done(missing);
    for (int gate = 0; gate < gates.size(); ++gate) EXPECT_TRUE(gates.is_open(gate));
  }
  EXPECT_GT(n_shared, 0) << "no leaf held parts of two layers: the test tests nothing";
  Gates gates(n_gates(config));
  LeafGates leaf_gates(files, gates);
  for (uint64_t leaf = 0; leaf < n_leaves; ++leaf) leaf_gates.leaf_done(leaf);
  EXPECT_FALSE(gates.is_open(gates.size() - 1)) << "the last gate is the identity check's";
  fs::remove_all(out);
}

TEST_F(LoadTest, AReaderThatGivesLittleAtATimeChangesNothing) {
  const auto faulty = std::make_shared<FaultyRead>(std::vector<Fault>{
      {.kind = Fault::Kind::short_read, .amount = 100'001},
      {.kind = Fault::Kind::error, .amount = EINTR, .first_call = 5, .n_calls = 5},
  });
  LoadOptions options;
  options.tp = 4;
  options.make_reader = [&](int n_threads) { return make_faulty_reader(faulty, n_threads); };
  const auto load = load_rank_checkpoint(out_, options);
  EXPECT_EQ(load->wait().reader, "faulty");
  for (const RankWeights& weights : load->weights()) expect_weights(load->config(), weights);
}

TEST_F(LoadTest, ProgressReachesTheTotalAndTheTimeLineHasItsPhases) {
  std::atomic<uint64_t> most = 0, total = 0;
  Timeline timeline;
  LoadOptions options;
  options.tp = 2;
  options.timeline = &timeline;
  options.progress = [&](uint64_t done, uint64_t all) {
    total = all;
    uint64_t seen = most;
    while (done > seen && !most.compare_exchange_weak(seen, done)) {
    }
  };
  const LoadReport report = load_rank_checkpoint(out_, options)->wait();
  EXPECT_EQ(most, report.bytes);
  EXPECT_EQ(total, report.bytes);
  std::vector<std::string> names;
  for (const Phase& phase : timeline.phases()) {
    names.push_back(phase.name);
    EXPECT_LE(phase.start_s, phase.end_s);
  }
  std::sort(names.begin(), names.end());
  EXPECT_EQ(names,
            (std::vector<std::string>{"arena", "headers", "manifest", "read+verify rank 0", "read+verify rank 1"}));
}

TEST_F(LoadTest, WhatDoesNotFitIsRefusedBeforeTheFirstReadOfData) {
  const auto faulty = std::make_shared<FaultyRead>(std::vector<Fault>{});
  LoadOptions options;
  options.reserve_bytes = uint64_t{1} << 60;
  options.make_reader = [&](int n_threads) { return make_faulty_reader(faulty, n_threads); };
  expect_error(ErrorKind::out_of_memory, {"of weights", "are needed", "are available", "--kv-memory"}, options);
  const Manifest manifest = read_manifest(out_);
  EXPECT_EQ(faulty->n_calls(), manifest.find_tp(1)->ranks[0].parts.size() + 1);  // headers and leaves
}

TEST(RequireFits, SaysWhatIsNeededWhatIsThereAndWhatWouldFit) {
  const auto message = [](uint64_t weights, uint64_t reserve, uint64_t available, Device device) -> std::string {
    try {
      require_fits(weights, reserve, available, device);
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::out_of_memory);
      return error.what();
    }
    return "";
  };
  EXPECT_EQ(message(6'000'000'000, 4'000'000'000, 10'000'000'000, {}), "");
  const std::string smaller_kv = message(6'000'000'000, 4'000'000'001, 10'000'000'000, {});
  EXPECT_NE(smaller_kv.find("at most 4.00 GB of KV cache"), std::string::npos) << smaller_kv;
  const std::string larger_tp = message(16'000'000'000, 0, 10'000'000'000, {Device::Kind::cuda, 1});
  EXPECT_NE(larger_tp.find("6.00 GB too large"), std::string::npos) << larger_tp;
  EXPECT_NE(larger_tp.find("--tp"), std::string::npos) << larger_tp;
  EXPECT_NE(message(5, ~uint64_t{0}, 10, {}), "");  // the sum overflows
}

TEST_F(LoadTest, ATpThatIsNotStoredIsNotFoundAndThoseThatAreAreNamed) {
  LoadOptions options;
  options.tp = 8;
  expect_error(ErrorKind::not_found, {"no tp 8", "1, 2, 4"}, options);
}

TEST_F(LoadTest, AStopBeforeWhileAndAfterTheLoad) {
  std::stop_source before;
  before.request_stop();
  LoadOptions options;
  options.stop = before.get_token();
  EXPECT_THROW(load_rank_checkpoint(out_, options), Interrupted);

  std::stop_source during;
  options.stop = during.get_token();
  options.n_threads = 1;
  options.progress = [&](uint64_t, uint64_t) { during.request_stop(); };
  const auto load = load_rank_checkpoint(out_, options);
  EXPECT_THROW(load->wait(), Interrupted);
  EXPECT_THROW(load->weights()[0].ready->wait(n_gates(load->config()) - 1), Interrupted);

  std::stop_source after;
  options.stop = after.get_token();
  options.progress = {};
  const auto whole = load_rank_checkpoint(out_, options);
  whole->wait();
  after.request_stop();
  EXPECT_NO_THROW(whole->wait());
}

TEST_F(LoadTest, AStopReachesALoadWhoseThreadsAreStuck) {
  const auto faulty = std::make_shared<FaultyRead>(std::vector<Fault>{{.kind = Fault::Kind::stall, .first_call = 6}});
  std::stop_source stop;
  LoadOptions options;
  options.stop = stop.get_token();
  options.make_reader = [&](int) { return make_faulty_reader(faulty, 1); };
  auto load = load_rank_checkpoint(out_, options);
  while (faulty->n_stalled() == 0) std::this_thread::yield();
  stop.request_stop();
  EXPECT_THROW(load->weights()[0].ready->wait(n_gates(load->config()) - 1), Interrupted);
  faulty->release();
  EXPECT_THROW(load->wait(), Interrupted);
}

TEST_F(LoadTest, ALoadMayBeDroppedAtAnyMoment) {
  for (int i = 0; i < 20; ++i) {
    LoadOptions options;
    options.tp = i % 2 == 0 ? 2 : 4;
    options.n_threads = 1 + i % 3;
    const auto load = load_rank_checkpoint(out_, options);
    if (i % 4 == 1) std::this_thread::yield();
    if (i % 4 == 2) load->weights()[0].ready->wait(0);
  }
}

}  // namespace
}  // namespace firstlight
