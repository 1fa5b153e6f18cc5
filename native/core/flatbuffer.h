// Reads FlatBuffers (https://flatbuffers.dev/internals) out of untrusted bytes. Every position is checked for bounds and
// alignment before it is read. The first fault sticks: from then on every accessor answers zero or empty, so that a
// caller checks once, after a loop, not at each read. Nothing recurses.
//
// Offsets may make many tables share the same bytes, so that a small file expands into a large plan; a budget
// proportional to the file bounds what is read in total, and with it time and memory.
#pragma once
#include <bit>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>

namespace ingot::flat {

static_assert(std::endian::native == std::endian::little, "FlatBuffers are little-endian");

// A table whose bytes and vtable lie inside the file.
struct Table {
  uint32_t at = 0, vtable = 0;
  uint16_t bytes = 0, vtable_bytes = 0;
};

// `size` elements from byte `at`, all inside the file.
struct Vector { uint32_t at = 0, size = 0; };

inline bool valid_text(std::string_view text);

class Reader {
 public:
  static constexpr uint64_t kHeaderBytes = 8;         // offset of the root, file identifier
  static constexpr uint64_t kMaxBytes = 16 << 20;     // a plan of a thousand layers has 3 MiB
  static constexpr uint64_t kBudgetFactor = 16;

  explicit Reader(std::span<const std::byte> bytes)
      : data_(bytes.data()), size_(bytes.size()), budget_(kBudgetFactor * size_) {
    if (size_ < kHeaderBytes) fail("structure", 0, "shorter than its header");
    if (size_ > kMaxBytes) fail("structure", 0, "longer than 16 MiB");
  }

  bool ok() const { return rule_ == nullptr; }
  const char* rule() const { return rule_; }
  const char* reason() const { return reason_; }
  uint64_t byte() const { return byte_; }

  std::string_view identifier() const { return ok() ? view(4, 4) : std::string_view(); }

  // `last_field`: vtable offset of the last field that this runtime knows of the table.
  Table root(uint16_t last_field) { return ok() ? table_at(uint64_t(load<uint32_t>(0)), last_field) : Table(); }

  // The table that `field` of `parent` points at, which must be present.
  Table table(const Table& parent, uint16_t field, uint16_t last_field) {
    const uint64_t at = target(parent, field);
    if (ok() && !at) fail("structure", parent.at, "a required table is absent");
    return ok() ? table_at(at, last_field) : Table();
  }

  // Element `index` of a vector of tables.
  Table table(const Vector& tables, uint32_t index, uint16_t last_field) {
    if (!ok()) return {};
    const uint32_t at = tables.at + 4 * index;
    return table_at(uint64_t(at) + load<uint32_t>(at), last_field);
  }

  // Zero where absent: the schema has no other defaults.
  template <class T>
  T scalar(const Table& table, uint16_t field) {
    const uint64_t at = position(table, field, sizeof(T));
    return at ? load<T>(at) : T(0);
  }

  // Field `offset` bytes into element `index` of a vector of structs or scalars.
  template <class T>
  T scalar(const Vector& vector, uint32_t index, uint32_t element_bytes, uint32_t offset = 0) const {
    return ok() ? load<T>(vector.at + uint64_t(index) * element_bytes + offset) : T(0);
  }

  // Empty where absent.
  Vector vector(const Table& table, uint16_t field, uint32_t element_bytes, uint32_t align) {
    const uint64_t at = target(table, field);
    if (!at) return {};
    if (!inside(at, 4, 4)) return {};
    const uint32_t count = load<uint32_t>(at);
    const uint64_t bytes = uint64_t(count) * element_bytes;
    if (!inside(at + 4, bytes, align) || !charge(at, bytes)) return {};
    return {uint32_t(at + 4), count};
  }

  // Valid UTF-8 without control characters; empty where absent.
  std::string_view string(const Table& table, uint16_t field) {
    const Vector chars = vector(table, field, 1, 1);
    if (!chars.at) return {};
    const uint64_t end = uint64_t(chars.at) + chars.size;
    if (!inside(end, 1, 1)) return {};
    const std::string_view text = view(chars.at, chars.size);
    if (load<uint8_t>(end) != 0) fail("structure", end, "a string does not end in a zero byte");
    else if (!valid_text(text)) fail("string", chars.at, "not UTF-8, or a control character");
    return ok() ? text : std::string_view();
  }

  std::span<const std::byte> bytes(const Vector& vector) const { return {data_ + vector.at, vector.size}; }

 private:
  template <class T>
  T load(uint64_t at) const {
    T value;
    std::memcpy(&value, data_ + at, sizeof(T));
    return value;
  }

  std::string_view view(uint64_t at, size_t bytes) const {
    return {reinterpret_cast<const char*>(data_) + at, bytes};
  }

  void fail(const char* rule, uint64_t byte, const char* reason) {
    if (ok()) rule_ = rule, byte_ = byte, reason_ = reason;
  }

  bool inside(uint64_t at, uint64_t bytes, uint32_t align) {
    if (at > size_ || bytes > size_ - at) fail("structure", at, "points outside the plan");
    else if (at % align) fail("structure", at, "misaligned");
    return ok();
  }

  bool charge(uint64_t at, uint64_t bytes) {
    if (bytes > budget_) fail("structure", at, "tables and strings share far more bytes than the plan has");
    else budget_ -= bytes;
    return ok();
  }

  Table table_at(uint64_t at, uint16_t last_field) {
    if (!inside(at, 4, 4)) return {};
    const int64_t vtable = int64_t(at) - load<int32_t>(at);
    if (vtable < 0 || !inside(uint64_t(vtable), 4, 2)) {
      fail("structure", at, "a table's field list lies outside the plan");
      return {};
    }
    const Table table{uint32_t(at), uint32_t(vtable), load<uint16_t>(vtable + 2), load<uint16_t>(vtable)};
    if (table.vtable_bytes < 4 || table.vtable_bytes % 2 || table.bytes < 4) {
      fail("structure", at, "a table's sizes are impossible");
      return {};
    }
    const bool fits = inside(at, table.bytes, 4) && inside(table.vtable, table.vtable_bytes, 2);
    if (!fits || !charge(at, uint64_t(table.bytes) + table.vtable_bytes)) return {};
    for (uint32_t field = last_field + 2u; field < table.vtable_bytes; field += 2)
      if (load<uint16_t>(table.vtable + field)) fail("unknown-field", at, "a field that this runtime does not know");
    return ok() ? table : Table();
  }

  // Where `field` lies, or 0 where it is absent.
  uint64_t position(const Table& table, uint16_t field, uint32_t bytes) {
    if (!ok() || field >= table.vtable_bytes) return 0;
    const uint16_t offset = load<uint16_t>(table.vtable + field);
    if (!offset) return 0;
    if (offset < 4 || uint32_t(offset) + bytes > table.bytes) {
      fail("structure", table.at, "a field lies outside its table");
      return 0;
    }
    const uint64_t at = uint64_t(table.at) + offset;
    return inside(at, bytes, bytes) ? at : 0;
  }

  // What an offset field points at, or 0 where it is absent.
  uint64_t target(const Table& table, uint16_t field) {
    const uint64_t at = position(table, field, 4);
    return at ? at + load<uint32_t>(at) : 0;
  }

  const std::byte* data_;
  uint64_t size_, budget_;
  const char* rule_ = nullptr;
  const char* reason_ = nullptr;
  uint64_t byte_ = 0;
};

// UTF-8 as RFC 3629 has it (no overlong forms, no surrogates), without control characters: names reach terminals.
inline bool valid_text(std::string_view text) {
  for (size_t i = 0; i < text.size();) {
    const auto lead = uint8_t(text[i]);
    if (lead < 0x20 || lead == 0x7f) return false;
    const size_t more = lead < 0x80 ? 0 : lead >= 0xc2 && lead < 0xe0 ? 1 : lead >= 0xe0 && lead < 0xf0 ? 2 : 3;
    if ((lead >= 0x80 && lead < 0xc2) || lead > 0xf4 || more >= text.size() - i) return false;
    uint32_t code = more ? lead & (0x3fu >> more) : lead;
    for (size_t k = 1; k <= more; k++) {
      const auto byte = uint8_t(text[i + k]);
      if (byte >> 6 != 2) return false;
      code = code << 6 | (byte & 0x3f);
    }
    if (more == 1 && code < 0xa0) return false;
    const bool overlong = (more == 2 && code < 0x800) || (more == 3 && code < 0x10000);
    if (overlong || code > 0x10ffff || (code >= 0xd800 && code < 0xe000)) return false;
    i += more + 1;
  }
  return true;
}

}  // namespace ingot::flat
