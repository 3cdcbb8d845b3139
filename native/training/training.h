// The element-wise passes of a training step between its matrix products, several of torch's passes in one, for
// tensors of a processor's memory. Written once over small vectors (training-inl.h) and compiled for several
// instruction sets; chosen once at run time. Values between the passes are bfloat16, arithmetic is float32.
//
// Every function works on the rows [begin, end) of its task, so that the caller can divide them among threads.
// Shape letters: N rows (tokens), D columns, O and I outputs and inputs of a weight. Pointers may be null where said.
#pragma once
#include <cstdint>

namespace wf {

using Bf16 = uint16_t;  // the bits

// Rows that a range must begin and end at (except at the end of a matrix): transposed copies are made in such blocks.
constexpr int64_t kTrainingRows = 32;  // a cache line of bfloat16

// y = x + add, n = y * rsqrt(mean(y^2) + eps) * weight, q = n rounded to int8 by its row's peak, as a number.
struct NormQuantize {
  const float* x;       // [N, D]
  const Bf16* add;      // [N, D] or null
  const float* weight;  // [D]
  float eps;
  int64_t rows, columns;
  float* sum;       // [N, D]: y; null without add
  Bf16* q;          // [N, D]
  Bf16* q_columns;  // [D, N] or null: q transposed
  float* factor;    // [N]: rsqrt(...)
};

// q = x rounded to int8 by its row's peak; with `gated` columns of x are [gate | up] and it is silu(gate) * up that is
// rounded.
struct Quantize {
  const Bf16* x;  // [N, D], or [N, 2 D]
  bool gated;
  int64_t rows, columns;
  Bf16* q;          // [N, D]
  Bf16* q_columns;  // [D, N] or null
};

struct GateGradient {
  const Bf16* x;         // [N, 2 D]: gate | up
  const Bf16* upstream;  // [N, D]
  int64_t rows, columns;
  Bf16* out;  // [N, 2 D]
};

// The gradient of NormQuantize for y: straight through the rounding, added to `upstream`.
struct NormGradient {
  const float* y;         // [N, D]
  const float* factor;    // [N]
  const float* weight;    // [D]
  const Bf16* gradient;   // [N, D], of q
  const float* upstream;  // [N, D]
  int64_t rows, columns;
  float* out;         // [N, D]; may be upstream
  Bf16* narrow;       // [N, D] or null: out in bfloat16
  float* for_weight;  // [D]: added to
};

struct Add {
  const float* x;   // [N, D]
  const Bf16* add;  // [N, D]
  int64_t rows, columns;
  float* out;  // [N, D]
};

// Rotary embedding and the way between [B, T, (H + 2 K) E] of one product and [B, heads, T, E] of three tensors.
struct Rotary {
  const float *cosines, *sines;  // [B or 1, T, E]
  bool shared;                   // one row of cosines for all sequences
  int64_t batch, length, heads, key_heads, size;
  Bf16* joined;  // [B, T, (H + 2 K) E]
  Bf16 *q, *k, *v;
};

// In place, for rows of scores: scores become p = exp(scale * score - log_sum), products (dL/dp) become
// p * (product - sum_j p_j product_j) * scale. Row r of query head h = key head * group + g of sequence b is row
// ((b * K + h / group) * group + g) * T + t of both.
struct AttentionGradient {
  Bf16* scores;          // [B K, G T, T]
  Bf16* products;        // [B K, G T, T]
  const bool* mask;      // [B, T, T]
  const float* log_sum;  // [B, T, H]
  int64_t batch, length, heads, key_heads;
  float scale;
};

// clip(round(latent / scale), -1, 1) * scale.
struct WeightQuantize {
  const float* latent;  // [O, I]
  const float* scale;   // [O, groups]
  int64_t rows, columns, group;
  Bf16* out;       // [O, I]
  Bf16* columns_;  // [I, stride]: out transposed, or null
  int64_t stride;
};

// From the gradient of the quantised weight that of the latent (zero beyond `clip` scales) and of the scale.
struct WeightGradient {
  const Bf16* gradient;  // [O, I] when stride is 0, else transposed: [I, stride], beginning at the first of O columns
  int64_t stride;
  const float* latent;  // [O, I]
  const float* scale;   // [O, groups]
  int64_t rows, columns, group;
  float clip;        // no clipping: infinity
  float* out;        // [O, I]
  float* for_scale;  // [O, groups] or null
};

// Divergence KL(p || q) of p = softmax(teacher / tau) and q = softmax(student / tau), and the cross-entropy of
// softmax(student) with the target. The gradient, step (q - p) + target_step (softmax(student) - target), takes the
// place of the student's logits when one of the steps is not 0.
struct Distill {
  Bf16* student;           // [N, V]
  const Bf16* teacher;     // [N, V]
  const int64_t* targets;  // [N]
  int64_t rows, columns;
  float inverse_temperature, step, target_step;
  float* divergence;     // [N]
  float* cross_entropy;  // [N]
  bool* agreed;          // [N]: the student's highest logit is where the teacher's first highest is
};

struct TrainingKernels {
  const char* name;
  void (*norm_quantize)(const NormQuantize&, int64_t begin, int64_t end);
  void (*quantize)(const Quantize&, int64_t begin, int64_t end);
  void (*gate_gradient)(const GateGradient&, int64_t begin, int64_t end);
  // `sums` [D]: this range's part of for_weight, added to.
  void (*norm_gradient)(const NormGradient&, int64_t begin, int64_t end, float* sums);
  void (*add)(const Add&, int64_t begin, int64_t end);
  void (*split)(const Rotary&, int64_t begin, int64_t end);  // joined -> q, k, v, rotated; rows are B T
  void (*join)(const Rotary&, int64_t begin, int64_t end);   // the gradients of that: q, k, v -> joined
  void (*attention_gradient)(const AttentionGradient&, int64_t begin, int64_t end);  // rows are B K G T
  void (*weight_quantize)(const WeightQuantize&, int64_t begin, int64_t end);
  void (*weight_gradient)(const WeightGradient&, int64_t begin, int64_t end);
  void (*distill)(const Distill&, int64_t begin, int64_t end);
};

extern const TrainingKernels kPlainTraining;
#if defined(__x86_64__)
extern const TrainingKernels kAvx2Training;
extern const TrainingKernels kAvx512Training;
#endif

// The best that runs here, or the one named; null when there is none of that name that runs.
const TrainingKernels* training_kernels(const char* name);

}  // namespace wf
