// Voxels that look themselves up in the images, on one instruction set. Places are located with voxels as the SIMD
// lanes, read with channels as the lanes.

#include "voxel_pull/cpu.h"

#include "cpu/rows.h"
#include "math/pull.h"

namespace mim4d::MIM4D_ISA {
namespace {

template <class T>
using Params = VoxelPullCpuParams<T>;

// One number for each of a block's voxels.
template <class T>
struct Lanes {
  alignas(64) T at[Vec<T>::width];

  MIM4D_HD void operator=(Vec<T> x) { x.store(at); }
};

// The two taps of one axis for a block of voxels.
template <class T>
struct AxisLanes {
  Lanes<T> first, from, to, w[2], d[2];

  MIM4D_HD void operator=(const math::Taps<Vec<T>, 2>& taps) {
    first = taps.first, from = taps.from, to = taps.to;
    MIM4D_UNROLL
    for (int k = 0; k < 2; ++k) w[k] = taps.w[k], d[k] = taps.d[k];
  }
  MIM4D_HD math::Taps<T, 2> operator[](int j) const {
    return {first.at[j], from.at[j], to.at[j], {w[0].at[j], w[1].at[j]}, {d[0].at[j], d[1].at[j]}, {}, T(0), T(1)};
  }
};

// Up to `width` places of one camera.
template <class T>
struct Places {
  static constexpr int width = Vec<T>::width;
  using V = Vec<T>;

  V u[3];
  alignas(64) int32_t seen[width];
  AxisLanes<T> x, y, z;

  // Of the places [i, i + n); whether any of them is seen.
  MIM4D_HD bool load(const Params<T>& p, int64_t i, int n) {
    if (n == width)
      load_triples(p.uvd + 3 * i, u[0], u[1], u[2]);
    else
      load_first_triples(p.uvd + 3 * i, u[0], u[1], u[2], n);
    V all(T(1));
    MIM4D_UNROLL
    for (int d = 0; d < 3; ++d) all = select((u[d] > V(T(-1))) & (u[d] < V(T(1))), all, V(T(0)));
    store_int(seen, all);
    for (int j = n; j < width; ++j) seen[j] = 0;
    int any = 0;
    MIM4D_UNROLL
    for (int j = 0; j < width; ++j) any |= seen[j];
    return any != 0;
  }

  MIM4D_HD void locate(const Params<T>& p, const VoxelPullLevel<T>& level) {
    const auto at = math::pull_taps(u[0], u[1], u[2], V(T(level.W)), V(T(level.H)), V(T(p.D)));
    x = at.x, y = at.y, z = at.z;
  }
  MIM4D_HD math::PullTaps<T> operator[](int j) const { return {x[j], y[j], z[j]}; }
};

// Where a camera's map has the first tap of a place, in it or not.
template <class T>
MIM4D_HD int64_t first_pixel(const math::PullTaps<T>& at, int64_t W) {
  return static_cast<int64_t>(at.y.first) * W + static_cast<int64_t>(at.x.first);
}

// f(item, first voxel, how many) for blocks of the voxels [begin, end) of all items, each of V
template <class T, class F>
MIM4D_HD void for_blocks(int64_t V, int64_t begin, int64_t end, F&& f) {
  constexpr int width = Vec<T>::width;
  for (int64_t i = begin; i < end;) {
    const int64_t item = i / V, stop = end < (item + 1) * V ? end : (item + 1) * V;
    for (; i < stop; i += width) f(item, i - item * V, stop - i < width ? static_cast<int>(stop - i) : width);
    i = stop;
  }
}

template <class T>
void forward(const Params<T>& p, int64_t begin, int64_t end, T* out, PulledRow<T>* scratch) {
  constexpr int width = Vec<T>::width;
  const int64_t room = p.N * p.levels * 4;
  for_blocks<T>(p.V, begin, end, [&](int64_t item, int64_t voxel, int n) {
    int64_t count[width] = {};
    for (int64_t camera = item * p.N; camera < (item + 1) * p.N; ++camera) {
      Places<T> places;
      if (!places.load(p, camera * p.V + voxel, n)) continue;
      for (int64_t l = 0; l < p.levels; ++l) {
        const VoxelPullLevel<T>& level = p.level[l];
        const int64_t area = level.H * level.W;
        places.locate(p, level);
        for (int j = 0; j < n; ++j) {
          if (!places.seen[j]) continue;
          const math::PullTaps<T> at = places[j];
          T slope[3];
          const T depth = math::read_depth<false>(at, level.depth + camera * p.D * area, level.H, level.W, slope);
          const int64_t first = camera * area + first_pixel(at, level.W);
          math::for_pixels(at, [&](int iy, int ix) {
            scratch[j * room + count[j]++] = {level.features + (first + iy * level.W + ix) * p.C,
                                              at.y.w[iy] * at.x.w[ix] * depth};
          });
        }
      }
    }
    for (int j = 0; j < n; ++j, out += p.C) {
      const PulledRow<T>* pulled = scratch + j * room;
      for_widest_row<T>(p.C, [&](int64_t c, auto lanes) {
        auto sum = lanes.all(T(0));
        for (int64_t k = 0; k < count[j]; ++k) sum = sum + Vec<T>(pulled[k].weight) * lanes.load(pulled[k].row + c);
        lanes.store(out + c, sum);
      });
    }
  });
}

template <class T>
MIM4D_HD void clear(T* row, int64_t n) {
  for_wide_row<T>(n, [&](int64_t c, auto lanes) { lanes.store(row + c, lanes.all(T(0))); });
}

// Each band is written by one thread, voxel by voxel in their order, and places that reach over its edge are computed
// twice: the same bits for any number of bands.
template <class T>
void backward_maps(const Params<T>& p, const PullBand& band) {
  const VoxelPullLevel<T>& level = p.level[band.level];
  const int64_t H = level.H, W = level.W, item = band.camera / p.N;
  const T* features = level.features + band.camera * H * W * p.C;
  T* grad_features = level.grad_features ? level.grad_features + band.camera * H * W * p.C : nullptr;
  const T* depth = level.depth + band.camera * p.D * H * W;
  T* grad_depth = level.grad_depth ? level.grad_depth + band.camera * p.D * H * W : nullptr;
  if (grad_features) clear(grad_features + band.y_begin * W * p.C, (band.y_end - band.y_begin) * W * p.C);
  for (int64_t z = 0; grad_depth && z < p.D; ++z)
    clear(grad_depth + (z * H + band.y_begin) * W, (band.y_end - band.y_begin) * W);

  for_blocks<T>(p.V, 0, p.V, [&](int64_t, int64_t voxel, int n) {
    Places<T> places;
    if (!places.load(p, band.camera * p.V + voxel, n)) return;
    places.locate(p, level);
    for (int j = 0; j < n; ++j) {
      const int64_t y0 = static_cast<int64_t>(places.y.first.at[j]);
      if (!places.seen[j] || y0 + 1 < band.y_begin || y0 >= band.y_end) continue;
      const math::PullTaps<T> at = places[j];
      const int64_t first = first_pixel(at, W);
      const auto mine = [&](int iy) { return y0 + iy >= band.y_begin && y0 + iy < band.y_end; };
      const T* grad = p.grad + (item * p.V + voxel + j) * p.C;
      T slope[3];
      const T D = grad_features ? math::read_depth<false>(at, depth, H, W, slope) : T(0);
      Vec<T> lanes_of_dot(T(0));
      for_wide_row<T>(p.C, [&](int64_t c, auto lanes) {
        const auto g = lanes.load(grad + c);
        auto read = lanes.all(T(0));
        math::for_pixels(at, [&](int iy, int ix) {
          const int64_t pixel = (first + iy * W + ix) * p.C + c;
          const Vec<T> w(at.y.w[iy] * at.x.w[ix]);
          if (grad_depth) read = read + w * lanes.load(features + pixel);
          if (grad_features && mine(iy)) {
            T* to = grad_features + pixel;
            lanes.store(to, lanes.load(to) + (w * Vec<T>(D)) * g);
          }
        });
        lanes_of_dot = lanes_of_dot + product(read, g);
      });
      if (!grad_depth) continue;
      const T dot = sum(lanes_of_dot);
      for (int iz = 0; iz < 2; ++iz) {
        if (!math::inside(at.z, iz)) continue;
        T* slice = grad_depth + (static_cast<int64_t>(at.z.first) + iz) * H * W + first;
        math::for_pixels(at, [&](int iy, int ix) {
          if (mine(iy)) slice[iy * W + ix] += at.z.w[iz] * at.y.w[iy] * at.x.w[ix] * dot;
        });
      }
    }
  });
}

template <class T>
void backward_places(const Params<T>& p, int64_t begin, int64_t end) {
  for_blocks<T>(p.V, begin, end, [&](int64_t camera, int64_t voxel, int n) {
    T* slopes = p.grad_uvd + (camera * p.V + voxel) * 3;
    for (int i = 0; i < 3 * n; ++i) slopes[i] = T(0);
    Places<T> places;
    if (!places.load(p, camera * p.V + voxel, n)) return;
    const T* grads = p.grad + (camera / p.N * p.V + voxel) * p.C;
    for (int64_t l = 0; l < p.levels; ++l) {
      const VoxelPullLevel<T>& level = p.level[l];
      const int64_t area = level.H * level.W;
      places.locate(p, level);
      for (int j = 0; j < n; ++j) {
        if (!places.seen[j]) continue;
        const math::PullTaps<T> at = places[j];
        const int64_t first = camera * area + first_pixel(at, level.W);
        Vec<T> part[4] = {T(0), T(0), T(0), T(0)};
        for_wide_row<T>(p.C, [&](int64_t c, auto lanes) {
          const auto g = lanes.load(grads + j * p.C + c);
          math::for_pixels(at, [&](int iy, int ix) {
            const auto row = lanes.load(level.features + (first + iy * level.W + ix) * p.C + c);
            part[2 * iy + ix] = part[2 * iy + ix] + product(row, g);
          });
        });
        T dot[4], d[3], slope[3] = {T(0), T(0), T(0)};
        for (int k = 0; k < 4; ++k) dot[k] = sum(part[k]);
        const T depth = math::read_depth<true>(at, level.depth + camera * p.D * area, level.H, level.W, d);
        math::add_pull_gradient(at, dot, depth, d, slope);
        for (int i = 0; i < 3; ++i) slopes[3 * j + i] += slope[i];
      }
    }
  });
}

}  // namespace

extern const VoxelPullCpu<float> voxel_pull_float = {forward<float>, Vec<float>::width, backward_maps<float>,
                                                     backward_places<float>};
extern const VoxelPullCpu<double> voxel_pull_double = {forward<double>, Vec<double>::width, backward_maps<double>,
                                                       backward_places<double>};

}  // namespace mim4d::MIM4D_ISA
