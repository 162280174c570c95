// SPDX-License-Identifier: Apache-2.0
#include "firstlight/comm/rendezvous.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstring>
#include <system_error>
#include <thread>
#include <utility>

#include "firstlight/base/error.h"
#include "firstlight/base/hash.h"
#include "firstlight/base/str.h"
#include "firstlight/comm/shared_meeting.h"

namespace firstlight {

namespace {

using Clock = std::chrono::steady_clock;
constexpr int kTick_ms = 50;  // how soon a wish to stop is seen

/// A rank's first message. Of one program: no byte order, no padding to speak of.
struct Hello {
  std::array<char, 32> program{};  ///< "firstlight 0.1.0 ranks 1"
  int32_t rank = 0, size = 0;
};

/// Rank 0's answer, with the memory beside it if it is a yes.
struct Welcome {
  int32_t taken_in = 0;
  std::array<char, 240> why_not{};
};

std::array<char, 32> program() {
  std::array<char, 32> text{};
  const std::string is = str("firstlight ", FIRSTLIGHT_VERSION, " ranks 1");
  std::memcpy(text.data(), is.data(), std::min(is.size(), text.size() - 1));
  return text;
}

[[noreturn]] void throw_system(std::string_view what, const ProcessRank& me) {
  throw Error(ErrorKind::io, str("rank ", me.rank, " of ", me.size, ": ", what, " for the group '", me.group,
                                 "': ", std::generic_category().message(errno)));
}

struct Address {
  sockaddr_un name{};
  socklen_t size = 0;
};

/// In the abstract name space: no file is left behind by a process that is killed.
Address address_of(const ProcessRank& me) {
  Address address;
  address.name.sun_family = AF_UNIX;
  const std::string name =
      str("firstlight.", ::geteuid(), ".", xxh3_128_hex(std::as_bytes(std::span(me.group))));  // of a fixed length
  std::memcpy(address.name.sun_path + 1, name.data(), name.size());
  address.size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
  return address;
}

Handle new_socket(const ProcessRank& me) {
  Handle made(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  if (!made) throw_system("socket", me);
  return made;
}

/// Abstract names are anyone's to take: only this user's processes are spoken to.
bool is_mine(const Handle& connection) {
  ucred peer{};
  socklen_t size = sizeof peer;
  return ::getsockopt(connection.get(), SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 && peer.uid == ::geteuid();
}

/// Whether there is something to read (or the end) before the tick is over.
bool readable(const Handle& socket) {
  pollfd one{socket.get(), POLLIN, 0};
  return ::poll(&one, 1, kTick_ms) > 0;
}

bool send_welcome(const Handle& to, const Welcome& welcome, int memory) {
  iovec bytes{const_cast<Welcome*>(&welcome), sizeof welcome};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
  msghdr message{};
  message.msg_iov = &bytes;
  message.msg_iovlen = 1;
  if (memory >= 0) {
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    cmsghdr* rights = CMSG_FIRSTHDR(&message);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(rights), &memory, sizeof memory);
  }
  return ::sendmsg(to.get(), &message, MSG_NOSIGNAL) == static_cast<ssize_t>(sizeof welcome);
}

/// The memory; nothing if rank 0 is gone or speaks otherwise.
Handle receive_welcome(const Handle& from, Welcome& welcome) {
  iovec bytes{&welcome, sizeof welcome};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
  msghdr message{};
  message.msg_iov = &bytes;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  if (::recvmsg(from.get(), &message, MSG_CMSG_CLOEXEC) != static_cast<ssize_t>(sizeof welcome)) return {};
  welcome.why_not.back() = '\0';
  const cmsghdr* rights = CMSG_FIRSTHDR(&message);
  if (rights == nullptr || rights->cmsg_type != SCM_RIGHTS) return {};
  int memory = -1;
  std::memcpy(&memory, CMSG_DATA(rights), sizeof memory);
  return Handle(memory);
}

/// Why rank 0 does not take in who says this; "" if it does.
std::string why_not(const ProcessRank& me, const Hello& hello, const std::vector<Handle>& ranks) {
  if (hello.program != program()) return "it is another version of the program than rank 0";
  if (hello.size != me.size) return str("it is one of ", hello.size, " ranks, rank 0 one of ", me.size);
  if (hello.rank < 1 || hello.rank >= me.size) return str("there are ranks 0 to ", me.size - 1);
  if (ranks[static_cast<size_t>(hello.rank)]) return "another process is this rank already";
  return "";
}

/// Takes in who stands at the door, or sends it away; a stranger costs a second at most.
void take_in(const ProcessRank& me, const Handle& door, Met& met) {
  Handle guest(::accept4(door.get(), nullptr, nullptr, SOCK_CLOEXEC));
  if (!guest || !is_mine(guest)) return;
  const timeval second{1, 0};
  ::setsockopt(guest.get(), SOL_SOCKET, SO_RCVTIMEO, &second, sizeof second);
  Hello hello;
  if (::recv(guest.get(), &hello, sizeof hello, 0) != static_cast<ssize_t>(sizeof hello)) return;
  const std::string refusal = why_not(me, hello, met.ranks);
  Welcome welcome;
  welcome.taken_in = refusal.empty() ? 1 : 0;
  std::memcpy(welcome.why_not.data(), refusal.data(), std::min(refusal.size(), welcome.why_not.size() - 1));
  const bool sent = send_welcome(guest, welcome, refusal.empty() ? met.memory.get() : -1);
  if (!refusal.empty()) {
    throw Error(ErrorKind::bad_input, str("rank ", hello.rank, " came to the group '", me.group, "', but ", refusal));
  }
  if (sent) met.ranks[static_cast<size_t>(hello.rank)] = std::move(guest);
}

std::string missing(const Met& met) {
  std::string text;
  for (size_t r = 1; r < met.ranks.size(); ++r) {
    if (!met.ranks[r]) text += str(text.empty() ? "" : ", ", r);
  }
  return text;
}

/// A rank that has come says nothing before all have: its socket becomes readable only when it is gone.
void require_present(const Met& met, int size) {
  for (size_t r = 1; r < met.ranks.size(); ++r) {
    pollfd one{met.ranks[r].get(), POLLIN, 0};
    if (!met.ranks[r] || ::poll(&one, 1, 0) <= 0) continue;
    throw Error(ErrorKind::io, str("rank ", r, " of ", size, ": its process is gone before all ranks had come"));
  }
}

Handle new_memory(const ProcessRank& me, uint64_t memory_bytes) {
  Handle memory(::memfd_create("firstlight-ranks", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!memory || ::ftruncate(memory.get(), static_cast<off_t>(memory_bytes)) != 0 ||
      ::fcntl(memory.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) != 0) {
    throw_system(str(memory_bytes, " bytes of shared memory"), me);
  }
  return memory;
}

/// Who has come already sleeps at the first barrier: it is to read there why nothing comes of it.
void tell_those_who_came(const Met& met, int size, const std::exception_ptr& cause) {
  void* at = ::mmap(nullptr, sizeof(MeetingWords), PROT_READ | PROT_WRITE, MAP_SHARED, met.memory.get(), 0);
  if (at == MAP_FAILED) return;
  SharedMeeting(*static_cast<MeetingWords*>(at), 0, size).fail(0, cause);
  ::munmap(at, sizeof(MeetingWords));
}

void receive_all(const ProcessRank& me, Clock::time_point last, double timeout_s, const std::stop_token& stop,
                 Met& met) {
  const Handle door = new_socket(me);
  const Address address = address_of(me);
  if (::bind(door.get(), reinterpret_cast<const sockaddr*>(&address.name), address.size) != 0) {
    if (errno != EADDRINUSE) throw_system("bind", me);
    throw Error(ErrorKind::bad_input, str("rank 0 of ", me.size, ": another rank 0 is at '", me.group,
                                          "' already: give each group a MASTER_PORT of its own"));
  }
  if (::listen(door.get(), me.size) != 0) throw_system("listen", me);
  while (!missing(met).empty()) {
    if (stop.stop_requested()) throw Interrupted();
    if (Clock::now() >= last) {
      throw Error(ErrorKind::io, str("rank 0 of ", me.size, ": not all have come to '", me.group, "' within ",
                                     human_seconds(timeout_s), "; missing: rank ", missing(met)));
    }
    if (readable(door)) take_in(me, door, met);
    require_present(met, me.size);
  }
}

/// A connection to rank 0, which may not have come yet.
Handle reach(const ProcessRank& me, Clock::time_point last, double timeout_s, const std::stop_token& stop) {
  const Address address = address_of(me);
  for (;;) {
    Handle to = new_socket(me);
    if (::connect(to.get(), reinterpret_cast<const sockaddr*>(&address.name), address.size) == 0) {
      if (!is_mine(to)) throw Error(ErrorKind::io, str("another user's process is at '", me.group, "'"));
      return to;
    }
    if (errno != ECONNREFUSED && errno != EAGAIN && errno != EINTR) throw_system("connect", me);
    if (stop.stop_requested()) throw Interrupted();
    if (Clock::now() >= last) {
      throw Error(ErrorKind::io,
                  str("rank ", me.rank, " of ", me.size, ": rank 0 has not come to '", me.group, "' within ",
                      human_seconds(timeout_s), " (one process a rank is done within one host and container only)"));
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
}

Met be_taken_in(const ProcessRank& me, uint64_t memory_bytes, Clock::time_point last, double timeout_s,
                const std::stop_token& stop) {
  Met met;
  met.ranks.push_back(reach(me, last, timeout_s, stop));
  const Handle& to = met.ranks[0];
  const Hello hello{program(), me.rank, me.size};
  const auto gone = [&] {
    return Error(ErrorKind::io, str("rank 0 of ", me.size, ": its process is gone before all ranks had come"));
  };
  if (::send(to.get(), &hello, sizeof hello, MSG_NOSIGNAL) != static_cast<ssize_t>(sizeof hello)) throw gone();
  while (!readable(to)) {
    if (stop.stop_requested()) throw Interrupted();
    if (Clock::now() >= last) {
      throw Error(ErrorKind::io, str("rank 0 of ", me.size, " does not answer within ", human_seconds(timeout_s)));
    }
  }
  Welcome welcome;
  met.memory = receive_welcome(to, welcome);
  if (welcome.taken_in == 0 && welcome.why_not[0] != '\0') {
    throw Error(ErrorKind::bad_input,
                str("rank ", me.rank, " is not taken into the group '", me.group, "': ", welcome.why_not.data()));
  }
  struct stat about {};
  if (!met.memory || ::fstat(met.memory.get(), &about) != 0) throw gone();
  if (static_cast<uint64_t>(about.st_size) != memory_bytes) {
    throw Error(ErrorKind::bug, str(about.st_size, " bytes of shared memory, expected ", memory_bytes));
  }
  return met;
}

}  // namespace

Handle& Handle::operator=(Handle&& other) noexcept {
  const int fd = other.release();
  close();
  fd_ = fd;
  return *this;
}

int Handle::release() { return std::exchange(fd_, -1); }

void Handle::close() {
  const int fd = release();
  if (fd >= 0) ::close(fd);
}

Met meet(const ProcessRank& me, uint64_t memory_bytes, double timeout_s, const std::stop_token& stop) {
  const auto last =
      Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(timeout_s));
  if (me.rank != 0) return be_taken_in(me, memory_bytes, last, timeout_s, stop);
  Met met;
  met.ranks.resize(static_cast<size_t>(me.size));
  met.memory = new_memory(me, memory_bytes);
  try {
    receive_all(me, last, timeout_s, stop, met);
  } catch (...) {
    tell_those_who_came(met, me.size, std::current_exception());
    throw;
  }
  return met;
}

}  // namespace firstlight
