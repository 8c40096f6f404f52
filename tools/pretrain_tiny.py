"""Pre-train the built-in base `tiny` from a folder of dialogues, on CPU or GPU, resumable.

    python tools/pretrain_tiny.py CORPUS --work runs/tiny --tokens 20e6
    python tools/pretrain_tiny.py CORPUS --work runs/tiny --export finetune/model/tiny

CORPUS holds dialogues-train.jsonl.xz and dialogues-heldout.jsonl.xz, one {"messages": [...]} per
line. The work folder gets the tokenizer, log.jsonl, `last` (to resume from) and `best` (lowest
held-out perplexity). Run the first command again after an interruption and it continues.
"""

from __future__ import annotations

import argparse
import json
import lzma
import math
import random
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

BOS, END, PAD = "<|begin|>", "<|end|>", "<|pad|>"
ROLES = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"}
VOCABULARY = 8192
MAX_LENGTH = 768
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
# The corpus has no system turns; without these the system role would stay an untrained token.
SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a friendly assistant that books things for people.",
    "Help the user with their request.",
    "You answer questions and make reservations.",
    "You take orders and confirm them before they are placed.",
    "Be short and polite.",
)
SYSTEM_SHARE = 0.15


@dataclass(frozen=True)
class Dialogue:
    ids: list[int]
    content: list[bool]  # True where the token is text or end of turn, not a role marker


@dataclass
class Progress:
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best: float = math.inf


def read_dialogues(path: Path) -> list[list[dict[str, str]]]:
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line)["messages"] for line in lines]


def train_tokenizer(dialogues: list[list[dict[str, str]]]) -> PreTrainedTokenizerFast:
    """Train byte-level BPE; every special token is one id that text can never produce."""
    special = [PAD, BOS, END, *ROLES.values()]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator((m["content"] for d in dialogues for m in d), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=BOS, eos_token=END, pad_token=PAD,
        additional_special_tokens=list(ROLES.values()), chat_template=CHAT_TEMPLATE,
        model_max_length=1024, clean_up_tokenization_spaces=False,
    )  # fmt: skip


def encode(dialogues: list[list[dict[str, str]]], tokenizer: PreTrainedTokenizerFast) -> list[Dialogue]:
    texts = [m["content"] for d in dialogues for m in d]
    encoded = iter(tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"])
    role_ids = {role: tokenizer.convert_tokens_to_ids(token) for role, token in ROLES.items()}
    out = []
    for dialogue in dialogues:
        ids, content = [tokenizer.bos_token_id], [False]
        for message in dialogue:
            turn = [*next(encoded), tokenizer.eos_token_id]
            ids += [role_ids[message["role"]], *turn]
            content += [False, *[True] * len(turn)]
        out.append(Dialogue(ids[:MAX_LENGTH], content[:MAX_LENGTH]))
    return out


def with_system_turns(dialogues: list[list[dict[str, str]]]) -> list[list[dict[str, str]]]:
    pick = random.Random(0)
    return [
        [{"role": "system", "content": pick.choice(SYSTEM_PROMPTS)}, *d] if pick.random() < SYSTEM_SHARE else d
        for d in dialogues
    ]


def epoch_batches(data: list[Dialogue], budget: int, epoch: int) -> list[list[int]]:
    """Shuffle, group rows of like length (so that little is padding), cut to `budget` tokens."""
    pick = random.Random(epoch)
    order = list(range(len(data)))
    pick.shuffle(order)
    batches = []
    for start in range(0, len(order), 4096):
        pool = sorted(order[start : start + 4096], key=lambda i: len(data[i].ids))
        batch: list[int] = []
        for i in pool:
            if batch and (len(batch) + 1) * padded(len(data[i].ids)) > budget:
                batches.append(batch)
                batch = []
            batch.append(i)
        batches.append(batch)
    pick.shuffle(batches)
    return batches


def padded(length: int) -> int:
    return -(-length // 32) * 32


def stream(data: list[Dialogue], budget: int, skip: int) -> Iterator[list[int]]:
    epoch = 0
    while True:
        for batch in epoch_batches(data, budget, epoch):
            if skip:
                skip -= 1
            else:
                yield batch
        epoch += 1


def collate(rows: list[Dialogue], device: str, content_only: bool) -> tuple[Tensor, Tensor]:
    """Right-pad to (B, T); labels are -100 on padding and, if asked, on role markers."""
    width = padded(max(len(r.ids) for r in rows))
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    labels = torch.full((len(rows), width), -100)
    for row, dialogue in enumerate(rows):
        tensor = torch.tensor(dialogue.ids)
        ids[row, : len(tensor)] = tensor
        keep = torch.tensor(dialogue.content) if content_only else torch.ones_like(tensor, dtype=torch.bool)
        labels[row, : len(tensor)] = torch.where(keep, tensor, -100)
    return ids.to(device), labels.to(device)


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=256, intermediate_size=704, num_hidden_layers=8,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=1024,
        tie_word_embeddings=True, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        attn_implementation="sdpa",
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    for layer in model.model.layers:  # residual branches start at zero: stable at high learning rates
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
        torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    return model


class Loss(torch.nn.Module):
    """Summed next-token NLL of a padded batch; causal attention needs no mask for right padding."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        super().__init__()
        self.body, self.head = model.model, model.lm_head

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        hidden = self.body(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
        logits = self.head(hidden.reshape(-1, hidden.shape[-1])).float()
        return F.cross_entropy(logits, labels[:, 1:].reshape(-1), reduction="sum")


def make_optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al., 2024) for matrices inside the layers, AdamW for the rest."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    rest = [p for p in model.parameters() if not any(p is m for m in matrices)]
    return [
        torch.optim.Muon(matrices, lr=6e-3, weight_decay=0.05, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=4e-3, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]


def learning_rate_factor(done: float) -> float:
    """Warm up over 2 %, hold, then fall linearly to zero over the last 45 % of the token budget."""
    return min(1.0, done / 0.02 + 0.02, max(0.0, (1 - done) / 0.45))


@torch.no_grad()
def perplexity(loss: torch.nn.Module, data: list[Dialogue], device: str) -> float:
    """Token-weighted perplexity over text and end-of-turn tokens; role markers do not count."""
    total, count = 0.0, 0
    for batch in epoch_batches(data, 16384, 0):
        ids, labels = collate([data[i] for i in batch], device, content_only=True)
        with torch.autocast(device, torch.bfloat16):
            total += float(loss(ids, labels))
        count += int((labels[:, 1:] != -100).sum())
    return math.exp(total / count)


def save_checkpoint(
    folder: Path, model: LlamaForCausalLM, optimizers: list[torch.optim.Optimizer], progress: Progress
) -> None:
    fresh = folder.with_suffix(".new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    tensors = {f"model.{k}": v.contiguous() for k, v in model.state_dict().items() if k != "lm_head.weight"}
    for n, optimizer in enumerate(optimizers):
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{n}.{index}.{k}": torch.as_tensor(v) for k, v in state.items()}
    save_file(tensors, fresh / "state.safetensors")
    (fresh / "progress.json").write_text(json.dumps(asdict(progress)))
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)


def load_checkpoint(folder: Path, model: LlamaForCausalLM, optimizers: list[torch.optim.Optimizer]) -> Progress:
    tensors = load_file(folder / "state.safetensors")
    weights = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    model.load_state_dict(weights | {"lm_head.weight": weights["model.embed_tokens.weight"]})
    for n, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith(f"optimizer.{n}."):
                index, name = key.split(".", 3)[2:]
                state.setdefault(int(index), {})[name] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return Progress(**json.loads((folder / "progress.json").read_text()))


def load_tokenizer(work: Path, dialogues: list[list[dict[str, str]]]) -> PreTrainedTokenizerFast:
    if not (work / "tokenizer" / "tokenizer.json").exists():
        train_tokenizer(dialogues).save_pretrained(work / "tokenizer")
    return PreTrainedTokenizerFast.from_pretrained(work / "tokenizer")


def start_from(folder: Path, work: Path, model: LlamaForCausalLM) -> None:
    """Take the weights of an exported model; its tokenizer must be the work folder's."""
    weights = {k: v.float() for k, v in load_file(folder / "model.safetensors").items()}
    ours, theirs = ((f / "tokenizer.json").read_bytes() for f in (work / "tokenizer", folder))
    if ours != theirs:
        raise SystemExit(f"{folder} has another tokenizer than {work / 'tokenizer'}: copy its tokenizer files there")
    model.load_state_dict(weights | {"lm_head.weight": weights["model.embed_tokens.weight"]})


def pretrain(corpus: Path, work: Path, tokens: float, batch_tokens: int, save_every: int, init: Path | None) -> None:
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dialogues = read_dialogues(corpus / "dialogues-train.jsonl.xz")
    tokenizer = load_tokenizer(work, dialogues)
    train = encode(with_system_turns(dialogues), tokenizer)
    heldout = encode(read_dialogues(corpus / "dialogues-heldout.jsonl.xz"), tokenizer)
    model = make_model(tokenizer).to(device)
    if init and not (work / "last").exists():
        start_from(init, work, model)
    optimizers = make_optimizers(model)
    progress = load_checkpoint(work / "last", model, optimizers) if (work / "last").exists() else Progress()
    peaks = [[g["lr"] for g in o.param_groups] for o in optimizers]
    plain = Loss(model)
    loss = torch.compile(plain, dynamic=True)
    print(
        f"{sum(p.numel() for p in model.parameters()):,} parameters, {sum(len(d.ids) for d in train):,} tokens an epoch"
    )
    log = (work / "log.jsonl").open("a", buffering=1)
    batches, began = stream(train, batch_tokens, progress.step), time.monotonic() - progress.seconds
    while progress.tokens < tokens:
        ids, labels = collate([train[i] for i in next(batches)], device, content_only=False)
        factor = learning_rate_factor(progress.tokens / tokens)
        for optimizer, lrs in zip(optimizers, peaks, strict=True):
            for group, lr in zip(optimizer.param_groups, lrs, strict=True):
                group["lr"] = lr * factor
        count = int((labels[:, 1:] != -100).sum())
        with torch.autocast(device, torch.bfloat16):
            value = loss(ids, labels) / count
        value.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        progress.step += 1
        progress.tokens += count
        progress.seconds = time.monotonic() - began
        entry: dict[str, float] = {**asdict(progress), "loss": float(value)}
        if progress.step % save_every == 0 or progress.tokens >= tokens:
            entry["heldout"] = perplexity(plain, heldout, device)
            progress.best, improved = min(progress.best, entry["heldout"]), entry["heldout"] < progress.best
            save_checkpoint(work / "last", model, optimizers, progress)
            if improved:
                save_checkpoint(work / "best", model, [], progress)
        if progress.step % 10 == 0 or "heldout" in entry:
            log.write(json.dumps(entry) + "\n")


def export(work: Path, out: Path) -> None:
    """Write the best checkpoint as bf16 safetensors with its tokenizer, ready to ship."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(work / "tokenizer")
    model = make_model(tokenizer)
    progress = load_checkpoint(work / "best", model, [])
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    print(f"{out}: step {progress.step}, {progress.tokens:,} tokens, held-out perplexity {progress.best:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--work", type=Path, default=Path("runs/tiny"))
    parser.add_argument("--tokens", type=float, default=20e6, help="training tokens in all")
    parser.add_argument("--batch-tokens", type=int, default=12288)
    parser.add_argument("--save-every", type=int, default=120, help="steps between held-out scores")
    parser.add_argument("--init", type=Path, help="exported model to go on from, with a fresh optimizer")
    parser.add_argument("--export", type=Path, help="write the best checkpoint here instead of training")
    args = parser.parse_args()
    if args.export:
        export(args.work, args.export)
        return
    args.work.mkdir(parents=True, exist_ok=True)
    pretrain(args.corpus, args.work, args.tokens, args.batch_tokens, args.save_every, args.init)


if __name__ == "__main__":
    main()
