"""Load an exported folder with `transformers` and compare: `PYTHON tests/hf_export_check.py FOLDER EXPECTED`.

EXPECTED is a safetensors file with `ids` (1, T), `logits` (1, T, V), and `text` (UTF-8 bytes) with `text_ids` (N).
Needs torch, safetensors and transformers, and nothing of the lab.
"""

import sys

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

folder, expected = sys.argv[1], load_file(sys.argv[2])
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
with torch.no_grad():
    worst = (model(expected["ids"]).logits - expected["logits"]).abs().max().item()
tokenizer = AutoTokenizer.from_pretrained(folder)
text = bytes(expected["text"].tolist()).decode()
ids = tokenizer(text)["input_ids"]
assert ids == expected["text_ids"].tolist(), "the tokenizer gives other ids"
assert tokenizer.decode(ids) == text, "the tokenizer does not give the text back"
assert worst < 1e-4, worst
print(f"{type(model).__name__} {type(tokenizer).__name__}: logits differ by at most {worst:.1e}, {len(ids)} ids equal")
