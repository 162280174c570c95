// SPDX-License-Identifier: Apache-2.0
// Ranks that are processes, each with a context of its own: this program once a rank, started anew, since a context
// does not outlive a fork. On one GPU as on two; on one its processes take turns.
#include <dlfcn.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/comm/cuda_process_comm.h"
#include "firstlight/device/buffer.h"
#include "firstlight/device/copy.h"
#include "firstlight/device/cuda.h"
#include "firstlight/device/gpus.h"

namespace firstlight {
namespace {

using Clock = std::chrono::steady_clock;
using cuda::check;

/// By the inbox, and in place: between two ranks it takes 1 << 20.
constexpr size_t kFewFloats = 4099, kManyFloats = 1'200'003;

/// Values at which the order of addition shows.
float term(int rank, size_t i, size_t round) {
  const uint32_t mixed = static_cast<uint32_t>(rank * 7919) + static_cast<uint32_t>(round) * 104729u +
                         static_cast<uint32_t>(i) * 2654435761u;
  return static_cast<float>(static_cast<int32_t>(mixed)) * (rank % 2 == 0 ? 1e-3f : 1e3f);
}

/// Floats begin 64 bytes into their allocation: what other processes get is a place in it.
constexpr size_t kFirst = 16;
std::span<float> first_of(const Buffer& buffer, size_t n) {
  return {reinterpret_cast<float*>(buffer.data()) + kFirst, n};
}
void fill(const Buffer& buffer, const std::vector<float>& values) {
  copy(reinterpret_cast<std::byte*>(first_of(buffer, 0).data()), buffer.device(),
       reinterpret_cast<const std::byte*>(values.data()), {}, 4 * values.size());
}
std::vector<float> floats_of(const Buffer& buffer, size_t n) {
  std::vector<float> values(n);
  copy(reinterpret_cast<std::byte*>(values.data()), {}, reinterpret_cast<std::byte*>(first_of(buffer, 0).data()),
       buffer.device(), 4 * n);
  return values;
}

/// The process's end where its GPU cannot have the shared page: no reason that CUDA IPC may have can be made at will.
class WithoutPage final : public ProcessComm {
 public:
  explicit WithoutPage(std::unique_ptr<ProcessComm> comm) : comm_(std::move(comm)) {}
  int rank() const override { return comm_->rank(); }
  int size() const override { return comm_->size(); }
  std::string_view path() const override { return comm_->path(); }
  void all_reduce_sum(std::span<float> data, const Stream& on) override { comm_->all_reduce_sum(data, on); }
  int least(int mine) override { return comm_->least(mine); }
  void check() override { comm_->check(); }
  void fail(std::exception_ptr cause) override { comm_->fail(cause); }
  void reset() override { comm_->reset(); }
  void broadcast(std::vector<std::byte>& bytes) override { comm_->broadcast(bytes); }
  void exchange(std::span<const std::byte> mine, std::span<std::byte> all) override { comm_->exchange(mine, all); }
  void gather(std::span<const std::byte> mine, std::span<std::byte> all) override { comm_->gather(mine, all); }
  uint32_t* stop_word() override { return comm_->stop_word(); }
  std::span<std::byte> stop_page() override { return {static_cast<std::byte*>(nullptr), 4096}; }
  void set_spin(int polls) override { comm_->set_spin(polls); }
  void leave() override { comm_->leave(); }

 private:
  std::unique_ptr<ProcessComm> comm_;
};

/// One rank: what it has in its process.
struct OneRank {
  OneRank(const ProcessRank& me, const CudaProcessCommOptions& options, bool with_page,
          const std::function<void(const std::exception_ptr&)>& on_failure)
      : processes(join(me, with_page, on_failure)),
        device{Device::Kind::cuda, me.rank % static_cast<int>(gpus().names.size())},
        comm(make_cuda_process_comm(*processes, device, options)),
        stream(device),
        few(device, 4 * (kManyFloats + 64)),
        many(device, 4 * (kManyFloats + 64)) {}
  static std::unique_ptr<ProcessComm> join(const ProcessRank& me, bool with_page,
                                           const std::function<void(const std::exception_ptr&)>& on_failure) {
    auto joined = ProcessComm::join(me, {.timeout_s = 20, .on_failure = on_failure});
    if (with_page) return joined;
    return std::make_unique<WithoutPage>(std::move(joined));
  }
  cudaStream_t queue() const { return static_cast<cudaStream_t>(stream.handle()); }

  /// A sum of few floats and one of many, recorded.
  cudaGraphExec_t record() {
    check(cudaStreamBeginCapture(queue(), cudaStreamCaptureModeRelaxed), "record");
    comm->all_reduce_sum(first_of(few, kFewFloats), stream);
    comm->all_reduce_sum(first_of(many, kManyFloats), stream);
    cudaGraph_t recorded = nullptr;
    cudaGraphExec_t graph = nullptr;
    check(cudaStreamEndCapture(queue(), &recorded), "record");
    check(cudaGraphInstantiate(&graph, recorded, 0), "prepare");
    check(cudaGraphUpload(graph, queue()), "send");
    comm->barrier();
    return graph;
  }

  std::unique_ptr<ProcessComm> processes;
  Device device;
  std::unique_ptr<CudaProcessComm> comm;
  Stream stream;
  Buffer few, many;
};

void add_up(OneRank& me) {
  size_t round = 0;
  for (const size_t n : {size_t{4096}, size_t{1}, size_t{0}, size_t{3}, size_t{65537}, kManyFloats, size_t{17},
                         size_t{1} << 20, (size_t{1} << 20) + 1, size_t{8192}}) {
    std::vector<float> mine(n + 1, 7.0f), expected(n + 1, 7.0f);
    for (size_t i = 0; i < n; ++i) {
      mine[i] = term(me.comm->rank(), i, round);
      expected[i] = term(0, i, round);
      for (int r = 1; r < me.comm->size(); ++r) expected[i] += term(r, i, round);
    }
    fill(me.many, mine);
    me.comm->all_reduce_sum(first_of(me.many, n), me.stream);
    me.stream.wait();
    me.comm->check();
    const std::vector<float> sum = floats_of(me.many, n + 1);
    EXPECT_EQ(std::memcmp(sum.data(), expected.data(), 4 * (n + 1)), 0) << n << " floats";
    ++round;
  }
}

void replay(OneRank& me, int n_replays) {
  fill(me.few, std::vector<float>(kFewFloats, 0x1p-100f));
  fill(me.many, std::vector<float>(kManyFloats, 0x1p-100f));
  cudaGraphExec_t graph = me.record();
  for (int i = 0; i < n_replays; ++i) check(cudaGraphLaunch(graph, me.queue()), "replay");
  me.stream.wait();
  me.comm->check();
  const float expected = std::ldexp(0x1p-100f, n_replays);  // two ranks: each doubles
  EXPECT_EQ(floats_of(me.few, kFewFloats), std::vector<float>(kFewFloats, expected));
  EXPECT_EQ(floats_of(me.many, kManyFloats), std::vector<float>(kManyFloats, expected));
  check(cudaGraphExecDestroy(graph), "forget");
}

bool is_loss_of_rank_1(const std::exception_ptr& cause) {
  try {
    std::rethrow_exception(cause);
  } catch (const Error& e) {
    return e.kind() == ErrorKind::io && std::string(e.what()).starts_with("rank 1 of 2: its process is gone");
  }
}

/// What ends a process whose GPU waits in NCCL for ever.
void end_process(const std::exception_ptr& cause) { ::_exit(is_loss_of_rank_1(cause) ? 0 : 3); }

/// Rank 1 is killed; rank 0's GPU waits for it in work that it replays.
void lose_a_rank(OneRank& me) {
  cudaGraphExec_t graph = me.record();
  if (me.comm->rank() == 1) {
    me.comm->barrier();
    ::raise(SIGKILL);
  }
  for (int i = 0; i < 10; ++i) check(cudaGraphLaunch(graph, me.queue()), "replay");
  me.comm->barrier();
  const auto begin = Clock::now();
  me.stream.wait();
  std::exception_ptr cause;
  try {
    me.comm->check();
  } catch (const Error&) {
    cause = std::current_exception();
  }
  EXPECT_TRUE(cause && is_loss_of_rank_1(cause));
  EXPECT_LT(std::chrono::duration<double>(Clock::now() - begin).count(), 2.0);
  check(cudaGraphExecDestroy(graph), "forget");
}

std::string variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

/// Not a test of its own: what the tests below start, once a rank.
TEST(OneCudaProcess, DISABLED_IsARank) {
  const std::string what = variable("FIRSTLIGHT_TEST_CASE");
  if (what.empty()) GTEST_SKIP() << "for the tests that start it";
  const ProcessRank rank{std::stoi(variable("RANK")), std::stoi(variable("WORLD_SIZE")), variable("MASTER_ADDR")};
  const bool one_gpu = gpus().names.size() < static_cast<size_t>(rank.size);
  const bool refused = what == "nccl where ipc is refused";
  OneRank me(rank,
             {.by = what == "through host memory"          ? SumsBy::host
                    : what.starts_with("nccl") && !refused ? SumsBy::nccl
                                                           : SumsBy::automatic,
              .share_gpu = what != "sharing"},
             /*with_page=*/!refused || rank.rank == 0, what.starts_with("nccl") ? end_process : nullptr);
  if (what == "through host memory") {
    EXPECT_EQ(me.comm->path(), "host memory (as asked)");
  } else if (what.starts_with("nccl")) {
    EXPECT_THAT(std::string(me.comm->path()), testing::StartsWith("NCCL 2."));
    if (refused)
      EXPECT_THAT(std::string(me.comm->path()), testing::HasSubstr("rank 1: pin memory that processes share"));
  } else if (what == "sharing" && one_gpu) {
    EXPECT_EQ(me.comm->path(), "host memory (ranks 0 and 1 share a GPU)");
  } else {
    ASSERT_EQ(me.comm->path(), "peer access between processes");
  }
  EXPECT_EQ(me.comm->recordable(), !me.comm->path().starts_with("host"));
  if (what.ends_with("a rank is killed")) return lose_a_rank(me);
  add_up(me);
  if (what.ends_with("recorded")) replay(me, one_gpu ? 10 : 100);
  me.comm->leave();
  me.processes->leave();
}

/// Exit codes of this program, started once a rank; −9 for one that was killed.
std::vector<int> codes_of_ranks(int n, const std::string& what) {
  static int n_groups = 0;
  const std::string group = str("cuda test ", ::getpid(), " ", n_groups++);
  std::vector<pid_t> children;
  for (int r = 0; r < n; ++r) {
    std::vector<std::string> environment;
    for (char** each = environ; *each != nullptr; ++each) environment.emplace_back(*each);
    for (const auto& [name, value] : {std::pair<const char*, std::string>{"RANK", str(r)},
                                      {"WORLD_SIZE", str(n)},
                                      {"MASTER_ADDR", group},
                                      {"FIRSTLIGHT_TEST_CASE", what}}) {
      environment.push_back(str(name, "=", value));
    }
    std::vector<std::string> arguments{"rank", "--gtest_also_run_disabled_tests",
                                       "--gtest_filter=OneCudaProcess.DISABLED_IsARank", "--gtest_brief=1"};
    std::vector<char*> argv, envp;
    for (std::string& each : arguments) argv.push_back(each.data());
    for (std::string& each : environment) envp.push_back(each.data());
    argv.push_back(nullptr);
    envp.push_back(nullptr);
    pid_t child = 0;
    EXPECT_EQ(::posix_spawn(&child, "/proc/self/exe", nullptr, nullptr, argv.data(), envp.data()), 0);
    children.push_back(child);
  }
  std::vector<int> codes;
  for (const pid_t child : children) {
    int status = 0;
    EXPECT_EQ(::waitpid(child, &status, 0), child);
    codes.push_back(WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status));
  }
  return codes;
}

class CudaProcesses : public testing::Test {
 protected:
  void SetUp() override {
    if (gpus().names.empty()) GTEST_SKIP() << "no GPU: " << gpus().why_none;
  }
};

TEST_F(CudaProcesses, AddUpInRankOrderToTheBitAndGather) {
  EXPECT_EQ(codes_of_ranks(2, "sums"), (std::vector<int>{0, 0}));
}

TEST_F(CudaProcesses, CountOnWhenTheirSumsAreReplayed) {
  EXPECT_EQ(codes_of_ranks(2, "recorded"), (std::vector<int>{0, 0}));
}

TEST_F(CudaProcesses, GiveTheSameSumsThroughHostMemory) {
  EXPECT_EQ(codes_of_ranks(2, "through host memory"), (std::vector<int>{0, 0}));
}

TEST_F(CudaProcesses, ThatShareAGpuSayWhyTheyGoThroughHostMemory) {
  EXPECT_EQ(codes_of_ranks(2, "sharing"), (std::vector<int>{0, 0}));
}

TEST_F(CudaProcesses, EndWhenTheOtherIsKilledWhileAGpuWaitsForIt) {
  EXPECT_EQ(codes_of_ranks(2, "a rank is killed"), (std::vector<int>{0, -SIGKILL}));
}

class CudaNcclProcesses : public CudaProcesses {
 protected:
  void SetUp() override {
    CudaProcesses::SetUp();
    if (IsSkipped()) return;
    if (gpus().names.size() < 2) GTEST_SKIP() << "NCCL wants a GPU for each rank, here is one";
    if (dlopen("libnccl.so.2", RTLD_LAZY | RTLD_LOCAL) == nullptr) GTEST_SKIP() << dlerror();
  }
};

TEST_F(CudaNcclProcesses, AddUpToTheBitsOfRankOrderGatherAndCountOn) {
  EXPECT_EQ(codes_of_ranks(2, "nccl recorded"), (std::vector<int>{0, 0}));
}

TEST_F(CudaNcclProcesses, AddUpWhereARankIsRefusedIpcAndSayWhy) {
  EXPECT_EQ(codes_of_ranks(2, "nccl where ipc is refused"), (std::vector<int>{0, 0}));
}

TEST_F(CudaNcclProcesses, EndWhenTheOtherIsKilledWhileAGpuWaitsForIt) {
  EXPECT_EQ(codes_of_ranks(2, "nccl, a rank is killed"), (std::vector<int>{0, -SIGKILL}));
}

TEST_F(CudaProcesses, AreThreeWhereTheGpusAreTwo) { EXPECT_EQ(codes_of_ranks(3, "sums"), (std::vector<int>{0, 0, 0})); }

}  // namespace
}  // namespace firstlight
