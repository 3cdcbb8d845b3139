// The small vector type of the training kernels, in the compilers' own vector extensions (GCC and clang), so that one
// text serves every instruction set: a file defines kLanes and includes this inside of its anonymous namespace.

typedef float F __attribute__((vector_size(4 * kLanes)));
typedef int32_t I32 __attribute__((vector_size(4 * kLanes)));
typedef uint32_t U32 __attribute__((vector_size(4 * kLanes)));
typedef uint16_t U16 __attribute__((vector_size(2 * kLanes)));

#define WF_INLINE inline __attribute__((always_inline))

template <class To, class From>
WF_INLINE To bits_of(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}

WF_INLINE F all(float x) { return x - F{}; }
WF_INLINE F load(const float* p) {
  F f;
  __builtin_memcpy(&f, p, sizeof f);
  return f;
}
WF_INLINE F load(const Bf16* p) {
  U16 u;
  __builtin_memcpy(&u, p, sizeof u);
  return bits_of<F>(__builtin_convertvector(u, U32) << 16);
}
WF_INLINE void store(float* p, F f) { __builtin_memcpy(p, &f, sizeof f); }
// Round half to even. (A NaN stays one; of those whose bits are nearly all ones, which no processor makes, not.)
WF_INLINE void store(Bf16* p, F f) {
  const U32 u = bits_of<U32>(f);
  const U16 narrow = __builtin_convertvector((u + 0x7fffu + ((u >> 16) & 1u)) >> 16, U16);
  __builtin_memcpy(p, &narrow, sizeof narrow);
}
WF_INLINE F larger(F a, F b) { return a > b ? a : b; }
WF_INLINE F smaller(F a, F b) { return a < b ? a : b; }
WF_INLINE F magnitude(F a) { return bits_of<F>(bits_of<U32>(a) & 0x7fffffffu); }
// To the nearest whole number, half to even, for magnitudes up to 2^22.
WF_INLINE F nearest(F a) { return (a + 12582912.0f) - 12582912.0f; }
WF_INLINE float sum(F a) {
  float total = 0.0f;
  for (int i = 0; i < kLanes; ++i) total += a[i];
  return total;
}
WF_INLINE float largest(F a) {
  float most = a[0];
  for (int i = 1; i < kLanes; ++i) most = a[i] > most ? a[i] : most;
  return most;
}
// e^x with a relative error below 2e-7 (Cody-Waite reduction, Cephes expf coefficients); x is clamped to [-87, 88].
WF_INLINE F exponential(F x) {
  x = smaller(larger(x, all(-87.0f)), all(88.0f));
  const F n = nearest(x * 1.44269504f);
  const F r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  F p = all(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + (r + 1.0f);
  return p * bits_of<F>((__builtin_convertvector(n, I32) + 127) << 23);
}

// What is left behind whole vectors, through a copy on the stack; `fill` behind it.
template <class T>
WF_INLINE F load_some(const T* p, int64_t count, T fill = T{}) {
  if (count >= kLanes) return load(p);
  T copy[kLanes];
  for (int i = 0; i < kLanes; ++i) copy[i] = i < count ? p[i] : fill;
  return load(copy);
}
template <class T>
WF_INLINE void store_some(T* p, F f, int64_t count) {
  if (count >= kLanes) return store(p, f);
  T copy[kLanes];
  store(copy, f);
  for (int i = 0; i < count; ++i) p[i] = copy[i];
}

typedef uint16_t Eight __attribute__((vector_size(16)));

// out[c * out_stride + r] = in[r * in_stride + c], r and c below 8.
WF_INLINE void transpose8(const Bf16* in, int64_t in_stride, Bf16* out, int64_t out_stride) {
  Eight a[8], b[8];
  for (int i = 0; i < 8; ++i) __builtin_memcpy(&a[i], in + i * in_stride, sizeof a[i]);
#define WF_LOW(x, y) __builtin_shufflevector(x, y, 0, 8, 1, 9, 2, 10, 3, 11)
#define WF_HIGH(x, y) __builtin_shufflevector(x, y, 4, 12, 5, 13, 6, 14, 7, 15)
  for (int pass = 0; pass < 3; ++pass) {
    for (int i = 0; i < 4; ++i) {
      b[2 * i] = WF_LOW(a[i], a[i + 4]);
      b[2 * i + 1] = WF_HIGH(a[i], a[i + 4]);
    }
    for (int i = 0; i < 8; ++i) a[i] = b[i];
  }
#undef WF_LOW
#undef WF_HIGH
  for (int i = 0; i < 8; ++i) __builtin_memcpy(out + i * out_stride, &a[i], sizeof a[i]);
}

// out [columns, out_stride] = transpose of in [rows, in_stride].
inline void transpose(const Bf16* in, int64_t in_stride, int64_t rows, int64_t columns, Bf16* out, int64_t out_stride) {
  const int64_t whole_rows = rows & ~int64_t{7}, whole_columns = columns & ~int64_t{7};
  for (int64_t c = 0; c < whole_columns; c += 8)
    for (int64_t r = 0; r < whole_rows; r += 8)
      transpose8(in + r * in_stride + c, in_stride, out + c * out_stride + r, out_stride);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = r < whole_rows ? whole_columns : 0; c < columns; ++c)
      out[c * out_stride + r] = in[r * in_stride + c];
}
