// The gradient of value on a GPU without one global atomic a cell and point. A warp keeps a part of a map in shared
// memory, each lane its own channel: it adds by plain loads and stores, for the float atomics of shared memory are
// loops.

#include "ms_deform_attn/deform.cuh"

namespace mim4d {
namespace {

constexpr unsigned kAll = 0xffffffffu;
constexpr int kWarp = 32;  // lanes, and channels at a time

// ---- by tiles of queries

// Of the window of a tile: with 32 channels no more than 32 KB. A tile of 8 queries, and 4 cells to each side of it.
template <class T>
constexpr int kSide = sizeof(T) == 4 ? 16 : 11;

// Point number i of the points that a tile has on a level
template <class T, class P>
__device__ __forceinline__ Point<T> tile_point(const P& p, const Level* levels, int l, int64_t item, int64_t head,
                                               const Tile& tile, int64_t i) {
  const int64_t query = tile.query(static_cast<int>(i / p.P));
  if (query < 0) return no_point<T>();
  return locate<T>(p, levels[l], (((item * p.Q + query) * p.M + head) * p.L + l) * p.P + i % p.P);
}

// Where the window begins: around the middle of the points, wherever these look.
struct Corner {
  int x, y;

  __device__ bool holds(int column, int row, int side) const {
    return static_cast<unsigned>(column - x) < static_cast<unsigned>(side) &&
           static_cast<unsigned>(row - y) < static_cast<unsigned>(side);
  }
};

template <class T, class P>
__device__ __forceinline__ Corner lay_window(const P& p, const Level* levels, int l, int64_t item, int64_t head,
                                             const Tile& tile, int64_t points) {
  float x = 0, y = 0, count = 0;
  for (int64_t i = threadIdx.x; i < points; i += kWarp) {
    const Point<T> at = tile_point<T>(p, levels, l, item, head, tile, i);
    if (at.x == math::kNoCell) continue;
    x += static_cast<float>(at.x), y += static_cast<float>(at.y), count += 1;
  }
  x = group_sum(x, kWarp), y = group_sum(y, kWarp), count = fmaxf(group_sum(count, kWarp), 1.f);
  constexpr float half = (kSide<T> - 2) / 2.f;
  return {static_cast<int>(floorf(x / count - half + 0.5f)), static_cast<int>(floorf(y / count - half + 0.5f))};
}

// The window to grad_value, four channels a lane
template <class T, class P>
__device__ __forceinline__ void flush_window(const P& p, const T* window, const Level& level, const Corner& corner,
                                             T* to, int64_t channel) {
  constexpr int V = 4, parts = kWarp / V;
  for (int i = threadIdx.x; i < kSide<T> * kSide<T> * parts; i += kWarp) {
    const int cell = i / parts, y = corner.y + cell / kSide<T>, x = corner.x + cell % kSide<T>;
    const int64_t c = channel + i % parts * V;
    if (x < 0 || y < 0 || x >= level.W || y >= level.H || c >= p.D) continue;
    T sum[V];
    bool any = false;
#pragma unroll
    for (int k = 0; k < V; ++k) sum[k] = window[cell * kWarp + i % parts * V + k], any = any || sum[k] != T(0);
    if (!any) continue;
    T* const at = to + (level.start + static_cast<int64_t>(y) * level.W + x) * p.M * p.D + c;
    if (p.D % V == 0) {
      atomic_add_pack(at, sum);
    } else {
#pragma unroll
      for (int k = 0; k < V; ++k)
        if (c + k < p.D) atomicAdd(at + k, sum[k]);
    }
  }
}

template <class S, class T>
__global__ void __launch_bounds__(kWarp) ms_deform_attn_window_kernel(MsDeformAttnCudaParams<S, T> p) {
  constexpr int side = kSide<T>;
  MIM4D_DYN_SHARED(T, window);  // [side, side, 32]
  Level* const levels = reinterpret_cast<Level*>(window + side * side * kWarp);
  load_levels(p, levels);
  const int lane = threadIdx.x;
  for_tiles(p, levels, kTile * kTile, [&](int64_t item, int64_t head, const Tile& tile) {
    T* const to = p.grad_value + (item * p.S * p.M + head) * p.D;
    const int64_t points = tile.size * p.P;
    for (int l = 0; l < p.L; ++l) {
      const Level level = levels[l];
      const Corner corner = lay_window<T>(p, levels, l, item, head, tile, points);
      for (int64_t channel = 0; channel < p.D; channel += kWarp) {
        const int64_t c = channel + lane;
        for (int cell = 0; cell < side * side; ++cell) window[cell * kWarp + lane] = T(0);
        for (int64_t first = 0; first < points; first += kWarp) {
          const Point<T> own =
              first + lane < points ? tile_point<T>(p, levels, l, item, head, tile, first + lane) : no_point<T>();
          for (unsigned left = __ballot_sync(kAll, own.x != math::kNoCell); left; left &= left - 1) {
            const int k = __ffs(left) - 1;
            const Point<T> at = of_lane(own, k, kWarp);
            const int64_t row = (item * p.Q + tile.query(static_cast<int>((first + k) / p.P))) * p.M + head;
            const T g = c < p.D ? at.a * widen<T>(p.grad[row * p.D + c]) : T(0);
            const Cells<T> cells(at, level);
#pragma unroll
            for (int tap = 0; tap < 4; ++tap) {
              const int x = at.x + (tap & 1), y = at.y + (tap >> 1);
              if (!cells.has(tap)) continue;
              if (corner.holds(x, y, side))
                window[((y - corner.y) * side + x - corner.x) * kWarp + lane] += cells.w[tap] * g;
              else if (c < p.D)
                atomicAdd(to + cells.cell(tap) * p.M * p.D + c, cells.w[tap] * g);
            }
          }
        }
        __syncwarp();  // lanes read what others have summed
        flush_window(p, window, level, corner, to, channel);
        __syncwarp();
      }
    }
  });
}

// ---- by owners

constexpr int kOwners = 4;  // warps of a block: each goes through a quarter of the queries

// Cells of a band: with 32 channels and for each warp of the block 32 KB in all.
template <class T>
constexpr int kBand = 256 / sizeof(T);

// The points of a part of the queries on one level, 32 at a time: lane i takes every 32nd.
struct Walk {
  int64_t query, end, place;  // place: of the point in its row and level

  __device__ Walk(int64_t begin, int64_t end, int64_t P, int lane)
      : query(begin + lane / P), end(end), place(lane % P) {}
  __device__ void next(int64_t P) {
    place += kWarp % P, query += kWarp / P;
    if (place >= P) place -= P, ++query;
  }
};

template <class S, class T>
__global__ void __launch_bounds__(kOwners* kWarp) ms_deform_attn_owner_kernel(MsDeformAttnCudaParams<S, T> p) {
  MIM4D_DYN_SHARED(T, sums);  // [kOwners, kBand, 32]
  Level* const levels = reinterpret_cast<Level*>(sums + kOwners * kBand<T> * kWarp);
  load_levels(p, levels);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  T* const window = sums + warp * kBand<T> * kWarp;
  const int64_t first_query = p.Q * warp / kOwners, last_query = p.Q * (warp + 1) / kOwners;
  const int64_t bands = (p.S + kBand<T> - 1) / kBand<T>, chunks = (p.D + kWarp - 1) / kWarp;
  for (int64_t item = blockIdx.z; item < p.B; item += gridDim.z)
    for (int64_t head = blockIdx.y; head < p.M; head += gridDim.y)
      for (int64_t job = blockIdx.x; job < bands * chunks; job += gridDim.x) {
        const int64_t low = job / chunks * kBand<T>, high = low + kBand<T>, c = job % chunks * kWarp + lane;
        for (int cell = 0; cell < kBand<T>; ++cell) window[cell * kWarp + lane] = T(0);
        for (int l = 0; l < p.L; ++l) {
          const Level level = levels[l];
          if (level.start >= high || level.start + static_cast<int64_t>(level.H) * level.W <= low) continue;
          Walk walk(first_query, last_query, p.P, lane);
          for (bool more = true; more; walk.next(p.P)) {
            Point<T> own = no_point<T>();
            if (walk.query < walk.end)
              own = locate<T>(p, level, (((item * p.Q + walk.query) * p.M + head) * p.L + l) * p.P + walk.place);
            const int64_t from = level.start + static_cast<int64_t>(own.y) * level.W + own.x;
            const bool hit = own.x != math::kNoCell && from < high && from + level.W + 1 >= low;
            more = __any_sync(kAll, walk.query < walk.end);
            for (unsigned left = __ballot_sync(kAll, hit); left; left &= left - 1) {
              const int k = __ffs(left) - 1;
              const Point<T> at = of_lane(own, k, kWarp);
              const int64_t row = (item * p.Q + __shfl_sync(kAll, walk.query, k)) * p.M + head;
              const T g = c < p.D ? at.a * widen<T>(p.grad[row * p.D + c]) : T(0);
              const Cells<T> cells(at, level);
#pragma unroll
              for (int tap = 0; tap < 4; ++tap) {
                const int64_t cell = cells.cell(tap);
                if (cells.has(tap) && cell >= low && cell < high)
                  window[(cell - low) * kWarp + lane] += cells.w[tap] * g;
              }
            }
          }
        }
        __syncthreads();
        for (int i = threadIdx.x; i < kBand<T> * kWarp; i += kOwners * kWarp) {
          const int64_t cell = low + i / kWarp, channel = job % chunks * kWarp + i % kWarp;
          T sum = sums[i];
#pragma unroll
          for (int k = 1; k < kOwners; ++k) sum += sums[k * kBand<T> * kWarp + i];
          if (cell < p.S && channel < p.D) p.grad_value[((item * p.S + cell) * p.M + head) * p.D + channel] = sum;
        }
        __syncthreads();
      }
}

}  // namespace

template <class S, class T>
cudaError_t launch_ms_deform_attn_window(const MsDeformAttnCudaParams<S, T>& p, cudaStream_t stream) {
  const size_t shared = kSide<T> * kSide<T> * kWarp * sizeof(T) + p.L * sizeof(Level);
  return launch(ms_deform_attn_window_kernel<S, T>, tile_grid(p, kTile * kTile), dim3(kWarp), shared, stream, p);
}

template <class S, class T>
cudaError_t launch_ms_deform_attn_owner(const MsDeformAttnCudaParams<S, T>& p, cudaStream_t stream) {
  const size_t shared = kOwners * kBand<T> * kWarp * sizeof(T) + p.L * sizeof(Level);
  dim3 grid = tile_grid(p, 1);
  const int64_t jobs = (p.S + kBand<T> - 1) / kBand<T> * ((p.D + kWarp - 1) / kWarp);
  grid.x = static_cast<unsigned>(std::min<int64_t>(jobs, (int64_t{1} << 31) - 1));
  return launch(ms_deform_attn_owner_kernel<S, T>, grid, dim3(kOwners * kWarp), shared, stream, p);
}

#define MIM4D_INSTANTIATE(S, T)                                                                         \
  template cudaError_t launch_ms_deform_attn_window(const MsDeformAttnCudaParams<S, T>&, cudaStream_t); \
  template cudaError_t launch_ms_deform_attn_owner(const MsDeformAttnCudaParams<S, T>&, cudaStream_t);
MIM4D_INSTANTIATE(float, float)
MIM4D_INSTANTIATE(double, double)
MIM4D_INSTANTIATE(__half, float)
MIM4D_INSTANTIATE(__nv_bfloat16, float)
#undef MIM4D_INSTANTIATE

#define MIM4D_ENTRY(name, S, T, threads)                                                                            \
  KernelEntry {                                                                                                     \
    "ms_deform_attn_" #name "<" #S ">", reinterpret_cast<const void*>(&ms_deform_attn_##name##_kernel<S, T>), int { \
      threads                                                                                                       \
    }                                                                                                               \
  }
#define MIM4D_ENTRIES(name, threads)                                                    \
  MIM4D_ENTRY(name, float, float, threads), MIM4D_ENTRY(name, double, double, threads), \
      MIM4D_ENTRY(name, __half, float, threads), MIM4D_ENTRY(name, __nv_bfloat16, float, threads)

std::span<const KernelEntry> ms_deform_attn_value_kernels() {
  static const KernelEntry kernels[] = {MIM4D_ENTRIES(window, kWarp), MIM4D_ENTRIES(owner, kOwners * kWarp)};
  return kernels;
}

}  // namespace mim4d
