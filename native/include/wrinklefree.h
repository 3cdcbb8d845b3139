/* The engine of wrinklefree for other languages: plain C, no symbol mangled, nothing of C++ visible.
 *
 * A model holds `slots` sequences. wf_forward appends tokens to one and gives logits, wf_truncate takes tokens back.
 * wf_forward_rows does more: several sequences at once, positions computed anew, attention by blocks as block-diffusion
 * models need it. Logits of tokens that such a model never gives out (its MASK, padding) are -INFINITY.
 * Calls that can fail return 0 for success and leave their reason in wf_error otherwise, a text of the calling thread
 * that stands until its next call. A model may be used from several threads; calls wait for each other. */
#ifndef WRINKLEFREE_H
#define WRINKLEFREE_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Raised when something below changes its meaning or goes away; additions leave it. */
#define WF_API_VERSION 1

#if defined(__GNUC__)
#define WF_API __attribute__((visibility("default")))
#else
#define WF_API
#endif

typedef struct wf_model wf_model;

/* Fill it with wf_default_options, then change what you need. */
typedef struct wf_options {
  int32_t threads;     /* 0: one for each physical core this process may use */
  int32_t context;     /* positions of a slot; 0: the smaller of the model's own and 4096 */
  int32_t slots;       /* sequences at once; at least 1 */
  const char* kernels; /* "auto", or the name of a kernel table */
  const char* kv_type; /* keys and values in "float16", "float32" or "int8" */
} wf_options;

enum { WF_LOGITS_NONE = 0, WF_LOGITS_LAST = 1, WF_LOGITS_ALL = 2 };

/* WF_API_VERSION of the library: compare it with the header's. */
WF_API int32_t wf_api_version(void);
WF_API void wf_default_options(wf_options* options);
/* Why the last call of this thread failed; "" when it did not. */
WF_API const char* wf_error(void);

/* The model of a packed directory, or null. options may be null. Files of other programs (GGUF, Hugging Face's BitNet)
 * are refused: `wf import FILE DIRECTORY` writes a packed directory of them. */
WF_API wf_model* wf_load(const char* directory, const wf_options* options);
/* Null is allowed. No other thread may still use the model. */
WF_API void wf_free(wf_model* model);

WF_API int32_t wf_vocab_size(const wf_model* model);
WF_API int32_t wf_context(const wf_model* model);
WF_API int32_t wf_slots(const wf_model* model);
/* Name of the kernel table in use; it lives as long as the model. */
WF_API const char* wf_kernels(const wf_model* model);

/* Appends `count` tokens to a slot. logits: null for WF_LOGITS_NONE, [vocab_size] for WF_LOGITS_LAST,
 * [count][vocab_size] for WF_LOGITS_ALL. On failure nothing has changed. */
WF_API int wf_forward(wf_model* model, int32_t slot, const int32_t* tokens, int64_t count, int want, float* logits);

/* Tokens of one slot for wf_forward_rows. Fill it with wf_default_item, then change what you need. */
typedef struct wf_item {
  int32_t slot;
  int32_t alone; /* not 0: each token gets, to the last bit, the logits of a call for it alone */
  const int32_t* tokens;
  int64_t count;
  int64_t start;       /* position of the first token; -1: behind the last. Positions that the slot has are computed
                        * anew, those behind the item stay */
  int64_t block;       /* 1: a token sees those before it and itself; B: all of its block of B positions, as far as the
                        * slot has them behind this item */
  const int32_t* rows; /* tokens whose logits or choices are asked for, as rising indices; may be null for none */
  int64_t row_count;
} wf_item;

/* What is written for each row asked for, in the order of the items. Either part may be null. */
typedef struct wf_rows {
  float* logits;      /* [rows][vocab_size] */
  int32_t* token;     /* [rows]: the best token, of equal ones the lowest; -1 where the logits are no numbers */
  float* probability; /* [rows]: its probability; null just as token is */
  float* entropy;     /* [rows]: of the softmax, in nats; null just as token is */
} wf_rows;

/* slot 0, behind the last, causal, no token and no row. */
WF_API void wf_default_item(wf_item* item);
/* Computes items together: the weights are read once for all of them. A slot may occur again where the item before it
 * ends. The tokens of one block must fit into a pass. out may be null when no row is asked for. On failure nothing has
 * changed. */
WF_API int wf_forward_rows(wf_model* model, const wf_item* items, int64_t count, const wf_rows* out);
/* Tokens that one pass has room for. */
WF_API int32_t wf_pass_rows(const wf_model* model);
/* Tokens in a slot, or -1. */
WF_API int32_t wf_length(wf_model* model, int32_t slot);
/* Forgets the tokens of a slot from `length` on. */
WF_API int wf_truncate(wf_model* model, int32_t slot, int32_t length);

#ifdef __cplusplus
}
#endif

#endif
