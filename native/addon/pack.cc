#include "pack.h"

#include <algorithm>
#include <exception>
#include <vector>

#include "../cpu/cpu.h"
#include "open_model.h"
#include "values.h"

namespace ingot::addon {
namespace {

struct Work {
  cpu::Packing packing;
  std::vector<const std::byte*> rows;
  std::span<std::byte> tiles, scales, sub_scales;
  unsigned threads;
  const cpu::InstructionSet* set;
};

class PackingWorker : public Napi::AsyncWorker {
 public:
  // `buffers` owns the memory that `work` names.
  PackingWorker(Napi::Object buffers, Work work)
      : Napi::AsyncWorker(buffers.Env()), promise_(Napi::Promise::Deferred::New(buffers.Env())),
        buffers_(Napi::Persistent(buffers)), work_(std::move(work)) {}
  Napi::Promise promise() const { return promise_.Promise(); }

  void Execute() override {
    try {
      refused_ = cpu::pack_rows(work_.packing, work_.rows, work_.tiles.data(), work_.scales.data(),
                                work_.sub_scales.data(), work_.threads, work_.set->pack_tile);
    } catch (const std::exception& error) {
      SetError(error.what());
    }
  }

  void OnOK() override {
    promise_.Resolve(Napi::Number::New(Env(), refused_ == cpu::kNoRow ? -1 : double(refused_)));
  }
  void OnError(const Napi::Error& error) override { promise_.Reject(error.Value()); }

 private:
  Napi::Promise::Deferred promise_;
  Napi::ObjectReference buffers_;
  Work work_;
  size_t refused_ = cpu::kNoRow;
};

cpu::Packing read_packing(Reader& reader, const Napi::Object& from) {
  static constexpr const char* kFormats[] = {"plain", "q8", "q4", "fp8"};
  constexpr uint64_t kMaxCols = INT32_MAX;
  const std::string name = reader.string(reader.property(from, "format"), "format");
  const auto* format = std::find(std::begin(kFormats), std::end(kFormats), name);
  cpu::Packing packing{};
  packing.from = DType(reader.integer(reader.property(from, "dtype"), "dtype", kMaxDType));
  packing.layout = Layout(reader.integer(reader.property(from, "layout"), "layout", kMaxLayout));
  packing.cols = size_t(reader.integer(reader.property(from, "cols"), "cols", kMaxCols));
  if (!reader.ok()) return packing;
  if (format == std::end(kFormats)) {
    reader.expected("format", "plain, q8, q4 or fp8");
    return packing;
  }
  packing.format = cpu::PackFormat(format - kFormats);
  const bool plain = packing.format == cpu::PackFormat::plain, int4 = packing.format == cpu::PackFormat::q4;
  packing.to = plain ? packing.from : int4 ? DType::i4 : packing.format == cpu::PackFormat::q8 ? DType::i8 : DType::e4m3;
  const uint64_t bits = dtype_bits(packing.from);
  const bool number = packing.from == DType::f32 || packing.from == DType::f16 || packing.from == DType::bf16;
  if (bits < 8 || !(plain || number)) reader.expected("dtype", plain ? "one of whole bytes" : "f32, f16 or bf16");
  const uint64_t unit = byte_size(packing.to, kLayouts[size_t(packing.layout)].pack);
  const Layout tiled = int4 ? Layout::tile16x8 : Layout::tile16x4;
  if (packing.layout == Layout::row || (plain ? unit > 4 : packing.layout != tiled))
    reader.expected("layout", "one of tiles for the dtype");
  if (packing.cols == 0) reader.expected("cols", "at least 1");
  return packing;
}

// Bytes of exactly the size that they are to have.
std::span<std::byte> read_output(Reader& reader, const Napi::Object& from, const char* name, size_t bytes) {
  const auto span = reader.bytes(reader.property(from, name), name);
  if (span.size() != bytes) reader.expected(name, (std::to_string(bytes) + " bytes").c_str());
  return span;
}

Work read_work(Reader& reader, const Napi::Object& from) {
  Work work{};
  work.packing = read_packing(reader, from);
  const Napi::Array pieces = reader.array(reader.property(from, "rows"), "rows");
  for (uint32_t i = 0; reader.ok() && i < pieces.Length(); ++i) {
    const std::string name = "rows[" + std::to_string(i) + "]";
    const auto piece = reader.bytes(pieces.Get(i), name);
    const size_t size = work.packing.row_bytes();
    if (piece.size() % size) reader.expected(name, "whole rows");
    for (size_t at = 0; at + size <= piece.size(); at += size) work.rows.push_back(piece.data() + at);
  }
  if (!reader.ok()) return work;
  const cpu::Packing& packing = work.packing;
  const size_t count = work.rows.size();
  const size_t tiles = (count + cpu::kTileRows - 1) / cpu::kTileRows;
  work.tiles = read_output(reader, from, "tiles", tiles * packing.tile_bytes());
  work.scales = read_output(reader, from, "scales", count * packing.scale_bytes());
  work.sub_scales = read_output(reader, from, "subScales", count * packing.sub_scale_bytes());
  constexpr uint64_t kMaxThreads = 1024;
  work.threads = unsigned(reader.integer(reader.property(from, "threads"), "threads", kMaxThreads));
  if (work.threads == 0) work.threads = cpu::cpu_info().physical_cores;
  work.set = find_isa(reader.string(reader.property(from, "isa"), "isa"));
  if (!work.set) reader.expected("isa", "an instruction set of this machine");
  return work;
}

}  // namespace

Napi::Value pack(const Napi::CallbackInfo& info) {
  Reader reader(info.Env());
  const Napi::Object from = reader.object(info[0], "options");
  if (!reader.ok()) return {};
  Work work = read_work(reader, from);
  if (!reader.ok()) return {};
  auto* worker = new PackingWorker(from, std::move(work));  // deletes itself when it has settled
  const Napi::Promise promise = worker->promise();
  worker->Queue();
  return promise;
}

}  // namespace ingot::addon
