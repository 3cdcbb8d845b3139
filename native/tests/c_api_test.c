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

int main(int argc, char** argv) {
  wf_options options;
  wf_model* model;
  int32_t* tokens;
  float *logits, *again;
  int32_t width, i;
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
  free(tokens);
  free(logits);
  free(again);
  wf_free(model);
  return 0;
}
