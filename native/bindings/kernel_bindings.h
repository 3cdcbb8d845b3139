// The debug surface of the kernels and the machine measurements; module.cc calls it once.
#pragma once
#include <nanobind/nanobind.h>

namespace wf {
void bind_kernels(nanobind::module_& module);
}
