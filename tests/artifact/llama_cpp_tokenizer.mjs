// llama.cpp's tokenizer: node llama_cpp_tokenizer.mjs PACKAGE MODEL TEXTS ANSWER.
// TEXTS is a JSON array of texts. ANSWER, JSON too: ids of each text (special tokens in it parsed, none added), the text of
// those ids, and what the program itself makes of the file's special tokens.
import {readFileSync, writeFileSync} from "node:fs";
import {pathToFileURL} from "node:url";

const [library, modelPath, texts, answer] = process.argv.slice(2);
const {getLlama} = await import(pathToFileURL(library + "/dist/index.js").href);
const llama = await getLlama({gpu: false, build: "never", logLevel: "error", maxThreads: 1});
const model = await llama.loadModel({modelPath, vocabOnly: true});
const ids = JSON.parse(readFileSync(texts, "utf8")).map((text) => [...model.tokenize(text, true)]);
const {bos, eos, eot, shouldPrependBosToken} = model.tokens;
writeFileSync(
    answer,
    JSON.stringify({
        ids,
        texts: ids.map((tokens) => model.detokenize(tokens, true)),
        bos,
        eos,
        eot,
        addsBos: shouldPrependBosToken,
        ends: [...new Set(ids.flat())].filter((token) => model.isEogToken(token)),
    }),
);
process.exit(0);
