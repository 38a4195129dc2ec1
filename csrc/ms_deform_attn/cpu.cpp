// Deformable attention on one instruction set. The lanes are the channels of a head; where points lie is worked out
// with the points of a block as lanes.

#include "ms_deform_attn/cpu.h"

#include "cpu/tile.h"
#include "ms_deform_attn/cpu_block.h"

namespace mim4d::MIM4D_ISA {
namespace {

// weights of the four cells of each point of a block, times its attention
template <class T>
struct Shares {
  alignas(64) T at[4][Block<T>::kPoints];

  MIM4D_HD void set(const Block<T>& block, const T* attention, int n) {
    constexpr int width = Vec<T>::width;
    for (int j = 0; j < n; j += width) {
      Vec<T> weight[4];
      math::deform_weights(Vec<T>::load(block.tx + j), Vec<T>::load(block.ty + j), weight);
      const Vec<T> a = n - j < width ? load_first(attention + j, n - j) : Vec<T>::load(attention + j);
      MIM4D_UNROLL
      for (int k = 0; k < 4; ++k) (a * weight[k]).store(at[k] + j);
    }
  }
};

template <class T>
void forward(const Params<T>& p, int64_t begin, int64_t end) {
  Block<T> block;
  Shares<T> share;
  begin_blocks(p, block);
  const int64_t cell = p.M * p.D;
  RowCounter at(p, begin);
  for_blocks(p, block, begin, end, [&](int64_t row, int rows, int64_t first, int n) {
    share.set(block, p.weights + row * p.row_points() + first, rows * n);
    for (int i = 0; i < rows; ++i) {
      const T* const value = p.value + (at.item * p.S * p.M + at.head) * p.D;
      T* const out = p.out + (row + i) * p.D;
      for_wide_row<T>(p.D, [&](int64_t c, auto lanes) {
        auto upper = first == 0 ? lanes.all(T(0)) : lanes.load(out + c), lower = lanes.all(T(0));
        for (int j = i * n; j < (i + 1) * n; ++j) {
          if (block.outside(j)) {  // 0, but NaN for a weight that is infinite or NaN
            upper = upper + Vec<T>(share.at[0][j]) * lanes.load(p.zeros + c);
            continue;
          }
          const T* from[4];
          block.find(j, value, cell, p.zeros, from);
          upper = upper + Vec<T>(share.at[0][j]) * lanes.load(from[0] + c);
          upper = upper + Vec<T>(share.at[1][j]) * lanes.load(from[1] + c);
          lower = lower + Vec<T>(share.at[2][j]) * lanes.load(from[2] + c);
          lower = lower + Vec<T>(share.at[3][j]) * lanes.load(from[3] + c);
        }
        lanes.store(out + c, upper + lower);
      });
      if (first + n == p.row_points()) at.next(p);
    }
  });
}

// The products of a row of grad with the four cells of each point: as many points at once as their sums fill a
// register.
template <class T>
struct Products {
  static constexpr int width = Vec<T>::width, registers = width < 4 ? 4 / width : 1;
  static constexpr int group = registers * width / 4;

  alignas(64) T at[4][Block<T>::kPoints];

  // Those of the points [first, first + n) of the block.
  MIM4D_HD void set(const Params<T>& p, const Block<T>& block, const T* value, const T* grad, int first, int n) {
    const int64_t cell = p.M * p.D;
    for (int j = 0; j < n; j += group) {
      const T* from[group][4];
      for (int g = 0; g < group; ++g) {
        if (j + g < n)
          block.find(first + j + g, value, cell, p.zeros, from[g]);
        else
          for (int k = 0; k < 4; ++k) from[g][k] = p.zeros;
      }
      Vec<T> sum[registers][width];  // row 4 g + k: cell k of point g
      MIM4D_UNROLL
      for (int r = 0; r < 4 * group; ++r) sum[r / width][r % width] = Vec<T>(T(0));
      for_row<T>(p.D, [&](int64_t c, auto lanes) {
        const Vec<T> g = lanes.load(grad + c).v[0];
        MIM4D_UNROLL
        for (int r = 0; r < 4 * group; ++r)
          sum[r / width][r % width] = sum[r / width][r % width] + g * lanes.load(from[r / 4][r % 4] + c).v[0];
      });
      alignas(64) T sums[4 * group];
      MIM4D_UNROLL
      for (int i = 0; i < registers; ++i) row_sums(sum[i]).store(sums + i * width);
      for (int g = 0; g < group && j + g < n; ++g)
        for (int k = 0; k < 4; ++k) at[k][first + j + g] = sums[4 * g + k];
    }
  }
};

// grad_locations and grad_weights of the n points of a block, from the products
template <class T>
MIM4D_HD void store_slopes(const Params<T>& p, const Block<T>& block, const Products<T>& products, int64_t point,
                           int n) {
  constexpr int width = Vec<T>::width;
  for (int j = 0; j < n; j += width) {
    const int lanes = n - j < width ? n - j : width;
    Vec<T> product[4];
    MIM4D_UNROLL
    for (int k = 0; k < 4; ++k) product[k] = Vec<T>::load(products.at[k] + j);
    Vec<T> value, dx, dy;
    math::deform_slopes(product, Vec<T>::load(block.tx + j), Vec<T>::load(block.ty + j), value, dx, dy);
    if (p.grad_weights) store_first(p.grad_weights + point + j, value, lanes);
    if (!p.grad_locations) continue;
    Vec<T> inside;  // outside: 0, not 0 times what may be infinite
    alignas(64) T is_inside[width];
    for (int i = 0; i < width; ++i) is_inside[i] = T(i < lanes && !block.outside(j + i));
    inside = Vec<T>::load(is_inside);
    const Vec<T> a = load_first(p.weights + point + j, lanes), none(T(0));
    const Vec<T> slope_x = a * dx * Vec<T>::load(block.width + j), slope_y = a * dy * Vec<T>::load(block.height + j);
    store_pairs(p.grad_locations + 2 * (point + j), lanes, select(inside > none, slope_x, none),
                select(inside > none, slope_y, none));
  }
}

template <class T>
void backward_points(const Params<T>& p, int64_t begin, int64_t end) {
  Block<T> block{};
  Products<T> products{};
  begin_blocks(p, block);
  RowCounter at(p, begin);
  for_blocks(p, block, begin, end, [&](int64_t row, int rows, int64_t first, int n) {
    for (int i = 0; i < rows; ++i) {
      const T* const value = p.value + (at.item * p.S * p.M + at.head) * p.D;
      products.set(p, block, value, p.grad + (row + i) * p.D, i * n, n);
      if (first + n == p.row_points()) at.next(p);
    }
    store_slopes(p, block, products, row * p.row_points() + first, rows * n);
  });
}

template <class T>
void backward_value(const Params<T>& p, const DeformOwner& own) {
  const int64_t cell = p.M * p.D, item = own.item * p.S * cell, heads = own.last_head - own.first_head;
  for (int64_t s = own.first_cell; s < own.last_cell; ++s) {
    T* const to = p.grad_value + item + s * cell + own.first_head * p.D;
    for_wide_row<T>(heads * p.D, [&](int64_t c, auto lanes) { lanes.store(to + c, lanes.all(T(0))); });
  }
  Block<T> block;
  Shares<T> share;
  begin_blocks(p, block);
  const int64_t low = own.first_cell * cell, high = own.last_cell * cell;  // in numbers of value
  const auto add = [&](int64_t begin, int64_t end, int64_t head) {         // rows, the first of them of this head
    for_blocks(p, block, begin, end, [&](int64_t row, int rows, int64_t first, int n) {
      share.set(block, p.weights + row * p.row_points() + first, rows * n);
      for (int i = 0; i < rows; ++i) {
        T* const to = p.grad_value + item + head * p.D;
        const T* const grad = p.grad + (row + i) * p.D;
        for (int j = i * n; j < (i + 1) * n; ++j) {
          if (block.outside(j)) continue;
          const int64_t at = block.offset(j, cell), step[4] = {0, cell, block.down[j], block.down[j] + cell};
          if (at + step[3] < low || at >= high) continue;
          const bool all = block.whole(j) && at >= low && at + step[3] < high;
          for (int k = 0; k < 4; ++k) {
            if (!all && !(block.in_map(j, k) && at + step[k] >= low && at + step[k] < high)) continue;
            const Vec<T> w(share.at[k][j]);
            T* const sum = to + at + step[k];
            for_wide_row<T>(p.D, [&](int64_t c, auto lanes) {
              lanes.store(sum + c, lanes.load(sum + c) + w * lanes.load(grad + c));
            });
          }
        }
        if (first + n == p.row_points() && ++head == own.last_head) head = own.first_head;
      }
    });
  };
  const int64_t rows = own.item * p.Q * p.M;
  if (heads == p.M) return add(rows, rows + p.Q * p.M, 0);
  for (int64_t q = 0; q < p.Q; ++q)
    add(rows + q * p.M + own.first_head, rows + q * p.M + own.last_head, own.first_head);
}

}  // namespace

extern const MsDeformAttnCpu<float> ms_deform_attn_float = {forward<float>, backward_points<float>,
                                                            backward_value<float>};
extern const MsDeformAttnCpu<double> ms_deform_attn_double = {forward<double>, backward_points<double>,
                                                              backward_value<double>};

}  // namespace mim4d::MIM4D_ISA
