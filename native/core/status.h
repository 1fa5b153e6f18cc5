// How native code fails: a code of errors.ts and its details. No exception crosses from core to the addon.
#pragma once
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace ingot {

struct [[nodiscard]] Fault {
  std::string code;  // empty: success
  std::vector<std::pair<std::string, std::variant<std::string, double>>> details;

  explicit operator bool() const { return !code.empty(); }
};

}  // namespace ingot
