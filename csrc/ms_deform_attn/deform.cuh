#pragma once
// What the CUDA kernels share: the levels, tiles of queries, and the points of a row with the cells that they read.

#include <algorithm>
#include <array>

#include "cuda/launch.cuh"
#include "cuda/pack.cuh"
#include "cuda/reduce.cuh"
#include "math/deform.h"
#include "ms_deform_attn/cuda.h"

namespace mim4d {
namespace {

constexpr int kThreads = 256;  // in a block of the kernels that go by rows
constexpr int kTile = 8;       // queries along the side of a tile

struct Level {
  int H, W;
  int64_t start;
};

// Into shared memory; what does not fit into S becomes a level without cells.
template <class P>
__device__ __forceinline__ void load_levels(const P& p, Level* levels) {
  for (int l = threadIdx.x; l < p.L; l += blockDim.x) {
    const int64_t H = p.shapes ? p.shapes[2 * l] : p.known[l].H, W = p.shapes ? p.shapes[2 * l + 1] : p.known[l].W;
    const int64_t start = p.shapes ? p.starts[l] : p.known[l].start;
    const bool fits = DeformLevel{H, W, start}.exact() && start >= 0 && start <= p.S - H * W;
    levels[l] = fits ? Level{static_cast<int>(H), static_cast<int>(W), start} : Level{0, 0, 0};
  }
  __syncthreads();
}

// ---- queries

// Some queries that one block takes: a square of a map, or neighbours in their order.
struct Tile {
  int64_t base;          // the first query of the map, or of the tile
  int y, x, H, W, size;  // the square's corner and the map's size; H = 0: no square but `size` queries

  // The query number i, or -1
  __device__ int64_t query(int i) const {
    if (H == 0) return i < size ? base + i : -1;
    const int row = y + i / kTile, column = x + i % kTile;
    return row < H && column < W ? base + static_cast<int64_t>(row) * W + column : -1;
  }
};

__device__ __forceinline__ int64_t tiles_along(int n) { return (n + kTile - 1) / kTile; }

// f(item, head, tile) for those of this block; `size`: queries of a tile that is no square.
template <class P, class F>
__device__ __forceinline__ void for_tiles(const P& p, const Level* levels, int size, F&& f) {
  int64_t cells = 0, count = 0;
  for (int l = 0; l < p.grids; ++l) {
    cells += static_cast<int64_t>(levels[l].H) * levels[l].W;
    count += tiles_along(levels[l].H) * tiles_along(levels[l].W);
  }
  const bool squares = p.grids > 0 && cells == p.Q;  // else every query must still be met once
  if (!squares) count = (p.Q + size - 1) / size;
  for (int64_t t = blockIdx.x; t < count; t += gridDim.x) {
    Tile tile{t * size, 0, 0, 0, 0, static_cast<int>(p.Q - t * size < size ? p.Q - t * size : size)};
    if (squares) {
      int64_t number = t, base = 0;
      int l = 0;
      for (; number >= tiles_along(levels[l].H) * tiles_along(levels[l].W); ++l) {
        number -= tiles_along(levels[l].H) * tiles_along(levels[l].W);
        base += static_cast<int64_t>(levels[l].H) * levels[l].W;
      }
      const int across = static_cast<int>(tiles_along(levels[l].W));
      tile = {base,
              static_cast<int>(number / across) * kTile,
              static_cast<int>(number % across) * kTile,
              levels[l].H,
              levels[l].W,
              kTile * kTile};
    }
    for (int64_t item = blockIdx.z; item < p.B; item += gridDim.z)
      for (int64_t head = blockIdx.y; head < p.M; head += gridDim.y) f(item, head, tile);
  }
}

// ---- points

template <class T>
struct Point {
  int x, y;     // the first of its four cells
  T tx, ty, a;  // fractions, and its attention
};

template <class T>
__device__ __forceinline__ Point<T> no_point() {
  return {math::kNoCell, math::kNoCell, T(0), T(0), T(0)};
}

template <class T, class P>
__device__ __forceinline__ Point<T> locate(const P& p, const Level& level, int64_t point) {
  const auto x = math::deform_axis(p.locations[2 * point], static_cast<T>(level.W));
  const auto y = math::deform_axis(p.locations[2 * point + 1], static_cast<T>(level.H));
  Point<T> at = no_point<T>();
  at.a = p.weights[point];
  if (x.first != T(math::kNoCell) && y.first != T(math::kNoCell))
    at = {static_cast<int>(x.first), static_cast<int>(y.first), x.t, y.t, at.a};
  return at;
}

// The point of a lane, for all of a group of `lanes` neighbouring threads
template <class T>
__device__ __forceinline__ Point<T> of_lane(const Point<T>& point, int lane, int lanes) {
  constexpr unsigned all = 0xffffffffu;
  return {__shfl_sync(all, point.x, lane, lanes), __shfl_sync(all, point.y, lane, lanes),
          __shfl_sync(all, point.tx, lane, lanes), __shfl_sync(all, point.ty, lane, lanes),
          __shfl_sync(all, point.a, lane, lanes)};
}

// Its cells
template <class T>
struct Cells {
  int64_t first;  // of S, in the map or not
  int W;
  unsigned in;  // bit k: cell k lies in the map
  T w[4];       // weights, without the attention

  __device__ Cells(const Point<T>& at, const Level& level)
      : first(level.start + static_cast<int64_t>(at.y) * level.W + at.x), W(level.W) {
    const auto inside = [](int i, int n) { return static_cast<unsigned>(i) < static_cast<unsigned>(n); };
    const unsigned columns = inside(at.x, level.W) | inside(at.x + 1, level.W) << 1;
    in = (inside(at.y, level.H) ? columns : 0u) | (inside(at.y + 1, level.H) ? columns << 2 : 0u);
    math::deform_weights(at.tx, at.ty, w);
  }

  __device__ bool has(int k) const { return in >> k & 1u; }
  __device__ int64_t cell(int k) const { return first + (k & 1) + (k & 2 ? W : 0); }
};

// 2^lane_bits threads of a warp take a row; each takes V channels at a time, and one point of the row at a time to
// locate it.
struct Group {
  int lane, lanes;
  int row, rows;  // which of the rows that the block takes at once

  __device__ explicit Group(int lane_bits)
      : lane(threadIdx.x & ((1 << lane_bits) - 1)),
        lanes(1 << lane_bits),
        row(threadIdx.x >> lane_bits),
        rows(kThreads >> lane_bits) {}
};

// begin(own, first), then f(k, point, level) for each point first + k of a row in order, then end(own, first) for every
// `lanes` of them; `own` is the point that the lane has located. A row < 0 is none, but its threads join in.
template <class T, class P, class F, class End>
__device__ __forceinline__ void for_points(const P& p, const Level* levels, const Group& group, int64_t row, F&& f,
                                           End&& end) {
  const int64_t n = p.row_points();
  int l = 0;
  int64_t in_level = 0;
  for (int64_t first = 0; first < n; first += group.lanes) {
    const int64_t mine = first + group.lane;
    const bool has = row >= 0 && mine < n;
    const int own_level = has ? static_cast<int>(mine / p.P) : 0;
    const Point<T> own = has ? locate<T>(p, levels[own_level], row * n + mine) : no_point<T>();
    const int count = n - first < group.lanes ? static_cast<int>(n - first) : group.lanes;
    for (int k = 0; k < count; ++k) {
      f(k, of_lane(own, k, group.lanes), levels[l]);
      if (++in_level == p.P) in_level = 0, ++l;
    }
    if (has) end(own, levels[own_level], row * n + mine);
  }
}

// ---- host

template <class P>
dim3 tile_grid(const P& p, int size, int64_t most_x = (int64_t{1} << 31) - 1) {
  const int64_t tiles = std::min(p.dense() ? p.tiles : (p.Q + size - 1) / size, most_x);
  return dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(std::min<int64_t>(p.M, 65535)),
              static_cast<unsigned>(std::min<int64_t>(p.B, 65535)));
}

// May packs of V channels be moved at once?
template <int V, class S, class T>
bool packs_fit(const MsDeformAttnCudaParams<S, T>& p) {
  const std::array<const void*, 3> read = {p.value, p.out, p.grad};
  const auto aligned = [](const void* tensor) { return reinterpret_cast<uintptr_t>(tensor) % (sizeof(S) * V) == 0; };
  return p.D % V == 0 && std::all_of(read.begin(), read.end(), aligned) &&
         reinterpret_cast<uintptr_t>(p.grad_value) % (sizeof(T) * V) == 0;
}

template <class P>
cudaError_t launch_rows(void (*kernel)(P, int), const P& p, int pack, cudaStream_t stream) {
  const int bits = lane_bits(p.D, pack);
  return launch(kernel, tile_grid(p, kThreads >> bits), dim3(kThreads), p.L * sizeof(Level), stream, p, bits);
}

}  // namespace
}  // namespace mim4d
