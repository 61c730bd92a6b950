// The choices of types that each kernel is made for. What compiles kernels ahead (compile.cuh, the
// tests' simulator) goes through them here.
#pragma once
#include "cuda/primitives.cuh"

namespace agf::cuda {

// visit.template at<T>(dtype) for the four types, in the order of agf::Dtype.
template <class Visit>
void for_each_type(const Visit& visit) {
  visit.template at<float>(0);
  visit.template at<double>(1);
  visit.template at<__nv_bfloat16>(2);
  visit.template at<__half>(3);
}

// visit.template at<K, T...>(index) for each choice; `index` is a dtype, or 4 first + second.
template <class K, class Visit>
struct ForTypes {
  const Visit& visit;

  template <class T>
  struct Second {
    const Visit& visit;
    int first;
    template <class U>
    void at(int second) const {
      visit.template at<K, T, U>(4 * first + second);
    }
  };
  template <class T>
  void at(int dtype) const {
    constexpr bool state = sizeof(Compute<T>) == sizeof(T);  // float32 and float64
    if constexpr (K::types == Types::one) {
      visit.template at<K, T>(dtype);
    } else if constexpr (K::types == Types::two || state) {
      for_each_type(Second<T>{visit, dtype});
    }
  }
};

template <class K, class Visit>
void for_types(const Visit& visit) {
  for_each_type(ForTypes<K, Visit>{visit});
}

}  // namespace agf::cuda
