// What a step leaves to the one that follows it: the tokens that it sampled, and when it ended.
#pragma once
#include <algorithm>
#include <chrono>
#include <memory>
#include <optional>

#include "step_view.h"

namespace ingot {

class LastStep {
 public:
  using Time = std::chrono::steady_clock::time_point;

  // May throw std::bad_alloc.
  void reserve(const StepLimits& limits) {
    sampled_ = std::make_unique_for_overwrite<int32_t[]>(limits.rows);
    ids_ = std::make_unique_for_overwrite<int32_t[]>(limits.tokens);
    tokens_ = limits.tokens;
  }

  // For the step that begins: until it is kept, none can follow it.
  Previous take() {
    const Previous previous{succeeded_, {sampled_.get(), rows_}, {ids_.get(), tokens_}};
    succeeded_ = false;
    return previous;
  }

  // The step has succeeded, and its rows are written.
  void keep(const StepView& view, Time end) {
    rows_ = view.step.rows;
    for (uint32_t r = 0; r < rows_; ++r)
      sampled_[r] = reinterpret_cast<const RowResult*>(view.rows + size_t{r} * kRowResultBytes)->token;
    succeeded_ = true;
    end_ = end;
  }

  uint32_t idle_microseconds(Time start) const {
    using std::chrono::duration_cast, std::chrono::microseconds;
    return end_ ? uint32_t(std::clamp<int64_t>(duration_cast<microseconds>(start - *end_).count(), 0, UINT32_MAX)) : 0;
  }

 private:
  std::unique_ptr<int32_t[]> sampled_, ids_;
  uint32_t tokens_ = 0, rows_ = 0;
  bool succeeded_ = false;
  std::optional<Time> end_;
};

}  // namespace ingot
