// SPDX-License-Identifier: Apache-2.0
// XXH3 by the widest vectors this core has: the same header compiled three times, one table of functions each.
#include "firstlight/base/hash.h"

#include <openssl/evp.h>

#include <new>

#include "firstlight/base/error.h"
#include "firstlight/base/hash_kernels.h"

namespace firstlight {

namespace {

const HashKernels* choose() noexcept {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) return &kHashAvx512;
  if (__builtin_cpu_supports("avx2")) return &kHashAvx2;
#endif
  return &kHashPlain;
}

std::string to_hex(const unsigned char* bytes, size_t n) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string out(2 * n, '0');
  for (size_t i = 0; i < n; ++i) {
    out[2 * i] = kDigits[bytes[i] >> 4];
    out[2 * i + 1] = kDigits[bytes[i] & 15];
  }
  return out;
}

}  // namespace

const HashKernels& hash_kernels() noexcept {
  static const HashKernels* const chosen = choose();
  return *chosen;
}

uint64_t xxh3_64(Bytes data) noexcept { return hash_kernels().xxh3_64(data.data(), data.size()); }

Xxh3_128::Xxh3_128() : state_(hash_kernels().make_state()) {
  if (state_ == nullptr) throw std::bad_alloc();
}
Xxh3_128::~Xxh3_128() { hash_kernels().free_state(state_); }
void Xxh3_128::update(Bytes data) noexcept { hash_kernels().update(state_, data.data(), data.size()); }
std::string Xxh3_128::hex() const {
  unsigned char digest[16];
  hash_kernels().digest(state_, digest);
  return to_hex(digest, sizeof digest);
}
std::string xxh3_128_hex(Bytes data) {
  unsigned char digest[16];
  hash_kernels().xxh3_128(data.data(), data.size(), digest);
  return to_hex(digest, sizeof digest);
}

Sha256::Sha256() : state_(EVP_MD_CTX_new()) {
  if (state_ == nullptr) throw std::bad_alloc();
  if (EVP_DigestInit_ex(static_cast<EVP_MD_CTX*>(state_), EVP_sha256(), nullptr) != 1) {
    throw Error(ErrorKind::bug, "SHA-256 is not available in libcrypto");
  }
}
Sha256::~Sha256() { EVP_MD_CTX_free(static_cast<EVP_MD_CTX*>(state_)); }
void Sha256::update(Bytes data) { EVP_DigestUpdate(static_cast<EVP_MD_CTX*>(state_), data.data(), data.size()); }
std::string Sha256::hex() {
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned n = 0;
  EVP_DigestFinal_ex(static_cast<EVP_MD_CTX*>(state_), digest, &n);
  return to_hex(digest, n);
}

}  // namespace firstlight
