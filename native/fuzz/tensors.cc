// Any tensors that a caller holds, each in memory of exactly its size: whatever the loader or a kernel reads beyond one
// is a find. The input is that of directory.cc.
#include <memory>
#include <new>

#include "fuzz/packed_input.h"
#include "runtime/safetensors.h"

namespace {

constexpr auto kLine = std::align_val_t{64};  // what is aligned so is used where it lies

struct Free {
  void operator()(std::byte* data) const { ::operator delete(data, kLine); }
};
using Block = std::unique_ptr<std::byte, Free>;

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const std::string path = fuzz::own_directory() + "/model.safetensors";
  const fuzz::Packed packed = fuzz::Packed::from({reinterpret_cast<const char*>(data), size});
  fuzz::write_file(path, packed.weights);
  auto blocks = std::make_shared<std::vector<Block>>();
  std::vector<wf::HeldTensor> tensors;
  const bool good = fuzz::accepted([&] {
    wf::SafetensorsFile file(path);
    for (const auto& [name, entry] : file.tensors()) {
      Block block(static_cast<std::byte*>(::operator new(entry.end - entry.begin, kLine)));
      std::memcpy(block.get(), packed.weights.data() + file.offset(entry), entry.end - entry.begin);
      if (entry.dtype != "U8" && entry.dtype != "F16" && entry.dtype != "F32") continue;  // as the bindings do
      tensors.push_back({name, entry.dtype, entry.shape, block.get()});
      blocks->push_back(std::move(block));
    }
  });
  if (!good) return 0;
  fuzz::accepted([&] {
    const std::string generation = packed.options & 1 ? packed.config : "";
    const auto model =
        wf::Model::from_tensors(packed.config, generation, tensors, blocks, "fuzz", fuzz::options_of(packed.options));
    blocks.reset();
    fuzz::run(*model);
  });
  return 0;
}
