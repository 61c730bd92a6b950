// A struct of named fields for Python: made from keywords, readable, printable, to be copied and
// pickled. A field stands in one list, where its name and its member meet.
#pragma once
#include <pybind11/pybind11.h>

#include <string>

namespace agf {

template <class T, class Value, class Argument>
struct Field {
  const char* name;
  Value T::* member;
  Argument argument;  // of the constructor: py::arg, or py::arg_v where there is a default
};

template <class T, class Value>
Field<T, Value, pybind11::arg> required(const char* name, Value T::* member) {
  return {name, member, pybind11::arg(name)};
}

// What T itself has for a field that is not given.
template <class T, class Value>
Field<T, Value, pybind11::arg_v> optional(const char* name, Value T::* member) {
  return {name, member, pybind11::arg(name) = T{}.*member};
}

template <class T, class... Values, class... Arguments>
pybind11::class_<T> bind_struct(pybind11::module_& m, const char* name, const char* doc,
                                const Field<T, Values, Arguments>&... fields) {
  namespace py = pybind11;
  py::class_<T> bound(m, name, doc);
  bound.def(py::init([fields...](const Values&... values) {
              T made;
              ((made.*fields.member = values), ...);
              return made;
            }),
            py::kw_only(), fields.argument...);
  (bound.def_readonly(fields.name, fields.member), ...);
  bound.def("__repr__", [name, fields...](const T& value) {
    std::string text, comma;
    ((text += comma + fields.name + "=" + std::string(py::repr(py::cast(value.*fields.member))),
      comma = ", "),
     ...);
    return std::string(name) + "(" + text + ")";
  });
  bound.def(py::pickle(
      [fields...](const T& value) {
        py::dict state;
        ((state[fields.name] = value.*fields.member), ...);
        return state;
      },
      [fields...](const py::dict& state) {
        T made;
        ((made.*fields.member = state[fields.name].template cast<Values>()), ...);
        return made;
      }));
  return bound;
}

}  // namespace agf
