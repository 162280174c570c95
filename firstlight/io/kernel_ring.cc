// SPDX-License-Identifier: Apache-2.0
// io_uring by its three system calls. liburing would save about 60 of these lines, but as a shared library it is one
// more to load at every start, also at those that read from the page cache and never use it.
#include <fcntl.h>
#include <linux/io_uring.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <system_error>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/io/descriptor.h"
#include "firstlight/io/ring.h"

namespace firstlight {

namespace {

constexpr uint64_t kCancels = uint64_t{1} << 63;  // user_data of a cancellation: its own completion is of no interest
constexpr size_t kFixedFiles = 64;                // a rank's parts, twice (buffered and direct); more go unregistered
constexpr uint64_t kMostFixedBytes = 1u << 30;    // the kernel's limit for one registered buffer

std::string error_text(int error) { return std::generic_category().message(error); }

/// What a refused io_uring_setup() or a refused read means for the operator.
std::string refusal(int error) {
  if (error == ENOSYS) return "this kernel has no io_uring";
  if (error == EPERM || error == EACCES) {
    int disabled = 0;
    std::ifstream("/proc/sys/kernel/io_uring_disabled") >> disabled;
    if (disabled != 0) return str("forbidden: /proc/sys/kernel/io_uring_disabled is ", disabled);
    return str("forbidden (", error_text(error), "), as by a container's seccomp profile");
  }
  if (error == ENOMEM) return "no memory for its rings (see ulimit -l)";
  return error_text(error);
}

/// A shared mapping of the ring's memory.
class Mapping {
 public:
  Mapping(int fd, size_t size, off_t offset)
      : size_(size), at_(mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, offset)) {
    if (at_ == MAP_FAILED) throw Error(ErrorKind::unsupported, str("io_uring: map its rings: ", error_text(errno)));
  }
  ~Mapping() { munmap(at_, size_); }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  template <class T>
  T* at(uint32_t offset) const {
    return reinterpret_cast<T*>(static_cast<std::byte*>(at_) + offset);
  }

 private:
  size_t size_;
  void* at_;
};

int setup(unsigned entries, io_uring_params& params) {
  const int fd = static_cast<int>(syscall(__NR_io_uring_setup, entries, &params));
  if (fd < 0) throw Error(ErrorKind::unsupported, str("io_uring: ", refusal(errno)));
  return fd;
}

class KernelRing final : public Ring {
 public:
  explicit KernelRing(unsigned depth)
      : fd_(setup(2 * depth, params_)),  // each read, and a cancellation of it
        wakes_(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)),
        submissions_(fd_.get(), params_.sq_off.array + params_.sq_entries * sizeof(uint32_t), IORING_OFF_SQ_RING),
        completions_(fd_.get(), params_.cq_off.cqes + params_.cq_entries * sizeof(io_uring_cqe), IORING_OFF_CQ_RING),
        entries_(fd_.get(), params_.sq_entries * sizeof(io_uring_sqe), IORING_OFF_SQES) {
    if (wakes_.get() < 0) throw Error(ErrorKind::unsupported, str("io_uring: eventfd: ", error_text(errno)));
    for (uint32_t i = 0; i < params_.sq_entries; ++i) submissions_.at<uint32_t>(params_.sq_off.array)[i] = i;
    fixed_.fill(-1);
    files_ = call_register(IORING_REGISTER_FILES, fixed_.data(), kFixedFiles) == 0;
  }

  void read(const RingRead& read) override {
    io_uring_sqe& entry = next_entry();
    const int buffer = buffer_of(read.into, read.size);
    entry.opcode = buffer >= 0 ? IORING_OP_READ_FIXED : IORING_OP_READ;
    if (buffer >= 0) entry.buf_index = static_cast<uint16_t>(buffer);
    entry.fd = read.fd;
    if (const int slot = slot_of(read.fd); slot >= 0) {
      entry.fd = slot;
      entry.flags = IOSQE_FIXED_FILE;
    }
    entry.off = read.offset;
    entry.addr = reinterpret_cast<uint64_t>(read.into);
    entry.len = read.size;
    entry.user_data = read.id;
    submit();
  }

  void cancel(uint64_t id) override {
    if (full()) return;
    io_uring_sqe& entry = next_entry();
    entry.opcode = IORING_OP_ASYNC_CANCEL;
    entry.fd = -1;
    entry.addr = id;
    entry.user_data = kCancels;
  }

  std::span<const RingDone> wait(Clock::time_point until) override {
    for (;;) {
      submit();
      reap();
      if (!done_.empty()) break;
      const auto left = until == Clock::time_point::max() ? Clock::duration::max() : until - Clock::now();
      if (left <= Clock::duration::zero() || sleep(left)) break;
    }
    given_.clear();
    std::swap(given_, done_);
    return given_;
  }

  void wake() override {
    const uint64_t one = 1;
    while (::write(wakes_.get(), &one, sizeof one) < 0 && errno == EINTR) {
    }
  }

  std::string use_memory(std::span<const std::span<std::byte>> slots) override {
    if (!buffers_.empty()) call_register(IORING_UNREGISTER_BUFFERS, nullptr, 0);
    buffers_.clear();
    std::vector<iovec> list;
    for (const std::span<std::byte> slot : slots) {
      if (slot.size() > kMostFixedBytes) return "a slot is longer than 1 GiB";
      list.push_back({slot.data(), slot.size()});
    }
    const int error = call_register(IORING_REGISTER_BUFFERS, list.data(), static_cast<unsigned>(list.size()));
    if (error == ENOMEM) return "memory lock limit (ulimit -l)";
    if (error != 0) return error_text(error);
    buffers_.assign(slots.begin(), slots.end());
    return "";
  }

  void forget_files() override {
    if (std::all_of(fixed_.begin(), fixed_.end(), [](int fd) { return fd < 0; })) return;
    fixed_.fill(-1);
    update_files(0, fixed_.data(), kFixedFiles);
  }

 private:
  static std::atomic_ref<uint32_t> shared(const Mapping& in, uint32_t offset) {
    return std::atomic_ref<uint32_t>(*in.at<uint32_t>(offset));
  }

  /// 0 or errno.
  int call_register(unsigned what, void* argument, unsigned n) {
    return syscall(__NR_io_uring_register, fd_.get(), what, argument, n) < 0 ? errno : 0;
  }

  bool update_files(size_t first, int* fds, unsigned n) {
    io_uring_files_update update{};
    update.offset = static_cast<uint32_t>(first);
    update.fds = reinterpret_cast<uint64_t>(fds);
    return call_register(IORING_REGISTER_FILES_UPDATE, &update, n) == 0;
  }

  /// Where the kernel knows `fd`, or −1.
  int slot_of(int fd) {
    if (!files_) return -1;
    const auto known = std::find_if(fixed_.begin(), fixed_.end(), [fd](int slot) { return slot == fd || slot < 0; });
    if (known == fixed_.end()) return -1;
    const auto slot = static_cast<size_t>(known - fixed_.begin());
    if (*known < 0 && !update_files(slot, &fd, 1)) return -1;
    *known = fd;
    return static_cast<int>(slot);
  }

  int buffer_of(const std::byte* into, uint64_t size) const {
    for (size_t i = 0; i < buffers_.size(); ++i) {
      const std::byte* begin = buffers_[i].data();
      if (into >= begin && into + size <= begin + buffers_[i].size()) return static_cast<int>(i);
    }
    return -1;
  }

  bool full() const {
    return tail_ - shared(submissions_, params_.sq_off.head).load(std::memory_order_acquire) == params_.sq_entries;
  }

  io_uring_sqe& next_entry() {
    if (full()) throw Error(ErrorKind::bug, "io_uring: more reads at once than the ring was made for");
    io_uring_sqe& entry = entries_.at<io_uring_sqe>(0)[tail_ & (params_.sq_entries - 1)];
    std::memset(&entry, 0, sizeof entry);
    ++tail_;
    return entry;
  }

  /// What the kernel does not take comes back as done, with the reason. One call a read: of more than two at once the
  /// kernel holds the first back from the disk until it has the pages of all, which a load's memory, being new, gets
  /// only then (0.89 GB, cold, two cores, unverified, 5 rounds twice: 93.7 and 95.7 % of the floor; one by one 97.9 and
  /// 98.9).
  void submit() {
    const auto kernel_tail = shared(submissions_, params_.sq_off.tail);
    const auto head = shared(submissions_, params_.sq_off.head);
    kernel_tail.store(tail_, std::memory_order_release);
    while (head.load(std::memory_order_acquire) != tail_) {
      if (syscall(__NR_io_uring_enter, fd_.get(), 1, 0, 0, nullptr, 0) > 0) continue;
      const int error = errno;
      if (error == EINTR) continue;
      if (error == EAGAIN || error == EBUSY) {  // the kernel is short of memory, or completions must be taken first
        reap();
        if (!done_.empty()) return;
        pollfd none{-1, 0, 0};
        ::poll(&none, 1, 1);
        continue;
      }
      for (uint32_t i = head.load(std::memory_order_acquire); i != tail_; ++i) {
        const uint64_t id = entries_.at<io_uring_sqe>(0)[i & (params_.sq_entries - 1)].user_data;
        if (id != kCancels) done_.push_back({id, -error});
      }
      tail_ = head.load(std::memory_order_acquire);
      kernel_tail.store(tail_, std::memory_order_release);
    }
  }

  void reap() {
    const auto head = shared(completions_, params_.cq_off.head);
    const uint32_t tail = shared(completions_, params_.cq_off.tail).load(std::memory_order_acquire);
    uint32_t at = head.load(std::memory_order_relaxed);
    for (; at != tail; ++at) {
      const io_uring_cqe& entry = completions_.at<io_uring_cqe>(params_.cq_off.cqes)[at & (params_.cq_entries - 1)];
      if (entry.user_data != kCancels) done_.push_back({entry.user_data, entry.res});
    }
    head.store(at, std::memory_order_release);
  }

  /// Until there is a completion, a wake() or no time left; true but for a completion.
  bool sleep(Clock::duration left) {
    std::array<pollfd, 2> on{{{fd_.get(), POLLIN, 0}, {wakes_.get(), POLLIN, 0}}};
    timespec time{};
    const bool forever = left == Clock::duration::max();
    if (!forever) {
      const auto ns = std::chrono::duration_cast<std::chrono::nanoseconds>(left).count();
      time = {static_cast<time_t>(ns / 1'000'000'000), static_cast<long>(ns % 1'000'000'000)};
    }
    const int n = ::ppoll(on.data(), on.size(), forever ? nullptr : &time, nullptr);
    if (n <= 0) return n == 0;  // interrupted: look again
    uint64_t count = 0;
    if (on[1].revents == 0) return false;
    return ::read(wakes_.get(), &count, sizeof count) == sizeof count;
  }

  io_uring_params params_{};
  Descriptor fd_, wakes_;
  Mapping submissions_, completions_, entries_;
  uint32_t tail_ = 0;
  std::vector<RingDone> done_, given_;
  bool files_ = false;
  std::array<int, kFixedFiles> fixed_{};  // registered slot → descriptor, −1: free
  std::vector<std::span<std::byte>> buffers_;
};

std::string probe() {
  try {
    const std::unique_ptr<Ring> ring = make_kernel_ring(1);
    const Descriptor file(::open("/proc/self/exe", O_RDONLY | O_CLOEXEC));
    if (file.get() < 0) return str("the program's own file cannot be read: ", error_text(errno));
    static std::array<std::byte, 4> magic;  // a read that is given up may still write to it
    ring->read({1, file.get(), 0, magic.data(), magic.size()});
    const std::span<const RingDone> done = ring->wait(Ring::Clock::now() + std::chrono::seconds(1));
    if (done.empty()) return "a read through it did not come back within a second";
    if (done[0].result < 0) return str("a read through it was refused: ", refusal(static_cast<int>(-done[0].result)));
    constexpr std::array kElf{std::byte{0x7f}, std::byte{'E'}, std::byte{'L'}, std::byte{'F'}};
    return done[0].result == 4 && magic == kElf ? "" : "a read through it gave wrong bytes";
  } catch (const Error& error) {
    constexpr std::string_view kPrefix = "io_uring: ";
    const std::string_view what = error.what();
    return std::string(what.starts_with(kPrefix) ? what.substr(kPrefix.size()) : what);
  }
}

}  // namespace

std::unique_ptr<Ring> make_kernel_ring(unsigned depth) { return std::make_unique<KernelRing>(std::max(1u, depth)); }

const std::string& why_no_io_uring() {
  static const std::string why = probe();
  return why;
}

}  // namespace firstlight
