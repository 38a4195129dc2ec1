// Where rays are read, on one instruction set: equal sections, then more of them where the SDF takes the light.

#include <new>

#include "math/sdf.h"
#include "sdf_march/cpu.h"
#include "sdf_march/cpu_block.h"

namespace mim4d::MIM4D_ISA {
namespace {

// Memory of one thread.
template <class T, class Sizes>
struct SearchMemory {
  using Stencil = typename Sizes::template Stencil<T>;
  static constexpr int n = Vec<T>::width;
  int64_t sections;                               // padded
  Vec<T>*input, *rows, *z, *h, *y, *x, *weights;  // of a register of samples
  Stencil* stencils;                              // of the register at work and of the next one
  T *edges, *sdf, *quotient, *mass;               // one more than sections
  T *alpha, *fine;                                // sections, n_importance + 1
  int64_t count;

  SearchMemory(const SdfSampleParams<T>& p, const SdfNet<T, Sizes>& net, T* memory)
      : sections(round_up(p.n_uniform, n)) {
    const int64_t C = net.size.C, H = net.size.H;
    Arrays<T> arrays{memory};
    static_assert(sizeof(Stencil) % sizeof(Vec<T>) == 0);
    stencils = reinterpret_cast<Stencil*>(arrays.take(2 * (sizeof(Stencil) / sizeof(T))));
    for (int i = 0; memory && i < 2; ++i) new (stencils + i) Stencil(p);
    const ArrayOf<Vec<T>> registers[] = {
        {&input, 3 + C}, {&rows, C}, {&z, H}, {&h, H}, {&y, H}, {&x, H}, {&weights, Stencil::kMostTaps}};
    for (auto [array, size] : registers) *array = reinterpret_cast<Vec<T>*>(arrays.take(size * n));
    for (T** array : {&edges, &sdf, &quotient, &mass}) *array = arrays.take(sections + n);
    alpha = arrays.take(sections), fine = arrays.take(round_up(p.n_importance + 1, n));
    count = arrays.count;
  }
};

template <class T, class Sizes>
void search_edges(const SdfSampleParams<T>& p, const SearchMemory<T, Sizes>& m, int64_t r) {
  const T near = p.near[r], length = math::max_(near, p.far[r]) - near, sections = T(p.n_uniform);
  for (int64_t i = 0; i <= m.sections; ++i) {
    const T at = T(i < p.n_uniform ? i : p.n_uniform);  // sections beyond the last have no length
    const T share = p.jitter ? math::section_boundary(at, sections, p.jitter[2 * r]) : at / sections;
    m.edges[i] = near + length * share;
  }
}

template <class T, class Sizes>
MIM4D_HD void search_sdf(const SdfSampleParams<T>& p, const SdfNet<T, Sizes>& net, const SearchMemory<T, Sizes>& m,
                         int64_t r) {
  constexpr int n = Vec<T>::width;
  const auto locate = [&](int64_t i) {
    auto& at = m.stencils[i / n % 2];
    const Vec<T> t = Vec<T>::load(m.edges + i);
    MIM4D_UNROLL
    for (int d = 0; d < 3; ++d) at.position[d] = fma_(Vec<T>(p.directions[3 * r + d]), t, Vec<T>(p.origins[3 * r + d]));
    at.locate(p, r / p.R);
  };
  locate(0);
  for (int64_t i = 0; i < m.sections; i += n) {
    if (i + n < m.sections) locate(i + n);
    const auto& at = m.stencils[i / n % 2];
    MIM4D_UNROLL
    for (int d = 0; d < 3; ++d) m.input[d] = at.position[d];
    at.weights(m.weights);
    gather(at, m.weights, net.size.C, p.C, m.input + 3, m.rows);
    sdf_layers(
        net, m.input, m.z, m.h, m.y, [&](int64_t) { return m.x; }, [](int64_t, Vec<T>, Vec<T>) {})
        .store(m.sdf + i);
  }
}

// The running sum of the sections' weights, from 0.
template <class T, class Sizes>
MIM4D_HD void search_mass(const SdfSampleParams<T>& p, const SearchMemory<T, Sizes>& m) {
  constexpr int n = Vec<T>::width;
  // The last section's end has no SDF, and that section no weight.
  for (int64_t i = m.sections; i < m.sections + n; ++i) m.sdf[i] = T(0);
  for (int64_t i = 0; i < n; ++i) m.quotient[i] = T(0);
  T* const quotient = m.quotient + 1;  // quotient[-1] = 0
  for (int64_t i = 0; i < m.sections; i += n)
    math::section_quotient(Vec<T>::load(m.sdf + i), Vec<T>::load(m.sdf + i + 1),
                           Vec<T>::load(m.edges + i + 1) - Vec<T>::load(m.edges + i))
        .store(quotient + i);
  for (int64_t i = 0; i < m.sections; i += n)
    math::section_alpha(Vec<T>::load(m.sdf + i), Vec<T>::load(m.sdf + i + 1),
                        Vec<T>::load(m.edges + i + 1) - Vec<T>::load(m.edges + i), Vec<T>::load(quotient + i),
                        Vec<T>::load(quotient + i - 1), Vec<T>(p.sharpness))
        .store(m.alpha + i);
  T through = T(1), total = T(0);
  for (int64_t i = 0; i + 1 < p.n_uniform; ++i) {
    const T alpha = m.alpha[i], weight = through * alpha;
    total = total + weight;
    m.alpha[i] = weight;
    through = through * math::passed(alpha);
  }
  m.alpha[p.n_uniform - 1] = T(0);
  const T padding = math::section_padding(total, T(p.n_uniform));
  m.mass[0] = T(0);
  for (int64_t i = 0; i < p.n_uniform; ++i) m.mass[i + 1] = m.mass[i] + (m.alpha[i] + padding);
}

template <class T, class Sizes>
void search_fine(const SdfSampleParams<T>& p, const SearchMemory<T, Sizes>& m, int64_t r) {
  const int sections = static_cast<int>(p.n_uniform);
  const T shift = p.jitter ? p.jitter[2 * r + 1] : T(0.5), last = m.mass[sections];
  for (int64_t j = 0; j <= p.n_importance; ++j) {
    const T wanted = (T(j) + shift) / T(p.n_importance + 1) * last;
    const int i = math::section_of(wanted, sections, [&](int k) { return m.mass[k]; });
    m.fine[j] = math::place_in_section(wanted, m.mass[i], m.mass[i + 1], m.edges[i], m.edges[i + 1]);
  }
}

template <class T, class Sizes>
void sample_rays(const SdfSampleParams<T>& p, T* packed, T* memory, int64_t begin, int64_t end) {
  const SdfNet<T, Sizes> net(p, packed);
  const SearchMemory<T, Sizes> m(p, net, memory);
  for (int64_t r = begin; r < end; ++r) {
    T* to = p.edges + r * (p.n_uniform + p.n_importance + 1);
    search_edges(p, m, r);
    const T* const coarse = m.edges;
    if (p.n_importance == 0) {
      for (int64_t i = 0; i <= p.n_uniform; ++i) to[i] = coarse[i];
      continue;
    }
    search_sdf(p, net, m, r);
    search_mass(p, m);
    search_fine(p, m, r);
    // Both lists ascend.
    for (int64_t i = 0, j = 0; i < p.n_uniform || j < p.n_importance;) {
      const bool from_coarse = j == p.n_importance || (i < p.n_uniform && coarse[i] <= m.fine[j]);
      *to++ = from_coarse ? coarse[i++] : m.fine[j++];
    }
    *to = math::max_(coarse[p.n_uniform], m.fine[p.n_importance]);
  }
}

// ---- the table

template <class T>
SdfMarchMemory memory(const SdfSampleParams<T>& p) {
  return with_sizes(p, [&](auto sizes) {
    using Sizes = decltype(sizes);
    const SdfNet<T, Sizes> net(p, nullptr);
    return SdfMarchMemory{net.count, SearchMemory<T, Sizes>(p, net, nullptr).count, 0, 0};
  });
}

template <class T>
void pack(const SdfSampleParams<T>& p, const Folded& folded, T* net) {
  with_sizes(p, [&](auto sizes) { SdfNet<T, decltype(sizes)>(p, net).pack(folded); });
}

template <class T>
void sample(const SdfSampleParams<T>& p, T* net, T* thread, int64_t begin, int64_t end) {
  with_sizes(p, [&](auto sizes) { sample_rays<T, decltype(sizes)>(p, net, thread, begin, end); });
}

template <class T>
constexpr SdfSampleCpu<T> table = {memory<T>, pack<T>, sample<T>};

}  // namespace

extern const SdfSampleCpu<float> sdf_sample_float = table<float>;
extern const SdfSampleCpu<double> sdf_sample_double = table<double>;

}  // namespace mim4d::MIM4D_ISA
