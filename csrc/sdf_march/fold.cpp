#include "sdf_march/fold.h"

#include <algorithm>

namespace mim4d {
namespace {

struct Matrix {
  int64_t rows, columns;
  std::vector<double> values;

  Matrix(int64_t rows, int64_t columns) : rows(rows), columns(columns), values(rows * columns, 0.0) {}
  Matrix(int64_t rows, int64_t columns, const double* from)
      : rows(rows), columns(columns), values(from, from + rows * columns) {}

  double* row(int64_t i) { return values.data() + i * columns; }
  const double* row(int64_t i) const { return values.data() + i * columns; }

  Matrix t() const {
    Matrix to(columns, rows);
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < columns; ++j) to.row(j)[i] = row(i)[j];
    return to;
  }
  Matrix some_rows(int64_t first, int64_t count) const { return {count, columns, row(first)}; }
  Matrix some_columns(int64_t first, int64_t count) const {
    Matrix to(rows, count);
    for (int64_t i = 0; i < rows; ++i) std::copy_n(row(i) + first, count, to.row(i));
    return to;
  }
};

Matrix operator*(const Matrix& a, const Matrix& b) {
  Matrix product(a.rows, b.columns);
  for (int64_t i = 0; i < a.rows; ++i)
    for (int64_t k = 0; k < a.columns; ++k) {
      const double factor = a.row(i)[k];
      for (int64_t j = 0; j < b.columns; ++j) product.row(i)[j] += factor * b.row(k)[j];
    }
  return product;
}

Matrix operator+(Matrix a, const Matrix& b) {
  for (size_t i = 0; i < a.values.size(); ++i) a.values[i] += b.values[i];
  return a;
}

void put(const Matrix& from, double* to) { std::copy(from.values.begin(), from.values.end(), to); }

void add(const Matrix& from, double* to) {
  for (double value : from.values) *to++ += value;
}

// One layer of the op's own weights: y = A (h + U k + c) + b.
struct Layer {
  Matrix A, b, U, c;

  Layer(const Decoder& net, int64_t l, const std::vector<std::vector<double>>& tensors)
      : A(rows(net, l), net.hidden, tensors[2 + 4 * l].data()),
        b(rows(net, l), 1, tensors[3 + 4 * l].data()),
        U(net.hidden, net.condition, tensors[4 + 4 * l].data()),
        c(net.hidden, 1, tensors[5 + 4 * l].data()) {}
  Layer(const Decoder& net, int64_t l) : Layer(net, l, net.tensors) {}

  static int64_t rows(const Decoder& net, int64_t l) { return l + 1 < net.layers ? net.hidden : net.out; }
};

struct Entry {  // h_0 = W p + w
  Matrix W, w;
  explicit Entry(const Decoder& net)
      : W(net.hidden, 3, net.tensors[0].data()), w(net.hidden, 1, net.tensors[1].data()) {}
};

// The geometry features, g = Z z + F f + c: linear in what the last layer of the SDF decoder reads.
struct Geometry {
  Matrix Z, F, c;
  Geometry(const Layer& last, int64_t G)
      : Z(last.A.some_rows(1, G)), F(Z * last.U), c(Z * last.c + last.b.some_rows(1, G)) {}
};

// A layer of the colour decoder with its condition [d, f, n, g] in terms of d, f, n and z.
struct Injection {
  Matrix D, F, N, by_g, Z, c;
  Injection(const Layer& layer, const Geometry& g, int64_t C)
      : D(layer.U.some_columns(0, 3)),
        F(layer.U.some_columns(3, C)),
        N(layer.U.some_columns(3 + C, 3)),
        by_g(layer.U.some_columns(6 + C, g.Z.rows)),
        Z(by_g * g.Z),
        c(layer.c + by_g * g.c) {
    F = F + by_g * g.F;
  }
};

// Sums over samples of a layer's cotangent times p, f, z, n, d, 1.
struct Sums {
  Matrix P, F, Z, N, D, c;
  Sums(const Folded& folded, const FoldedLayer& from, int64_t rows)
      : P(rows, from.P ? 3 : 0, from.P),
        F(rows, folded.C, from.F),
        Z(rows, from.Z ? folded.H : 0, from.Z),
        N(rows, from.N ? 3 : 0, from.N),
        D(rows, from.D ? 3 : 0, from.D),
        c(rows, 1, from.c) {}
  Sums(Sums by_y, const Matrix& A)  // back through y = A x
      : P(A.t() * by_y.P),
        F(A.t() * by_y.F),
        Z(A.t() * by_y.Z),
        N(A.t() * by_y.N),
        D(A.t() * by_y.D),
        c(A.t() * by_y.c) {}
};

Matrix beside(std::initializer_list<const Matrix*> parts) {
  int64_t columns = 0;
  for (const Matrix* part : parts) columns += part->columns;
  Matrix to((*parts.begin())->rows, columns);
  int64_t first = 0;
  for (const Matrix* part : parts) {
    for (int64_t i = 0; i < to.rows; ++i) std::copy_n(part->row(i), part->columns, to.row(i) + first);
    first += part->columns;
  }
  return to;
}

}  // namespace

Folded::Folded(const Decoder& sdf_net, const Decoder& rgb_net)
    : C(sdf_net.condition), H(sdf_net.hidden), R(rgb_net.hidden), sdf(sdf_net.layers), rgb(rgb_net.layers) {
  const auto lay_out = [&](double* base) {
    int64_t used = 0;
    const auto take = [&](int64_t n) {
      double* const p = base ? base + used : nullptr;
      used += n;
      return p;
    };
    const auto lay_out_net = [&](std::vector<FoldedLayer>& layers, int64_t hidden, int64_t out, bool colour) {
      for (size_t l = 0; l < layers.size(); ++l) {
        const bool first_layer = l == 0, last = l + 1 == layers.size();
        const int64_t rows = last ? out : hidden;
        layers[l] = {first_layer ? nullptr : take(rows * hidden), first_layer || last ? nullptr : take(rows),
                     first_layer ? take(rows * 3) : nullptr,      take(rows * C),
                     colour ? take(rows * H) : nullptr,           colour ? take(rows * 3) : nullptr,
                     colour ? take(rows * 3) : nullptr,           take(rows)};
      }
    };
    lay_out_net(sdf, H, 1, false);
    lay_out_net(rgb, R, 3, true);
    return used;
  };
  memory.assign(lay_out(nullptr), 0.0);
  lay_out(memory.data());
}

Folded fold(const Decoder& sdf, const Decoder& rgb) {
  Folded to(sdf, rgb);
  const Entry entry(sdf);
  const Layer first(sdf, 0), last(sdf, sdf.layers - 1);
  put(first.A * entry.W, to.sdf[0].P);
  put(first.A * first.U, to.sdf[0].F);
  put(first.A * (entry.w + first.c) + first.b, to.sdf[0].c);
  for (int64_t l = 1; l + 1 < sdf.layers; ++l) {
    const Layer layer(sdf, l);
    put(layer.A, to.sdf[l].A), put(layer.b, to.sdf[l].b), put(layer.U, to.sdf[l].F), put(layer.c, to.sdf[l].c);
  }
  const Matrix a = last.A.some_rows(0, 1);
  put(a, to.sdf.back().A);
  put(a * last.U, to.sdf.back().F);
  put(a * last.c + last.b.some_rows(0, 1), to.sdf.back().c);
  if (rgb.layers == 0) return to;

  const Geometry geometry(last, sdf.out - 1);
  const Entry rgb_entry(rgb);
  for (int64_t l = 0; l < rgb.layers; ++l) {
    const Layer layer(rgb, l);
    const Injection in(layer, geometry, sdf.condition);
    const FoldedLayer& at = to.rgb[l];
    if (l > 0) put(layer.A, at.A);
    if (l > 0 && l + 1 < rgb.layers) {
      put(layer.b, at.b);
      put(in.F, at.F), put(in.Z, at.Z), put(in.N, at.N), put(in.D, at.D), put(in.c, at.c);
    } else {
      if (l == 0) put(layer.A * rgb_entry.W, at.P);
      put(layer.A * in.F, at.F), put(layer.A * in.Z, at.Z), put(layer.A * in.N, at.N), put(layer.A * in.D, at.D);
      put(layer.A * (l == 0 ? rgb_entry.w + in.c : in.c) + layer.b, at.c);
    }
  }
  return to;
}

void unfold(const Decoder& sdf, const Decoder& rgb, const Folded& by_folded, std::vector<std::vector<double>>& by_sdf,
            std::vector<std::vector<double>>& by_rgb) {
  const int64_t C = sdf.condition, G = sdf.out - 1, L = sdf.layers, M = rgb.layers;
  const Layer last(sdf, L - 1);
  const Geometry geometry(last, G);
  Matrix g_f(G, C), g_z(G, sdf.hidden), g_c(G, 1);  // sums of the geometry's cotangent times f, z, 1
  const Entry rgb_entry(rgb);
  for (int64_t l = 0; l < M; ++l) {
    const bool between = l > 0 && l + 1 < M;
    const Layer layer(rgb, l);
    const Injection in(layer, geometry, C);
    const FoldedLayer& from = by_folded.rgb[l];
    const Sums by_y(by_folded, from, layer.A.rows), by_x = between ? by_y : Sums(by_y, layer.A);
    g_f = g_f + in.by_g.t() * by_x.F;
    g_z = g_z + in.by_g.t() * by_x.Z;
    g_c = g_c + in.by_g.t() * by_x.c;
    if (by_rgb.empty()) continue;
    std::vector<double>* const to = &by_rgb[2 + 4 * l];
    if (l > 0) add({layer.A.rows, rgb.hidden, from.A}, to[0].data());
    if (between) {
      add({layer.A.rows, 1, from.b}, to[1].data());
    } else {
      const Matrix constant = l == 0 ? rgb_entry.w + in.c : in.c;
      add(by_y.F * in.F.t() + by_y.Z * in.Z.t() + by_y.N * in.N.t() + by_y.D * in.D.t() + by_y.c * constant.t(),
          to[0].data());
      add(by_y.c, to[1].data());
    }
    if (l == 0) {
      add(by_y.P * rgb_entry.W.t(), to[0].data());
      add(by_x.P, by_rgb[0].data());
      add(by_x.c, by_rgb[1].data());
    }
    const Matrix by_g = by_x.F * geometry.F.t() + by_x.Z * geometry.Z.t() + by_x.c * geometry.c.t();
    add(beside({&by_x.D, &by_x.F, &by_x.N, &by_g}), to[2].data());
    add(by_x.c, to[3].data());
  }
  if (by_sdf.empty()) return;

  const Entry entry(sdf);
  for (int64_t l = 0; l < L; ++l) {
    const Layer layer(sdf, l);
    const FoldedLayer& from = by_folded.sdf[l];
    std::vector<double>* const to = &by_sdf[2 + 4 * l];
    if (l == 0) {
      const Sums by_y(by_folded, from, sdf.hidden), by_x(by_y, layer.A);
      add(by_x.P, by_sdf[0].data());
      add(by_x.c, by_sdf[1].data());
      add(by_y.P * entry.W.t() + by_y.F * layer.U.t() + by_y.c * (entry.w + layer.c).t(), to[0].data());
      add(by_y.c, to[1].data());
      add(by_x.F, to[2].data());
      add(by_x.c, to[3].data());
    } else if (l + 1 < L) {
      add({sdf.hidden, sdf.hidden, from.A}, to[0].data());
      add({sdf.hidden, 1, from.b}, to[1].data());
      add({sdf.hidden, C, from.F}, to[2].data());
      add({sdf.hidden, 1, from.c}, to[3].data());
    } else {
      const Matrix a = layer.A.some_rows(0, 1), by_a(1, sdf.hidden, from.A), by_f(1, C, from.F), by_c(1, 1, from.c);
      add(by_a + by_f * layer.U.t() + by_c * layer.c.t(), to[0].data());
      add(g_z + g_f * layer.U.t() + g_c * layer.c.t(), to[0].data() + sdf.hidden);
      add(by_c, to[1].data());
      add(g_c, to[1].data() + 1);
      add(a.t() * by_f + geometry.Z.t() * g_f, to[2].data());
      add(a.t() * by_c + geometry.Z.t() * g_c, to[3].data());
    }
  }
}

}  // namespace mim4d
