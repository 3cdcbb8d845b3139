/* Prints the logits of a few tokens as hexadecimal floats; the Python test compares them with the engine's.
 *   c_api_test DIRECTORY TOKEN... */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "wrinklefree.h"

static int failed(const char* what) {
  fprintf(stderr, "%s: %s\n", what, wf_error());
  return 1;
}

/* A block computed at once, then its second half anew behind another one: the rows that stay must see the change.
 * Returns 0, or the number of what went wrong. */
static int check_rows(wf_model* model, const int32_t* tokens, int32_t count, int32_t width) {
  const int32_t rows[] = {0, 2, 3};
  float *logits = malloc(3 * (size_t)width * sizeof(float)), probability[3], entropy[3];
  int32_t token[3], i, j, wrong = 0;
  wf_item items[2];
  wf_rows out = {NULL, NULL, NULL, NULL};

  wf_default_item(&items[0]);
  if (wf_forward_rows(model, items, 1, NULL) == 0 || strstr(wf_error(), "tokens") == NULL) wrong = 10;
  items[0].tokens = tokens;
  items[0].count = count;
  items[0].block = 4;
  items[0].rows = rows;
  items[0].row_count = 3;
  if (wf_forward_rows(model, items, 1, NULL) == 0 || strstr(wf_error(), "out") == NULL) wrong = 11;
  out.token = token;
  if (wf_forward_rows(model, items, 1, &out) == 0 || strstr(wf_error(), "entropy") == NULL) wrong = 12;
  if (wf_length(model, 0) != 0 || wf_pass_rows(model) < 4) wrong = 13;
  out.probability = probability;
  out.entropy = entropy;
  if (wf_forward_rows(model, items, 1, &out) != 0) wrong = 14;
  wf_truncate(model, 0, 0);
  out.logits = logits;
  items[0].row_count = 0;
  items[0].count = 4;
  items[1] = items[0];
  items[1].start = 4;
  items[1].tokens = tokens + 4;
  items[1].count = count - 4;
  if (wf_forward_rows(model, items, 2, NULL) != 0 || wf_length(model, 0) != count) wrong = 15;
  items[0].start = 0;
  items[0].alone = 0;
  items[0].row_count = 3;
  if (wf_forward_rows(model, items, 1, &out) != 0) wrong = 16;
  for (i = 0; i < 3 && wrong == 0; ++i) {
    int32_t best = 0;
    for (j = 1; j < width; ++j)
      if (logits[i * width + j] > logits[i * width + best]) best = j;
    if (token[i] != best || !(probability[i] > 0 && probability[i] < 1) || !(entropy[i] > 0)) wrong = 17;
  }
  for (j = 0; j < 3 * width; ++j) printf("%a\n", (double)logits[j]);
  wf_truncate(model, 0, 0);
  free(logits);
  return wrong;
}

int main(int argc, char** argv) {
  wf_options options;
  wf_model* model;
  int32_t* tokens;
  float *logits, *again;
  int32_t width, i, wrong;
  const int32_t count = argc - 2;

  if (count < 2 || wf_api_version() != WF_API_VERSION) return 2;
  if (wf_load("/nowhere", NULL) != NULL || strlen(wf_error()) == 0) return failed("a wrong directory");
  wf_default_options(&options);
  options.slots = 2;
  options.threads = 2;
  model = wf_load(argv[1], &options);
  if (model == NULL) return failed("wf_load");
  width = wf_vocab_size(model);
  tokens = malloc((size_t)count * sizeof(int32_t));
  logits = malloc((size_t)count * (size_t)width * sizeof(float));
  again = malloc((size_t)width * sizeof(float));
  for (i = 0; i < count; ++i) tokens[i] = atoi(argv[i + 2]);

  if (wf_forward(model, 1, tokens, count, WF_LOGITS_ALL, logits) != 0) return failed("wf_forward");
  if (wf_length(model, 1) != count || wf_length(model, 0) != 0 || wf_slots(model) != 2) return failed("wf_length");
  if (wf_length(model, 2) != -1 || strstr(wf_error(), "slots 0 to 1") == NULL) return failed("a wrong slot");
  if (wf_forward(model, 1, &width, 1, WF_LOGITS_NONE, NULL) == 0) return failed("a token outside the vocabulary");
  if (wf_forward(model, 0, tokens, wf_context(model) + 1, WF_LOGITS_NONE, NULL) == 0) return failed("the context");
  if (wf_truncate(model, 1, count + 1) == 0) return failed("a wrong length");
  if (wf_truncate(model, 1, 0) != 0) return failed("wf_truncate");
  if (wf_forward(model, 1, tokens, count, WF_LOGITS_LAST, again) != 0) return failed("wf_forward again");
  if (memcmp(again, logits + (size_t)(count - 1) * (size_t)width, (size_t)width * sizeof(float)) != 0) return 3;
  printf("%s %d\n", wf_kernels(model), width);
  for (i = 0; i < count * width; ++i) printf("%a\n", (double)logits[i]);
  wrong = check_rows(model, tokens, count, width);
  if (wrong != 0) return wrong;
  free(tokens);
  free(logits);
  free(again);
  wf_free(model);
  return 0;
}
