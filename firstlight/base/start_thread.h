// SPDX-License-Identifier: Apache-2.0
// Threads are started here, so that one that cannot start is the same error everywhere, with words.
#pragma once
#include <future>
#include <string_view>
#include <system_error>
#include <thread>
#include <utility>

#include "firstlight/base/error.h"

namespace firstlight {

/// Throws Error{out_of_memory}: "start a thread for WHAT: Resource temporarily unavailable …".
[[noreturn]] void throw_no_thread(std::string_view what, const std::error_code& why);

/// A thread that runs fn(). `what` names its work in the error: "reading". Throws Error{out_of_memory} if the system
/// gives none (a limit on processes or on address space).
template <class Thread = std::thread, class Fn>
Thread start_thread(std::string_view what, Fn&& fn) {
  try {
    return Thread(std::forward<Fn>(fn));
  } catch (const std::system_error& e) {
    throw_no_thread(what, e.code());
  }
}

/// The same with a result; the future's destructor waits.
template <class Fn>
auto start_future(std::string_view what, Fn&& fn) {
  try {
    return std::async(std::launch::async, std::forward<Fn>(fn));
  } catch (const std::system_error& e) {
    throw_no_thread(what, e.code());
  }
}

}  // namespace firstlight
