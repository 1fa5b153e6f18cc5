"""
The peer of bench/device.ts where a device is: transformers, on the checkpoint folder that Ingot compiled.

    python3 pytorch.py --checkpoint <folder> [--device cuda|cpu]

Requests are JSON lines on stdin, each with one key; an answer is a JSON line on stdout, progress goes to stderr:

    {"logits": {"ids": [[...], ...], "positions": [15, ...], "out": <folder>}}
        writes float32.f32 and bfloat16.f32 there: (prompts, positions, vocabulary) in float32
    {"prefill": {"tokens": 512, "repeats": 8}}
    {"decode": {"batch": 8, "prompt": 512, "steps": 64, "how": "graph" | "compile" | "eager"}}
        both answer {"seconds": [...]}, one number a prompt or a step; decode also {"agreement": 0.99}, the share of
        sequences whose token after the first is that of a forward pass without a cache

What fails is answered with {"error": ...}; the process goes on.
"""

import argparse
import copy
import json
import os
import sys
import time

# Libraries may print; stdout is for answers.
answers = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)

import torch  # noqa: E402
import transformers  # noqa: E402

transformers.utils.logging.disable_progress_bar()

WARMUP = 4


def say(line):
    print(f"peer: {line}", file=sys.stderr, flush=True)


def load(folder, device):
    """In bf16. The folder names an architecture and no model_type, so the class is looked up by name."""
    with open(os.path.join(folder, "config.json")) as file:
        given = json.load(file)
    architecture = getattr(transformers, given["architectures"][0])
    model = architecture.from_pretrained(
        folder, dtype=torch.bfloat16, attn_implementation="sdpa", device_map={"": device}
    ).eval()
    theta = model.config.rope_parameters["rope_theta"]
    if theta != given["rope_theta"]:
        raise ValueError(f"rope_theta {theta} of the model, {given['rope_theta']} of config.json")
    if model.model.rotary_emb.inv_freq.dtype != torch.float32:
        raise ValueError("angles are not in float32")
    return model


def positions_of(model, ids, positions):
    """Logits of `positions` of each prompt, (prompts, positions, vocabulary) in float32 on the host."""
    device = model.device
    at = torch.tensor(positions, device=device)
    rows = [
        model(torch.tensor([prompt], device=device), use_cache=False, logits_to_keep=at).logits[0].float().cpu()
        for prompt in ids
    ]
    return torch.stack(rows)


class Peer:
    def __init__(self, folder, device):
        self.device = device
        self.model = load(folder, device)
        self.decoders = {}

    def random_ids(self, batch, tokens):
        return torch.randint(self.model.config.vocab_size, (batch, tokens), device=self.device)

    def synchronize(self):
        if self.device == "cuda":
            torch.cuda.synchronize()

    def logits(self, ids, positions, out):
        """In bf16 as people run it; in float32 with nothing rounded: no TF32, attention as plain products."""
        started = time.perf_counter()
        positions_of(self.model, ids, positions).numpy().tofile(os.path.join(out, "bfloat16.f32"))
        exact = copy.deepcopy(self.model).float()
        exact.set_attn_implementation("eager")
        positions_of(exact, ids, positions).numpy().tofile(os.path.join(out, "float32.f32"))
        del exact
        if self.device == "cuda":
            torch.cuda.empty_cache()
        say(f"logits of {len(ids)} prompts in {time.perf_counter() - started:.1f} s")
        return {}

    def prefill(self, tokens, repeats):
        """From the ids on the host to the first token on the host."""
        seconds = []
        for run in range(WARMUP + repeats):
            ids = self.random_ids(1, tokens).cpu()
            self.synchronize()
            started = time.perf_counter()
            self.model(ids.to(self.device), use_cache=True, logits_to_keep=1).logits[0, -1].argmax().item()
            if run >= WARMUP:
                seconds.append(time.perf_counter() - started)
        return {"seconds": seconds}

    def decode(self, batch, prompt, steps, how):
        """Greedy steps back to back; tokens stay on the device."""
        key = (batch, prompt, steps, how)
        if key not in self.decoders:
            self.decoders[key] = Decoder(self, *key)
        decoder = self.decoders[key]
        return {"seconds": decoder.run(), "agreement": decoder.agreement}


class Decoder:
    """Steps of a batch over a static cache: `eager`, captured by hand (`graph`), or compiled with graphs (`compile`)."""

    def __init__(self, peer, batch, prompt, steps, how):
        self.peer, self.prompt, self.steps, self.how = peer, prompt, steps, how
        started = time.perf_counter()
        self.cache = transformers.StaticCache(config=peer.model.config, max_cache_len=prompt + steps + WARMUP)
        ids = peer.random_ids(batch, prompt)
        filled = peer.model(ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        self.first = filled.logits[:, -1].argmax(-1, keepdim=True)
        whole = peer.model(torch.cat([ids, self.first], 1), use_cache=False, logits_to_keep=1)
        expected = whole.logits[:, -1].argmax(-1, keepdim=True)
        self.token = self.first.clone()
        self.step = {"eager": lambda: self.eager, "graph": self.captured, "compile": self.compiled}[how]()
        self.rewind()
        self.step()
        self.agreement = (self.token == expected).float().mean().item()
        say(f"{how} x {batch} ready in {time.perf_counter() - started:.1f} s, {self.agreement:.0%} as without a cache")

    def next(self, token):
        out = self.peer.model(token, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        return out.logits[:, -1].argmax(-1, keepdim=True)

    def eager(self):
        self.token.copy_(self.next(self.token))

    def captured(self):
        """One graph of a step's kernels; the cache counts its tokens on the device."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARMUP - 1):
                self.eager()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.eager()
        return graph.replay

    def compiled(self):
        fast = torch.compile(self.next, mode="reduce-overhead", fullgraph=True, dynamic=False)

        def step():
            torch.compiler.cudagraph_mark_step_begin()
            self.token.copy_(fast(self.token))

        for _ in range(WARMUP):
            step()
        return step

    def rewind(self):
        for layer in self.cache.layers:
            layer.cumulative_length.fill_(self.prompt)
        self.token.copy_(self.first)

    def run(self):
        self.rewind()
        for _ in range(WARMUP):
            self.step()
        if self.peer.device != "cuda":
            marks = [time.perf_counter()]
            for _ in range(self.steps):
                self.step()
                marks.append(time.perf_counter())
            return [b - a for a, b in zip(marks, marks[1:])]
        events = [torch.cuda.Event(enable_timing=True) for _ in range(self.steps + 1)]
        events[0].record()
        for event in events[1:]:
            self.step()
            event.record()
        torch.cuda.synchronize()
        return [a.elapsed_time(b) / 1000 for a, b in zip(events, events[1:])]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.manual_seed(1)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    started = time.perf_counter()
    peer = Peer(options.checkpoint, options.device)
    say(f"loaded in {time.perf_counter() - started:.1f} s")
    name = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    hello = {"torch": torch.__version__, "transformers": transformers.__version__, "device": name}
    print(json.dumps(hello), file=answers)
    for line in sys.stdin:
        ((what, how),) = json.loads(line).items()
        try:
            with torch.no_grad():
                answer = getattr(peer, what)(**how)
        except Exception as error:  # the next request may still be answered
            answer = {"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
            say(f"{what} failed: {answer['error']}")
        print(json.dumps(answer), file=answers)


main()
