// Any bytes as the rows of GGUF's ternary types, and as a table of floats.
#include <fuzzer/FuzzedDataProvider.h>

#include <vector>

#include "fuzz/fuzz.h"
#include "kernels/kernels.h"
#include "runtime/packed_codes.h"
#include "runtime/repack.h"

namespace {

uint64_t blocks_of(int64_t size, int64_t block) { return static_cast<uint64_t>((size + block - 1) / block); }

void rows_of(FuzzedDataProvider& input) {
  const wf::RowType type = wf::row_type_of(input.PickValueInArray({"I8", "TQ1_0", "TQ2_0", "Q4_0", "I2_S"}));
  const int32_t rows = input.ConsumeIntegralInRange<int32_t>(1, 40);
  const int32_t columns = input.ConsumeBool() ? 256 * input.ConsumeIntegralInRange<int32_t>(1, 3)
                                              : input.ConsumeIntegralInRange<int32_t>(1, 700);
  const uint64_t row_bytes = wf::row_bytes_of(type, columns);
  std::vector<int32_t> order(input.ConsumeBool() ? static_cast<size_t>(rows) : 0);
  const bool good = input.ConsumeIntegral<uint8_t>() < 200;
  for (int32_t& row : order) {
    row = good ? input.ConsumeIntegralInRange<int32_t>(0, rows - 1) : input.ConsumeIntegral<int32_t>();
  }
  std::vector<uint8_t> data = input.ConsumeRemainingBytes<uint8_t>();
  const uint8_t filling = data.empty() ? 0 : data.back();
  data.resize(row_bytes * static_cast<uint64_t>(rows), filling);
  const wf::CodesShape shape{static_cast<int32_t>(blocks_of(rows, wf::kRowsPerBlock)),
                             static_cast<int32_t>(blocks_of(columns, wf::kColumnsPerBlock)),
                             wf::TernaryLayout::kTwoBit};
  std::vector<uint8_t> out(shape.bytes());
  wf::repack_rows({type, data.data(), rows, columns, order.empty() ? nullptr : order.data()}, out.data(), "fuzz", 1);
  fuzz::require(wf::codes_fault(out.data(), shape, shape.row_blocks) == nullptr, "codes that no loader takes");
}

void table_of(FuzzedDataProvider& input) {
  const auto rows = input.ConsumeIntegralInRange<int64_t>(1, 40),
             columns = input.ConsumeIntegralInRange<int64_t>(1, 200);
  std::vector<float> values(static_cast<size_t>(rows * columns));
  const std::vector<uint8_t> bytes = input.ConsumeRemainingBytes<uint8_t>();
  const size_t given = std::min(bytes.size(), values.size() * sizeof(float));
  if (given != 0) std::memcpy(values.data(), bytes.data(), given);
  std::vector<uint8_t> codes(blocks_of(rows, wf::kRowsPerBlock) * blocks_of(columns, wf::kColumnsPerBlock) * 1024);
  std::vector<float> scales(static_cast<size_t>(rows));
  wf::pack_q8(values.data(), rows, columns, codes.data(), scales.data(), "fuzz", 1);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  FuzzedDataProvider input(data, size);
  fuzz::accepted([&] { input.ConsumeBool() ? rows_of(input) : table_of(input); });
  return 0;
}
