// Asks a library of llama.cpp's family for tokens and logits, in the line protocol of `wf export --verify-with`.
//
// It needs nothing but llama.h and the libraries of the checkout it is built against, so it serves programs whose own
// executables give no logits by token (bitnet.cpp). README.md has the compiler's command; -DOLD_LLAMA_API for
// checkouts from before December 2024, whose functions have other names.
//
// Usage: reader MODEL.gguf CONTEXT THREADS, then one request a line on standard input; docs/interchange.md has them.

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

#include "llama.h"

#ifndef READER_VERSION
#define READER_VERSION "unknown"
#endif

namespace {

struct Reader {
    llama_model* model = nullptr;
    uint32_t context = 0;
    int threads = 1;

    void load(const char* path) {
        llama_model_params params = llama_model_default_params();
        params.n_gpu_layers = 0;
#ifdef OLD_LLAMA_API
        model = llama_load_model_from_file(path, params);
#else
        model = llama_model_load_from_file(path, params);
#endif
    }

    int vocab_size() const {
#ifdef OLD_LLAMA_API
        return llama_n_vocab(model);
#else
        return llama_vocab_n_tokens(llama_model_get_vocab(model));
#endif
    }

    // A request has a context of its own, so no earlier one can change its answer.
    llama_context* start() const {
        llama_context_params params = llama_context_default_params();
        params.n_ctx = context;
        params.n_batch = context;
        params.n_threads = threads;
        params.n_threads_batch = threads;
#ifdef OLD_LLAMA_API
        return llama_new_context_with_model(model, params);
#else
        return llama_init_from_model(model, params);
#endif
    }

    std::vector<llama_token> tokenize(const std::string& text) const {
        std::vector<llama_token> tokens(text.size() + 8);
#ifdef OLD_LLAMA_API
        const llama_model* from = model;
#else
        const llama_vocab* from = llama_model_get_vocab(model);
#endif
        int n = llama_tokenize(from, text.data(), int(text.size()), tokens.data(), int(tokens.size()), true, true);
        tokens.resize(std::max(n, 0));
        return tokens;
    }
};

// Reads `tokens` from position `start` on; logits are kept from the position `wanted` on.
bool decode(llama_context* ctx, const std::vector<llama_token>& tokens, int start, int wanted) {
    llama_batch batch = llama_batch_init(int(tokens.size()), 0, 1);
    for (int i = 0; i < int(tokens.size()); ++i) {
        batch.token[i] = tokens[i];
        batch.pos[i] = start + i;
        batch.n_seq_id[i] = 1;
        batch.seq_id[i][0] = 0;
        batch.logits[i] = start + i >= wanted;
    }
    batch.n_tokens = int(tokens.size());
    const bool done = llama_decode(ctx, batch) == 0;
    llama_batch_free(batch);
    return done;
}

std::string unhex(const std::string& hex) {
    std::string text;
    for (size_t i = 0; i + 1 < hex.size(); i += 2) text += char(std::stoi(hex.substr(i, 2), nullptr, 16));
    return text;
}

void reply(const std::string& kind, const std::vector<llama_token>& tokens) {
    std::string line = "@wf " + kind;
    for (llama_token token : tokens) line += " " + std::to_string(token);
    std::cout << "\n" << line << std::endl;
}

bool answer_logits(const Reader& reader, std::istringstream& rest) {
    std::string path;
    int first = 0;
    rest >> path >> first;
    std::vector<llama_token> tokens;
    for (llama_token token = 0; rest >> token;) tokens.push_back(token);
    llama_context* ctx = reader.start();
    if (ctx == nullptr || !decode(ctx, tokens, 0, first)) return false;
    std::FILE* out = std::fopen(path.c_str(), "wb");
    if (out == nullptr) return false;
    const size_t vocab = size_t(reader.vocab_size());
    for (int i = first; i < int(tokens.size()); ++i) {
        if (std::fwrite(llama_get_logits_ith(ctx, i), sizeof(float), vocab, out) != vocab) return false;
    }
    std::fclose(out);
    llama_free(ctx);
    std::cout << "\n@wf logits " << int(tokens.size()) - first << " " << vocab << std::endl;
    return true;
}

bool answer_greedy(const Reader& reader, std::istringstream& rest) {
    int wanted = 0;
    rest >> wanted;
    std::vector<llama_token> tokens;
    std::vector<llama_token> given;
    for (llama_token token = 0; rest >> token;) tokens.push_back(token);
    llama_context* ctx = reader.start();
    if (ctx == nullptr) return false;
    int start = 0;
    for (int i = 0; i < wanted; ++i) {
        const int last = start + int(tokens.size()) - 1;
        if (!decode(ctx, tokens, start, last)) return false;
        const float* logits = llama_get_logits_ith(ctx, int(tokens.size()) - 1);
        given.push_back(llama_token(std::max_element(logits, logits + reader.vocab_size()) - logits));
        start = last + 1;
        tokens = {given.back()};
    }
    llama_free(ctx);
    reply("tokens", given);
    return true;
}

bool answer(const Reader& reader, const std::string& line) {
    std::istringstream rest(line);
    std::string request;
    rest >> request;
    if (request == "logits") return answer_logits(reader, rest);
    if (request == "greedy") return answer_greedy(reader, rest);
    if (request != "tokenize") return false;
    std::string hex;
    rest >> hex;
    reply("tokens", reader.tokenize(unhex(hex)));
    return true;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 4) {
        std::fprintf(stderr, "usage: reader MODEL.gguf CONTEXT THREADS\n");
        return 2;
    }
    llama_backend_init();
    Reader reader;
    reader.context = uint32_t(std::atoi(argv[2]));
    reader.threads = std::atoi(argv[3]);
    reader.load(argv[1]);
    if (reader.model == nullptr) {
        std::fprintf(stderr, "%s: the model was refused\n", argv[1]);
        return 1;
    }
    std::cout << "\n@wf ready " << READER_VERSION << std::endl;
    for (std::string line; std::getline(std::cin, line);) {
        if (!answer(reader, line)) {
            std::cout << "\n@wf error request failed: " << line.substr(0, line.find(' ')) << std::endl;
        }
    }
    return 0;
}
