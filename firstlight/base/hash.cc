// SPDX-License-Identifier: Apache-2.0
// xxhash is compiled in, header only: its dispatch then sees our flags, and there is no call through the PLT a leaf.
#include "firstlight/base/hash.h"

#include <openssl/evp.h>

#include <new>

#include "firstlight/base/error.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace firstlight {

namespace {

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

uint64_t xxh3_64(Bytes data) noexcept { return XXH3_64bits(data.data(), data.size()); }

Xxh3_128::Xxh3_128() : state_(XXH3_createState()) {
  if (state_ == nullptr) throw std::bad_alloc();
  XXH3_128bits_reset(static_cast<XXH3_state_t*>(state_));
}
Xxh3_128::~Xxh3_128() { XXH3_freeState(static_cast<XXH3_state_t*>(state_)); }
void Xxh3_128::update(Bytes data) noexcept {
  XXH3_128bits_update(static_cast<XXH3_state_t*>(state_), data.data(), data.size());
}
std::string Xxh3_128::hex() const {
  XXH128_canonical_t canonical;
  XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(static_cast<const XXH3_state_t*>(state_)));
  return to_hex(canonical.digest, sizeof canonical.digest);
}
std::string xxh3_128_hex(Bytes data) {
  XXH128_canonical_t canonical;
  XXH128_canonicalFromHash(&canonical, XXH3_128bits(data.data(), data.size()));
  return to_hex(canonical.digest, sizeof canonical.digest);
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
