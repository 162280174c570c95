// SPDX-License-Identifier: Apache-2.0
// Threads: readers → the caller, which cuts → hashers (a file has one, so that its hash sees its bytes in order) →
// writers. Buffers go round: a band from reader to cutter and back, a chunk from cutter to hasher to writer and back.
// No deadlock: a reader takes band number and buffer together, so the band the cutter waits for always has one; an
// open file keeps at most one chunk, and there are more chunks than open files.
#include "firstlight/ckpt/shard_pipeline.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <map>
#include <memory>
#include <set>
#include <thread>
#include <utility>

#include "firstlight/base/error.h"
#include "firstlight/base/hash.h"
#include "firstlight/base/start_thread.h"
#include "firstlight/base/str.h"
#include "firstlight/ckpt/shard_queue.h"
#include "firstlight/ckpt/shard_read.h"
#include "firstlight/device/buffer.h"

namespace firstlight {

namespace {

/// Thrown inside a stage when another has failed: that failure is the one to report.
struct Stopped {};

/// A part of a rank being written.
struct OpenPart {
  OpenPart(fs::path path, uint64_t size, const StepHook& hook) : file(std::move(path), size, hook) {}
  std::string name;
  OutputFile file;
  size_t hasher = 0;
  uint64_t appended = 0;             // cutter
  std::byte* chunk = nullptr;        // cutter: being filled
  uint64_t chunk_size = 0;           // cutter
  Xxh3_128 hash;                     // hasher
  PartDigest digest;                 // hasher; complete before the last chunk is written
  std::atomic<uint64_t> n_left = 0;  // chunks not yet written
};

struct Chunk {
  std::byte* data = nullptr;
  uint64_t offset = 0, size = 0;
  std::shared_ptr<OpenPart> part;
};

/// A band buffer and where in it the rows begin.
struct Filled {
  std::byte* buffer = nullptr;
  const std::byte* rows = nullptr;
};

/// The rows of one read, as the cutter sees them.
struct Band {
  const std::byte* data = nullptr;
  int64_t row_begin = 0, row_end = 0;  // 1-D tensors: elements
  uint64_t row_stride = 0;
};

class Pipeline {
 public:
  explicit Pipeline(const CutJob& job)
      : job_(job),
        steps_(schedule(job.tensors, job.tps, job.buffers)),
        band_memory_(Device{}, job.buffers.n_bands * job.buffers.band_stride()),
        chunk_memory_(Device{}, job.buffers.n_chunks * job.buffers.chunk_bytes),
        to_hash_(static_cast<size_t>(job.buffers.n_hashers)) {
    for (uint64_t i = 0; i < job.buffers.n_bands; ++i) {
      free_bands_.push(band_memory_.data() + i * job.buffers.band_stride());
    }
    for (uint64_t i = 0; i < job.buffers.n_chunks; ++i) {
      free_chunks_.push(chunk_memory_.data() + i * job.buffers.chunk_bytes);
    }
    for (const CutTp& tp : job.tps) open_.emplace_back(static_cast<size_t>(tp.layout.tp));
    for (size_t i = 0; i < steps_.size(); ++i) {
      if (steps_[i].reads()) reads_.push_back(i);
    }
  }

  void run() {
    std::vector<std::thread> readers, hashers, writers;
    {
      const std::stop_callback stop(job_.stop, [this] { fail(std::make_exception_ptr(Interrupted())); });
      guarded([&] {
        for (int i = 0; i < job_.buffers.n_readers; ++i) start(readers, [this] { read(); });
        for (StageQueue<Chunk>& queue : to_hash_) start(hashers, [this, &queue] { hash(queue); });
        for (int i = 0; i < job_.buffers.n_writers; ++i) start(writers, [this] { write(); });
        for (size_t i = 0; i < steps_.size(); ++i) step(steps_[i]);
      });
      for (StageQueue<Chunk>& queue : to_hash_) queue.close();
      for (std::thread& thread : hashers) thread.join();
      to_write_.close();
      for (std::thread& thread : writers) thread.join();
      for (std::thread& thread : readers) thread.join();
    }
    if (failure_) std::rethrow_exception(failure_);
  }

 private:
  template <class Fn>
  void start(std::vector<std::thread>& threads, Fn fn) {
    threads.push_back(start_thread("converting", [this, fn] { guarded(fn); }));
  }
  template <class Fn>
  void guarded(Fn&& fn) {
    try {
      fn();
    } catch (const Stopped&) {
    } catch (...) {
      fail(std::current_exception());
    }
  }
  void fail(std::exception_ptr cause) {
    {
      const std::lock_guard lock(mutex_);
      if (!failure_) failure_ = cause;
      stopping_ = true;
    }
    band_ready_.notify_all();
    free_bands_.abort();
    free_chunks_.abort();
    for (StageQueue<Chunk>& queue : to_hash_) queue.abort();
    to_write_.abort();
  }
  template <class T>
  static T take(StageQueue<T>& queue) {
    std::optional<T> value = queue.pop();
    if (!value) throw Stopped();
    return std::move(*value);
  }

  // Readers.
  void read() {
    for (;;) {
      size_t k = 0;
      std::byte* buffer = nullptr;
      {
        const std::lock_guard lock(next_read_mutex_);
        if (next_read_ == reads_.size()) return;
        buffer = take(free_bands_);
        k = next_read_++;
      }
      const CutStep& step = steps_[reads_[k]];
      const StoredTensor& tensor = job_.tensors[step.tensor];
      const uint64_t bytes = tensor.row_bytes() * static_cast<uint64_t>(step.row_end - step.row_begin);
      const std::byte* rows = read_band(job_.source, direct_, *tensor.source, step.row_begin, step.row_end,
                                        tensor.dtype, bytes, {buffer, job_.buffers.band_stride()});
      {
        const std::lock_guard lock(mutex_);
        ready_bands_[reads_[k]] = {buffer, rows};
      }
      band_ready_.notify_one();
    }
  }

  Filled wait_band(size_t i) {
    std::unique_lock lock(mutex_);
    band_ready_.wait(lock, [&] { return stopping_ || ready_bands_.contains(i); });
    if (stopping_) throw Stopped();
    const Filled filled = ready_bands_.at(i);
    ready_bands_.erase(i);
    return filled;
  }

  // The cutter.
  void step(const CutStep& s) {
    switch (s.kind) {
      case CutStep::Kind::open:
        open_part(s);
        break;
      case CutStep::Kind::close:
        close_part(s);
        break;
      case CutStep::Kind::tail:
        cut(s, s.tp, whole(s.tensor, stash_.at(s.tensor).data()));
        break;
      case CutStep::Kind::band:
      case CutStep::Kind::tail_band:
        cut_read(s);
        break;
    }
    if (s.last_use) stash_.erase(s.tensor);
    if (job_.progress) job_.progress(written_.load(std::memory_order_relaxed));
  }

  Band whole(size_t tensor, const std::byte* data) const {
    const StoredTensor& t = job_.tensors[tensor];
    return band_of(t, data, 0, t.n_rows());
  }
  static Band band_of(const StoredTensor& t, const std::byte* data, int64_t row_begin, int64_t row_end) {
    if (t.model.shape.size() == 1) return {data, 0, t.model.shape[0], size_of(t.dtype)};
    return {data, row_begin, row_end, t.row_bytes()};
  }

  void cut_read(const CutStep& s) {
    const StoredTensor& tensor = job_.tensors[s.tensor];
    const Filled filled = wait_band(static_cast<size_t>(&s - steps_.data()));
    const Band band = band_of(tensor, filled.rows, s.row_begin, s.row_end);
    if (s.kind == CutStep::Kind::tail_band) {
      cut(s, s.tp, band);
    } else {
      for (size_t t = 0; t < job_.tps.size(); ++t) {
        if (in_open_head(t, s.tensor)) cut(s, t, band);
      }
    }
    if (s.stash) {
      const uint64_t row_bytes = tensor.row_bytes();
      std::vector<std::byte>& copy = stash_[s.tensor];
      if (copy.empty()) copy.resize(row_bytes * static_cast<uint64_t>(tensor.n_rows()));
      std::memcpy(copy.data() + static_cast<uint64_t>(s.row_begin) * row_bytes, filled.rows,
                  row_bytes * static_cast<uint64_t>(s.row_end - s.row_begin));
    }
    free_bands_.push(filled.buffer);
  }

  /// Whether tp t has the tensor in the head of the part that is open now.
  bool in_open_head(size_t t, size_t tensor) const {
    for (const auto& part : open_[t]) {
      if (part) return heads_[t].contains(tensor);
    }
    return false;
  }

  /// Appends what each open rank of tp t has of the band.
  void cut(const CutStep& s, size_t t, const Band& band) {
    const StoredTensor& tensor = job_.tensors[s.tensor];
    const auto& config = job_.source.config();
    const int64_t whole_rows = tensor.model.shape[0];
    const uint64_t element = size_of(tensor.dtype);
    for (size_t rank = 0; rank < open_[t].size(); ++rank) {
      if (!open_[t][rank]) continue;
      const Slice slice = slice_of(config, tensor.model, job_.tps[t].layout.tp, static_cast<int>(rank));
      const int64_t begin = std::max(slice.row_begin, band.row_begin), end = std::min(slice.row_end, band.row_end);
      const uint64_t width = static_cast<uint64_t>(slice.col_end - slice.col_begin) * element;
      if (begin < end) {
        const std::byte* from = band.data + static_cast<uint64_t>(begin - band.row_begin) * band.row_stride +
                                static_cast<uint64_t>(slice.col_begin) * element;
        append_rows(open_[t][rank], from, static_cast<uint64_t>(end - begin), width, band.row_stride);
      }
      if (band.row_end == whole_rows && slice.row_end > whole_rows) {  // the vocabulary's padding
        const int64_t n = slice.row_end - std::max(slice.row_begin, whole_rows);
        append_zeros(open_[t][rank], static_cast<uint64_t>(n) * width);
      }
    }
  }

  void append_rows(const std::shared_ptr<OpenPart>& part, const std::byte* from, uint64_t n, uint64_t width,
                   uint64_t stride) {
    if (width == stride) return append(part, from, n * width);
    for (uint64_t row = 0; row < n; ++row) append(part, from + row * stride, width);
  }
  void append_zeros(const std::shared_ptr<OpenPart>& part, uint64_t n) {
    static constexpr std::byte kZeros[4096] = {};
    for (; n > 0; n -= std::min<uint64_t>(n, sizeof kZeros)) {
      append(part, kZeros, std::min<uint64_t>(n, sizeof kZeros));
    }
  }
  void append(const std::shared_ptr<OpenPart>& part, const std::byte* from, uint64_t n) {
    OpenPart& p = *part;
    p.appended += n;
    while (n > 0) {
      if (p.chunk == nullptr) p.chunk = take(free_chunks_);
      const uint64_t piece = std::min(n, job_.buffers.chunk_bytes - p.chunk_size);
      std::memcpy(p.chunk + p.chunk_size, from, piece);
      p.chunk_size += piece;
      from += piece;
      n -= piece;
      if (p.chunk_size == job_.buffers.chunk_bytes) send(part, p.appended - n);
    }
  }
  /// Hands the chunk that ends at `end` in the file to the part's hasher.
  void send(const std::shared_ptr<OpenPart>& part, uint64_t end) {
    const uint64_t size = std::exchange(part->chunk_size, 0);
    to_hash_[part->hasher].push({std::exchange(part->chunk, nullptr), end - size, size, part});
  }

  void open_part(const CutStep& s) {
    const CutTp& tp = job_.tps[s.tp];
    const PartLayout& layout = tp.layout.parts[s.part];
    const std::string header = part_header(job_.source.config(), job_.tensors, tp.layout.tp, layout);
    if (heads_.size() < job_.tps.size()) heads_.resize(job_.tps.size());
    heads_[s.tp].clear();
    for (size_t i = 0; i < layout.n_head; ++i) heads_[s.tp].insert(layout.placed[i].index);
    for (size_t rank = 0; rank < open_[s.tp].size(); ++rank) {
      if (!tp.live[s.part][rank]) continue;
      const std::string name = rank_directory(tp.layout.tp, static_cast<int>(rank)) + "/" + layout.name;
      auto part = std::make_shared<OpenPart>(job_.out / name, layout.file_bytes(), job_.hook);
      part->name = name;
      part->hasher = rank % to_hash_.size();
      part->n_left = (layout.file_bytes() + job_.buffers.chunk_bytes - 1) / job_.buffers.chunk_bytes;
      part->digest.size = layout.file_bytes();
      part->digest.leaves.reserve(layout.n_leaves());
      open_[s.tp][rank] = part;
      append(part, reinterpret_cast<const std::byte*>(header.data()), header.size());
    }
  }

  void close_part(const CutStep& s) {
    for (std::shared_ptr<OpenPart>& part : open_[s.tp]) {
      if (!part) continue;
      if (part->appended != part->digest.size) {
        throw Error(ErrorKind::bug,
                    str("part '", part->name, "' got ", part->appended, " of ", part->digest.size, " bytes"));
      }
      if (part->chunk != nullptr) {
        const uint64_t slack = (0 - part->chunk_size) % OutputFile::kAlignment;
        std::memset(part->chunk + part->chunk_size, 0, slack);
        send(part, part->appended);
      }
      part.reset();
    }
  }

  // Hashers.
  void hash(StageQueue<Chunk>& queue) {
    while (std::optional<Chunk> chunk = queue.pop()) {
      OpenPart& part = *chunk->part;
      // Leaf by leaf, so that the second hash finds the leaf in the cache.
      for (uint64_t at = 0; at < chunk->size; at += kLeafBytes) {
        const Bytes leaf(chunk->data + at, std::min(kLeafBytes, chunk->size - at));
        part.hash.update(leaf);
        if (chunk->offset + at >= kDataBegin) part.digest.leaves.push_back(xxh3_64(leaf));
      }
      if (chunk->offset + chunk->size == part.digest.size) part.digest.xxh3_128 = part.hash.hex();
      to_write_.push(std::move(*chunk));
    }
  }

  // Writers.
  void write() {
    while (std::optional<Chunk> chunk = to_write_.pop()) {
      OpenPart& part = *chunk->part;
      part.file.write(chunk->offset, {chunk->data, chunk->size});
      free_chunks_.push(chunk->data);
      written_ += chunk->size;
      if (part.n_left.fetch_sub(1) != 1) continue;
      part.file.finish();
      const std::lock_guard lock(done_mutex_);
      job_.done(part.name, std::move(part.digest));
    }
  }

  const CutJob& job_;
  const std::vector<CutStep> steps_;
  std::vector<size_t> reads_;  // the steps that read
  DirectReader direct_;
  Buffer band_memory_, chunk_memory_;
  StageQueue<std::byte*> free_bands_, free_chunks_;
  std::vector<StageQueue<Chunk>> to_hash_;
  StageQueue<Chunk> to_write_;

  std::mutex next_read_mutex_;
  size_t next_read_ = 0;

  std::mutex mutex_;
  std::condition_variable band_ready_;
  std::map<size_t, Filled> ready_bands_;  // by step
  std::exception_ptr failure_;
  bool stopping_ = false;

  std::vector<std::vector<std::shared_ptr<OpenPart>>> open_;  // [tp][rank]
  std::vector<std::set<size_t>> heads_;                       // [tp]: head tensors of the open part
  std::map<size_t, std::vector<std::byte>> stash_;            // whole tail tensors by index

  std::mutex done_mutex_;
  std::atomic<uint64_t> written_ = 0;
};

}  // namespace

void run_pipeline(const CutJob& job) { Pipeline(job).run(); }

}  // namespace firstlight
