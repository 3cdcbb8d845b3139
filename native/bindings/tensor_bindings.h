#pragma once
#include <nanobind/nanobind.h>

#include <memory>
#include <string>

#include "runtime/model.h"

namespace wf {

// A model of the arrays in a dict, which are used where they lie and kept alive as long as the model.
std::unique_ptr<Model> model_from_tensors(const std::string& config_json, const nanobind::dict& tensors,
                                          const std::string& generation_json, const std::string& place,
                                          const ModelOptions& options);

// repack_rows; see runtime/repack.h.
void bind_repack(nanobind::module_& module);

}  // namespace wf
