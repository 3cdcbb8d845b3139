#pragma once
#include <nanobind/nanobind.h>

namespace wf {

// Sampler and Proposal; see runtime/sampler.h.
void bind_sampler(nanobind::module_& module);

}  // namespace wf
