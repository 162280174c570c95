// SPDX-License-Identifier: Apache-2.0
// What readers keep of a request: items that change lists by splice, so that a cancel or a deadline never needs memory.
#pragma once
#include <list>
#include <memory>

#include "firstlight/io/reader.h"

namespace firstlight {

struct ReadItem {
  ReadRequest request;
  std::shared_ptr<const ReadCallback> done;
  int64_t result = 0;  ///< of a dropped item: what it completes with, without I/O
};
using ReadItems = std::list<ReadItem>;

inline ReadItems take_first(ReadItems& from) {
  ReadItems one;
  one.splice(one.end(), from, from.begin());
  return one;
}

/// Moves `items` behind `dropped`, to complete with `result`.
inline void drop(ReadItems& items, int64_t result, ReadItems& dropped) {
  for (ReadItem& item : items) item.result = result;
  dropped.splice(dropped.end(), items);
}

}  // namespace firstlight
