// The training kernels over the vector type of vector-inl.h; included inside of a file's anonymous namespace.

constexpr float kMinPeak = 1e-5f;  // quant.activation.MIN_PEAK

// Calls f(first, count) for blocks of kTrainingRows rows.
template <class Body>
WF_INLINE void in_blocks(int64_t begin, int64_t end, const Body& f) {
  for (int64_t first = begin; first < end; first += kTrainingRows)
    f(first, end - first < kTrainingRows ? end - first : kTrainingRows);
}

// A row in float32, rounded to the 255 levels of its peak.
WF_INLINE void round_row(const float* row, F peaks, int64_t columns, Bf16* q) {
  const float peak = largest(larger(peaks, all(kMinPeak)));
  const float scale = 1.0f / peak * 127.0f;  // as torch divides a number by a tensor
  const F up = all(scale), down = all(1.0f / scale);
  for (int64_t i = 0; i < columns; i += kLanes)
    store_some(q + i, nearest(load_some(row + i, columns - i) * up) * down, columns - i);
}

void norm_quantize(const NormQuantize& a, int64_t begin, int64_t end) {
  const int64_t d = a.columns;
  float* row = new float[d + kLanes];
  in_blocks(begin, end, [&](int64_t first, int64_t count) {
    for (int64_t r = first; r < first + count; ++r) {
      const float* x = a.x + r * d;
      F squares = all(0.0f);
      for (int64_t i = 0; i < d; i += kLanes) {
        F y = load_some(x + i, d - i);
        if (a.add) {
          y += load_some(a.add + r * d + i, d - i);
          store_some(a.sum + r * d + i, y, d - i);
        }
        store_some(row + i, y, d - i);
        squares += y * y;
      }
      const float factor = 1.0f / __builtin_sqrtf(sum(squares) / static_cast<float>(d) + a.eps);
      a.factor[r] = factor;
      F peaks = all(0.0f);
      for (int64_t i = 0; i < d; i += kLanes) {
        const F y = load_some(row + i, d - i) * factor * load_some(a.weight + i, d - i);
        store_some(row + i, y, d - i);
        peaks = larger(peaks, magnitude(y));
      }
      round_row(row, peaks, d, a.q + r * d);
    }
    if (a.q_columns) transpose(a.q + first * d, d, count, d, a.q_columns + first, a.rows);
  });
  delete[] row;
}

WF_INLINE F logistic(F x) { return 1.0f / (1.0f + exponential(-x)); }

void quantize(const Quantize& a, int64_t begin, int64_t end) {
  const int64_t d = a.columns;
  float* row = new float[d + kLanes];
  in_blocks(begin, end, [&](int64_t first, int64_t count) {
    for (int64_t r = first; r < first + count; ++r) {
      const Bf16* x = a.x + r * d * (a.gated ? 2 : 1);
      F peaks = all(0.0f);
      for (int64_t i = 0; i < d; i += kLanes) {
        F y = load_some(x + i, d - i);
        if (a.gated) y = y * logistic(y) * load_some(x + d + i, d - i);
        store_some(row + i, y, d - i);
        peaks = larger(peaks, magnitude(y));
      }
      round_row(row, peaks, d, a.q + r * d);
    }
    if (a.q_columns) transpose(a.q + first * d, d, count, d, a.q_columns + first, a.rows);
  });
  delete[] row;
}

void gate_gradient(const GateGradient& a, int64_t begin, int64_t end) {
  const int64_t d = a.columns;
  for (int64_t r = begin; r < end; ++r) {
    const Bf16 *x = a.x + 2 * r * d, *upstream = a.upstream + r * d;
    Bf16* out = a.out + 2 * r * d;
    for (int64_t i = 0; i < d; i += kLanes) {
      const int64_t left = d - i;
      const F gate = load_some(x + i, left), up = load_some(x + d + i, left), g = load_some(upstream + i, left);
      const F s = logistic(gate);
      store_some(out + i, g * up * s * (1.0f + gate * (1.0f - s)), left);
      store_some(out + d + i, g * gate * s, left);
    }
  }
}

void norm_gradient(const NormGradient& a, int64_t begin, int64_t end, float* sums) {
  const int64_t d = a.columns;
  for (int64_t r = begin; r < end; ++r) {
    const float *y = a.y + r * d, *upstream = a.upstream + r * d;
    const Bf16* gradient = a.gradient + r * d;
    float* out = a.out + r * d;
    const float factor = a.factor[r];
    F along = all(0.0f);
    for (int64_t i = 0; i < d; i += kLanes) {
      const F g = load_some(gradient + i, d - i), normed = load_some(y + i, d - i) * factor;
      along += g * load_some(a.weight + i, d - i) * normed;
      store_some(sums + i, load_some(sums + i, d - i) + g * normed, d - i);
    }
    const F mean = all(sum(along) / static_cast<float>(d));
    for (int64_t i = 0; i < d; i += kLanes) {
      const F normed = load_some(y + i, d - i) * factor;
      const F inner = load_some(gradient + i, d - i) * load_some(a.weight + i, d - i) - normed * mean;
      const F total = load_some(upstream + i, d - i) + inner * factor;
      store_some(out + i, total, d - i);
      if (a.narrow) store_some(a.narrow + r * d + i, total, d - i);
    }
  }
}

void add(const Add& a, int64_t begin, int64_t end) {
  for (int64_t i = begin * a.columns, last = end * a.columns; i < last; i += kLanes)
    store_some(a.out + i, load_some(a.x + i, last - i) + load_some(a.add + i, last - i), last - i);
}

// out = x cos + rotate_half(x) sin of one head; `back`: the transpose of that, for gradients.
WF_INLINE void rotate(const Bf16* x, const float* cosines, const float* sines, int64_t size, bool back, Bf16* out) {
  const int64_t half = size / 2;
  for (int64_t i = 0; i < half; i += kLanes) {
    const int64_t left = half - i;
    const F a = load_some(x + i, left), b = load_some(x + half + i, left);
    const F ca = load_some(cosines + i, left), cb = load_some(cosines + half + i, left);
    const F sa = load_some(sines + i, left), sb = load_some(sines + half + i, left);
    store_some(out + i, back ? a * ca + b * sb : a * ca - b * sa, left);
    store_some(out + half + i, back ? b * cb - a * sa : b * cb + a * sb, left);
  }
}

template <bool kBack>
void rotary(const Rotary& a, int64_t begin, int64_t end) {
  const int64_t width = (a.heads + 2 * a.key_heads) * a.size;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t b = row / a.length, t = row % a.length;
    const float* cosines = a.cosines + (a.shared ? t : row) * a.size;
    const float* sines = a.sines + (a.shared ? t : row) * a.size;
    for (int64_t h = 0; h < a.heads + 2 * a.key_heads; ++h) {
      Bf16* joined = a.joined + row * width + h * a.size;
      const bool query = h < a.heads, key = !query && h < a.heads + a.key_heads;
      const int64_t heads = query ? a.heads : a.key_heads, own = query ? h : (h - a.heads) % a.key_heads;
      Bf16* apart = (query ? a.q : key ? a.k : a.v) + ((b * heads + own) * a.length + t) * a.size;
      if (query || key) {
        rotate(kBack ? apart : joined, cosines, sines, a.size, kBack, kBack ? joined : apart);
      } else {
        __builtin_memcpy(kBack ? joined : apart, kBack ? apart : joined, sizeof(Bf16) * static_cast<uint64_t>(a.size));
      }
    }
  }
}

void attention_gradient(const AttentionGradient& a, int64_t begin, int64_t end) {
  const int64_t length = a.length;
  float* row = new float[length + kLanes];
  float* hidden = new float[length + kLanes];
  for (int64_t r = begin; r < end; ++r) {
    const int64_t t = r % length, in_batch = r / length;  // b * H + (key head * group + g)
    const int64_t b = in_batch / a.heads, h = in_batch % a.heads;
    const bool* seen = a.mask + (b * length + t) * length;
    for (int64_t i = 0; i < length; ++i) hidden[i] = seen[i] ? 0.0f : -1e30f;
    Bf16 *scores = a.scores + r * length, *products = a.products + r * length;
    const F log_sum = all(a.log_sum[(b * length + t) * a.heads + h]);
    F along = all(0.0f);
    for (int64_t i = 0; i < length; i += kLanes) {
      const int64_t left = length - i;
      const F masked = load_some(hidden + i, left, -1e30f);
      F p = exponential(load_some(scores + i, left) * a.scale - log_sum + masked);
      p = masked < 0.0f ? all(0.0f) : p;
      store_some(row + i, p, left);
      along += p * load_some(products + i, left);
    }
    const F mean = all(sum(along));
    for (int64_t i = 0; i < length; i += kLanes) {
      const int64_t left = length - i;
      const F p = load_some(row + i, left);
      store_some(scores + i, p, left);
      store_some(products + i, p * (load_some(products + i, left) - mean) * a.scale, left);
    }
  }
  delete[] row;
  delete[] hidden;
}

void weight_quantize(const WeightQuantize& a, int64_t begin, int64_t end) {
  const int64_t groups = (a.columns + a.group - 1) / a.group;
  in_blocks(begin, end, [&](int64_t first, int64_t count) {
    for (int64_t o = first; o < first + count; ++o)
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t from = g * a.group, to = from + a.group < a.columns ? from + a.group : a.columns;
        const F scale = all(a.scale[o * groups + g]);
        for (int64_t i = from; i < to; i += kLanes) {
          const F level = nearest(
              smaller(larger(load_some(a.latent + o * a.columns + i, to - i) / scale, all(-1.25f)), all(1.25f)));
          store_some(a.out + o * a.columns + i, level * scale, to - i);
        }
      }
    if (a.columns_) transpose(a.out + first * a.columns, a.columns, count, a.columns, a.columns_ + first, a.stride);
  });
}

void weight_gradient(const WeightGradient& a, int64_t begin, int64_t end) {
  const int64_t columns = a.columns, groups = (columns + a.group - 1) / a.group;
  Bf16* rows = a.stride ? new Bf16[kTrainingRows * columns] : nullptr;
  in_blocks(begin, end, [&](int64_t first, int64_t count) {
    if (rows) transpose(a.gradient + first, a.stride, columns, count, rows, columns);
    for (int64_t o = first; o < first + count; ++o) {
      const Bf16* gradient = rows ? rows + (o - first) * columns : a.gradient + o * columns;
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t from = g * a.group, to = from + a.group < columns ? from + a.group : columns;
        const float scale = a.scale[o * groups + g];
        const F half = all(0.5f * scale), limit = all(a.clip * scale);
        F along = all(0.0f);
        for (int64_t i = from; i < to; i += kLanes) {
          const F latent = load_some(a.latent + o * columns + i, to - i), value = load_some(gradient + i, to - i);
          const F size = magnitude(latent);
          store_some(a.out + o * columns + i, size <= limit ? value : all(0.0f), to - i);
          along += size > half ? (latent > 0.0f ? value : -value) : all(0.0f);
        }
        if (a.for_scale) a.for_scale[o * groups + g] = sum(along);
      }
    }
  });
  delete[] rows;
}

constexpr Bf16 kLowest = 0xff7f;  // the most negative number of bfloat16

// The highest of a row and the first place where it stands.
WF_INLINE float peak_of(const Bf16* x, int64_t n, int64_t* place) {
  F peaks = all(-3.4e38f);
  I32 places = {}, here = {};
  for (int64_t i = 0; i < n; i += kLanes) {
    const F value = load_some(x + i, n - i, kLowest);
    const auto higher = value > peaks;
    peaks = higher ? value : peaks;
    places = higher ? here : places;
    here += kLanes;
  }
  const float peak = largest(peaks);
  *place = n - 1;
  for (int i = 0; i < kLanes; ++i)
    if (peaks[i] == peak && places[i] + i < *place) *place = places[i] + i;
  return peak;
}

WF_INLINE float number(Bf16 x) { return bits_of<float>(static_cast<uint32_t>(x) << 16); }

// Zeros where a row has ended.
WF_INLINE F within(F x, int64_t left) {
  for (int64_t i = left; i < kLanes; ++i) x[i] = 0.0f;
  return x;
}

void distill(const Distill& a, int64_t begin, int64_t end) {
  const int64_t n = a.columns;
  const float inverse = a.inverse_temperature;
  const bool plain = inverse == 1.0f;
  for (int64_t r = begin; r < end; ++r) {
    Bf16* student = a.student + r * n;
    const Bf16* teacher = a.teacher + r * n;
    int64_t place = 0, unused = 0;
    const float theirs = peak_of(teacher, n, &place), ours = peak_of(student, n, &unused);
    a.agreed[r] = number(student[place]) == ours;
    const float target = number(student[a.targets[r]]);
    F q_total = all(0.0f), p_total = q_total, gap = q_total, own_total = q_total;
    for (int64_t i = 0; i < n; i += kLanes) {
      const int64_t left = n - i;
      const F s = load_some(student + i, left) - ours, t = load_some(teacher + i, left) - theirs;
      F q = exponential(s * inverse), p = exponential(t * inverse), own = plain ? q : exponential(s);
      if (left < kLanes) q = within(q, left), p = within(p, left), own = within(own, left);
      q_total += q;
      p_total += p;
      own_total += own;
      gap += p * (t - s);
    }
    const float q_sum = sum(q_total), p_sum = sum(p_total);
    a.divergence[r] = sum(gap) / p_sum * inverse + __builtin_logf(q_sum) - __builtin_logf(p_sum);
    a.cross_entropy[r] = __builtin_logf(sum(own_total)) + ours - target;
    if (a.step == 0.0f && a.target_step == 0.0f) continue;
    const F q_share = all(a.step / q_sum + (plain ? a.target_step / q_sum : 0.0f)), p_share = all(a.step / p_sum);
    const F own_share = all(a.target_step / sum(own_total));
    const bool apart = !plain && a.target_step != 0.0f;
    for (int64_t i = 0; i < n; i += kLanes) {
      const int64_t left = n - i;
      const F s = load_some(student + i, left) - ours, t = load_some(teacher + i, left) - theirs;
      F slope = exponential(s * inverse) * q_share - exponential(t * inverse) * p_share;
      if (apart) slope += exponential(s) * own_share;
      store_some(student + i, slope, left);
    }
    if (a.target_step != 0.0f)
      store_some(student + a.targets[r], all(number(student[a.targets[r]]) - a.target_step), 1);
  }
}
