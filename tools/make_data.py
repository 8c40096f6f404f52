"""Write every data set that the project ships: `python tools/make_data.py [--out DIR]`."""

from __future__ import annotations

import argparse
from pathlib import Path

import data_offmenu
import data_orders
from data_files import skeleton_share, write_jsonl, write_readme, write_set, write_text
from data_general import general_rows
from data_items import sloppy
from data_menu import menu_yaml
from data_questions import Questions, hours, smalltalk
from data_readme import general_body, pizza_body, tone_body
from data_rows import Maker, Split, build
from data_tone_frames import CHEERFUL, GRUMPY, ToneFrames
from data_tones import Tone, plan

GENERAL_COUNTS = (750, 600)


def pizza_plan() -> list[tuple[Maker, tuple[int, int, int]]]:
    """Return the quotas of the pizza set: training, held-out and prompts per kind."""
    ask, careless, unsold = Questions(), Questions(), data_offmenu.Unsold()
    return [
        (data_orders.order, (850, 36, 36)),
        (sloppy(data_orders.order), (650, 22, 22)),
        (data_orders.multi, (1200, 40, 36)),
        (sloppy(data_orders.multi), (820, 16, 16)),
        (ask.price, (450, 24, 20)),
        (sloppy(careless.price), (140, 8, 6)),
        (ask.price_pair, (700, 14, 12)),
        (ask.price_sizes, (300, 8, 7)),
        (ask.menu, (300, 9, 8)),
        (sloppy(careless.menu), (110, 3, 3)),
        (ask.ingredients, (260, 8, 7)),
        (ask.have, (220, 8, 6)),
        (hours, (80, 4, 3)),
        (data_orders.change, (1150, 22, 18)),
        (sloppy(data_orders.change), (330, 6, 5)),
        (data_orders.delivery, (560, 14, 12)),
        (data_orders.pickup, (340, 12, 10)),
        (unsold.unavailable, (800, 16, 12)),
        (data_offmenu.off_topic, (500, 16, 12)),
        (smalltalk, (200, 5, 4)),
    ]


def write_pizza(folder: Path) -> Split:
    """Write the pizza set and its menu."""
    split = build(pizza_plan(), "pizza")
    write_text(folder / "menu.yaml", menu_yaml())
    write_set(folder, split)
    write_readme(folder, "Luna Pizza", pizza_body(split, skeleton_share(split.train)))
    return split


def write_tone(folder: Path, frames: ToneFrames, other: ToneFrames) -> Split:
    """Write the set of one tone, named like its folder."""
    split = build(plan(Tone(frames, other)), folder.name)
    write_set(folder, split)
    title = f"The {folder.name} assistant"
    write_readme(folder, title, tone_body(folder.name, split, skeleton_share(split.train)))
    return split


def write_general(folder: Path) -> None:
    """Write the general conversations."""
    for name, held, count in (("train", False, GENERAL_COUNTS[0]), ("heldout", True, GENERAL_COUNTS[1])):
        write_jsonl(folder / f"{name}.jsonl", general_rows(count, held))
    write_readme(folder, "General conversations", general_body(*GENERAL_COUNTS))


def main() -> None:
    """Write all four folders."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "data", help="folder to write to")
    out: Path = parser.parse_args().out
    splits = {
        "pizza": write_pizza(out / "pizza"),
        "cheerful": write_tone(out / "cheerful", CHEERFUL, GRUMPY),
        "grumpy": write_tone(out / "grumpy", GRUMPY, CHEERFUL),
    }
    write_general(out / "general")
    for name, split in splits.items():
        counts = f"{len(split.train)} training, {len(split.held)} held-out, {len(split.prompts)} prompts"
        print(f"{name}: {counts}, largest skeleton share {skeleton_share(split.train):.1%}")
    print(f"general: {GENERAL_COUNTS[0]} training, {GENERAL_COUNTS[1]} held-out")


if __name__ == "__main__":
    main()
