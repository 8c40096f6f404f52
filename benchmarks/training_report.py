"""Options, JSON, tables and the plot of benchmarks/training.py."""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import workloads

OUTPUT = Path(__file__).parent / "results" / "training-cpu.json"
MARKS = ("<!-- tables: begin -->", "<!-- tables: end -->")
Found = dict[str, Any]


def arguments(doc: str, contenders: list[str], shapes: Sequence[str], switches: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=shapes, default=list(workloads.SHAPES))
    parser.add_argument("--mixes", nargs="+", choices=list(workloads.MIXES), default=list(workloads.MIXES))
    parser.add_argument("--contenders", nargs="+", choices=contenders, default=contenders)
    parser.add_argument("--python", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="timed optimizer steps; default: a few, by shape and mix")
    parser.add_argument("--warm-up", type=int, help="steps before the clock starts; default: the timed ones once")
    parser.add_argument("--batch", type=int, default=8, help="examples per optimizer step")
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--to-loss", action="store_true")
    parser.add_argument("--sizes", type=int, nargs="+")
    parser.add_argument("--without", nargs="+", choices=switches, default=[])
    parser.add_argument("--compile", action="store_true", dest="compiled")
    parser.add_argument("--overhead", action="store_true")
    parser.add_argument("--markdown", nargs="?", const="-", metavar="FILE", help="FILE: put the tables into it")
    parser.add_argument("--plot", type=Path)
    return parser.parse_args()


def read(path: Path) -> Found:
    """What earlier runs have measured."""
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def write(options: argparse.Namespace, kind: str, found: Found) -> None:
    """Merge a section into the file; with it the machine and the versions it was measured with."""
    from finetune.files import atomic_write_text
    from finetune.provenance import now, versions

    every = read(options.output)
    names = ("rounds", "warm_up", "batch", "learning_rate", "seed", "device")
    conditions = {
        "machine": processor(options.device),
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
        "versions": versions(),
        "at": now(),
        **{name: getattr(options, name) for name in names},
    }
    section = every.setdefault(kind, {"results": {}})
    section.update(conditions)
    for key, value in found.items():
        merged = section["results"].get(key)
        section["results"][key] = {**merged, **value} if isinstance(merged, dict) and kind != "to_loss" else value
    options.output.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(options.output, json.dumps(every, indent=1) + "\n")


def processor(device: str) -> str:
    """Name of what computes."""
    if device == "cuda":
        import torch

        return str(torch.cuda.get_device_name())
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line for line in lines if line.startswith("model name")]
    flags = next((line for line in lines if line.startswith("flags")), "").split()
    kinds = [flag for flag in ("avx512_bf16", "amx_bf16") if flag in flags]
    name = names[0].partition(":")[2].strip() if names else platform.processor()
    return " ".join([f"{len(names)} cores of {name}", *kinds])


def show(options: argparse.Namespace) -> None:
    """Print the tables of the file as Markdown or put them between the marks of a file; draw them."""
    every = read(options.output)
    if options.plot:
        plot(every["mixes"], options.plot)
    if options.markdown == "-":
        print("\n".join(markdown(every)))
    elif options.markdown:
        page = Path(options.markdown)
        before, _, rest = page.read_text(encoding="utf-8").partition(MARKS[0])
        _, mark, after = rest.partition(MARKS[1])
        if not mark:
            raise SystemExit(f"{page} has no lines {MARKS[0]} and {MARKS[1]} for the tables to stand between")
        tables = "\n".join(markdown(every))
        page.write_text(f"{before}{MARKS[0]}\n\n{tables}\n{MARKS[1]}{after}", encoding="utf-8")


def markdown(every: Found) -> Iterator[str]:
    """Every section of the file as a table."""
    if "mixes" in every:
        yield from _mixes(every["mixes"])
    if "to_loss" in every:
        yield from _to_loss(every["to_loss"])
    if "sizes" in every:
        yield from _sizes(every["sizes"])
    for kind in ("without", "overhead"):
        if kind in every:
            yield from _variants(kind, every[kind])


def _conditions(section: Found) -> str:
    packages = ", ".join(f"{name} {number}" for name, number in section["versions"].items() if name != "finetune")
    rounds = f"{section['rounds']} round{'s' if section['rounds'] > 1 else ''}"
    machine = f"{section['machine']}, threads: {section['threads']}"
    return f"{machine}; {packages}; {section['batch']} examples a step; {rounds}; {section['at'][:10]}."


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(heads) + " |"
    yield "|---" * 1 + "|---:" * (len(heads) - 1) + "|"
    for row in rows:
        yield "| " + " | ".join([*row, *[""] * (len(heads) - len(row))]) + " |"
    yield ""


def _mixes(section: Found) -> Iterator[str]:
    heads = ("", "tokens/s", "finetune is", "trained tokens/s", "MiB above base", "finetune takes",
             "of square rate", "of shapes' rate", "held-out loss")  # fmt: skip
    yield _conditions(section)
    yield ""
    settings: dict[str, str] = {}
    for shape, mixes in section["results"].items():
        for mix, found in mixes.items():
            size, rates = f"{found['tokens_per_step']:,.0f} tokens", found["rates"]
            trained, steps = f"{found['trained_per_step']:,.0f} of them trained", found["steps"]
            giga = [f"{rates[f'{kind}_flops_per_s'] / 1e9:,.0f} GFLOP/s" for kind in ("square", "shapes")]
            yield f"**{shape}, {mix}**: {size} a step, {trained}; {steps} steps; {giga[0]} square, {giga[1]} its shapes"
            yield ""
            yield from _table(heads, [_mix_row(name, row) for name, row in found["contenders"].items()])
            kept = {name: row for name, row in found["contenders"].items() if isinstance(row, dict)}
            settings |= {name: f"{row['settings']}; {_versions(row)}" for name, row in kept.items()}
    yield from (f"- {name}: {text}" for name, text in settings.items())
    yield ""


def _versions(row: Found) -> str:
    names = ("trl", "llamafactory", "unsloth", "axolotl", "transformers", "peft")
    return ", ".join(f"{name} {row['versions'][name]}" for name in names if name in row["versions"])


def _mix_row(name: str, row: Found | str) -> list[str]:
    if isinstance(row, str):
        return [name, row]
    return [
        name, f"{row['tokens_per_s']:,.0f}", f"{row['finetune_is_times_as_fast']:.2f} x",
        f"{row['trained_tokens_per_s']:,.0f}", f"{row['peak_above_base_mib']:,.0f}",
        f"{row['finetune_takes_of_its_memory']:.2f} x", f"{row['utilisation_square']:.1%}",
        f"{row['utilisation_shapes']:.1%}", f"{row['heldout_loss']:.4f}",
    ]  # fmt: skip


def _to_loss(section: Found) -> Iterator[str]:
    found = section["results"]
    yield f"Training time to a held-out loss of {found['loss']:.3f} (tiny, pairs). {_conditions(section)}"
    yield ""
    rows = found["contenders"]
    ours = rows["finetune"]["seconds"]
    lines = [
        [name, row] if isinstance(row, str) else [name, f"{row['seconds']:.1f}", f"{row['seconds'] / ours:.2f} x"]
        for name, row in rows.items()
    ]
    yield from _table(("", "seconds", "finetune is"), lines)


def _sizes(section: Found) -> Iterator[str]:
    for shape, sizes in section["results"].items():
        yield f"Milliseconds a step, and seconds until the first step is done ({shape}, pairs). {_conditions(section)}"
        yield ""
        names = list(next(iter(sizes.values())))
        lines = []
        for name in names:
            cells = [found.get(name, "") for found in sizes.values()]
            both = [
                c if isinstance(c, str) else f"{1e3 * c['seconds_per_step']:,.0f}, {c['seconds_to_first_step']:.1f}"
                for c in cells
            ]
            lines.append([name, *both])
        yield from _table(("", *(f"{int(size):,} rows" for size in sizes)), lines)


def _variants(kind: str, section: Found) -> Iterator[str]:
    overhead = kind == "overhead"
    what = "Share of a step" if overhead else "Tokens/s and MiB above the base with one technique less"
    yield f"{what}. {_conditions(section)}"
    yield ""
    for shape, mixes in section["results"].items():
        rows = []
        for mix, found in mixes.items():
            for name, row in found["contenders"].items():
                rows.append([f"{mix}, {name}", *_variant_cells(row, overhead)])
        heads = ("forward", "backward", "optimizer", "everything else") if overhead else ("tokens/s", "x", "MiB")
        yield from _table((shape, *heads), rows)


def _variant_cells(row: Found | str, overhead: bool) -> list[str]:
    if isinstance(row, str):
        return [row]
    if overhead:
        return [f"{share:.1%}" for share in (*row["parts"].values(), 1 - sum(row["parts"].values()))]
    slower = 1 / row["finetune_is_times_as_fast"]
    return [f"{row['tokens_per_s']:,.0f}", f"{slower:.2f}", f"{row['peak_above_base_mib']:,.0f}"]


def plot(section: Found, path: Path) -> None:
    """Useful tokens per second: a panel for each shape, a group for each mix, a bar for each contender."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    results = section["results"]
    figure = Figure(figsize=(4.8 * len(results), 4.4), dpi=110, layout="constrained")
    names = list(dict.fromkeys(n for mixes in results.values() for f in mixes.values() for n in f["contenders"]))
    for number, (shape, mixes) in enumerate(results.items(), 1):
        axes = figure.add_subplot(1, len(results), number)
        measured = [n for n in names if any(isinstance(f["contenders"].get(n), dict) for f in mixes.values())]
        for place, name in enumerate(measured):
            rows = [found["contenders"].get(name) for found in mixes.values()]
            heights = [row["tokens_per_s"] if isinstance(row, dict) else 0.0 for row in rows]
            at = [group + 0.8 * (place - (len(measured) - 1) / 2) / len(measured) for group in range(len(mixes))]
            bars = axes.bar(at, heights, 0.76 / len(measured), label=name, color=f"C{names.index(name)}")
            axes.bar_label(bars, [f"{h:,.0f}" if h else "" for h in heights], rotation=90, padding=3, fontsize=7)
        axes.set_xticks(range(len(mixes)), list(mixes))
        axes.set_ylim(0, 1.16 * axes.get_ylim()[1])
        axes.set(title=shape, ylabel="useful tokens per second" if number == 1 else "")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.grid(True, axis="y", which="major", alpha=0.3)
        axes.set_axisbelow(True)
        if number == 1:
            axes.legend(fontsize=8, loc="best")
    figure.suptitle(f"{section['machine']}, {section['batch']} examples a step", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})
