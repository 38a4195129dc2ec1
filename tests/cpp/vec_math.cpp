// csrc/cpu/vec_math.h, csrc/cpu/tile.h and the formulas over them, for tests/ops/test_vec_math.py: arrays of a multiple
// of the register's width in, arrays out.

#include "cpu/vec_math.h"

#include "cpu/tile.h"
#include "math/sdf.h"

namespace mim4d::MIM4D_ISA {
namespace {

template <class T, class F>
void each(const T* from, T* to, int64_t n, F&& f) {
  for (int64_t i = 0; i < n; i += Vec<T>::width) f(Vec<T>::load(from + i)).store(to + i);
}

template <class T>
void transpose(const T* from, T* to) {
  constexpr int n = Vec<T>::width;
  Vec<T> row[n];
  for (int i = 0; i < n; ++i) row[i] = Vec<T>::load(from + i * n);
  transpose_tile(row);
  for (int i = 0; i < n; ++i) row[i].store(to + i * n);
}

template <class T>
void sums(const T* from, T* to) {
  constexpr int n = Vec<T>::width;
  Vec<T> row[n];
  for (int i = 0; i < n; ++i) row[i] = Vec<T>::load(from + i * n);
  row_sums(row).store(to);
}

}  // namespace
}  // namespace mim4d::MIM4D_ISA

using namespace mim4d;
using namespace mim4d::MIM4D_ISA;

#define MIM4D_TEST(T)                                                \
  extern "C" {                                                       \
  int width_##T() { return Vec<T>::width; }                          \
  void exp_##T(const T* x, T* y, int64_t n) {                        \
    each(x, y, n, [](Vec<T> v) { return exp_(v); });                 \
  }                                                                  \
  void log1p_##T(const T* x, T* y, int64_t n) {                      \
    each(x, y, n, [](Vec<T> v) { return log1p_unit_(v); });          \
  }                                                                  \
  void expm1_##T(const T* x, T* y, int64_t n) {                      \
    each(x, y, n, [](Vec<T> v) { return expm1_(v); });               \
  }                                                                  \
  void reciprocal_##T(const T* x, T* y, int64_t n) {                 \
    each(x, y, n, [](Vec<T> v) { return reciprocal_(v); });          \
  }                                                                  \
  void sigmoid_##T(const T* x, T* y, int64_t n) {                    \
    each(x, y, n, [](Vec<T> v) { return math::sigmoid(v); });        \
  }                                                                  \
  void softplus_##T(const T* x, T* y, int64_t n) {                   \
    each(x, y, n, [](Vec<T> v) {                                     \
      Vec<T> value, slope, bend;                                     \
      math::softplus(v, value, slope, bend);                         \
      return value;                                                  \
    });                                                              \
  }                                                                  \
  void softplus_slope_##T(const T* x, T* y, int64_t n) {             \
    each(x, y, n, [](Vec<T> v) {                                     \
      Vec<T> value, slope, bend;                                     \
      math::softplus(v, value, slope, bend);                         \
      return slope;                                                  \
    });                                                              \
  }                                                                  \
  void transpose_##T(const T* x, T* y, int64_t) { transpose(x, y); } \
  void sums_##T(const T* x, T* y, int64_t) { sums(x, y); }           \
  }
MIM4D_TEST(float)
MIM4D_TEST(double)
