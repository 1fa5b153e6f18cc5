# Makes the variant checkpoints and their reference outputs: python3 make.py OUT (torch, transformers, safetensors; no GPU needed).
# Random weights of odd shapes, one unusual feature each; outputs from transformers in float64 on the stored weights
# (transformers itself keeps float32 in norm statistics, soft-max and rope angles). File format: parity/golden.ts.
import json, os, sys
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, Qwen3Config, Qwen3ForCausalLM

OUT = sys.argv[1]
LENGTHS = (1, 7, 33, 400)
NEW_TOKENS = 24
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def llama(**options):
    base = dict(vocab_size=131, hidden_size=96, intermediate_size=123, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2,
                head_dim=16, max_position_embeddings=512, rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=2, tie_word_embeddings=True)
    return {**base, **options}


# name: (config class, model class, options, dtype, how config.json is spelled, shards)
VARIANTS = {
    "llama_f16_linear_one_kv_head": (LlamaConfig, LlamaForCausalLM, llama(
        hidden_size=90, num_attention_heads=5, num_key_value_heads=1, head_dim=18, tie_word_embeddings=False,
        rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}), "float16", "v4", 1),
    "llama_f32_yarn_sharded": (LlamaConfig, LlamaForCausalLM, llama(
        rope_parameters={"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": 128,
                         "beta_fast": 32.0, "beta_slow": 1.0}), "float32", "v5", 3),
    "llama_bf16_llama3_old_config": (LlamaConfig, LlamaForCausalLM, llama(
        rope_parameters={"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                         "original_max_position_embeddings": 64, "rope_theta": 500000.0}), "bfloat16", "v4", 2),
    "llama_mixed_norms_f32": (LlamaConfig, LlamaForCausalLM, llama(attention_bias=True), "bfloat16", "v5", 1),
    "mistral_f16_full": (MistralConfig, MistralForCausalLM, {k: v for k, v in llama(
        head_dim=20, sliding_window=None, tie_word_embeddings=False).items()}, "float16", "v4", 1),
    "qwen3_f32_bias_multi_head": (Qwen3Config, Qwen3ForCausalLM, llama(
        num_key_value_heads=6, head_dim=14, attention_bias=True, rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0}), "float32", "v5", 1),
    "qwen3_bf16_sliding_yarn": (Qwen3Config, Qwen3ForCausalLM, llama(
        hidden_size=70, num_attention_heads=7, num_key_value_heads=7, head_dim=10, num_hidden_layers=3, use_sliding_window=True,
        sliding_window=24, max_window_layers=1,
        rope_parameters={"rope_type": "yarn", "factor": 2.0, "rope_theta": 1000000.0, "original_max_position_embeddings": 256}), "bfloat16", "v5", 1),
}


def randomise(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        if parameter.dim() == 1:
            value = 1 + 0.1 * noise if "norm" in name else 0.1 * noise
        elif "embed" in name:
            value = 0.12 * noise
        else:
            value = noise * (1.6 / parameter.shape[1] ** 0.5)
        parameter.data.copy_(value)


def old_spelling(config):
    rope = config.pop("rope_parameters", None) or {}
    config["rope_theta"] = rope.pop("rope_theta", 10000.0)
    kind = rope.pop("rope_type", "default")
    config["rope_scaling"] = None if kind == "default" else {"type" if kind == "linear" else "rope_type": kind, **rope}
    config["torch_dtype"] = config.pop("dtype")
    config["transformers_version"] = "4.46.0"
    return config


def save_weights(folder, tensors, shards):
    if shards == 1:
        save_file(tensors, f"{folder}/model.safetensors", metadata={"format": "pt"})
        return
    names, weight_map = sorted(tensors), {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        part = names[shard::shards]
        save_file({name: tensors[name] for name in part}, f"{folder}/{file}", metadata={"format": "pt"})
        weight_map.update({name: file for name in part})
    total = sum(t.numel() * t.element_size() for t in tensors.values())
    json.dump({"metadata": {"total_size": total}, "weight_map": weight_map}, open(f"{folder}/model.safetensors.index.json", "w"), indent=1)


def reference(model, seed, vocab):
    golden = {}
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for index, length in enumerate(LENGTHS):
            ids = torch.randint(3, vocab, (1, length), generator=generator)
            output = model(ids, output_hidden_states=True, use_cache=False)
            golden[f"prompt{index}.ids"] = ids[0].int()
            golden[f"prompt{index}.logits"] = output.logits[0].float()
            if index == 1:
                for layer, hidden in enumerate(output.hidden_states):
                    golden[f"prompt{index}.hidden{layer}"] = hidden[0].float()
            chosen, margins, sequence = [], [], ids
            for _ in range(NEW_TOKENS):
                top = model(sequence, use_cache=False).logits[0, -1].topk(2)
                chosen.append(int(top.indices[0]))
                margins.append(float(top.values[0] - top.values[1]))
                sequence = torch.cat([sequence, top.indices[:1][None]], 1)
            golden[f"prompt{index}.greedy"] = torch.tensor(chosen, dtype=torch.int32)
            golden[f"prompt{index}.greedy_margin"] = torch.tensor(margins)
    return {name: tensor.contiguous() for name, tensor in golden.items()}


for number, (name, (config_class, model_class, options, dtype, spelling, shards)) in enumerate(VARIANTS.items()):
    folder = f"{OUT}/{name}"
    os.makedirs(folder, exist_ok=True)
    config = config_class(**options)
    config._attn_implementation = "eager"
    model = model_class(config).double().eval()
    randomise(model, 100 + number)
    mixed = "mixed" in name
    stored = {}
    for key, value in model.state_dict().items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        stored[key] = value.to(torch.float32 if mixed and "norm" in key else DTYPES[dtype]).contiguous().clone()
    model.load_state_dict({key: value.double() for key, value in stored.items()}, strict=False)
    model.tie_weights()
    save_weights(folder, stored, shards)
    text = json.loads(config.to_json_string(use_diff=False))
    keep = {*options, "rope_parameters", "attention_bias", "mlp_bias", "hidden_act", "layer_types", "model_type", "sliding_window",
            "transformers_version", "use_sliding_window", "max_window_layers"}
    text = {key: value for key, value in text.items() if key in keep}
    text["architectures"], text["dtype"] = [model_class.__name__], dtype
    if spelling == "v4":
        text = old_spelling(text)
        text.pop("layer_types", None)
    json.dump(text, open(f"{folder}/config.json", "w"), indent=2, sort_keys=True)
    golden = reference(model, 200 + number, options["vocab_size"])
    import transformers
    save_file(golden, f"{folder}/golden.safetensors", metadata={"reference": f"transformers {transformers.__version__} float64 cpu"})
    spread = golden["prompt3.logits"].std().item()
    print(f"{name}: logits deviate {spread:.2f}, smallest greedy margin {min(golden[f'prompt{i}.greedy_margin'].min().item() for i in range(4)):.4f}", flush=True)
