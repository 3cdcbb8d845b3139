// The kernel table: every hot loop of the engine, one implementation per instruction set, chosen once at run time.
//
// Kernel files (reference.cc, avx2.cc, avx512vnni.cc, neon.cc and their kin) are compiled with their own flags, use
// no STL and export only their table, so that no function compiled with wider instructions can leak to other files.
// The byte layouts are those of src/wrinklefree/artifact/packing.py.
#pragma once
#include <cstdint>

namespace wf {

constexpr int kRowsPerBlock = 16;
constexpr int kColumnsPerBlock = 64;
constexpr int kBytesPerBlock = 256;  // 2 bits a weight
constexpr int kBlocksPerFive = 5;    // column blocks that share bytes in the layout of 1.6 bits
constexpr int kBytesPerFive = 1024;

enum class TernaryLayout : uint8_t {
  kTwoBit,     // t2-r16c64
  kFiveTrits,  // t1.6-r16c64: five trits a byte, the column blocks left over as kTwoBit
};

// Bytes of the codes of one row block.
constexpr int64_t row_block_bytes(TernaryLayout layout, int32_t column_blocks) {
  return layout == TernaryLayout::kTwoBit ? int64_t{column_blocks} * kBytesPerBlock
                                          : int64_t{column_blocks / kBlocksPerFive} * kBytesPerFive +
                                                int64_t{column_blocks % kBlocksPerFive} * kBytesPerBlock;
}

// A packed ternary matrix; the memory belongs to the caller. Codes are {0,1,2}; the loader refused all others.
struct TernaryMatrix {
  const uint8_t* codes;          // [row_blocks][row_block_bytes]
  const uint16_t* group_scales;  // float16 bits [row_blocks][groups][16], or null when scales are per row
  const float* row_scales;       // [row_blocks * 16], or null when scales are per group (tensor: replicated)
  int32_t rows, columns;
  int32_t row_blocks, column_blocks;
  int32_t group_blocks;  // column blocks that share a scale (1, 2, 4); 0 when scales are per row
  TernaryLayout layout = TernaryLayout::kTwoBit;
  int32_t prefetch = 0;  // bytes to ask for ahead of the codes being read; 0: leave it to the hardware
};

// How the entries of an embedding or head are stored; see packing.py. A block is 16 rows x 64 columns.
//   kQ8: byte 64 k + 4 r + j (k of 16) is column 4 k + j of row r, value byte - 128.
//   kQ4: byte 64 k + 4 r + j (k of 8): column 4 k + j in the low four bits, 32 + 4 k + j in the high four, value
//        nibble - 8. A scale for each 32 columns.
//   kQ6: 512 bytes as kQ4 hold the low four bits of a 6-bit number; then byte 64 d + 4 r + j (d of 4) holds the high
//        two bits of the columns 4 d + j, + 16, + 32, + 48 in its bit pairs from the lowest up; value number - 32. A
//        scale for each 64 columns.
enum class TableFormat : uint8_t { kQ8, kQ6, kQ4 };

constexpr int64_t table_block_bytes(TableFormat format) {
  return format == TableFormat::kQ8 ? 1024 : format == TableFormat::kQ6 ? 768 : 512;
}

// A quantised embedding or head [rows, columns]; the memory belongs to the caller.
struct TableMatrix {
  const uint8_t* codes;          // [row_blocks][column_blocks][table_block_bytes]
  const float* row_scales;       // [row_blocks * 16] for kQ8, else null
  const uint16_t* group_scales;  // float16 bits [row_blocks][groups][16] for kQ6 (64 columns) and kQ4 (32), else null
  int32_t rows, columns;
  int32_t row_blocks, column_blocks;
  TableFormat format;
  int32_t prefetch = 0;
};

// Activations of a product with a table, 15 bits: x16 = round-half-even(x * (16256 / peak)) in float32 with
// peak = max(max|x|, 1e-5), scale = peak / 16256, kept as two bytes x16 = 128 * high + low with high in [-127, 127]
// and low in [-64, 63], so that int8 instructions can be used. Zero-filled to whole column blocks.
struct WideActivations {
  const int8_t* high;        // [tokens][column_blocks * 64]
  const int8_t* low;         // [tokens][column_blocks * 64]
  const int32_t* half_sums;  // [tokens][column_blocks * 2]: the sum of x16 over each 32 columns
  const float* scales;       // [tokens]
};

// How keys and values are kept: float16, float32, or int8 with a float32 scale for each position of a head.
enum class KvType : uint8_t { kF16, kF32, kI8 };

// The keys and values of one key-value head, position after position; the memory belongs to the caller.
struct KvView {
  const void* k;  // [positions] rows of head_dim elements, `stride` elements apart
  const void* v;
  const float* k_scales;  // [positions] for kI8: key t is k_scales[t] times its codes; else null
  const float* v_scales;
  int64_t stride;
  KvType type;
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

  // One token's WideActivations.
  void (*quantize_wide)(const float* x, int32_t n, int8_t* high, int8_t* low, int32_t* half_sums, float* scale);
  // Head: y[t * y_stride + r] = sum over groups g of scale[r, g] * (exact integer sum over c in g of value[r, c] *
  // x16[t, c]) * scales[t], for the rows of the row blocks [begin, end). The integer is converted to float32 with one
  // rounding; with one scale a row (kQ8) the result is float(sum) * row_scale * token scale, bit for bit.
  void (*table_gemm)(const TableMatrix* w, const WideActivations* x, int32_t tokens, int32_t begin, int32_t end,
                     float* y, int64_t y_stride);
  // Head in float16 and low-rank factors, plain rows: y[t * y_stride + r] = sum_i w[r * columns + i] * x[t * columns +
  // i], rows [begin, end).
  void (*f16_gemm)(const uint16_t* w, int32_t columns, const float* x, int32_t tokens, int32_t begin, int32_t end,
                   float* y, int64_t y_stride);

  // y = x / sqrt(mean(x^2) + eps) * weight; y may be x.
  void (*rms_norm)(const float* x, const float* weight, float eps, int32_t n, float* y);
  // rms_norm to `y` and quantize of that, bit for bit, with one reading of y less; y may be x.
  void (*norm_quantize)(const float* x, const float* weight, float eps, int32_t n, float* y, int8_t* q,
                        int32_t* block_sums, float* scale);
  // x[i] = silu(gate[i]) * up[i] or max(gate[i], 0)^2 * up[i]; out may alias gate or up.
  void (*silu_mul)(const float* gate, const float* up, int32_t n, float* out);
  void (*relu2_mul)(const float* gate, const float* up, int32_t n, float* out);
  void (*add)(float* y, const float* x, int32_t n);  // y += x

  // Attention of one position over the keys [first, last) of one key-value head, for the `group` query heads that share
  // them, left unfinished so that ranges can be computed by different threads: with s[h, t] = scale * q[h] . k[t],
  // peaks[h] = max_t s[h, t], totals[h] = sum_t e^(s[h, t] - peaks[h]), out[h, d] = sum_t e^(s[h, t] - peaks[h]) v[t,
  // d]. q and out are [group, head_dim]. Keys and values are read and converted once for all heads.
  void (*attend)(const float* q, int32_t group, const KvView* kv, int32_t head_dim, int32_t first, int32_t last,
                 float scale, float* peaks, float* totals, float* out);
  // float32 -> float16 bits, round half to even.
  void (*store_f16)(const float* x, int32_t n, uint16_t* out);
  // float32 -> int8: out[i] = round-half-even(x[i] * (127 / peak)) with peak = max(max|x|, 1e-30), scale = peak / 127.
  void (*store_i8)(const float* x, int32_t n, int8_t* out, float* scale);
  // Multiply-adds done by `rounds` rounds of the table's int8 multiply instruction on registers alone: nothing can be
  // faster. For measuring the machine, not for computing.
  int64_t (*burn_int8)(int64_t rounds);

  // Attention of `queries` consecutive positions of the `group` query heads that share one key-value head, for
  // head_dim as attend_block_takes says. Query i, head h is q[i * q_stride + h * head_dim ...] and sees the positions
  // t < seen[i], at least one and no fewer than the query before it; out has the same places. Several times faster than
  // one query at a time: keys and values are converted once for many queries. The result of a query does not depend on
  // the others of the call. scratch: attend_scratch_floats(head_dim).
  void (*attend_block)(const float* q, int64_t q_stride, int32_t queries, int32_t group, const KvView* kv,
                       int32_t head_dim, const int32_t* seen, float scale, float* scratch, float* out,
                       int64_t out_stride);
  // What the softmax of a row needs, left unfinished so that a row can be done in pieces: peak = max_i x[i], total =
  // sum_i e^(x[i] - peak), slope = sum_i (x[i] - peak) e^(x[i] - peak); the differences are clamped to -87, so that an
  // infinite one adds nothing that float32 shows. A piece of nothing else has the peak -1e30. With a NaN or +infinity
  // among x the slope is NaN.
  void (*softmax_sums)(const float* x, int32_t n, float* peak, float* total, float* slope);
};

constexpr int kMaxBlockHeadDim = 128;
inline bool attend_block_takes(int32_t head_dim) { return head_dim % 16 == 0 && head_dim <= kMaxBlockHeadDim; }

// Floats of scratch that attend_block needs, aligned to 64 bytes: queries and mixtures of a block of rows, a tile of
// keys and one of values.
constexpr int32_t kAttendBlockRows = 96;
constexpr int32_t kAttendTileKeys = 64;
constexpr int64_t attend_scratch_floats(int32_t head_dim) {
  return int64_t{2} * (kAttendBlockRows + kAttendTileKeys) * head_dim;
}

// Many tokens: ranges of row blocks that begin and end at multiples of this waste nothing (see ternary_panel-inl.h).
constexpr int kPanelGrain = 2;

extern const Kernels kReferenceKernels;
#if defined(__x86_64__)
extern const Kernels kAvx2Kernels;
extern const Kernels kAvxVnniKernels;
extern const Kernels kAvx512VnniKernels;
extern const Kernels kAmxKernels;
#endif
#if defined(__aarch64__)
extern const Kernels kNeonDotprodKernels;
extern const Kernels kNeonI8mmKernels;
#endif

// Every table this build holds that this machine can run, best first; never empty (the reference is last).
int runnable_kernels(const Kernels** out, int capacity);

// The table named `name`, or for "auto" the best; null when unknown or not runnable here. `reason` (static text)
// says why it was chosen.
const Kernels* select_kernels(const char* name, const char** reason);

}  // namespace wf
