// Any two files as a packed directory: loaded by the door that users take, and run for a few tokens.
#include "fuzz/packed_input.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const std::string directory = fuzz::own_directory();
  const fuzz::Packed packed = fuzz::Packed::from({reinterpret_cast<const char*>(data), size});
  fuzz::write_file(directory + "/config.json", packed.config);
  fuzz::write_file(directory + "/generation_config.json", packed.options & 1 ? packed.config : "{}");
  fuzz::write_file(directory + "/model.safetensors", packed.weights);
  fuzz::accepted([&] {
    const auto model = wf::Model::load(directory, fuzz::options_of(packed.options));
    fuzz::run(*model);
  });
  return 0;
}
