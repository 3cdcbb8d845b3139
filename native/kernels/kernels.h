// The kernel table: every hot loop of the engine, one implementation per instruction set, chosen once at run time.
//
// Kernel files (reference.cc, avx2.cc, avx512vnni.cc, neon.cc) are compiled with their own flags, use no STL and
// export only their table, so that no function compiled with wider instructions can leak to other files.
// The byte layout is the one of src/wrinklefree/artifact/packing.py (t2-r4c64).
#pragma once
#include <cstdint>

namespace wf {

constexpr int kRowsPerBlock = 4;
constexpr int kColumnsPerBlock = 64;
constexpr int kBytesPerBlock = 64;

// A packed ternary matrix; the memory belongs to the caller. Codes are {0,1,2}; 3 was refused by the loader.
struct TernaryMatrix {
  const uint8_t* codes;          // [row_blocks][column_blocks][64]
  const uint16_t* group_scales;  // float16 bits [row_blocks][groups][4], or null when scales are per row
  const float* row_scales;       // [row_blocks * 4], or null when scales are per group (tensor: replicated)
  int32_t rows, columns;
  int32_t row_blocks, column_blocks;
  int32_t group_blocks;  // column blocks that share a scale (1, 2, 4); 0 when scales are per row
};

// One token's quantised activations: q[column_blocks * 64] (zero-filled behind `columns`), the sum of q over each
// column block, and scale = max(max|x|, 1e-5) / 127. q = round-half-even(x * (127 / max(max|x|, 1e-5))), in float32
// exactly as torch computes it, so |q| <= 127.
struct Kernels {
  const char* name;

  void (*quantize)(const float* x, int32_t n, int8_t* q, int32_t* block_sums, float* scale);

  // y[t * y_stride + r] = w[r] . x[t] for rows of the blocks [begin, end) and all tokens t.
  // q is [tokens][column_blocks * 64], block_sums [tokens][column_blocks], scales [tokens].
  void (*ternary_gemm)(const TernaryMatrix* w, const int8_t* q, const int32_t* block_sums, const float* scales,
                       int32_t tokens, int32_t begin, int32_t end, float* y, int64_t y_stride);

  // The same without any scale: dots[t * dots_stride + r] = sum of ternary * q, an exact integer (for tests).
  void (*ternary_dots)(const TernaryMatrix* w, const int8_t* q, const int32_t* block_sums, int32_t tokens,
                       int32_t begin, int32_t end, int32_t* dots, int64_t dots_stride);

  // Head: y[t * y_stride + r] = scale[r] * sum_i w[r * columns + i] * x[t * columns + i], rows [begin, end).
  void (*q8_gemm)(const int8_t* w, const float* row_scale, int32_t columns, const float* x, int32_t tokens,
                  int32_t begin, int32_t end, float* y, int64_t y_stride);
  void (*f16_gemm)(const uint16_t* w, int32_t columns, const float* x, int32_t tokens, int32_t begin, int32_t end,
                   float* y, int64_t y_stride);

  // y = x / sqrt(mean(x^2) + eps) * weight; y may be x.
  void (*rms_norm)(const float* x, const float* weight, float eps, int32_t n, float* y);
  // x[i] = silu(gate[i]) * up[i] or max(gate[i], 0)^2 * up[i]; out may alias gate or up.
  void (*silu_mul)(const float* gate, const float* up, int32_t n, float* out);
  void (*relu2_mul)(const float* gate, const float* up, int32_t n, float* out);
  void (*add)(float* y, const float* x, int32_t n);  // y += x

  // One head of attention for one query: out[d] = sum_t softmax_t(scale * q . k_t) v_t over t in [0, length).
  // k and v are float16 bits with `stride` elements between positions; scores is scratch of `length` floats.
  void (*attend)(const float* q, const uint16_t* k, const uint16_t* v, int64_t stride, int32_t head_dim, int32_t length,
                 float scale, float* scores, float* out);
  // float32 -> float16 bits, round half to even.
  void (*store_f16)(const float* x, int32_t n, uint16_t* out);
  // attend with a float32 cache.
  void (*attend_f32)(const float* q, const float* k, const float* v, int64_t stride, int32_t head_dim, int32_t length,
                     float scale, float* scores, float* out);
  // Multiply-adds done by `rounds` rounds of the table's int8 multiply instruction on registers alone: nothing can be
  // faster. For measuring the machine, not for computing.
  int64_t (*burn_int8)(int64_t rounds);

  // Attention of `queries` consecutive positions of the `group` query heads that share one key-value head, for
  // head_dim as attend_block_takes says. Query i, head h is q[i * q_stride + h * head_dim ...] and sees the positions
  // t < length + i, so `length` is what the first query sees, itself included; out has the same places. Several times
  // faster than one query at a time: keys and values are converted once for many queries.
  void (*attend_block)(const float* q, int64_t q_stride, int32_t queries, int32_t group, const uint16_t* k,
                       const uint16_t* v, int64_t stride, int32_t head_dim, int32_t length, float scale, float* out,
                       int64_t out_stride);
  void (*attend_block_f32)(const float* q, int64_t q_stride, int32_t queries, int32_t group, const float* k,
                           const float* v, int64_t stride, int32_t head_dim, int32_t length, float scale, float* out,
                           int64_t out_stride);
};

constexpr int kMaxBlockHeadDim = 128;
inline bool attend_block_takes(int32_t head_dim) { return head_dim % 16 == 0 && head_dim <= kMaxBlockHeadDim; }

// Many tokens: ranges of row blocks that begin and end at multiples of this waste nothing (see ternary_panel-inl.h).
constexpr int kPanelGrain = 8;

extern const Kernels kReferenceKernels;
#if defined(__x86_64__)
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512VnniKernels;
#endif
#if defined(__aarch64__)
extern const Kernels kNeonDotprodKernels;
#endif

// Every table this build holds that this machine can run, best first; never empty (the reference is last).
int runnable_kernels(const Kernels** out, int capacity);

// The table named `name`, or for "auto" the best; null when unknown or not runnable here. `reason` (static text)
// says why it was chosen.
const Kernels* select_kernels(const char* name, const char** reason);

}  // namespace wf
