"""A byte-level BPE tokenizer of exactly a checkpoint's vocabulary, so that a server can serve the folder by itself."""

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIAL = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"]  # ids 0, 1, 2
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ 'User: ' + message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ 'Assistant: ' + message['content'] + eos_token }}"
    "{% else %}{{ message['content'] + '\n\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


CORPUS = (
    "A request comes in with a prompt, and the prompt is cut into tokens. One worker reads all of them at once and fills "
    "the pages of the cache; another takes the pages and writes the answer, one token after the other. What the first "
    "has read need not be read again: when the next question begins with the same words, the pages are still there. "
    "The answer is the same whether there is one worker or there are many, and whether the words were read before or not."
)


def write(folder, size):
    """Writes tokenizer.json (ids 0..size, each used) and tokenizer_config.json."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator([CORPUS], trainers.BpeTrainer(
        vocab_size=size, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    if tokenizer.get_vocab_size() != size:
        raise SystemExit(f"CORPUS gave {tokenizer.get_vocab_size()} tokens of {size}: make it longer")
    tokenizer.save(str(Path(folder, "tokenizer.json")), pretty=False)
    Path(folder, "tokenizer_config.json").write_text(json.dumps({
        "add_bos_token": True, "add_eos_token": False, "bos_token": SPECIAL[0], "eos_token": SPECIAL[1], "pad_token": SPECIAL[2],
        "chat_template": TEMPLATE, "clean_up_tokenization_spaces": False, "tokenizer_class": "PreTrainedTokenizerFast",
    }, indent=2, sort_keys=True) + "\n")
