"""A small transformer that continues Python's own help texts: `python -m examples.characters`.

The texts are those of `pydoc_data.topics` in the standard library, which differ between versions
of Python: the last tenth of them is for testing.
"""

import hashlib
import pydoc_data.topics

from examples.training import arguments, one_cycle, write

# isort: split
import keras
import numpy as np
from keras import layers, ops

SHA256 = "2a95af4ac93f5b719944030ce3769070ddf827d847cba42192afa8da989e5dc4"  # Of Python 3.11.7.
CONTEXT, WIDTH, HEADS, BLOCKS, BATCH = 64, 128, 4, 3, 64


def texts():
    """All topics one after another, as numbers of characters, and how many characters there are."""
    topics = pydoc_data.topics.topics
    text = "\n".join(topics[name] for name in sorted(topics))
    digest = hashlib.sha256(text.encode()).hexdigest()
    same = "as recorded" if digest == SHA256 else f"other than the recorded {SHA256}"
    print(f"{len(text)} characters, sha256 {digest}, {same}")
    alphabet = sorted(set(text))
    numbers = {character: number for number, character in enumerate(alphabet)}
    return np.array([numbers[character] for character in text], np.int32), len(alphabet)


def network(characters):
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


def windows(numbers, starts):
    """Contexts that begin at `starts`, and the character that follows each of theirs."""
    rows = numbers[starts[:, None] + np.arange(CONTEXT + 1)]
    return rows[:, :-1], rows[:, 1:]


if __name__ == "__main__":
    args = arguments(epochs=10)
    keras.utils.set_random_seed(0)
    numbers, characters = texts()
    split, rng = int(0.9 * len(numbers)), np.random.default_rng(0)
    steps = args.steps or split // (BATCH * CONTEXT // 4)
    model = network(characters)
    model.compile(
        keras.optimizers.AdamW(one_cycle(2e-3, args.epochs * steps), weight_decay=0.01),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=False,
    )
    for _ in range(args.epochs):
        starts = rng.integers(split - CONTEXT, size=steps * BATCH)
        model.fit(*windows(numbers, starts), BATCH, verbose=2)
    x, y = windows(numbers, np.arange(split, len(numbers) - CONTEXT - 1, CONTEXT))
    print("test", model.evaluate(x, y, batch_size=BATCH, verbose=0))
    write(model, "characters", args.out, x, y)
