// SPDX-License-Identifier: Apache-2.0
// The peer in bench/llama_cpp_peer.py, which alone builds it: llama.cpp driven natively, so that no interpreter's start
// counts against it.
//   llama_cpp_start start MODEL THREADS PROMPT            loads, computes one greedy token, prints it, ends
//   llama_cpp_start rates MODEL THREADS PROMPT N          the same with N tokens; prints JSON with both rates
#include <llama.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

namespace {

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

[[noreturn]] void die(const char* what) {
  std::fprintf(stderr, "llama_cpp_start: %s\n", what);
  std::exit(1);
}

std::vector<llama_token> tokenize(const llama_vocab* vocab, const std::string& text) {
  std::vector<llama_token> tokens(text.size() + 8);
  const int n = llama_tokenize(vocab, text.data(), static_cast<int>(text.size()), tokens.data(),
                               static_cast<int>(tokens.size()), true, true);
  if (n <= 0) die("the prompt has no tokens");
  tokens.resize(static_cast<size_t>(n));
  return tokens;
}

llama_token greedy(llama_context* context, int n_vocab) {
  const float* logits = llama_get_logits_ith(context, -1);
  return static_cast<llama_token>(std::max_element(logits, logits + n_vocab) - logits);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 5) die("usage: llama_cpp_start start|rates MODEL THREADS PROMPT [N]");
  const bool rates = std::strcmp(argv[1], "rates") == 0;
  const int threads = std::atoi(argv[3]);
  llama_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
  llama_backend_init();
  llama_model* model = llama_model_load_from_file(argv[2], llama_model_default_params());
  if (model == nullptr) die("the model can't be loaded");
  const llama_vocab* vocab = llama_model_get_vocab(model);
  const int n_vocab = llama_vocab_n_tokens(vocab);
  std::vector<llama_token> prompt = tokenize(vocab, argv[4]);
  const int n_new = rates && argc > 5 ? std::atoi(argv[5]) : 1;

  llama_context_params params = llama_context_default_params();
  params.n_ctx = static_cast<uint32_t>((prompt.size() + static_cast<size_t>(n_new) + 255) / 256 *
                                       256);  // no more than is used: its fastest
  params.n_batch = params.n_ubatch = 512;
  params.n_threads = params.n_threads_batch = threads;
  llama_context* context = llama_init_from_model(model, params);
  if (context == nullptr) die("no context");
  if (rates) {  // a first pass warms up caches and thread pools, as a server would be
    if (llama_decode(context, llama_batch_get_one(prompt.data(), static_cast<int>(prompt.size()))) != 0)
      die("decode failed");
    llama_memory_clear(llama_get_memory(context), true);
  }

  const double begin = now();
  if (llama_decode(context, llama_batch_get_one(prompt.data(), static_cast<int>(prompt.size()))) != 0)
    die("decode failed");
  llama_token token = greedy(context, n_vocab);
  const double first = now();
  if (!rates) {
    std::printf("%d\n", token);
    std::fflush(stdout);
    _exit(0);  // as Firstlight does: freeing is the kernel's work
  }
  for (int i = 1; i < n_new; ++i) {
    if (llama_decode(context, llama_batch_get_one(&token, 1)) != 0) die("decode failed");
    token = greedy(context, n_vocab);
  }
  const double end = now();
  std::printf("{\"n_prompt\":%zu,\"prompt_tokens_per_s\":%.2f,\"tokens_per_s\":%.2f}\n", prompt.size(),
              static_cast<double>(prompt.size()) / (first - begin), (n_new - 1) / (end - first));
  std::fflush(stdout);
  _exit(0);
}
