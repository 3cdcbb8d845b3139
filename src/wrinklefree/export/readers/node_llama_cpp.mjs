// Drives node-llama-cpp in the line protocol of docs/interchange.md.
// Usage: node node_llama_cpp.mjs PACKAGE_DIRECTORY MODEL.gguf CONTEXT THREADS
import fs from "node:fs";
import path from "node:path";
import readline from "node:readline";
import {pathToFileURL} from "node:url";

const [directory, modelPath, contextSize, threads] = process.argv.slice(2);
const answer = (line) => fs.writeSync(1, `\n@wf ${line}\n`);
const manifest = JSON.parse(fs.readFileSync(path.join(directory, "package.json"), "utf8"));
const library = await import(pathToFileURL(path.join(directory, "dist", "index.js")).href);
const llama = await library.getLlama({
    gpu: false, build: "never", skipDownload: true, progressLogs: false, maxThreads: Number(threads),
    logLevel: library.LlamaLogLevel.warn, logger: (level, message) => fs.writeSync(2, `${message}\n`)
});
const model = await llama.loadModel({modelPath, gpuLayers: 0});

// A request has a context of its own, so no earlier one can change its answer.
async function inFreshContext(run) {
    const size = Number(contextSize);
    const context = await model.createContext({
        contextSize: size, batchSize: size, sequences: 1, threads: {ideal: Number(threads), min: 1}
    });
    try {
        return await run(context.getSequence());
    } finally {
        await context.dispose();
    }
}

const numbers = (words) => words.map(Number);
const everything = {generateNext: {logits: true, options: {temperature: 0}}};
const vocabularySize = [...model.iterateAllTokens()].length;

async function logits(file, first, tokens) {
    const wanted = Math.max(0, Number(first));
    const input = tokens.map((token, index) => index < wanted ? token : [token, everything]);
    const table = new Float32Array((tokens.length - wanted) * vocabularySize).fill(NaN);
    await inFreshContext((sequence) => sequence.controlledEvaluate(input, {
        onTokenResult(index, result) {
            const row = (index - wanted) * vocabularySize;
            for (const [token, logit] of result.next.logits)
                table[row + token] = logit;
        }
    }));
    fs.writeFileSync(file, Buffer.from(table.buffer));
    answer(`logits ${tokens.length - wanted} ${vocabularySize}`);
}

async function greedy(count, tokens) {
    const given = [];
    await inFreshContext(async (sequence) => {
        let input = tokens;
        while (given.length < count) {
            const last = [input.at(-1), {generateNext: {token: true, options: {temperature: 0}}}];
            const results = await sequence.controlledEvaluate([...input.slice(0, -1), last]);
            given.push(results.at(-1).next.token);
            input = [given.at(-1)];
        }
    });
    answer(`tokens ${given.join(" ")}`);
}

function tokenize(hex) {
    const text = Buffer.from(hex ?? "", "hex").toString("utf8");
    const tokens = model.tokenize(text, true);
    const first = model.tokens.shouldPrependBosToken && model.tokens.bos != null && tokens[0] !== model.tokens.bos;
    answer(`tokens ${[...(first ? [model.tokens.bos] : []), ...tokens].join(" ")}`);
}

answer(`ready ${manifest.version} (llama.cpp ${llama.llamaCppRelease.release})`);
for await (const line of readline.createInterface({input: process.stdin})) {
    const [request, ...rest] = line.trim().split(" ");
    try {
        if (request === "tokenize")
            tokenize(rest[0]);
        else if (request === "greedy")
            await greedy(Number(rest[0]), numbers(rest.slice(1)));
        else if (request === "logits")
            await logits(rest[0], rest[1], numbers(rest.slice(2)));
        else
            answer(`error unknown request ${request}`);
    } catch (error) {
        answer(`error ${String(error).split("\n")[0]}`);
    }
}
process.exit(0);
