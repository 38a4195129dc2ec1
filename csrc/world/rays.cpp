// Casts rays at triangles, with the same bits on every machine (mim4d/world/caster.py).
//
// What a ray meets is defined without the tree: of all triangles, the one with the least t by `meet` below, in double
// precision and in this order of operations (compiled without fused multiply-add), the lower number where two are
// equally near. The tree only leaves out what it can prove to be missed: its boxes are padded, their test has slack.

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <new>
#include <numeric>
#include <utility>
#include <vector>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

namespace {

using Float4 = float __attribute__((vector_size(16)));
using Mask4 = int32_t __attribute__((vector_size(16)));
using Point = std::array<float, 3>;

constexpr int kWidth = 4;        // children of a node
constexpr int kLeaf = 3;         // triangles in a leaf, at most, where a cut is possible
constexpr int kBins = 12;        // places tried for a cut, per axis
constexpr int kStack = 256;      // three entries per level: deeper than any tree that `split` makes of 2^31 triangles
constexpr float kPad = 1e-3f;    // metres around every box; the errors of `meet` are a million times smaller
constexpr float kSlack = 1e-6f;  // relative, of the box test; its rounding errors are 3e-7 at most
constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Box {
  Point low{kInfinity, kInfinity, kInfinity}, high{-kInfinity, -kInfinity, -kInfinity};

  void add(const Point& p) {
    for (int c = 0; c < 3; ++c) low[c] = std::min(low[c], p[c]), high[c] = std::max(high[c], p[c]);
  }
  void add(const Box& b) {
    for (int c = 0; c < 3; ++c) low[c] = std::min(low[c], b.low[c]), high[c] = std::max(high[c], b.high[c]);
  }
  float area() const {
    const float x = high[0] - low[0], y = high[1] - low[1], z = high[2] - low[2];
    return x < 0 ? 0.0f : x * y + y * z + z * x;
  }
};

struct Triangle {
  double a[3], ab[3], ac[3];
  int32_t number;
};

// Four children. count > 0: a leaf of so many triangles from `first` on; 0: the node `first`. A missing child's box is
// inside out: no ray meets it.
struct Node {
  Float4 bounds[6];  // low x, y, z, high x, y, z
  int32_t first[kWidth], count[kWidth];
};

struct Hit {
  double t;
  float u, v;
  int32_t number;
};

struct Ray {
  double o[3], d[3];
  Float4 origin[3], inverse[3];  // for the boxes
  int near[3], far[3];           // which bounds of a box it meets first and last

  Ray(const float* from, const float* along) {
    for (int c = 0; c < 3; ++c) {
      o[c] = from[c], d[c] = along[c];
      // A ray along a box's face must not give 0 times infinity; over a kilometre 1e-20 is no distance.
      const float safe = std::fabs(along[c]) < 1e-20f ? std::copysign(1e-20f, along[c]) : along[c];
      const float inverted = 1.0f / safe;
      origin[c] = Float4{from[c], from[c], from[c], from[c]};
      inverse[c] = Float4{inverted, inverted, inverted, inverted};
      near[c] = inverted < 0 ? c + 3 : c, far[c] = inverted < 0 ? c : c + 3;
    }
  }
};

// One bit per lane.
unsigned bits(Mask4 mask) {
#ifdef __SSE2__
  return _mm_movemask_ps(reinterpret_cast<__m128>(mask));
#else
  unsigned out = 0;
  for (int k = 0; k < kWidth; ++k) out |= (mask[k] & 1u) << k;
  return out;
#endif
}

Float4 lesser(Float4 a, Float4 b) {
#ifdef __SSE2__
  return reinterpret_cast<Float4>(_mm_min_ps(reinterpret_cast<__m128>(a), reinterpret_cast<__m128>(b)));
#else
  return a < b ? a : b;
#endif
}

Float4 greater(Float4 a, Float4 b) {
#ifdef __SSE2__
  return reinterpret_cast<Float4>(_mm_max_ps(reinterpret_cast<__m128>(a), reinterpret_cast<__m128>(b)));
#else
  return a > b ? a : b;
#endif
}

double dot(const double* a, const double* b) { return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]; }

void cross(const double* a, const double* b, double* out) {
  out[0] = a[1] * b[2] - a[2] * b[1];
  out[1] = a[2] * b[0] - a[0] * b[2];
  out[2] = a[0] * b[1] - a[1] * b[0];
}

// Moeller and Trumbore's test, both sides. Improves `best` where the triangle is met nearer, in front of the origin.
bool meet(const Ray& ray, const Triangle& triangle, Hit& best) {
  double p[3], q[3], s[3];
  cross(ray.d, triangle.ac, p);
  const double volume = dot(triangle.ab, p);
  if (volume == 0) return false;
  const double scale = 1.0 / volume;
  for (int c = 0; c < 3; ++c) s[c] = ray.o[c] - triangle.a[c];
  const double u = dot(s, p) * scale;
  if (!(u >= 0 && u <= 1)) return false;
  cross(s, triangle.ab, q);
  const double v = dot(ray.d, q) * scale;
  if (!(v >= 0 && u + v <= 1)) return false;
  const double t = dot(triangle.ac, q) * scale;
  if (!(t > 0 && (t < best.t || (t == best.t && triangle.number < best.number)))) return false;
  best = {t, static_cast<float>(u), static_cast<float>(v), triangle.number};
  return true;
}

class Tree {
 public:
  Tree(const float* vertices, int32_t n) : order_(n), boxes_(n), middles_(n) {
    std::iota(order_.begin(), order_.end(), 0);
    for (int32_t i = 0; i < n; ++i) {
      for (int k = 0; k < 3; ++k) {
        const float* p = vertices + 9 * static_cast<int64_t>(i) + 3 * k;
        boxes_[i].add(Point{p[0], p[1], p[2]});
      }
      for (int c = 0; c < 3; ++c) middles_[i][c] = 0.5f * boxes_[i].low[c] + 0.5f * boxes_[i].high[c];
    }
    if (n > 0) grow(0, n);
    triangles_.reserve(n);
    for (const int32_t i : order_) {
      const float* p = vertices + 9 * static_cast<int64_t>(i);
      Triangle& out = triangles_.emplace_back();
      out.number = i;
      for (int c = 0; c < 3; ++c) {
        out.a[c] = p[c];
        out.ab[c] = static_cast<double>(p[3 + c]) - p[c];
        out.ac[c] = static_cast<double>(p[6 + c]) - p[c];
      }
    }
    std::vector<int32_t>().swap(order_), std::vector<Box>().swap(boxes_), std::vector<Point>().swap(middles_);
  }

  // Improves `best`. With `any` the first triangle met will do. `guess` is where the ray before met something, or -1:
  // the next one often meets the same, and then most of the tree is too far away to look at.
  bool cast(const Ray& ray, Hit& best, bool any, int32_t& guess) const {
    if (nodes_.empty()) return false;
    bool met = guess >= 0 && meet(ray, triangles_[guess], best);
    if (met && any) return true;
    struct Entry {
      int32_t first, count;
      float t;
    };
    std::array<Entry, kStack> stack;
    int size = 0;
    stack[size++] = {0, 0, 0.0f};
    while (size > 0) {
      const Entry entry = stack[--size];
      if (!(entry.t <= best.t)) continue;
      if (entry.count > 0) {
        for (int32_t i = entry.first; i < entry.first + entry.count; ++i)
          if (meet(ray, triangles_[i], best)) met = true, guess = i;
        if (met && any) return true;
        continue;
      }
      const Node& node = nodes_[entry.first];
      const auto end = static_cast<float>(best.t);
      Float4 in{}, out{end, end, end, end};
      for (int c = 0; c < 3; ++c) {
        const Float4 near = (node.bounds[ray.near[c]] - ray.origin[c]) * ray.inverse[c];
        const Float4 far = (node.bounds[ray.far[c]] - ray.origin[c]) * ray.inverse[c];
        in = greater(near, in);
        out = lesser(far, out);
      }
      in = in * (1 - kSlack);
      const int base = size;
      const unsigned open = bits(in <= out * (1 + kSlack));
      for (int k = 0; k < kWidth; ++k) {
        if (!(open >> k & 1)) continue;
        stack[size] = {node.first[k], node.count[k], in[k]};
        // The nearest on top.
        if (size > base && stack[size - 1].t < in[k]) std::swap(stack[size - 1], stack[size]);
        ++size;
      }
    }
    return met;
  }

 private:
  struct Range {
    int32_t begin, end;
    Box box;
    float cost() const { return end - begin > kLeaf ? box.area() : -1.0f; }
  };

  Range range(int32_t begin, int32_t end) const {
    Range out{begin, end, {}};
    for (int32_t i = begin; i < end; ++i) out.box.add(boxes_[order_[i]]);
    return out;
  }

  // Cuts a range in two where the surface area heuristic is least, or in the middle.
  std::array<Range, 2> split(const Range& whole, int depth) {
    Box middles;
    for (int32_t i = whole.begin; i < whole.end; ++i) middles.add(middles_[order_[i]]);
    float best = kInfinity, cut = 0;
    int axis = -1;
    for (int c = 0; c < 3 && depth < 48; ++c) {
      const float low = middles.low[c], width = (middles.high[c] - low) / kBins;
      if (!(width > 0)) continue;
      std::array<Box, kBins> box{};
      std::array<int32_t, kBins> count{};
      for (int32_t i = whole.begin; i < whole.end; ++i) {
        const int32_t number = order_[i];
        const int bin = std::min(kBins - 1, static_cast<int>((middles_[number][c] - low) / width));
        box[bin].add(boxes_[number]), ++count[bin];
      }
      std::array<float, kBins> right{};
      Box sum{};
      int32_t n = 0;
      for (int k = kBins - 1; k > 0; --k) sum.add(box[k]), n += count[k], right[k] = n * sum.area();
      sum = {}, n = 0;
      for (int k = 1; k < kBins; ++k) {
        sum.add(box[k - 1]), n += count[k - 1];
        const float cost = n * sum.area() + right[k];
        if (cost < best) best = cost, axis = c, cut = low + width * k;
      }
    }
    int32_t at = whole.begin;
    if (axis >= 0)
      at = static_cast<int32_t>(std::partition(order_.begin() + whole.begin, order_.begin() + whole.end,
                                               [&](int32_t i) { return middles_[i][axis] < cut; }) -
                                order_.begin());
    if (at == whole.begin || at == whole.end) at = whole.begin + (whole.end - whole.begin) / 2;
    return {range(whole.begin, at), range(at, whole.end)};
  }

  // Makes the node of a range and of all below it; returns its number.
  int32_t grow(int32_t begin, int32_t end, int depth = 0) {
    std::array<Range, kWidth> parts;
    parts[0] = range(begin, end);
    int n = 1;
    while (n < kWidth) {
      Range* widest = std::max_element(parts.begin(), parts.begin() + n,
                                       [](const Range& a, const Range& b) { return a.cost() < b.cost(); });
      if (widest->cost() < 0) break;
      const auto [left, right] = split(*widest, depth);
      *widest = left, parts[n++] = right;
    }
    const auto number = static_cast<int32_t>(nodes_.size());
    nodes_.emplace_back();
    for (int k = 0; k < kWidth; ++k) {
      int32_t first = 0, count = 0;
      Box box;
      if (k < n) {
        box = parts[k].box;
        first = parts[k].begin, count = parts[k].end - parts[k].begin;
        if (count > kLeaf) first = grow(parts[k].begin, parts[k].end, depth + 1), count = 0;
      }
      Node& node = nodes_[number];
      node.first[k] = first, node.count[k] = count;
      for (int c = 0; c < 3; ++c) {
        node.bounds[c][k] = box.low[c] - kPad, node.bounds[c + 3][k] = box.high[c] + kPad;
      }
    }
    return number;
  }

  std::vector<Node> nodes_;
  std::vector<Triangle> triangles_;
  std::vector<int32_t> order_;  // only while growing
  std::vector<Box> boxes_;
  std::vector<Point> middles_;
};

}  // namespace

// The functions of mim4d/world/caster.py. Arrays are contiguous; rays (n, 3); a stride of 0 means one for all rays.
#define MIM4D_API extern "C" __attribute__((visibility("default")))

// Raised with every change of a signature below: ctypes checks none, and a library of an older build would read wild.
MIM4D_API int32_t mim4d_rays_abi() { return 1; }

MIM4D_API void* mim4d_rays_grow(const float* vertices, int32_t n) {
  try {
    return new Tree(vertices, n);
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}

MIM4D_API void mim4d_rays_fell(void* tree) { delete static_cast<Tree*>(tree); }

// Writes what lies nearer than `distance` (n,) into distance, face, u, v (n,) and leaves the rest as it is.
MIM4D_API void mim4d_rays_cast(const void* tree, const float* origins, int64_t origin_stride, const float* directions,
                               int64_t n, float* distance, int32_t* face, float* u, float* v) {
  int32_t guess = -1;
  for (int64_t i = 0; i < n; ++i) {
    Hit best{distance[i], 0, 0, -1};
    const Ray ray(origins + i * origin_stride, directions + 3 * i);
    if (!static_cast<const Tree*>(tree)->cast(ray, best, false, guess)) continue;
    distance[i] = static_cast<float>(best.t), face[i] = best.number, u[i] = best.u, v[i] = best.v;
  }
}

// Sets blocked (n,) to 1 where a ray from `origins` (n, 3) meets anything.
MIM4D_API void mim4d_rays_block(const void* tree, const float* origins, const float* directions,
                                int64_t direction_stride, int64_t n, uint8_t* blocked) {
  int32_t guess = -1;
  for (int64_t i = 0; i < n; ++i) {
    if (blocked[i]) continue;
    Hit best{std::numeric_limits<double>::infinity(), 0, 0, -1};
    const Ray ray(origins + 3 * i, directions + i * direction_stride);
    blocked[i] = static_cast<const Tree*>(tree)->cast(ray, best, true, guess);
  }
}
