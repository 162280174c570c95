// SPDX-License-Identifier: Apache-2.0
// The doctor looks at machines that this test makes up, file by file.
#include "firstlight/cli/doctor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"

namespace firstlight::cli {
namespace {

using State = Finding::State;
using testing::HasSubstr;

class DoctorTest : public testing::Test {
 protected:
  void SetUp() override {
    root_ = fs::path(testing::TempDir()) / str("doctor_test.", ::getpid());
    facts_.root = root_;
    facts_.kernel = "6.8.0-31-generic";
    facts_.usable_cores = 2;
    facts_.free_memory = 15'000'000'000;
    facts_.memlock = UINT64_MAX;
    write("proc/cpuinfo", "processor\t: 0\nmodel name\t: x\nprocessor\t: 1\n");
    write("proc/meminfo", "MemTotal:       16000000 kB\nMemFree: 1 kB\nMemAvailable:   14700000 kB\n");
    write("proc/self/status", "Name:\tx\nCapEff:\t0000000000000000\n");
    write("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n");
  }
  void TearDown() override { fs::remove_all(root_); }

  void write(const std::string& name, const std::string& text) {
    fs::create_directories((root_ / name).parent_path());
    std::ofstream(root_ / name, std::ios::trunc) << text;
  }
  static Finding find(const Findings& findings, const std::string& name) {
    const auto found =
        std::find_if(findings.begin(), findings.end(), [&](const Finding& finding) { return finding.name == name; });
    if (found != findings.end()) return *found;
    ADD_FAILURE() << "no finding '" << name << "'";
    return {};
  }
  Finding machine(const std::string& name) { return find(check_machine(facts_), name); }
  Finding gpus(const std::string& name) { return find(check_gpus(facts_), name); }
  void expect(const Finding& finding, State state, const std::string& value, const std::string& advice = "") {
    EXPECT_EQ(finding.state, state) << finding.name << ": " << finding.value;
    EXPECT_THAT(finding.value, HasSubstr(value));
    EXPECT_THAT(finding.advice, HasSubstr(advice));
    EXPECT_EQ(finding.advice.empty(), state == State::good || (state == State::info && advice.empty()))
        << finding.name << ": a warning says what to do";
  }
  void add_gpu(const std::string& speed, const std::string& width) {
    const std::string device = "sys/bus/pci/devices/0000:18:00.0/";
    write(device + "vendor", "0x10de\n");
    write(device + "class", "0x030200\n");
    write(device + "current_link_speed", speed + "\n");
    write(device + "current_link_width", width + "\n");
    write(device + "max_link_speed", "32.0 GT/s PCIe\n");
    write(device + "max_link_width", "16\n");
    write(device + "numa_node", "1\n");
    write(device + "local_cpulist", "48-95\n");
    write("proc/driver/nvidia/gpus/0000:18:00.0/information", "Model: \t\t NVIDIA H200\nIRQ: 5\n");
    write("proc/driver/nvidia/version",
          "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.03  Release Build  (x)\nGCC version: 13\n");
    facts_.gpus.names = {"NVIDIA H200"};
  }

  fs::path root_;
  MachineFacts facts_;
};

TEST_F(DoctorTest, AGoodMachineHasNoWarnings) {
  for (const Finding& finding : check_machine(facts_)) EXPECT_NE(finding.state, State::warning) << finding.name;
}

TEST_F(DoctorTest, WhatAMachineLacksIsAWarningWithAdvice) {
  facts_.usable_cores = 1;
  expect(machine("cores"), State::warning, "1 usable of 2", "cpu.max");
  facts_.free_memory = 4'000'000'000;
  expect(machine("memory"), State::warning, "4.00 GB free", "memory.max");
  facts_.memlock = 8u << 20;
  expect(machine("memory locks"), State::warning, "8.39 MB", "ulimit -l");
  write("proc/self/status", "CapEff:\t000001ffffffffff\n");
  expect(machine("memory locks"), State::good, "CAP_IPC_LOCK");
  write("sys/kernel/mm/transparent_hugepage/enabled", "always madvise [never]\n");
  expect(machine("huge pages"), State::warning, "never", "echo madvise");
  fs::remove(root_ / "sys/kernel/mm/transparent_hugepage/enabled");
  expect(machine("huge pages"), State::warning, "not in this kernel");
  facts_.why_no_io_uring = "forbidden (Operation not permitted), as by a container's seccomp profile";
  expect(machine("io_uring"), State::warning, "forbidden", "seccomp profile");
  facts_.why_no_io_uring = "forbidden: /proc/sys/kernel/io_uring_disabled is 2";
  expect(machine("io_uring"), State::warning, "is 2", "sysctl");
}

TEST_F(DoctorTest, KernelsAreComparedByNumbers) {
  for (const auto& [kernel, state, value] :
       {std::tuple("6.18.44", State::good, "6.18.44"), std::tuple("6.5.0", State::good, "6.5.0"),
        std::tuple("6.1.0-18-amd64", State::good, "cachestat"), std::tuple("5.15.0", State::good, "statx"),
        std::tuple("10.0", State::good, "10.0"), std::tuple("5.4.0", State::warning, "io_uring")}) {
    facts_.kernel = kernel;
    EXPECT_EQ(machine("kernel").state, state) << kernel;
    EXPECT_THAT(machine("kernel").value, HasSubstr(value));
  }
  facts_.kernel = "6.18.44";
  EXPECT_EQ(machine("kernel").value, "6.18.44");
}

TEST_F(DoctorTest, ContainersAndCachesAreFound) {
  EXPECT_EQ(machine("container").value, "none found");
  write(".dockerenv", "");
  EXPECT_EQ(machine("container").value, "Docker");
  write("proc/1/cgroup", "0::/kubepods/burstable/pod1\n");
  EXPECT_EQ(machine("container").value, "Kubernetes");
  for (const int cpu : {0, 1, 2, 3}) {
    const std::string cache = str("sys/devices/system/cpu/cpu", cpu, "/cache/index3/");
    write(cache + "shared_cpu_list", cpu < 2 ? "0-1\n" : "2-3\n");
    write(cache + "size", "32768K\n");
  }
  EXPECT_EQ(machine("last-level cache").value, "64 MiB in 2 part(s)");
  write("sys/devices/system/node/online", "0-1\n");
  EXPECT_EQ(machine("NUMA nodes").value, "0-1");
}

TEST_F(DoctorTest, WithoutAGpuOneLineSaysSo) {
  const Findings found = check_gpus(facts_);
  ASSERT_EQ(found.size(), 1u);
  expect(found[0], State::info, "none");
}

TEST_F(DoctorTest, AGpusLinkIsComparedWithWhatItCouldBe) {
  add_gpu("32.0 GT/s PCIe", "16");
  expect(gpus("PCI link"), State::good, "63.0 GB/s");
  EXPECT_EQ(gpus("model").value, "NVIDIA H200");
  EXPECT_EQ(gpus("NUMA node").value, "1, cores 48-95");
  expect(gpus("driver"), State::good, "580.159.03, open modules");
  expect(gpus("CUDA"), State::good, "cuda:0 NVIDIA H200");
  add_gpu("2.5 GT/s PCIe", "16");
  expect(gpus("PCI link"), State::info, "4.00 GB/s of 32.0 GT/s PCIe x16", "during a load");
  add_gpu("32.0 GT/s PCIe", "8");
  expect(gpus("PCI link"), State::warning, "x8", "fewer lanes");
}

TEST_F(DoctorTest, WhyThereIsNoCudaAndNoGpuDirectStorageIsSaid) {
  add_gpu("32.0 GT/s PCIe", "16");
  facts_.gpus = {{}, "this build has no CUDA", false};
  expect(gpus("CUDA"), State::warning, "this build has no CUDA", "FIRSTLIGHT_CUDA");
  expect(gpus("libcufile"), State::warning, "not found", "install");
  expect(gpus("nvidia-fs driver"), State::warning, "compatibility mode", "nvidia_fs");
  expect(gpus("PCI peer-to-peer"), State::info, "not possible", "an NVMe device");
  EXPECT_THAT(gpus("PCI peer-to-peer").advice, HasSubstr("RMForceStaticBar1=1"));
  facts_.cufile = "/usr/lib/libcufile.so.0";
  write("proc/driver/nvidia-fs/version", "version: 2.26\n");
  expect(gpus("libcufile"), State::good, "/usr/lib");
  expect(gpus("nvidia-fs driver"), State::good, "2.26");
  expect(gpus("/run/udev"), State::warning, "not there", "mount it");
  fs::create_directories(root_ / "run/udev/data");
  expect(gpus("/run/udev"), State::good, "there");
  write("proc/driver/nvidia/params", "X: 1\nRegistryDwords: \"RMForceStaticBar1=1;RmForceDisableIomapWC=1\"\n");
  write("sys/class/nvme/nvme0", "");
  write("sys/module/nvme_core/parameters/multipath", "N\n");
  expect(gpus("PCI peer-to-peer"), State::good, "all that it needs");
  write("sys/class/iommu/dmar0", "");
  EXPECT_EQ(gpus("PCI peer-to-peer").advice, "it needs the IOMMU off");
}

TEST_F(DoctorTest, AGpuWhoseDriverIsMissingIsAWarning) {
  add_gpu("32.0 GT/s PCIe", "16");
  fs::remove(root_ / "proc/driver/nvidia/version");
  expect(gpus("driver"), State::warning, "not loaded", "install");
}

TEST_F(DoctorTest, TheDirectorysFileSystemIsTriedAndNothingStaysBehind) {
  const fs::path directory = root_ / "empty";
  fs::create_directories(directory);
  const Findings found = check_storage(facts_, directory);
  EXPECT_THAT(find(found, "file system").value, HasSubstr(" at /"));
  EXPECT_FALSE(find(found, "direct reads").value.empty());
  EXPECT_THAT(find(found, "page cache").value, HasSubstr("kernel"));
  EXPECT_THAT(find(found, "Lustre striping").value, HasSubstr("none"));
  EXPECT_TRUE(fs::is_empty(directory));
  EXPECT_THROW(check_storage(facts_, root_ / "nowhere"), Error);
}

TEST_F(DoctorTest, StripingIsWhatLfsSays) {
  const auto striping = [&](const std::string& script) {
    write("lfs", "#!/bin/sh\n" + script + "\n");
    fs::permissions(root_ / "lfs", fs::perms::owner_all);
    return find(check_lustre(facts_, "/fsx/models", (root_ / "lfs").native()), "striping");
  };
  expect(
      striping(
          "[ \"$*\" = 'getstripe -d /fsx/models' ] && echo 'stripe_count:  -1 stripe_size:   16777216 pattern: raid0'"),
      State::good, "all targets, stripes of 16.8 MB");
  expect(striping("echo 'stripe_count:  1 stripe_size:   1048576'"), State::warning, "1 target(s), stripes of 1.05 MB",
         "lfs setstripe -c -1 -S 16M /fsx/models");
  expect(striping("exit 1"), State::warning, "not told", "install");
  fs::remove(root_ / "lfs");
  expect(find(check_lustre(facts_, "/fsx/models", (root_ / "lfs").native()), "striping"), State::warning, "not told");
}

TEST_F(DoctorTest, TheOrderOfReadsIsToldFromAFilesStripes) {
  const auto order = [&](const std::string& objects) {
    write("lfs", "#!/bin/sh\n[ \"$2\" = -d ] && { echo stripe_count: -1 stripe_size: 16777216; exit; }\nprintf '" +
                     std::string("/fsx/m\nlmm_stripe_count: 2\nlmm_stripe_size: 16777216\nobdidx objid\n") + objects +
                     "'\n");
    fs::permissions(root_ / "lfs", fs::perms::owner_all);
    return find(check_lustre(facts_, "/fsx", (root_ / "lfs").native(), "/fsx/m"), "read order");
  };
  expect(order("3 1\n4 2\n"), State::good, "by stripes: 'm' lies on 2 targets");
  expect(order("3 1\n3 2\n"), State::warning, "lies on 1 target", "shard again");
  expect(order("3 1\n"), State::warning, "plain: lfs getstripe", "not spread");
}

TEST_F(DoctorTest, LinesForPeopleMarkWarnings) {
  EXPECT_EQ(describe({{State::good, "a", "x", "1", ""},
                      {State::warning, "a", "longer", "2", "do"},
                      {State::info, "b", "y", "3", ""}}),
            "a\n  x       1\n! longer  2\n          → do\nb\n  y       3\n");
}

}  // namespace
}  // namespace firstlight::cli
