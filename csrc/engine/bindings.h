// Plans as Python builds them.
#pragma once
#include <pybind11/pybind11.h>

void bind_plans(pybind11::module_& m);
