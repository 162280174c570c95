// SPDX-License-Identifier: Apache-2.0
// The doctor's look at GPUs: by the driver's files and sysfs, so that it needs neither CUDA nor a context.
#include <algorithm>
#include <charconv>
#include <fstream>

#include "firstlight/base/str.h"
#include "firstlight/cli/doctor.h"

namespace firstlight::cli {

namespace {

using State = Finding::State;
constexpr const char* kDirect = "GPUDirect Storage";

struct Driver {
  std::string version;  // "" without one
  bool open_modules = false;
};

/// "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.03  Release Build …"
Driver driver_of(const fs::path& root) {
  const std::string line = first_line(root / "proc/driver/nvidia/version");
  Driver driver;
  driver.open_modules = line.find("Open Kernel Module") != std::string::npos;
  for (size_t at = 0; at < line.size();) {
    const size_t end = std::min(line.find(' ', at), line.size());
    const std::string word = line.substr(at, end - at);
    if (word.find('.') != std::string::npos && word.find_first_not_of("0123456789.") == std::string::npos) {
      driver.version = word;
      break;
    }
    at = end + 1;
  }
  return driver;
}

double leading_number(const std::string& text) {
  double value = 0;
  std::from_chars(text.data(), text.data() + text.size(), value);
  return value;
}

/// GB/s one way of a link such as "32.0 GT/s PCIe" x 16: 128b/130b from 8 GT/s on, 8b/10b below.
double link_gb_per_s(const std::string& speed, const std::string& width) {
  const double gt = leading_number(speed);
  return gt * leading_number(width) / 8 * (gt >= 8 ? 128.0 / 130 : 0.8);
}

Finding check_link(const fs::path& device, const std::string& section) {
  const std::string speed = first_line(device / "current_link_speed"),
                    width = first_line(device / "current_link_width");
  const std::string best = first_line(device / "max_link_speed"), widest = first_line(device / "max_link_width");
  if (speed.empty() || width.empty()) {
    return {State::info, section, "PCI link", "not told (a virtual machine may hide it)", ""};
  }
  const double now = link_gb_per_s(speed, width), most = link_gb_per_s(best, widest);
  std::string value = str(speed, " x", width, ", ", human_bytes(now * 1e9), "/s");
  if (now >= 0.99 * most) return {State::good, section, "PCI link", value, ""};
  value += str(" of ", best, " x", widest, ", ", human_bytes(most * 1e9), "/s");
  if (leading_number(width) >= leading_number(widest)) {
    return {State::info, section, "PCI link", value, "an idle GPU slows its link down: look again during a load"};
  }
  return {State::warning, section, "PCI link", value,
          "fewer lanes than the GPU has: another slot, riser or BIOS setting"};
}

Findings check_gpu(const fs::path& device, const fs::path& root) {
  const std::string address = device.filename().native(), section = "GPU " + address;
  std::string model = "NVIDIA GPU";
  std::ifstream information(root / "proc/driver/nvidia/gpus" / address / "information");
  for (std::string line; std::getline(information, line);) {
    if (line.starts_with("Model:")) model = line.substr(line.find_first_not_of(" \t", 6));
  }
  const std::string node = first_line(device / "numa_node"), cores = first_line(device / "local_cpulist");
  const bool told = !node.empty() && node != "-1";
  return {{State::info, section, "model", model, ""},
          check_link(device, section),
          {State::info, section, "NUMA node", told ? str(node, ", cores ", cores) : "not told", ""}};
}

std::vector<fs::path> nvidia_devices(const fs::path& root) {
  std::vector<fs::path> found;
  std::error_code failed;
  for (const auto& device : fs::directory_iterator(root / "sys/bus/pci/devices", failed)) {
    const std::string kind = first_line(device.path() / "class");
    const bool gpu = kind.starts_with("0x0300") || kind.starts_with("0x0302");
    if (gpu && first_line(device.path() / "vendor") == "0x10de") found.push_back(device.path());
  }
  std::sort(found.begin(), found.end());
  return found;
}

/// cuFile reads into GPU memory by the nvidia-fs driver; without it through host memory, which our own ring does
/// better.
Findings check_nvidia_fs(const MachineFacts& facts) {
  const std::string module = first_line(facts.root / "proc/driver/nvidia-fs/version");
  Findings found;
  found.push_back({facts.cufile.empty() ? State::warning : State::good, kDirect, "libcufile",
                   facts.cufile.empty() ? "not found" : facts.cufile,
                   facts.cufile.empty() ? "install NVIDIA's package libcufile (it comes with the CUDA toolkit)" : ""});
  found.push_back(
      {module.empty() ? State::warning : State::good, kDirect, "nvidia-fs driver",
       module.empty() ? "not loaded: cuFile could only run in compatibility mode, through host memory" : module,
       module.empty() ? "install nvidia-gds and modprobe nvidia_fs on the host (not in the container)" : ""});
  const bool udev = fs::exists(facts.root / "run/udev/data");
  found.push_back({udev || module.empty() ? State::good : State::warning, kDirect, "/run/udev",
                   udev ? "there" : "not there",
                   udev || module.empty() ? "" : "cuFile looks devices up there: mount it into the container"});
  return found;
}

/// Without nvidia-fs, from kernel 6.2 on: NVMe straight to GPU memory. All that it asks for, by name.
Finding check_p2pdma(const MachineFacts& facts, const Driver& driver) {
  std::string missing;
  const auto need = [&](bool there, const std::string& what) {
    if (!there) missing += (missing.empty() ? "" : "; ") + what;
  };
  const double kernel = leading_number(facts.kernel);
  const size_t dot = facts.kernel.find('.');
  const double minor = dot == std::string::npos ? 0 : leading_number(facts.kernel.substr(dot + 1));
  need(kernel >= 7 || (kernel >= 6 && minor >= 2), "a kernel from 6.2");
  need(driver.open_modules && leading_number(driver.version) >= 570, "NVIDIA's open driver from 570");
  std::string registry;
  std::ifstream parameters(facts.root / "proc/driver/nvidia/params");
  for (std::string line; std::getline(parameters, line);) {
    if (line.starts_with("RegistryDwords:")) registry = line;
  }
  need(registry.find("RMForceStaticBar1=1") != std::string::npos, "driver option RMForceStaticBar1=1");
  need(registry.find("RmForceDisableIomapWC=1") != std::string::npos, "driver option RmForceDisableIomapWC=1");
  std::error_code failed;
  const bool nvme = !fs::is_empty(facts.root / "sys/class/nvme", failed) && !failed;
  need(nvme, "an NVMe device");
  need(first_line(facts.root / "sys/module/nvme_core/parameters/multipath") != "Y", "nvme_core.multipath=N");
  const bool iommu = !fs::is_empty(facts.root / "sys/class/iommu", failed) && !failed;
  need(!iommu, "the IOMMU off");
  if (missing.empty()) return {State::good, kDirect, "PCI peer-to-peer", "all that it needs is there", ""};
  return {State::info, kDirect, "PCI peer-to-peer", "not possible here", "it needs " + missing};
}

}  // namespace

Findings check_gpus(const MachineFacts& facts) {
  const Driver driver = driver_of(facts.root);
  const std::vector<fs::path> devices = nvidia_devices(facts.root);
  Findings found;
  if (devices.empty() && driver.version.empty() && facts.gpus.names.empty()) {
    found.push_back({State::info, "GPUs", "NVIDIA GPUs", "none; everything runs on the CPU", ""});
    return found;
  }
  found.push_back(
      {driver.version.empty() ? State::warning : State::good, "GPUs", "driver",
       driver.version.empty() ? "not loaded"
                              : driver.version + (driver.open_modules ? ", open modules" : ", closed modules"),
       driver.version.empty() ? "install NVIDIA's driver; in a container: the NVIDIA container toolkit" : ""});
  std::string names;
  for (size_t i = 0; i < facts.gpus.names.size(); ++i)
    names += str(i ? ", " : "", "cuda:", i, " ", facts.gpus.names[i]);
  const bool usable = !names.empty();
  found.push_back({usable ? State::good : State::warning, "GPUs", "CUDA", usable ? names : facts.gpus.why_none,
                   usable                 ? ""
                   : !facts.gpus.in_build ? "build with -DFIRSTLIGHT_CUDA=ON, or run on the CPU"
                                          : "the CPU is used until this is mended"});
  for (const fs::path& device : devices) {
    const Findings of_gpu = check_gpu(device, facts.root);
    found.insert(found.end(), of_gpu.begin(), of_gpu.end());
  }
  const Findings direct = check_nvidia_fs(facts);
  found.insert(found.end(), direct.begin(), direct.end());
  found.push_back(check_p2pdma(facts, driver));
  return found;
}

}  // namespace firstlight::cli
