// Derivatives beyond the first gradient on a GPU: what points and grad get back from the gradients of
// voxel_sample_backward, and points from features and Jacobian. What the volume gets back is a scatter with linear
// axes; with cubic ones it gathers, in gather.cu.

#include "voxel_sample/stencil.cuh"

namespace mim4d {
namespace {

// The cotangent of the Jacobian: as it is given, or that which stands for the gradient of the points, q g.
template <int V, class T>
__device__ __forceinline__ void load_columns(const VoxelSampleParams<T>& p, int64_t row, const T (&q)[3],
                                             const T (&g)[V], T (&columns)[V][3]) {
  if (p.grad_jacobian) {
    load_triples<V>(p.grad_jacobian + 3 * row, columns);
  } else {
#pragma unroll
    for (int k = 0; k < 3 * V; ++k) columns[k / 3][k % 3] = q[k % 3] * g[k / 3];
  }
}

template <class T>
__device__ __forceinline__ void load_direction(const VoxelSampleParams<T>& p, int64_t point, T (&q)[3]) {
#pragma unroll
  for (int d = 0; d < 3; ++d) q[d] = p.grad_grad_points ? p.grad_grad_points[3 * point + d] : T(0);
}

// grad reads `level`, the columns read the volume: of features and Jacobian both are the volume, of a double backward
// `level` is the cotangent of the volume's gradient. A part whose cotangent is missing reads nothing.
template <class S, class T, int K, int V>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 8 || K * V > 8 ? 1 : 2)
    voxel_sample_second_points_kernel(VoxelSampleParams<S, T> p, int lane_bits) {
  const bool doubled = p.grad_grad_volume || p.grad_grad_points;
  const T* level = doubled ? p.grad_grad_volume : p.grad ? p.volume : nullptr;
  const T* bent = p.grad_jacobian || p.grad_grad_points ? p.volume : nullptr;
  const Place at = place(lane_bits);
  for (int64_t item = blockIdx.y; item < p.B; item += gridDim.y) {
    const int64_t point = item * p.N + at.point;
    T slope[3] = {T(0), T(0), T(0)}, q[3] = {T(0), T(0), T(0)};
    Stencil<T, K> s{};
    if (at.point < p.N) {
      s = locate<K>(p, item, point);
      load_direction(p, point, q);
    }
    for (int64_t c = at.lane * V; s.touches() && c < p.C && (level || bent); c += at.lanes * V) {
      T g[V], columns[V][3];
      load_if<V>(p.grad != nullptr, p.grad + point * p.C + c, g);
      load_columns<V>(p, point * p.C + c, q, g, columns);
      for_slices(p, s, [&](const math::Taps<T, 1>& z, unsigned rows, int64_t offset) {
        T v[K * K][V];  // of each tap of the slice
        const auto load = [&](const T* from) {
#pragma unroll
          for (int k = 0; k < K * K; ++k)
            load_if<V>(rows >> k / K & s.in(0) >> k % K & 1u, from + offset + (k / K * p.X + k % K) * p.C + c, v[k]);
        };
        load(bent ? bent : level);
        if (bent) {
#pragma unroll
          for (int d = 0; d < 3; ++d) {
            const auto product = [&](int k) {
              T sum = T(0);
#pragma unroll
              for (int i = 0; i < V; ++i) sum += columns[i][d] * v[k][i];
              return sum;
            };
            const T unit[3] = {T(d == 0), T(d == 1), T(d == 2)};
            math::add_curvature(s.x, s.y, z, product, unit, slope);
          }
        }
        if (level) {
          if (bent && bent != level) load(level);
          const auto product = [&](int k) {
            T sum = T(0);
#pragma unroll
            for (int i = 0; i < V; ++i) sum += g[i] * v[k][i];
            return sum;
          };
          math::add_gradient(s.x, s.y, z, product, slope);
        }
      });
    }
    store_slope(p, at, s, point, slope);
  }
}

// The volume is read with the derivative of the weights along q, the cotangent of its gradient with the weights.
template <class S, class T, int K, int V>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 8 ? 1 : 2)
    voxel_sample_second_grad_kernel(VoxelSampleParams<S, T> p, int lane_bits) {
  const Place at = place(lane_bits);
  if (at.point >= p.N) return;
  for (int64_t item = blockIdx.y; item < p.B; item += gridDim.y) {
    const int64_t point = item * p.N + at.point;
    const Stencil<T, K> s = locate<K>(p, item, point);
    T q[3];
    load_direction(p, point, q);
    for (int64_t c = at.lane * V; c < p.C; c += at.lanes * V) {
      T sum[V];
#pragma unroll
      for (int i = 0; i < V; ++i) sum[i] = T(0);
      for_slices(p, s, [&](const math::Taps<T, 1>& z, unsigned rows, int64_t offset) {
        for_rows(p, s, rows, offset, [&](int iy, int64_t row, unsigned in) {
          const T along_w = q[1] * z.w[0] * s.y.d[iy] + q[2] * z.d[0] * s.y.w[iy], both = z.w[0] * s.y.w[iy];
          T w[V], d[V];
          if (p.grad_grad_points) {
            along_x(s, p.volume + row + c, p.C, in, w, d);
#pragma unroll
            for (int i = 0; i < V; ++i) sum[i] += along_w * w[i] + q[0] * both * d[i];
          }
          if (p.grad_grad_volume) {
            along_x(s, p.grad_grad_volume + row + c, p.C, in, w, d);
#pragma unroll
            for (int i = 0; i < V; ++i) sum[i] += both * w[i];
          }
        });
      });
      store_pack(p.grad_grad + point * p.C + c, sum);
    }
  }
}

// grad_volume += weights x grad (of features) + derivatives of the weights x columns, for linear axes
template <class T, int V>
__global__ void __launch_bounds__(kThreads, 2)
    voxel_sample_second_volume_kernel(VoxelSampleParams<T> p, int lane_bits) {
  const Place at = place(lane_bits);
  if (at.point >= p.N) return;
  for (int64_t item = blockIdx.y; item < p.B; item += gridDim.y) {
    const int64_t point = item * p.N + at.point;
    const Stencil<T, 2> s = locate<2>(p, item, point);
    if (!s.touches()) continue;
    T q[3];
    load_direction(p, point, q);
    for (int64_t c = at.lane * V; c < p.C; c += at.lanes * V) {
      T g[V], columns[V][3];
      load_if<V>(p.grad != nullptr, p.grad + point * p.C + c, g);
      load_columns<V>(p, point * p.C + c, q, g, columns);
      const T features = p.grad_grad_points ? T(0) : T(1);
      for_slices(p, s, [&](const math::Taps<T, 1>& z, unsigned rows, int64_t offset) {
        for_rows(p, s, rows, offset, [&](int iy, int64_t row, unsigned in) {
          const T w = z.w[0] * s.y.w[iy], dy = z.w[0] * s.y.d[iy], dz = z.d[0] * s.y.w[iy];
#pragma unroll
          for (int ix = 0; ix < 2; ++ix) {
            if (!(in >> ix & 1u)) continue;
            T add[V];
#pragma unroll
            for (int i = 0; i < V; ++i)
              add[i] = s.x.w[ix] * (w * features * g[i] + dy * columns[i][1] + dz * columns[i][2]) +
                       s.x.d[ix] * w * columns[i][0];
            atomic_add_pack(p.grad_volume + row + ix * p.C + c, add);
          }
        });
      });
    }
  }
}

}  // namespace

template <class T>
cudaError_t launch_voxel_sample_second_points(const VoxelSampleParams<T>& p, cudaStream_t stream) {
  if constexpr (sizeof(T) == 8) {  // the products of 16 taps in double leave no registers for a second channel
    if (p.cubic()) return launch_points(voxel_sample_second_points_kernel<T, T, 4, 1>, p, 1, stream);
    return packs_fit(p) ? launch_points(voxel_sample_second_points_kernel<T, T, 2, kPack<T>>, p, kPack<T>, stream)
                        : launch_points(voxel_sample_second_points_kernel<T, T, 2, 1>, p, 1, stream);
  } else {
    return MIM4D_LAUNCH_POINTS(voxel_sample_second_points_kernel, T, T, p, stream);
  }
}

template <class T>
cudaError_t launch_voxel_sample_second_grad(const VoxelSampleParams<T>& p, cudaStream_t stream) {
  return MIM4D_LAUNCH_POINTS(voxel_sample_second_grad_kernel, T, T, p, stream);
}

template <class T>
cudaError_t launch_voxel_sample_second_volume(const VoxelSampleParams<T>& p, cudaStream_t stream) {
  return packs_fit(p) ? launch_points(voxel_sample_second_volume_kernel<T, kPack<T>>, p, kPack<T>, stream)
                      : launch_points(voxel_sample_second_volume_kernel<T, 1>, p, 1, stream);
}

#define MIM4D_INSTANTIATE(T)                                                                         \
  template cudaError_t launch_voxel_sample_second_points(const VoxelSampleParams<T>&, cudaStream_t); \
  template cudaError_t launch_voxel_sample_second_grad(const VoxelSampleParams<T>&, cudaStream_t);   \
  template cudaError_t launch_voxel_sample_second_volume(const VoxelSampleParams<T>&, cudaStream_t);
MIM4D_INSTANTIATE(float)
MIM4D_INSTANTIATE(double)
#undef MIM4D_INSTANTIATE

#define MIM4D_VOLUME(T, V)                                                                \
  KernelEntry {                                                                           \
    "voxel_sample_second_volume<" #T ", " #V ">",                                         \
        reinterpret_cast<const void*>(&voxel_sample_second_volume_kernel<T, V>), kThreads \
  }
std::span<const KernelEntry> voxel_sample_second_kernels() {
  static const KernelEntry kernels[] = {MIM4D_ENTRIES(second_points, float, float, 4),
                                        MIM4D_ENTRY(second_points, double, double, 2, 2),
                                        MIM4D_ENTRY(second_points, double, double, 2, 1),
                                        MIM4D_ENTRY(second_points, double, double, 4, 1),
                                        MIM4D_ENTRIES(second_grad, float, float, 4),
                                        MIM4D_ENTRIES(second_grad, double, double, 2),
                                        MIM4D_VOLUME(float, 4),
                                        MIM4D_VOLUME(float, 1),
                                        MIM4D_VOLUME(double, 2),
                                        MIM4D_VOLUME(double, 1)};
  return kernels;
}
#undef MIM4D_VOLUME

}  // namespace mim4d
