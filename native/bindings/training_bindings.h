// The element-wise passes of training on torch's tensors; module.cc calls it once.
#pragma once
#include <nanobind/nanobind.h>

namespace wf {
void bind_training(nanobind::module_& module);
}
