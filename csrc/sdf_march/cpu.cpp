// Rays through a signed distance field on one instruction set. Samples of a ray are the SIMD lanes. The backward pass
// runs a ray forward once more, keeps what it meets in the cache, and walks back.

#include "sdf_march/cpu.h"

#include <new>

#include "sdf_march/cpu_block.h"
#include "sdf_march/cpu_rows.h"

namespace mim4d::MIM4D_ISA {
namespace {

// Memory of one thread: a ray's samples as arrays, a stencil and a tape for every register of them. Forward, a tape is
// of use until the next register, a stencil one longer: it is made while the register before it is at work.
template <class T, class Sizes>
struct RayMemory {
  using Stencil = typename Sizes::template Stencil<T>;
  static constexpr int n = Vec<T>::width;
  int64_t registers;
  T *t, *delta, *alpha, *transmittance, *weight, *weight_bar;
  T* by_ray;
  bool keep;
  Stencil* stencils;
  Vec<T>* tapes;
  int64_t tape_size;
  Scratch<T, Sizes> scratch;
  int64_t count;  // values in all

  RayMemory(const SdfMarchParams<T>& p, const Net<T, Sizes>& net, T* memory, bool backward)
      : registers((p.S + n - 1) / n),
        keep(backward),
        tape_size(Tape<T, Sizes>(net, nullptr, nullptr).count),
        scratch(net, reinterpret_cast<Vec<T>*>(memory)) {
    Arrays<T> arrays{memory};
    arrays.take(scratch.count * n);
    static_assert(sizeof(Stencil) % sizeof(Vec<T>) == 0);
    const int64_t positions = keep ? registers : 2;
    stencils = reinterpret_cast<Stencil*>(arrays.take(positions * (sizeof(Stencil) / sizeof(T))));
    for (int64_t i = 0; memory && i < positions; ++i) new (stencils + i) Stencil(p);
    tapes = reinterpret_cast<Vec<T>*>(arrays.take(tape_size * n * (keep ? registers : 1)));
    for (T** array : {&t, &delta, &alpha, &transmittance, &weight, &weight_bar}) *array = arrays.take(registers * n);
    by_ray = arrays.take(round_up(net.outputs(), n));
    count = arrays.count;
  }
  Stencil* stencil(int64_t i) const { return stencils + (keep ? i : i % 2); }
  Tape<T, Sizes> tape(const Net<T, Sizes>& net, int64_t i) const {
    return {net, tapes + (keep ? i * tape_size : 0), stencil(i)};
  }
};

template <class T>
struct Ray {
  int64_t index, item;
  T origin[3], direction[3];
};

template <class T, class Sizes>
Ray<T> start_ray(const SdfMarchParams<T>& p, const Net<T, Sizes>& net, const RayMemory<T, Sizes>& m, int64_t index) {
  Ray<T> ray{index, index / p.R, {}, {}};
  for (int d = 0; d < 3; ++d) {
    ray.origin[d] = p.origins[3 * index + d];
    ray.direction[d] = p.directions[3 * index + d];
  }
  const T* edges = p.edges + index * (p.S + 1);
  for (int64_t i = 0; i < m.registers * m.n; ++i) {  // lanes beyond the last sample repeat it
    const int64_t k = i < p.S ? i : p.S - 1;
    m.t[i] = edges[k];
    m.delta[i] = edges[k + 1] - edges[k];
  }
  const auto add_direction = [&](int64_t outputs, const T* c, const T* D, T* to) {
    for (int64_t o = 0; o < outputs; ++o)
      to[o] =
          c[o] + ray.direction[0] * D[o] + ray.direction[1] * D[outputs + o] + ray.direction[2] * D[2 * outputs + o];
  };
  const int64_t R = net.size.R, last = net.M - 1;
  for (int64_t l = 0; l < last; ++l) add_direction(R, net.rc + l * R, net.rD + l * 3 * R, m.by_ray + l * R);
  add_direction(3, net.out_c, net.out_D, m.by_ray + last * R);
  return ray;
}

template <class T>
struct SectionOpacity {
  Vec<T> cosine, half;
  math::Opacity<Vec<T>> opacity;
};

template <class T, class Sizes>
MIM4D_HD SectionOpacity<T> section(const SdfMarchParams<T>& p, const Net<T, Sizes>& net, const Ray<T>& ray,
                                   const Tape<T, Sizes>& tape, Vec<T> delta) {
  const Vec<T>* const normal = tape.normal(net.size);
  const Vec<T> cosine = Vec<T>(ray.direction[0]) * normal[0] + Vec<T>(ray.direction[1]) * normal[1] +
                        Vec<T>(ray.direction[2]) * normal[2];
  const Vec<T> half = math::fall(cosine, Vec<T>(p.cos_anneal)) * delta * Vec<T>(T(0.5));
  return {cosine, half, math::opacity(tape.sdf[0], half, Vec<T>(p.inv_s))};
}

template <class T, class Sizes>
MIM4D_HD void locate_register(const SdfMarchParams<T>& p, const RayMemory<T, Sizes>& m, const Ray<T>& ray, int64_t i) {
  auto& at = *m.stencil(i / m.n);
  const Vec<T> t = Vec<T>::load(m.t + i);
  MIM4D_UNROLL
  for (int d = 0; d < 3; ++d) at.position[d] = fma_(Vec<T>(ray.direction[d]), t, Vec<T>(ray.origin[d]));
  at.locate(p, ray.item);
}

// Samples [i, i + width) of a ray: fills the tape and alpha. No light reaches them if not `lit`, and then their colour
// stays unknown.
template <bool keep, class T, class Sizes>
MIM4D_HD void march_register(const SdfMarchParams<T>& p, const Net<T, Sizes>& net, const RayMemory<T, Sizes>& m,
                             const Ray<T>& ray, int64_t i, bool lit, const Tape<T, Sizes>& tape) {
  if (i == 0) locate_register(p, m, ray, i);
  if (i + m.n < p.S) locate_register(p, m, ray, i + m.n);
  sdf_forward<keep>(net, p.C, tape, m.scratch);
  normal_forward(net, p.C, tape, m.scratch);
  if (lit) colour_forward(net, m.by_ray, tape, m.scratch);
  section(p, net, ray, tape, Vec<T>::load(m.delta + i)).opacity.alpha.store(m.alpha + i);
}

// Transmittances and weights of the samples [i, i + count); `through` is the light that reaches the first, then what
// passes the last.
template <class T, class Sizes>
void composite(const RayMemory<T, Sizes>& m, int64_t i, int64_t count, T& through) {
  for (int64_t j = i; j < i + count; ++j) {
    m.transmittance[j] = through;
    m.weight[j] = through * m.alpha[j];
    through = through * math::passed(m.alpha[j]);
  }
}

template <class T, class Sizes>
void forward(const SdfMarchParams<T>& p, T* packed, T* memory, int64_t begin, int64_t end) {
  constexpr int n = Vec<T>::width;
  const Net<T, Sizes> net(p, packed);
  const RayMemory<T, Sizes> m(p, net, memory, false);
  for (int64_t r = begin; r < end; ++r) {
    const Ray<T> ray = start_ray(p, net, m, r);
    T rgb[3] = {}, total = T(0), moment = T(0), through = T(1);
    for (int64_t i = 0; i < p.S; i += n) {
      const Tape<T, Sizes> tape = m.tape(net, i / n);
      const bool lit = through != T(0);
      march_register<false>(p, net, m, ray, i, lit, tape);
      const int64_t count = p.S - i < n ? p.S - i : n;
      composite(m, i, count, through);
      store_first(p.sdf + r * p.S + i, tape.sdf[0], static_cast<int>(count));
      const T* const normal = reinterpret_cast<const T*>(tape.normal(net.size));
      const T* const colour = reinterpret_cast<const T*>(tape.colour);
      T* const gradient = p.gradient + (r * p.S + i) * 3;
      for (int64_t j = 0; j < count; ++j) {
        const T weight = m.weight[i + j];
        p.weights[r * p.S + i + j] = weight;
        total = total + weight;
        moment = moment + weight * m.t[i + j];
        for (int k = 0; k < 3; ++k) gradient[3 * j + k] = normal[k * n + j];
        if (lit)
          for (int k = 0; k < 3; ++k) rgb[k] = rgb[k] + weight * colour[k * n + j];
      }
    }
    for (int k = 0; k < 3; ++k) p.rgb[3 * r + k] = rgb[k];
    p.opacity[r] = total;
    p.depth[r] = moment / (total + T(1e-10));
  }
}

// The first `count` values of every `stride`-th from p on; none where p is null.
template <class T>
Vec<T> load_cotangent(const T* p, int64_t stride, int64_t count) {
  alignas(64) T lane[Vec<T>::width] = {};
  if (p)
    for (int64_t j = 0; j < count; ++j) lane[j] = p[j * stride];
  return Vec<T>::load(lane);
}

// weight_bar, then in its place alpha_bar. No light reaches samples from `lit` on.
template <class T, class Sizes>
void composite_backward(const SdfMarchParams<T>& p, const SdfMarchAdjoint<T>& a, const Net<T, Sizes>& net,
                        const RayMemory<T, Sizes>& m, int64_t r, int64_t lit, const T (&rgb_bar)[3]) {
  constexpr int n = Vec<T>::width;
  T total = T(0), moment = T(0);
  for (int64_t i = 0; i < lit; ++i) {
    total = total + m.weight[i];
    moment = moment + m.weight[i] * m.t[i];
  }
  const T depth = moment / (total + T(1e-10));
  const T opacity_bar = a.opacity ? a.opacity[r] : T(0);
  const T moment_bar = a.depth ? a.depth[r] / (total + T(1e-10)) : T(0);
  for (int64_t i = 0; i < lit; i += n) {
    const Vec<T>* const colour = m.tape(net, i / n).colour;
    Vec<T> bar = (Vec<T>::load(m.t + i) - Vec<T>(depth)) * Vec<T>(moment_bar) + Vec<T>(opacity_bar);
    for (int k = 0; k < 3; ++k) bar = fma_(Vec<T>(rgb_bar[k]), colour[k], bar);
    bar.store(m.weight_bar + i);
  }
  T behind = T(0);
  for (int64_t i = lit - 1; i >= 0; --i) {
    const T bar = m.weight_bar[i] + (a.weights ? a.weights[r * p.S + i] : T(0));
    m.weight_bar[i] = math::composite_adjoint(m.alpha[i], m.transmittance[i], bar, behind);
  }
  for (int64_t i = lit; i < m.registers * n; ++i) m.weight[i] = m.weight_bar[i] = T(0);
}

// Inputs that the gradients of the colour decoder's weights see beside feature and z.
template <class T, class Sizes>
MIM4D_HD void extra_rows(const Net<T, Sizes>& net, const Ray<T>& ray, const Tape<T, Sizes>& tape,
                         const Scratch<T, Sizes>& s) {
  Vec<T> value[kExtra<T>];
  clear(value, kExtra<T>);
  value[kOne] = Vec<T>(T(1));
  for (int d = 0; d < 3; ++d) {
    value[d] = tape.normal(net.size)[d];
    value[kPosition + d] = tape.condition[d];
    value[kDirection + d] = Vec<T>(ray.direction[d]);
  }
  transpose_tiles(value, kExtra<T>, s.extra);
}

// Samples [i, i + width) of a ray, back: adds to the sums and to the ray's cotangents, fills the batch.
template <class T, class Sizes>
MIM4D_HD void march_register_back(const SdfMarchParams<T>& p, const SdfMarchAdjoint<T>& a, const Net<T, Sizes>& net,
                                  const NetGrads<T, Sizes>& grads, const RayMemory<T, Sizes>& m, const Ray<T>& ray,
                                  int64_t i, bool lit, const T (&rgb_bar)[3], const SampleBatch<T>& batch,
                                  Vec<T> (&origin_bar)[3], Vec<T> (&direction_bar)[3]) {
  constexpr int n = Vec<T>::width;
  const Tape<T, Sizes> tape = m.tape(net, i / n);
  const Scratch<T, Sizes>& s = m.scratch;
  const int64_t count = p.S - i < n ? p.S - i : n, first = ray.index * p.S + i;

  const Vec<T> delta = Vec<T>::load(m.delta + i), weight = Vec<T>::load(m.weight + i);
  const SectionOpacity<T> at = section(p, net, ray, tape, delta);
  const auto by_alpha =
      math::opacity_adjoint(at.opacity, tape.sdf[0], at.half, Vec<T>(p.inv_s), Vec<T>::load(m.weight_bar + i));
  grads.inv_s[0] = grads.inv_s[0] + by_alpha.inv_s;
  const Vec<T> cosine_bar = by_alpha.half * delta * Vec<T>(T(0.5)) * math::fall_slope(at.cosine, Vec<T>(p.cos_anneal));
  Cotangents<T> bar;
  bar.sdf = by_alpha.sdf + load_cotangent(a.sdf ? a.sdf + first : nullptr, 1, count);
  for (int d = 0; d < 3; ++d) {
    bar.colour[d] = Vec<T>(rgb_bar[d]) * weight;
    bar.normal[d] = fma_(cosine_bar, Vec<T>(ray.direction[d]),
                         load_cotangent(a.gradient ? a.gradient + 3 * first + d : nullptr, 3, count));
  }

  if (lit) {
    const bool wanted = a.rgb_net || a.sdf_net;  // the SDF decoder's geometry features are part of the colour's layers
    if (wanted) extra_rows(net, ray, tape, s);
    colour_backward(net, grads, wanted, tape, s, bar);
  } else {
    clear(s.rx_bar, net.outputs());
    clear(s.condition_bar, net.size.C + net.size.H);
  }
  Vec<T> v_cells[3];
  for (int d = 0; d < 3; ++d) v_cells[d] = tape.at->slope[d] * bar.normal[d];
  tangent(net, p.C, tape, s, bar.normal, v_cells);
  sdf_backward(net, grads, a.sdf_net, tape, s, bar.sdf);

  const int64_t C = net.size.C;
  if (a.grad_volume || a.grad_origins || a.grad_directions) transpose_tiles(s.condition_bar, C, s.wide);
  if (a.grad_origins || a.grad_directions) {
    RayCotangents<T> by_ray;
    ray_backward(net, p.C, tape, s, v_cells, by_ray);
    const Vec<T> t = Vec<T>::load(m.t + i);
    for (int d = 0; d < 3; ++d) {
      origin_bar[d] = origin_bar[d] + by_ray.position[d];
      direction_bar[d] =
          direction_bar[d] + by_ray.direction[d] + by_ray.position[d] * t + cosine_bar * tape.normal(net.size)[d];
    }
  }
  if (a.grad_volume) {
    const int64_t place = first - batch.first_ray * p.S;
    alignas(64) T t[3][n], v[3][n];
    for (int d = 0; d < 3; ++d) {
      tape.at->t[d].store(t[d]);
      v_cells[d].store(v[d]);
    }
    for (int64_t j = 0; j < count; ++j) {
      const auto& at = tape.at->first;
      batch.cells[place + j] = {at[0][j], at[1][j], at[2][j], {t[0][j], t[1][j], t[2][j]}, {v[0][j], v[1][j], v[2][j]}};
      T* const row = batch.rows + (place + j) * 2 * C;
      for (int64_t c = 0; c < C; c += n) {
        s.wide[c + j].store(row + c);
        tape.q_rows[c + j].store(row + C + c);
      }
    }
  }
}

template <class T, class Sizes>
void backward(const SdfMarchParams<T>& p, const SdfMarchAdjoint<T>& a, T* packed, T* memory, T* sums,
              const SampleBatch<T>& batch, int64_t begin, int64_t end) {
  constexpr int n = Vec<T>::width;
  const Net<T, Sizes> net(p, packed);
  const NetGrads<T, Sizes> grads(p, reinterpret_cast<Vec<T>*>(sums));
  const RayMemory<T, Sizes> m(p, net, memory, true);
  for (int64_t r = begin; r < end; ++r) {
    const Ray<T> ray = start_ray(p, net, m, r);
    // Samples that no light reaches matter through losses on the field itself alone.
    const int64_t seen = a.sdf || a.gradient ? p.S : 0;
    int64_t lit = 0, done = 0;  // samples
    T through = T(1);
    for (; done < p.S && (through != T(0) || done < seen); done += n) {
      const bool light = through != T(0);
      march_register<true>(p, net, m, ray, done, light, m.tape(net, done / n));
      const int64_t count = p.S - done < n ? p.S - done : n;
      composite(m, done, count, through);
      if (light) lit = done + count;
    }
    T rgb_bar[3];
    for (int k = 0; k < 3; ++k) rgb_bar[k] = a.rgb ? a.rgb[3 * r + k] : T(0);
    composite_backward(p, a, net, m, r, lit, rgb_bar);
    Vec<T> origin_bar[3], direction_bar[3];
    clear(origin_bar, 3);
    clear(direction_bar, 3);
    for (int64_t i = 0; i < done; i += n)
      march_register_back(p, a, net, grads, m, ray, i, i < lit, rgb_bar, batch, origin_bar, direction_bar);
    if (a.grad_volume)
      for (int64_t i = done; i < p.S; ++i) batch.cells[(r - batch.first_ray) * p.S + i].x = kNowhere;
    for (int d = 0; d < 3; ++d) {
      if (a.grad_origins) a.grad_origins[3 * r + d] = sum(origin_bar[d]);
      if (a.grad_directions) a.grad_directions[3 * r + d] = sum(direction_bar[d]);
    }
  }
}

// ---- the table

template <class T>
SdfMarchMemory memory(const SdfMarchParams<T>& p, bool backward) {
  return with_sizes(p, [&](auto sizes) {
    using Sizes = decltype(sizes);
    constexpr int64_t n = Vec<T>::width;
    const Net<T, Sizes> net(p, nullptr);
    return SdfMarchMemory{net.count, RayMemory<T, Sizes>(p, net, nullptr, backward).count,
                          NetGrads<T, Sizes>(p, nullptr).count * n, 2 * net.size.C};
  });
}

template <class T>
void pack(const SdfMarchParams<T>& p, const Folded& folded, T* net) {
  with_sizes(p, [&](auto sizes) { Net<T, decltype(sizes)>(p, net).pack(folded); });
}

template <class T>
void forward_any(const SdfMarchParams<T>& p, T* net, T* thread, int64_t begin, int64_t end) {
  with_sizes(p, [&](auto sizes) { forward<T, decltype(sizes)>(p, net, thread, begin, end); });
}

template <class T>
void backward_any(const SdfMarchParams<T>& p, const SdfMarchAdjoint<T>& a, T* net, T* thread, T* sums,
                  const SampleBatch<T>& batch, int64_t begin, int64_t end) {
  with_sizes(p, [&](auto sizes) { backward<T, decltype(sizes)>(p, a, net, thread, sums, batch, begin, end); });
}

template <class T>
void unpack(const SdfMarchParams<T>& p, T* sums, const Folded& gradients, double* inv_s) {
  with_sizes(p, [&](auto sizes) {
    NetGrads<T, decltype(sizes)>(p, reinterpret_cast<Vec<T>*>(sums)).unpack(gradients, inv_s);
  });
}

template <class T>
void add_slices_any(const SdfMarchParams<T>& p, const SampleBatch<T>& batch, const SampleLists<T>& lists, bool fresh,
                    T* grad_volume, int64_t begin, int64_t end) {
  add_slices(p, batch, lists, round_up(p.C, kTile<T>), fresh, grad_volume, begin, end);
}

template <class T>
constexpr SdfMarchCpu<T> table = {memory<T>, pack<T>,  forward_any<T>, backward_any<T>,
                                  unpack<T>, count<T>, place<T>,       add_slices_any<T>};

}  // namespace

extern const SdfMarchCpu<float> sdf_march_float = table<float>;
extern const SdfMarchCpu<double> sdf_march_double = table<double>;

}  // namespace mim4d::MIM4D_ISA
