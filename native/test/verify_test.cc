// The verifier on sound plans and on broken ones: it accepts the first and, whatever the bytes, reads none outside them
// (run under AddressSanitizer and UBSan), ends quickly, and leaves `out` untouched when it refuses.
//
//   verify_test [plan.bin ...]     default: native/test/plans/*.bin
//   INGOT_MUTATIONS=n              random mutations of each plan, default 20000
//   INGOT_SEED=n
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <random>
#include <vector>

#include "../core/flatbuffer.h"
#include "../core/plan_view.h"
#include "check.h"

namespace {

using Bytes = std::vector<std::byte>;

Bytes read_file(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  CHECK(file.good());
  const std::vector<char> chars{std::istreambuf_iterator<char>(file), {}};
  Bytes bytes(chars.size());
  std::memcpy(bytes.data(), chars.data(), chars.size());
  return bytes;
}

// Verifies a copy that ends where its allocation ends, so that a read past it is seen.
bool accepts(const Bytes& bytes, size_t length) {
  const auto copy = std::make_unique<std::byte[]>(length);
  if (length) std::memcpy(copy.get(), bytes.data(), length);
  ingot::PlanView plan{};
  const ingot::PlanFault fault = ingot::verify({copy.get(), length}, plan);
  if (fault) {
    CHECK(!fault.where.empty() && !fault.reason.empty());
    CHECK(plan.instructions.empty() && plan.registers.empty());
  }
  return !fault;
}

bool accepts(const Bytes& bytes) { return accepts(bytes, bytes.size()); }

// Every byte with several values. Names and padding may change and leave a sound plan.
size_t flip_each_byte(const Bytes& sound) {
  size_t accepted = 0;
  Bytes bytes = sound;
  for (size_t i = 0; i < bytes.size(); i++) {
    for (const unsigned mask : {0x01u, 0x02u, 0x04u, 0x40u, 0x80u, 0xffu}) {
      bytes[i] = sound[i] ^ std::byte(mask);
      accepted += accepts(bytes);
    }
    bytes[i] = sound[i];
  }
  return accepted;
}

void truncate(const Bytes& sound) {
  for (size_t length = 0; length < sound.size(); length++) CHECK(!accepts(sound, length) || length > sound.size() / 2);
}

void mutate(const Bytes& sound, size_t count, std::mt19937_64& random) {
  constexpr uint32_t words[] = {0, 1, 0x7fffffff, 0x80000000, 0xffffffff, 0xfffffff8, 16, 0x10000};
  for (size_t n = 0; n < count; n++) {
    Bytes bytes = sound;
    for (size_t edits = 1 + random() % 6; edits > 0; edits--) {
      const size_t at = random() % bytes.size();
      if (random() % 2) {
        bytes[at] = std::byte(random());
      } else if (at + 4 <= bytes.size()) {
        const auto word = random() % 4 ? words[random() % std::size(words)] : uint32_t(random() % bytes.size());
        std::memcpy(&bytes[at & ~size_t(3)], &word, 4);
      }
    }
    const bool verdict = accepts(bytes);
    if (n % 64 == 0) CHECK(accepts(bytes) == verdict);
  }
}

void test_text() {
  using ingot::flat::valid_text;
  CHECK(valid_text("") && valid_text("layers.0") && valid_text("\xc3\xa9 \xe2\x82\xac \xf0\x9f\x94\xa5"));
  for (const char* bad : {"\x1b[2J", "\x7f", "\x80", "\xc2\x9b", "\xc0\xaf", "\xe0\x80\x80", "\xed\xa0\x80", "\xf4\x90\x80\x80",
                          "\xf0\x80\x80\x80", "\xe2\x82", "\xf5\x80\x80\x80"})
    CHECK(!valid_text(bad));
}

// A small file of many tables that share one long string must not expand without bound.
void test_budget() {
  constexpr uint32_t tables = 200000, text = 100000;
  const uint32_t header[] = {28, 0x54474e49,                                       // the root's position, INGT
                             20 | 16u << 16, 4 | 8u << 16, 0, 0, 12u << 16,        // fields: format, runtime, tensors
                             20, 1, 1, 4 + 8 + 0,                                  // root: its fields 20 bytes before
                             6 | 8u << 16, 4};                                     // fields of a tensor: the name
  std::vector<uint32_t> words(header, std::end(header));
  const auto at = [&] { return uint32_t(words.size() * 4); };
  const uint32_t fields = at() - 8, tensor = at() + 4 + tables * 4;
  words.push_back(tables);
  for (uint32_t i = 0; i < tables; i++) words.push_back(tensor - at());
  words.insert(words.end(), {tensor - fields, 4, text});
  words.resize(words.size() + text / 4, 0x61616161);
  words.push_back(0);
  ingot::PlanView plan{};
  const ingot::PlanFault fault = ingot::verify(std::as_bytes(std::span(words)), plan);
  CHECK(fault.reason.find("share") != std::string::npos);
}

double plans_per_second(const Bytes& bytes) {
  const auto start = std::chrono::steady_clock::now();
  size_t count = 0;
  double seconds = 0;
  for (; seconds < 0.2; count++) {
    CHECK(accepts(bytes));
    seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }
  return double(count) / seconds;
}

size_t from_environment(const char* name, size_t otherwise) {
  const char* text = std::getenv(name);
  return text ? std::strtoull(text, nullptr, 10) : otherwise;
}

std::vector<std::filesystem::path> corpus(int argc, char** argv) {
  if (argc > 1) return {argv + 1, argv + argc};
  std::vector<std::filesystem::path> paths;
  const auto folder = std::filesystem::path(__FILE__).parent_path() / "plans";
  for (const auto& entry : std::filesystem::directory_iterator(folder)) paths.push_back(entry.path());
  return paths;
}

}  // namespace

int main(int argc, char** argv) {
  test_text();
  test_budget();
  std::mt19937_64 random(from_environment("INGOT_SEED", 1));
  const auto paths = corpus(argc, argv);
  CHECK(!paths.empty());
  for (const auto& path : paths) {
    const Bytes sound = read_file(path);
    CHECK(accepts(sound));
    truncate(sound);
    const size_t accepted = flip_each_byte(sound);
    mutate(sound, from_environment("INGOT_MUTATIONS", 20000), random);
    std::printf("%s: %zu bytes, %zu of %zu single flips accepted, %.0f verifications/s\n", path.filename().c_str(),
                sound.size(), accepted, sound.size() * 6, plans_per_second(sound));
  }
}
