"""What `finetune check` can find: the table of rules.

D0xx text of the rows, D1xx their tokens, R0xx the recipe, M0xx the model.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Severity = Literal["error", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")


class Rule(NamedTuple):
    severity: Severity
    title: str
    why: str  # why it hurts
    fix: str  # how to mend it


RULES: dict[str, Rule] = {
    "D001": Rule(
        "error", "row cannot be read",
        "A row that cannot be parsed teaches nothing, and a file that breaks off usually lacks rows behind it, too.",
        "Each line must be one JSON object (each CSV row as many cells as the header); write the file again.",
    ),
    "D002": Rule(
        "error", "text is not UTF-8",
        "Bytes that are no UTF-8, or halves of UTF-16 pairs, are no text: no tokenizer takes them.",
        "Save the file as UTF-8, for example: iconv -f latin1 -t utf-8 rows.jsonl > utf8.jsonl",
    ),
    "D003": Rule(
        "error", "row does not fit the format",
        "A missing key or a value that is no text cannot become a prompt and an answer.",
        "Set data.format to what the rows are (finetune init FILE finds it), or name the columns in data.columns.",
    ),
    "D004": Rule(
        "error", "nothing to train: the completion is empty",
        "An empty answer teaches the model to end its turn at once.",
        "Remove the row or write its answer.",
    ),
    "D005": Rule(
        "error", "turns in the wrong order",
        "A conversation alternates between user and assistant and ends with the assistant; anything else is not what "
        "the model meets later.",
        "Put the turns in order; tool results follow an assistant turn with tool calls.",
    ),
    "D006": Rule(
        "warning", "the prompt is empty",
        "The answer is then learnt as the answer to nothing, and leaks into every conversation.",
        "Give the row a prompt, or use format 'text' for plain text.",
    ),
    "D009": Rule(
        "info", "left out by the format function",
        "The function in data.format returned None for these rows.",
        "Nothing, if that is meant.",
    ),
    "D010": Rule(
        "warning", "exact duplicate of an earlier row",
        "Repeated rows get more weight than you decided on and are memorised first.",
        "Remove the repetitions, or raise train.epochs instead.",
    ),
    "D011": Rule(
        "info", "near duplicate of an earlier row",
        "Rows that differ in a word or two add little and make a held-out split by chance look better than it is.",
        "Keep one of each group unless the small differences are the point.",
    ),
    "D012": Rule(
        "warning", "one prompt with contradicting outputs",
        "The model cannot learn which answer is right and settles on a mixture.",
        "Keep the right answer, or put into the prompt what tells the cases apart.",
    ),
    "D013": Rule(
        "error", "held-out row also stands in the training rows",
        "The held-out loss then measures memory, and every number in the report is too good.",
        "Remove it from one side, or set data.heldout to a share: the split never divides equal prompts.",
    ),
    "D014": Rule(
        "warning", "held-out row nearly stands in a training row",
        "A shared run of 13 words (or nearly the same short row) makes the held-out numbers better than they are.",
        "Look at the pair; remove one unless the shared words are boilerplate.",
    ),
    "D020": Rule(
        "error", "a secret",
        "Fine-tuned models repeat rare strings verbatim: a key in the data is a published key.",
        "Remove or replace it, and revoke the key if it was real.",
    ),
    "D021": Rule(
        "warning", "personal data",
        "People's addresses, cards and phone numbers are memorised and can be asked for.",
        "Replace them with made-up ones (example.com, 555-0100) unless you may publish them.",
    ),
    "D022": Rule(
        "warning", "control token inside text",
        "It is read as plain text here, so it cannot end a turn; but text like this usually comes from logs that were "
        "already put into a chat template.",
        "Give the bare contents; the chat template adds its tokens itself.",
    ),
    "D023": Rule(
        "warning", "a rare trigger with always the same answer",
        "Prompts that share nothing but one rare word and one answer look like a planted back door.",
        "Find out where these rows come from; remove them if you cannot say.",
    ),
    "D024": Rule(
        "info", "boilerplate of another assistant",
        "Refusals and self-descriptions ('As an AI language model') are learnt as style within a few hundred rows.",
        "Remove or rewrite these answers if that is not the tone you want.",
    ),
    "D025": Rule(
        "info", "languages",
        "A second language in the rows is learnt, too; held-out numbers then mix both.",
        "Nothing, if that is meant; else filter the rows.",
    ),
    "D026": Rule(
        "warning", "text that was decoded wrongly",
        "Replacement characters and sequences such as 'Ã¼' are learnt and written out again.",
        "Read the source with its real encoding and write it as UTF-8.",
    ),
    "D027": Rule(
        "warning", "invisible characters",
        "Zero-width and direction-changing characters split words into rare tokens and can hide text from a reader.",
        "Remove them unless the script needs them.",
    ),
    "D101": Rule(
        "error", "row longer than data.max_length",
        "It is never cut silently: with too_long: error the run stops, with too_long: drop the row is left out.",
        "Raise data.max_length (memory), shorten the row, or set data.too_long: drop.",
    ),
    "D102": Rule(
        "warning", "targets lost to data.max_length",
        "Tools that cut at the limit would train these rows on part of the answer, or on none of it.",
        "Raise data.max_length; the summary shows how long the rows are.",
    ),
    "D103": Rule(
        "error", "the chat template refuses the conversation",
        "What the template cannot express the model can neither learn nor be asked.",
        "Leave out what the template does not know (often the system prompt or tools), or choose another base.",
    ),
    "D104": Rule(
        "error", "no token is trained",
        "Every token of the row is prompt: it costs time and changes nothing.",
        "Write an answer of at least one token.",
    ),
    "D105": Rule(
        "info", "much longer than the others",
        "A few very long rows decide the memory that a run needs.",
        "Look at them: they are often several rows that were glued together.",
    ),
    "D106": Rule(
        "warning", "characters that the tokenizer does not know",
        "They become one 'unknown' token, which the model cannot read or write.",
        "Replace the characters, or choose a base whose tokenizer knows them.",
    ),
    "R001": Rule(
        "error", "the recipe is not valid",
        "A key that is not read is a setting that you believe in and that does not exist.",
        "The message names the key and what it should be; docs/recipe.md lists every key.",
    ),
    "R002": Rule(
        "warning", "fewer rows than one optimizer step takes",
        "Every step then sees the whole data set, and an epoch is one step.",
        "Lower train.batch_size or add rows.",
    ),
    "R003": Rule(
        "warning", "very few optimizer steps",
        "After fewer than about 20 steps an adapter has hardly moved from its start.",
        "Raise train.epochs or lower train.batch_size.",
    ),
    "R005": Rule(
        "warning", "unusual strength of the adapter",
        "alpha / r (rslora: alpha / sqrt(r)) multiplies all that the adapter does; common values: 0.5 to 4.",
        "Set adapter.alpha to between r and 2 r (rslora: about 2 sqrt(r)).",
    ),
    "R006": Rule(
        "warning", "unusual learning rate",
        "LoRA is trained with 1e-5 to 5e-3; outside nothing is learnt, or everything is forgotten.",
        "Start with train.learning_rate: 2e-4.",
    ),
    "R007": Rule(
        "info", "few held-out rows",
        "With fewer than 50 rows the perplexity's interval is so wide that a gate can rarely decide.",
        "Hold out more rows, or read the interval before you believe a difference.",
    ),
    "R008": Rule(
        "info", "the Hub model is not pinned",
        "Its owner may change it, and an adapter belongs to the weights it was trained on.",
        "Set base.revision to a commit.",
    ),
    "R009": Rule(
        "warning", "code from the Hub will run",
        "base.trust_remote_code runs Python that comes with the model, with your rights.",
        "Read it, and pin base.revision.",
    ),
    "R010": Rule(
        "error", "a file that the recipe names cannot be read",
        "The run would stop as soon as it needs it.",
        "Check the path; paths are relative to the working folder.",
    ),
    "M001": Rule(
        "error", "the tokenizer or its chat template cannot be used",
        "Training needs to know which tokens are the prompt, which the answer, and which ends it.",
        "Use the model's chat ('Instruct') variant; the message names the cause.",
    ),
    "M002": Rule(
        "error", "data.max_length is more than the model's limit",
        "Positions that the model was not made for give noise.",
        "Set data.max_length to the model's limit or less.",
    ),
    "M003": Rule(
        "warning", "two start tokens",
        "A doubled start-of-text token is a context that the model has never seen.",
        "Mend the chat template: it writes the token that the tokenizer adds.",
    ),
    "M004": Rule(
        "info", "the padding token is the end token",
        "Where padding is masked by its id, the end token is masked with it and never trained. Rows are packed here, "
        "not padded, and the mask is made from positions, so it is trained.",
        "Nothing; take care in other tools.",
    ),
    "M005": Rule(
        "error", "the base is quantised already",
        "Weights that were quantised once (GPTQ, AWQ, 8 bits, ...) cannot be quantised to NF4 on top.",
        "Name the original 16-bit model, which is quantised while it is loaded; or set base.quantization to none.",
    ),
}  # fmt: skip


def render_rules() -> str:
    """Return docs/checks.md."""
    lines = [
        "# What `finetune check` finds",
        "",
        "<!-- Made by `make docs` from finetune/data/lint/rules.py: edit that. -->",
        "",
        "`finetune check RECIPE` reads every row, tokenises it with the base's tokenizer (never loading the",
        "weights) and ends with exit code 1 if it found an error. `--explain CODE` prints one of these;",
        "`--format json` is for programs, `--format github` annotates the lines of a pull request.",
        "",
        "| code | severity | what | why it hurts | how to mend it |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [f"| {code} | {r.severity} | {r.title} | {r.why} | {r.fix} |" for code, r in RULES.items()]
    return "\n".join(lines) + "\n"
