// SPDX-License-Identifier: Apache-2.0
// For tests: what must hold of any back end, in terms of a runner: neither pages nor company change an answer.
#pragma once
#include <algorithm>
#include <vector>

#include "golden.h"

namespace firstlight {

/// Mean over all positions of Σ p (ln p − ln q), q fed in chunks.
inline double mean_kld(Runner& p_runner, Runner& q_runner, const std::vector<GoldenSequence>& sequences, size_t chunk) {
  const int vocab = p_runner.config().vocab_size;
  double kld = 0, n = 0;
  for (const GoldenSequence& sequence : sequences) {
    const auto p = log_softmax(all_logits(p_runner, sequence.ids), vocab);
    const auto q = log_softmax(all_logits(q_runner, sequence.ids, chunk), vocab);
    for (size_t i = 0; i < p.size(); ++i, ++n) {
      for (size_t t = 0; t < p[i].size(); ++t) kld += std::exp(p[i][t]) * (p[i][t] - q[i][t]);
    }
  }
  return kld / n;
}

/// One sequence that is decoded greedily, beside others.
struct Greedy {
  Greedy(std::vector<int> prompt, PagePool& pool) : ids(std::move(prompt)), n_prompt(ids.size()), pages(pool) {}
  std::vector<int> ids;
  size_t n_prompt;
  PageTable pages;
  size_t done = 0;              ///< tokens in the pages
  std::vector<double> margins;  ///< ln p(best) − ln p(second) of each new token
};

inline constexpr size_t kNewTokens = 24;

/// Decodes all of them; sequence i joins at step i * stagger; prompts are fed at most `chunk` tokens a step.
inline void decode(Runner& runner, std::vector<Greedy>& sequences, size_t stagger, size_t chunk) {
  const auto finished = [](const Greedy& g) { return g.ids.size() == g.n_prompt + kNewTokens; };
  for (size_t step = 0; !std::all_of(sequences.begin(), sequences.end(), finished); ++step) {
    std::vector<SequenceChunk> batch;
    std::vector<Greedy*> members;
    for (size_t i = 0; i < sequences.size(); ++i) {
      Greedy& g = sequences[i];
      if (step < i * stagger || finished(g)) continue;
      ASSERT_TRUE(g.pages.try_reserve(static_cast<int64_t>(g.ids.size())));
      const size_t n = std::min(chunk, g.ids.size() - g.done);
      const bool last = g.done + n == g.ids.size();
      batch.push_back({std::span(g.ids).subspan(g.done, n), static_cast<int64_t>(g.done), &g.pages, last ? 1 : 0});
      g.done += n;
      if (last) members.push_back(&g);
    }
    std::vector<float> logits;
    runner.forward(batch, logits);
    const auto rows = log_softmax(logits, runner.config().vocab_size);
    ASSERT_EQ(rows.size(), members.size());
    for (size_t i = 0; i < rows.size(); ++i) {
      std::vector<double> row = rows[i];
      const auto best = std::max_element(row.begin(), row.end());
      members[i]->ids.push_back(static_cast<int>(best - row.begin()));
      std::nth_element(row.begin(), row.begin() + 1, row.end(), std::greater<>());
      members[i]->margins.push_back(row[0] - row[1]);
    }
  }
}

/// `near_tie`: nats between the two best tokens, below which texts may part.
inline void expect_same_text_in_any_batch(Runner& runner, const std::vector<int>& text, double near_tie) {
  const auto make = [&] {
    std::vector<Greedy> all;
    all.reserve(6);
    for (const size_t n : {3u, 17u, 64u, 65u, 130u, 63u})
      all.emplace_back(std::vector<int>(text.begin(), text.begin() + n), runner.pool());
    return all;
  };
  std::vector<std::vector<int>> alone;
  std::vector<std::vector<double>> margins;
  for (size_t i = 0; i < 6; ++i) {
    std::vector<Greedy> one;
    one.push_back(std::move(make()[i]));
    decode(runner, one, 0, 512);
    alone.push_back(one[0].ids);
    margins.push_back(one[0].margins);
  }
  size_t compared = 0;
  for (const auto& [stagger, chunk] : std::vector<std::pair<size_t, size_t>>{{0, 512}, {3, 32}, {7, 1}, {30, 48}}) {
    std::vector<Greedy> together = make();
    decode(runner, together, stagger, chunk);
    for (size_t i = 0; i < together.size(); ++i) {
      const size_t n_prompt = together[i].n_prompt;
      for (size_t t = 0; t < kNewTokens; ++t, ++compared) {
        if (together[i].ids[n_prompt + t] == alone[i][n_prompt + t]) continue;
        EXPECT_LE(margins[i][t], near_tie) << "sequence " << i << " parts at new token " << t << ", joining every "
                                           << stagger << " steps, chunks of " << chunk;
        break;
      }
    }
  }
  EXPECT_GT(compared, 4 * 6 * kNewTokens / 2);  // near-ties are the exception
}

/// The same bits whatever pages a sequence gets.
inline void expect_same_bits_for_any_pages(Runner& runner, const std::vector<int>& ids) {
  const std::vector<float> expected = all_logits(runner, ids, 100);
  std::vector<PageTable> taken;  // taken in order and given back in order, pages come out again in reverse
  taken.reserve(40);
  while (runner.pool().n_free() > 0) {
    taken.emplace_back(runner.pool());
    ASSERT_TRUE(taken.back().try_reserve(kPageTokens));
  }
  const std::vector<int32_t> first = taken[0].pages();
  for (PageTable& table : taken) PageTable give_back = std::move(table);
  PageTable probe(runner.pool());
  ASSERT_TRUE(probe.try_reserve(kPageTokens));
  ASSERT_NE(probe.pages(), first);
  EXPECT_EQ(all_logits(runner, ids, 100), expected);
}

/// A greedy pass names the tokens whose logits an ordinary pass finds largest, and a drawing one what draw_from() makes
/// of them: the prompt at once, then token by token.
inline void expect_greedy_passes_pick_the_likeliest(Runner& runner, const std::vector<int>& ids) {
  const auto vocab = static_cast<size_t>(runner.config().vocab_size);
  PageTable pages(runner.pool());
  ASSERT_TRUE(pages.try_reserve(static_cast<int64_t>(ids.size())));
  const size_t n_prompt = ids.size() / 2;
  for (size_t begin = 0; begin < ids.size(); begin = begin == 0 ? n_prompt : begin + 1) {
    const size_t n = begin == 0 ? n_prompt : 1;
    const SequenceChunk chunk{std::span(ids).subspan(begin, n), static_cast<int64_t>(begin), &pages, 1};
    std::vector<float> logits;
    std::vector<Likeliest> likeliest;
    runner.forward({&chunk, 1}, logits);
    runner.forward_greedy({&chunk, 1}, likeliest);
    const SamplingOptions options{.temperature = 0.8,
                                  .top_k = begin % 3 == 1 ? 12 : 0,
                                  .top_p = begin % 2 == 1 ? 0.9 : 1,
                                  .repetition_penalty = begin % 5 == 2 ? 1.5 : 1,
                                  .seed = 5};
    const Draw draw{options, std::span(ids).first(begin + n), begin};
    std::vector<int> drawn;
    runner.forward_drawn({&chunk, 1}, {&draw, 1}, drawn);
    ASSERT_TRUE(logits.size() == vocab && drawn.size() == 1 && likeliest.size() == 1);
    EXPECT_EQ(likeliest[0].id, std::max_element(logits.begin(), logits.end()) - logits.begin())
        << "after " << begin + n;
    EXPECT_EQ(drawn[0], draw_from(logits, draw)) << "after " << begin + n;
  }
}

}  // namespace firstlight
