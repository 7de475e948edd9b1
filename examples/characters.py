"""A small transformer that continues Python's own help texts: `python -m examples.characters`.

The texts are those of `pydoc_data.topics` in the standard library, which differ between versions
of Python: the last tenth of them is for testing.
"""

import hashlib
import itertools
import pydoc_data.topics

from examples import arguments, command

if __name__ == "__main__":
    # Before TensorFlow is imported, which takes seconds.
    ARGS = arguments("characters", epochs=3)

from examples.training import one_cycle, train

# isort: split
import keras
import numpy as np
from keras import layers, ops

SHA256 = "2a95af4ac93f5b719944030ce3769070ddf827d847cba42192afa8da989e5dc4"  # Of Python 3.11.7.
CONTEXT, WIDTH, HEADS, BLOCKS, BATCH = 64, 128, 4, 3, 64
# Between the starts of two contexts: for training, validation and testing.
STRIDES = 20, CONTEXT, CONTEXT


def texts() -> tuple[np.ndarray, int]:
    """All topics one after another, as numbers of characters, and how many characters there are."""
    topics = pydoc_data.topics.topics
    text = "\n".join(topics[name] for name in sorted(topics))
    digest = hashlib.sha256(text.encode()).hexdigest()
    same = "as recorded" if digest == SHA256 else f"other than the recorded {SHA256}"
    print(f"{len(text)} characters, sha256 {digest}, {same}")
    alphabet = sorted(set(text))
    numbers = {character: number for number, character in enumerate(alphabet)}
    return np.array([numbers[character] for character in text], np.int32), len(alphabet)


def network(characters: int) -> keras.Model:
    tokens = keras.Input((CONTEXT,), dtype="int32")
    places = ops.cumsum(ops.ones_like(tokens), axis=1) - 1
    x = layers.Embedding(characters, WIDTH, name="letters")(tokens)
    x = x + layers.Embedding(CONTEXT, WIDTH, name="places")(places)
    for number in range(1, BLOCKS + 1):
        y = layers.LayerNormalization()(x)
        attention = layers.MultiHeadAttention(HEADS, WIDTH // HEADS, name=f"attention_{number}")
        x = x + attention(y, y, use_causal_mask=True)
        y = layers.LayerNormalization()(x)
        y = layers.Dense(4 * WIDTH, activation="gelu", name=f"wide_{number}")(y)
        x = x + layers.Dense(WIDTH, name=f"narrow_{number}")(y)
    scores = layers.Dense(characters, name="scores")(layers.LayerNormalization()(x))
    return keras.Model(tokens, scores, name="characters")


def windows(numbers: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Contexts that begin at `starts`, and the character that follows each of theirs."""
    rows = numbers[starts[:, None] + np.arange(CONTEXT + 1)]
    return rows[:, :-1], rows[:, 1:]


def adamw(steps: int) -> keras.optimizers.Optimizer:
    return keras.optimizers.AdamW(one_cycle(2e-3, steps), weight_decay=0.01)


if __name__ == "__main__":
    with command("characters"):
        numbers, alphabet = texts()
        # Eight tenths of the text are for training, a tenth each for validation and testing.
        ends = [int(share * len(numbers)) for share in (0, 0.8, 0.9, 1)]
        data = []
        for (first, end), stride in zip(itertools.pairwise(ends), STRIDES, strict=True):
            data += windows(numbers, np.arange(first, end - CONTEXT, stride))
        train(lambda: network(alphabet), data, ARGS, adamw, BATCH)
